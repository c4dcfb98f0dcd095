"""Kills a training run at random moments and compares the result with an undisturbed run.

    python -m benchmarks.kill.train --kills 20

Each start of the run gets another number of loader threads and one or two processes, which share
the same mesh of two devices. SIGKILL ends it while it starts, between steps, or while it saves. Up
to three times a bit of the newest checkpoint is flipped as well, if there is an older one. At the
end, every array of the last checkpoint must equal that of the undisturbed run bit for bit, and the
logged batch ids must be the same list.
"""

import argparse
import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.ports import held_port
from benchmarks.results import save
from dsd_jax.checkpoint import OrbaxSource
from dsd_jax.data.pairs.record import PairRecord, png_bytes
from dsd_jax.data.pairs.writer import PairWriter
from dsd_jax.runs import MANIFEST, steps_of
from dsd_jax.toy.making.random_pipeline import write_random_pipeline

SECTIONS = {
    "": (
        "Killed and resumed training",
        "A training run killed at random moments and resumed.",
    ),
}

PAIRS, BATCH, SAVE_EVERY = 24, 8, 3
THREADS = (0, 1, 4, 16)
FLIPS = 3


@dataclasses.dataclass
class World:
    """The files of the run."""

    folder: Path
    steps: int

    def command(self, output: Path, threads: int) -> list[str]:
        """`dsd train` on a model and canvas of toy size."""
        flags = {
            "data": self.folder / "pairs",
            "base_path": self.folder / "flux",
            "output_dir": output,
            "steps": self.steps,
            "batch_size": BATCH,
            "height": 32,
            "width": 64,
            "mesh.data": 2,
            "optimizer.ema": 0.9,
            "save_every": SAVE_EVERY,
            "log_every": 1,
            "threads": threads,
        }
        words = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
        return [sys.executable, "-m", "dsd_jax", "train", "tiny", *words, "--no_tensorboard"]

    def start(self, output: Path, threads: int, processes: int) -> list[subprocess.Popen[bytes]]:
        """Starts the run, as one process with two devices or two processes with one each."""
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={2 // processes}",
            "JAX_COMPILATION_CACHE_DIR": str(self.folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        words = self.command(output, threads)
        with held_port() as held, (self.folder / "log.txt").open("ab") as log:
            if processes > 1:
                address = f"localhost:{held.getsockname()[1]}"
                words += ["--coordinator_address", address, "--num_processes", str(processes)]
            return [
                subprocess.Popen(
                    words if processes == 1 else [*words, "--process_id", str(number)],
                    env=environment,
                    stdout=log,
                    stderr=log,
                    pass_fds=[held.fileno()],  # the processes hold the port as long as they live
                )
                for number in range(processes)
            ]


def write_world(folder: Path, steps: int) -> World:
    """A random pipeline and random pairs."""
    write_random_pipeline(folder / "flux")
    rng = np.random.default_rng(0)
    from PIL import Image

    with PairWriter(folder / "pairs") as writer:
        for number in range(PAIRS):
            reference, target = (
                png_bytes(Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)))
                for _ in range(2)
            )
            writer.add(
                PairRecord.from_images(
                    id=f"pair-{number}",
                    reference=reference,
                    target=target,
                    caption=f"a red cat, number {number}",
                )
            )
    return World(folder, steps)


def logged(output: Path) -> int:
    """Last step whose batch was logged."""
    path = output / "batch_ids.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def saving(output: Path) -> bool:
    """Whether a checkpoint is being written."""
    root = output / "checkpoints"
    folders = [p for p in root.glob("[0-9]*") if p.name.isdigit()] if root.exists() else []
    return any(not (folder / MANIFEST).exists() for folder in folders)


def kill(processes: list[subprocess.Popen[bytes]], rng: random.Random) -> None:
    """SIGKILL to all of them, not at the same moment."""
    for process in rng.sample(processes, len(processes)):
        process.send_signal(signal.SIGKILL)
        time.sleep(rng.uniform(0, 0.2))
    for process in processes:
        process.wait()


def wait_for(done: list[subprocess.Popen[bytes]], moment: object, limit: float = 300.0) -> bool:
    """Waits until `moment()` is true; False if a process ended first."""
    assert callable(moment)
    deadline = time.monotonic() + limit
    while not moment():
        if any(process.poll() is not None for process in done):
            return False
        if time.monotonic() > deadline:
            raise SystemExit("the run takes no further step; see log.txt")
        time.sleep(0.002)
    return True


