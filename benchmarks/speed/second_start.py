"""The time of a command's first start, which compiles, and of its second, which need not.

    python -m benchmarks.speed.second_start [--repeats 3]

Every start is a new process on the toy weights. `dsd` keeps compiled programs on disk
(`dsd_jax.compiled`); here the first start finds none, and the second those of the first. Rows are
medians over repeats, each with an empty folder for the programs.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.results import save

SECTIONS = {
    "": (
        "Second start",
        "Seconds of a whole command on the toy weights. Second start: programs are on disk.",
    ),
}

TOY = "--base_path", "toy"
FLOAT32 = "--dtype", "float32"
PAIRS = 16


def seconds(words: Sequence[str], cache: Path | None) -> float:
    """Runs `dsd` with a folder for compiled programs, or with none."""
    place = ["--compilation_cache", str(cache or "off")]
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "dsd_jax", *words, *place],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    return time.perf_counter() - start


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
    (folder / "batch.jsonl").write_text('{"text": "a red star on sea", "steps": 4}\n')


def commands(folder: Path, number: int) -> dict[str, list[str]]:
    """The commands that are started, each with a new output."""
    out = str(folder / f"out-{number}")
    return {
        "dsd generate": ["generate", "--text", "a red star on sea", *TOY, *FLOAT32, "--steps", "4",
                         "--output_path", f"{out}.png"],
        "dsd batch": ["batch", str(folder / "batch.jsonl"), *TOY, *FLOAT32, "--output_dir",
                      f"{out}-batch"],
        "dsd train toy_student": ["train", "toy_student", "--data", str(folder / "pairs"),
                                  "--steps", "1", "--eval_every", "0", "--max_sequence_length",
                                  "16", "--output_dir", f"{out}-run"],
    }  # fmt: skip


def main() -> None:
    """Starts, times, prints, saves."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    times: dict[str, list[tuple[float, float, float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(folder)
        number = 0
        for repeat in range(repeats):
            for command in commands(folder, 0):
                cache = folder / f"cache-{repeat}-{number}"
                measured = []
                for place in (None, cache, cache):
                    number += 1
                    measured.append(seconds(commands(folder, number)[command], place))
                none, first, second = measured
                times.setdefault(command, []).append((none, first, second))
                print(command, measured, flush=True)
    rows = []
    for command, all_ in times.items():
        none, first, second = (statistics.median(column) for column in zip(*all_, strict=True))
        rows.append(
            {
                "command": command,
                "no cache": round(none, 1),
                "first start": round(first, 1),
                "second start": round(second, 1),
                "saved": f"{100 * (1 - second / none):.0f} %",
            }
        )
    save(__file__, rows, repeats=repeats)


if __name__ == "__main__":
    main()
