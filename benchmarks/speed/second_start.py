"""Time of a command's first start, which compiles, and of its second, which need not.

    python -m benchmarks.speed.second_start [--repeats 3]

Every start is a new process on the toy weights. `dsd` keeps compiled programs on disk
(`dsd_jax.compiled`); the first start finds none, and the second those of the first. Times are those
of the CPU, which other programs on the machine disturb least; medians over repeats.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.results import save

SECTIONS = {
    "": (
        "Second start",
        "CPU seconds of a command on the toy weights; the second start finds its programs on disk.",
    ),
}

SAMPLING = (
    "--base_path",
    "toy",
    "--dtype",
    "float32",
    "--steps",
    "2",
    "--height",
    "32",
    "--width",
    "32",
)
TEXT = "--max_sequence_length", "16"
PAIRS = 16


def cpu_seconds(words: Sequence[str], cache: Path) -> float:
    """Runs `dsd` with a folder for compiled programs; returns the seconds of all its threads."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-m", "dsd_jax", *words, "--compilation_cache", cache],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def write_data(folder: Path) -> None:
    """Writes a reference, a manifest, and a dataset of pairs of noise."""
    random = np.random.default_rng(0)
    lines = []
    for number in range(PAIRS):
        for role in ("reference", "target"):
            pixels = random.integers(0, 255, (32, 32, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{role}-{number}.png")
        lines.append(
            f'{{"reference": "reference-{number}.png", "target": "target-{number}.png", '
            '"caption": "a red star"}\n'
        )
    (folder / "pairs.jsonl").write_text("".join(lines))
    subprocess.run(
        [sys.executable, "-m", "dsd_jax", "data", "import", folder / "pairs.jsonl",
         folder / "pairs"],
        check=True, capture_output=True,
    )  # fmt: skip
    (folder / "batch.jsonl").write_text('{"text": "a red star on sea"}\n')


def commands(folder: Path, number: int) -> dict[str, list[str]]:
    """The commands that are started, each with a new output."""
    out = str(folder / f"out-{number}")
    return {
        "dsd generate": ["generate", "--text", "a red star on sea", *SAMPLING, *TEXT,
                         "--output_path", f"{out}.png"],
        "dsd batch": ["batch", str(folder / "batch.jsonl"), *SAMPLING, *TEXT, "--output_dir",
                      f"{out}-batch"],
        "dsd train toy_student": ["train", "toy_student", "--data", str(folder / "pairs"),
                                  "--steps", "1", "--eval_every", "0", *TEXT, "--output_dir",
                                  f"{out}-run"],
    }  # fmt: skip


def main() -> None:
    """Starts, times, prints, saves."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=1)
    repeats = parser.parse_args().repeats
    times: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(folder)
        for repeat in range(repeats):
            first, second = (commands(folder, 2 * repeat + start) for start in range(2))
            for command in first:
                cache = folder / f"cache-{repeat}-{command.replace(' ', '-')}"
                took = cpu_seconds(first[command], cache), cpu_seconds(second[command], cache)
                times.setdefault(command, []).append(took)
                print(command, took, flush=True)
    rows = []
    for command, all_ in times.items():
        one, two = (statistics.median(column) for column in zip(*all_, strict=True))
        rows.append(
            {
                "command": command,
                "first start, CPU s": round(one, 1),
                "second start, CPU s": round(two, 1),
                "saved": f"{100 * (1 - two / one):.0f} %",
            }
        )
    save(
        __file__,
        rows,
        repeats=repeats,
        pixels=32,
        text_tokens=16,
        sampling_steps=2,
        training_steps=1,
    )


if __name__ == "__main__":
    main()