def start_and_kill(
    world: World, output: Path, rng: random.Random, moment: str
) -> dict[str, object]:
    """Starts the run and kills it at a random moment of the given kind."""
    threads, processes = rng.choice(THREADS), rng.choice((1, 2))
    begun = logged(output)
    from_step = max(steps_of(output / "checkpoints"), default=0)
    started = world.start(output, threads, processes)
    if moment == "start":
        time.sleep(rng.uniform(0.5, 6))
    else:
        # Each start must take a new step first, or the run would never end.
        ahead = from_step + rng.randint(1, 2 * SAVE_EVERY)
        wait_for(started, lambda: logged(output) >= ahead and _fresh(output, begun, from_step))
        if moment == "save":
            wait_for(started, lambda: saving(output))
            time.sleep(rng.uniform(0, 0.15))
        else:
            time.sleep(rng.uniform(0, 1.0))
    during = "save" if saving(output) else moment if moment == "start" else "step"
    if all(process.poll() == 0 for process in started):
        during = "end"
    kill(started, rng)
    return {
        "processes": processes,
        "threads": threads,
        "newest checkpoint": from_step,
        "killed at": logged(output),
        "during": during,
    }


def _fresh(output: Path, begun: int, from_step: int) -> bool:
    """Whether this start has logged a step of its own, and not just found older ones."""
    count = logged(output)
    return count != begun or count == from_step


def flip(output: Path, rng: random.Random) -> int | None:
    """Flips a bit of the newest checkpoint; returns its step."""
    steps = steps_of(output / "checkpoints")
    if len(steps) < 2:
        return None
    folder = output / "checkpoints" / f"{steps[-1]:08d}"
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.stat().st_size)
    path = rng.choice(files)
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    return steps[-1]


def compare(alone: Path, killed: Path, steps: int) -> dict[str, object]:
    """The differences of the two runs."""
    one, two = (
        OrbaxSource(str(output / "checkpoints" / f"{steps:08d}" / "state"))
        for output in (alone, killed)
    )
    different = [
        name
        for name in one.shapes
        if not np.array_equal(one.read(name, ()), two.read(name, ()), equal_nan=True)
    ]
    rows = [
        [json.loads(line) for line in (output / "batch_ids.jsonl").read_text().splitlines()]
        for output in (alone, killed)
    ]
    per_epoch = PAIRS // BATCH
    epochs = [rows[1][i : i + per_epoch] for i in range(0, steps - steps % per_epoch, per_epoch)]
    whole = all(
        sorted(name for row in epoch for name in row["ids"])
        == sorted(f"pair-{number}" for number in range(PAIRS))
        for epoch in epochs
    )
    return {
        "arrays": len(one.shapes),
        "arrays that differ": len(different) + (one.shapes != two.shapes),
        "logged ids equal": rows[0] == rows[1],
        "every pair once per epoch": whole,
        "steps logged": len(rows[1]),
    }


def main() -> None:
    """Runs the benchmark; it takes some minutes on two cores."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="kept afterwards; default: a temporary one")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    steps = (arguments.kills + 4) * SAVE_EVERY // PAIRS * PAIRS + PAIRS
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="kill-"))
    folder.mkdir(parents=True, exist_ok=True)
    world = write_world(folder, steps)
    alone, killed = folder / "alone", folder / "killed"
    start = time.monotonic()
    (process,) = world.start(alone, threads=16, processes=1)
    if process.wait():
        raise SystemExit(f"the undisturbed run failed; see {folder / 'log.txt'}")
    seconds = time.monotonic() - start

    rows: list[dict[str, object]] = []
    flips = rng.sample(range(2, arguments.kills), min(FLIPS, max(arguments.kills - 2, 0)))
    for number in range(arguments.kills):
        moment = ("step", "save", "start", "save")[number % 4]
        row = start_and_kill(world, killed, rng, moment)
        flipped = flip(killed, rng) if number in flips else None
        rows.append({"start": number + 1, **row, "bit flipped in": flipped or ""})
        print(rows[-1], flush=True)
    last = rng.choice((1, 2))
    begun = max(steps_of(killed / "checkpoints"), default=0)
    survivors = world.start(killed, rng.choice(THREADS), last)
    if any(list(map(subprocess.Popen.wait, survivors))):
        raise SystemExit(f"the last start failed; see {folder / 'log.txt'}")
    rows.append(
        {
            "start": len(rows) + 1,
            "processes": last,
            "threads": "",
            "newest checkpoint": begun,
            "killed at": "",
            "during": "not killed",
            "bit flipped in": "",
        }
    )
    found = compare(alone, killed, steps)
    fallbacks = (folder / "log.txt").read_text(errors="replace").count("is damaged: ")
    save(
        __file__,
        rows,
        steps=steps,
        save_every=SAVE_EVERY,
        seconds_left_alone=round(seconds, 1),
        seconds_killed=round(time.monotonic() - start - seconds, 1),
        damaged_checkpoints_found=fallbacks,
        **found,
    )
    for name, value in (found | {"damaged checkpoints found": fallbacks}).items():
        print(f"{name}: {value}")
    if arguments.folder is None:
        shutil.rmtree(folder)
    good = not found["arrays that differ"] and found["logged ids equal"]
    if not (good and found["every pair once per epoch"]):
        raise SystemExit("the killed run differs from the undisturbed run")


if __name__ == "__main__":
    main()
