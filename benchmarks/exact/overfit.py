"""Trains a toy-size model from scratch on eight pairs and samples them: do the targets come back?

    python -m benchmarks.exact.overfit [--steps 600]

Eight pairs of the toy world through `dsd train` and its validation grid. The figure compares every
sampled target with its own target and with the other seven, as a mean difference of pixels (0 to
255): an overfitted model is far nearer to its own. The grid is written to `docs/overfit.png`, a row
per
pair: reference, target, and both frames as sampled.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.results import save
from dsd_jax.cli import main as dsd
from dsd_jax.data.pairs.record import PairRecord, png_bytes
from dsd_jax.data.pairs.writer import PairWriter
from dsd_jax.toy.folder import toy_flux_path
from dsd_jax.toy.score import make_cases
from dsd_jax.toy.world import PANEL
from dsd_jax.train.sheet import cells

SECTIONS = {
    "": (
        "Eight pairs, overfitted",
        """Mean difference of pixels (0 to 255) between each sampled target and its own target,
and the nearest of the other seven. The pictures: [overfit.png](overfit.png).""",
    ),
}

PAIRS = 8
FIGURE = Path(__file__).parents[2] / "docs" / "overfit.png"


def write_pairs(folder: Path) -> None:
    """Eight subjects, each in two scenes."""
    with PairWriter(folder) as writer:
        for case in make_cases(PAIRS, held_out=False):
            reference, target = (
                png_bytes(Image.fromarray(picture)) for picture in (case.reference(), case.ideal())
            )
            writer.add(
                PairRecord.from_images(
                    id=case.id, reference=reference, target=target, caption=case.text
                )
            )


def differences(grid: np.ndarray) -> np.ndarray:
    """Mean difference of every sampled target (rows) from every target (columns), `[8, 8]`.

    `grid` holds the pictures of a sheet, `[8, 4, h, w, 3]`.
    """
    targets, sampled = grid[:, 1].astype(float), grid[:, 3].astype(float)
    return np.abs(sampled[:, None] - targets[None]).mean((2, 3, 4))


def main() -> None:
    """About three minutes on two cores."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--base_path", type=Path, default=None)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="overfit-"))
    write_pairs(folder / "pairs")
    flags = {
        "data": folder / "pairs",
        "eval_data": folder / "pairs",
        "base_path": arguments.base_path or toy_flux_path(),
        "output_dir": folder / "run",
        "steps": arguments.steps,
        "batch_size": PAIRS,
        "height": PANEL,
        "width": 2 * PANEL,
        "eval_every": arguments.steps,
        "eval_pairs": PAIRS,
        "eval_samples": PAIRS,
        "optimizer.learning_rate": 1e-3,
        "optimizer.warmup": 20,
        "optimizer.ema": 0.98,
        "dropout.text": 0,
        "dropout.image": 0,
        "dropout.both": 0,
    }
    words = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
    if dsd(["train", "toy", *words, "--from_scratch", "--no_tensorboard"]):
        raise SystemExit(1)
    figure = folder / "run" / "samples" / f"{arguments.steps:08d}.png"
    found = differences(cells(figure))
    shutil.copy(figure, FIGURE)
    rows = [
        {
            "pair": number,
            "from its own target": round(float(row[number]), 1),
            "from the nearest other": round(float(np.delete(row, number).min()), 1),
        }
        for number, row in enumerate(found)
    ]
    save(__file__, rows, steps=arguments.steps)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
