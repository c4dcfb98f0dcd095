"""Kills `dsd batch` at random moments and starts it again until it is done.

    python -m benchmarks.kill.batch [--rows 30] [--kills 6] [--seed 0]

A small random pipeline makes the images of a manifest twice: once undisturbed, and once with
SIGKILL at random moments, some before the first image of a process, most between or within images.
One row is broken. At the end every other row must have one image and one line of results, with the
pixels of the undisturbed run; an image that was there when a process died must be the same file.
"""

import argparse
import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.results import save
from dsd_jax.toy.making.random_pipeline import SMALL, write_random_pipeline

__all__ = ["kill_and_restart"]

SECTIONS = {
    "": (
        "Killed and restarted batches",
        "`dsd batch` killed at random moments and started again until it was done.",
    ),
}

CONFIG = dataclasses.replace(
    SMALL, transformer=dataclasses.replace(SMALL.transformer, condition_embed=True)
)
BROKEN = "broken"
FLAGS = "--height 128 --width 256 --steps 8 --dtype float32 --mesh.data 1".split()
PATIENCE_S = 600.0  # without a new image


def write_manifest(folder: Path, rows: int) -> Path:
    """Rows with three references, two sets of settings, and one reference that does not exist."""
    rng = np.random.default_rng(0)
    for i in range(3):
        pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((96, 80)).save(folder / f"{i}.png")
    entries: list[dict[str, Any]] = [
        {
            "id": f"row{i:03d}",
            "text": f"a cat on chair {i}",
            "image": f"{i % 3}.png",
            "seed": i,
            "guidance": 3.5 if i % 2 else 1.5,
        }
        for i in range(rows)
    ]
    entries.insert(rows // 2, {"id": BROKEN, "text": "a cat", "image": "none.png"})
    path = folder / "rows.jsonl"
    path.write_text("".join(f"{json.dumps(entry)}\n" for entry in entries))
    return path


def start(folder: Path, output: Path) -> subprocess.Popen[bytes]:
    """A run in a process of its own; compiled programs are kept from one to the next."""
    own = {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "programs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XLA_FLAGS": "",
    }
    places = ["--base_path", str(folder / "flux"), "--output_dir", str(output)]
    command = [sys.executable, "-m", "dsd_jax", "batch", str(folder / "rows.jsonl"), *places]
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            [*command, *FLAGS],
            env={"JAX_PLATFORMS": "cpu", **os.environ, **own},
            stdout=log,
            stderr=log,
        )


def images(output: Path) -> dict[str, tuple[int, int]]:
    """Every finished image, with values that change if its file is replaced."""
    stats = {path.stem: path.stat() for path in output.glob("*.png")}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in stats.items()}


def finish(process: subprocess.Popen[bytes], folder: Path) -> None:
    status = process.wait(PATIENCE_S)
    if status != 1:  # the broken row
        raise SystemExit(f"status {status}:\n{(folder / 'log').read_text()[-3000:]}")


def kill_soon(process: subprocess.Popen[bytes], output: Path, rng: random.Random) -> bool:
    """SIGKILL after a random number of new images and a random wait; False if it ended before."""
    wanted = len(images(output)) + rng.choice((0, 1, 2, 3, 5))
    deadline = time.monotonic() + PATIENCE_S
    while len(images(output)) < wanted and process.poll() is None:
        if time.monotonic() > deadline:
            raise SystemExit("no new image; see the log")
        time.sleep(0.002)
    time.sleep(rng.uniform(0, 0.4))
    if process.poll() is not None:
        return False
    process.send_signal(signal.SIGKILL)
    process.wait()
    return True


def lines_of(output: Path) -> list[dict[str, Any]]:
    text = (output / "results.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def same_pixels(first: Path, second: Path) -> bool:
    with Image.open(first) as a, Image.open(second) as b:
        return np.array_equal(np.asarray(a), np.asarray(b))


def kill_and_restart(folder: Path, rows: int, kills: int, seed: int = 0) -> dict[str, Any]:
    """Counts of the outcome; `folder` is empty."""
    rng = random.Random(seed)
    write_random_pipeline(folder / "flux", CONFIG)
    write_manifest(folder, rows)
    calm, disturbed = folder / "calm", folder / "disturbed"
    finish(start(folder, calm), folder)

    killed = rewritten = 0
    seen: dict[str, tuple[int, int]] = {}
    process = start(folder, disturbed)
    while killed < kills and kill_soon(process, disturbed, rng):
        killed += 1
        now = images(disturbed)
        rewritten += sum(now.get(name) != file for name, file in seen.items())
        seen = now
        process = start(folder, disturbed)
    finish(process, folder)
    finish(start(folder, disturbed), folder)  # nothing left to do
    last = images(disturbed)
    rewritten += sum(last.get(name) != file for name, file in seen.items())

    lines = lines_of(disturbed)
    made = [line["id"] for line in lines if line["status"] == "ok"]
    wanted = {f"row{i:03d}" for i in range(rows)}
    complete = [name for name in sorted(wanted) if (disturbed / f"{name}.png").exists()]
    identical = sum(
        same_pixels(calm / f"{name}.png", disturbed / f"{name}.png") for name in complete
    )
    others = {path.name for path in disturbed.iterdir()} - {f"{name}.png" for name in wanted}
    return {
        "kills": killed,
        "rows": rows,
        "images": len(complete),
        "missing": rows - len(complete),
        "lines": len(made),
        "twice": len(made) - len(set(made)) + rewritten,
        "errors": sum(line["id"] == BROKEN for line in lines),
        "left over": len(others - {"results.jsonl", "sheet.jpg"}),
        "identical": identical,
    }


def main() -> None:
    """Runs it, prints the table, saves it, and fails if a count is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=30)
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = kill_and_restart(Path(folder), arguments.rows, arguments.kills, arguments.seed)
    save(__file__, [result], seed=arguments.seed)
    expected = {
        "images": arguments.rows,
        "lines": arguments.rows,
        "twice": 0,
        "errors": 1,
        "left over": 0,
        "identical": arguments.rows,
    }
    if any(result[name] != value for name, value in expected.items()):
        raise SystemExit(f"expected {expected}")


if __name__ == "__main__":
    main()
