"""Measures the check of grids on drawn pictures with known faults.

    python -m benchmarks.grids.check [--repeats 1] [--seed 13] [--failures FOLDER]

It draws every kind in every style at six sizes from 64 to 1024 pixels. A picture passes rightly if
it is good and each box lies in its panel and covers most of it. `--failures` writes wrongly judged
pictures as PNG files.
"""

import argparse
import collections
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from PIL import ImageDraw

from benchmarks.grids.scenes import FAULTS, GOOD, STYLES, Drawn, draw
from benchmarks.results import save
from dsd_jax.data.make.panels import Panels, find_panels

__all__ = ["drawn", "fits", "named_rightly"]

SECTIONS = {
    "": (
        "The check of grids",
        """Drawn 2x2 grids in six styles at six sizes: good ones, and ones with a known fault.
Rows of one kind: *accepted* counts accepted grids; *recall* is the share judged rightly (a good
grid with each box inside its panel, a fault by its name); *precision* is the share of grids given
the name of the kind that were of that kind. Rows of sizes, styles and all: *recall* is the share
of good grids accepted and cut rightly; *precision* is the share of accepted grids that were good
and cut rightly. The check was tuned on other seeds.""",
    ),
}

SIZES = (64, 128, 256, 512, 768, 1024)


def drawn(repeats: int, seed: int, sizes: tuple[int, ...] = SIZES) -> Iterator[tuple[int, Drawn]]:
    """Draws pictures; each depends only on its own numbers.

    There are twice as many of each good kind, so that good and bad ones are about equally many.
    """
    for size in sizes:
        for i, kind in enumerate([*GOOD, *FAULTS]):
            for j, style in enumerate(STYLES):
                for repeat in range(repeats * (2 if kind in GOOD else 1)):
                    rng = np.random.default_rng([seed, size, i, j, repeat])
                    yield size, draw(kind, style, size, rng)


def fits(found: Panels, picture: Drawn) -> bool:
    """Whether each box lies in its panel and covers at least four fifths of its sides."""
    if not found.boxes:
        return False
    for (left, top, right, bottom), (l, t, r, b) in zip(found.boxes, picture.panels, strict=True):
        if left < l or top < t or right > r or bottom > b:
            return False
        if right - left < 0.8 * (r - l) or bottom - top < 0.8 * (b - t):
            return False
    return True


def named_rightly(found: Panels, picture: Drawn) -> bool:
    """Whether the verdict is right, with boxes that fit or the reason."""
    if picture.kind in GOOD:
        return not found.reason and fits(found, picture)
    return found.reason in FAULTS[picture.kind]


def main() -> None:
    """Runs it, prints a row per kind, per size and overall, and saves them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--seed", type=int, default=13)
    parser.add_argument("--failures", type=Path)
    arguments = parser.parse_args()
    results = []
    seconds: dict[int, list[float]] = collections.defaultdict(list)
    for number, (size, picture) in enumerate(drawn(arguments.repeats, arguments.seed)):
        start = perf_counter()
        found = find_panels(picture.image)
        seconds[size].append(perf_counter() - start)
        results.append((size, picture.kind, picture.style, found, picture))
        if arguments.failures and not named_rightly(found, picture):
            _write(arguments.failures, number, size, picture, found)
    rows = [_row(kind, [r for r in results if r[1] == kind], results) for kind in [*GOOD, *FAULTS]]
    rows += [_overall(f"{s} pixels", [r for r in results if r[0] == s]) for s in SIZES]
    rows += [_overall(f"style {s}", [r for r in results if r[2] == s]) for s in STYLES]
    rows.append(_overall("all", results))
    save(
        __file__,
        rows,
        repeats=arguments.repeats,
        seed=arguments.seed,
        milliseconds={s: round(1000 * float(np.median(t)), 1) for s, t in seconds.items()},
    )


def _row(kind: str, own: list[Any], results: list[Any]) -> dict[str, Any]:
    """Recall of a kind, and precision of its name."""
    right = sum(named_rightly(found, picture) for *_, found, picture in own)
    names = FAULTS.get(kind, {""})
    called = [r for r in results if r[3].reason in names]
    meant = sum(named_rightly(r[3], r[4]) for r in called)
    accepted = sum(not found.reason for *_, found, _ in own)
    return {
        "pictures": kind,
        "number": len(own),
        "accepted": accepted,
        "recall": round(right / len(own), 3),
        "precision": round(meant / max(len(called), 1), 3),
    }


def _overall(name: str, results: list[Any]) -> dict[str, Any]:
    """Precision of the accepted grids, and recall of the good ones; both must be cut rightly."""
    accepted = [r for r in results if not r[3].reason]
    right = sum(r[1] in GOOD and fits(r[3], r[4]) for r in accepted)
    good = sum(r[1] in GOOD for r in results)
    return {
        "pictures": name,
        "number": len(results),
        "accepted": len(accepted),
        "recall": round(right / good, 3),
        "precision": round(right / max(len(accepted), 1), 3),
    }


def _write(folder: Path, number: int, size: int, picture: Drawn, found: Panels) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    image = picture.image.copy()
    pen = ImageDraw.Draw(image)
    for left, top, right, bottom in found.boxes:
        pen.rectangle((left, top, right - 1, bottom - 1), outline=(255, 0, 0))
    words = f"{picture.kind}-{picture.style}-{size}-{found.reason or 'accepted'}-{number}"
    image.save(folder / f"{words.replace(' ', '_')}.png")


if __name__ == "__main__":
    main()
