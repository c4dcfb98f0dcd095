"""Measures the check of grids on pictures with known faults.

    python -m benchmarks.grids.check [--photos FOLDER] [--repeats 1] [--seed 13] [--failures FOLDER]

It makes every kind in every style at six sizes from 64 to 1024 pixels. `--photos` adds grids of
photographs: a folder with a folder of four JPEG files per subject. A picture passes rightly if it
is good and each box lies in its panel and covers most of it. `--failures` writes wrongly judged
pictures as PNG files.
"""

import argparse
import collections
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from benchmarks.grids.scenes import FAULTS, GOOD, STYLES, TUNED_ON, Drawn, draw
from benchmarks.results import save
from dsd_jax.data.make.panels import Panels, find_panels
from dsd_jax.infer.evaluate.agreement import wilson

__all__ = ["drawn", "fits", "named_rightly", "subjects"]

SECTIONS = {
    "": (
        "The check of grids",
        """Drawn 2x2 grids in six styles at six sizes: good ones, and ones with a known fault.
Rows of one kind: *accepted* counts accepted grids; *recall* is the share judged rightly (a good
grid with each box inside its panel, a fault by its name); *precision* is the share of grids given
the name of the kind that were of that kind. Rows of sizes, styles and all: *recall* is the share
of good grids accepted and cut rightly; *precision* is the share of accepted grids that were good
and cut rightly. On *paper*, two to four panels have the ground of the gutter. The check was tuned
on other seeds.""",
    ),
    "sources": (
        "The check of grids on drawings and on photographs",
        """The same kinds, drawn and of photographs (`--photos`) that the check was not tuned on.
*Cut rightly* is the share of good grids that are accepted with each box inside its panel; *accepted
falsely* is the share of grids with a fault that pass. Rows of shared ground hold the kind *paper*
alone, which is good. A panel of a grid of 64 pixels has 32, too few for most photographs. Brackets
hold 95 % intervals (Wilson's). The goals for photographs are 0.97 accepted, and at most 0.01
accepted falsely; over all sizes, both are missed.""",
    ),
}

PHOTO_SIDE = 1024  # pixels of the shorter side of a photograph
SIZES = (64, 128, 256, 512, 768, 1024)
LARGE = 512


def drawn(
    repeats: int,
    seed: int,
    sizes: tuple[int, ...] = SIZES,
    photos: Mapping[str, Sequence[Image.Image]] | None = None,
) -> Iterator[tuple[int, Drawn]]:
    """Draws pictures; each depends only on its own numbers.

    There are twice as many of each good kind, so that good and bad ones are about equally many.
    With photographs, by subject, grids are made of these instead.
    """
    styles = photos or dict.fromkeys(STYLES, ())
    for size in sizes:
        for i, kind in enumerate([*GOOD, *FAULTS]):
            for j, style in enumerate(styles):
                for repeat in range(repeats * (2 if kind in GOOD else 1)):
                    rng = np.random.default_rng([seed, size, i, j, repeat])
                    yield size, draw(kind, style, size, rng, styles[style])


def fits(found: Panels, picture: Drawn) -> bool:
    """Whether each box stays within its limits and covers four fifths of its panel's sides."""
    if not found.boxes:
        return False
    for box, panel, limit in zip(found.boxes, picture.panels, picture.limits, strict=True):
        if min(np.subtract(box, limit)[:2]) < 0 or max(np.subtract(box, limit)[2:]) > 0:
            return False
        if any(box[i + 2] - box[i] < 0.8 * (panel[i + 2] - panel[i]) for i in (0, 1)):
            return False
    return True


def named_rightly(found: Panels, picture: Drawn) -> bool:
    """Whether the verdict is right, with boxes that fit or the reason."""
    if picture.kind in GOOD:
        return not found.reason and fits(found, picture)
    return found.reason in FAULTS[picture.kind]


def subjects(folder: Path) -> dict[str, list[Image.Image]]:
    """The photographs of a folder of folders, without those that checks were tuned on."""
    found = {}
    for own in sorted(folder.iterdir()):
        if own.is_dir() and own.name not in TUNED_ON:
            found[own.name] = [_reduced(path) for path in sorted(own.glob("*.jpg"))]
    return found


def _reduced(path: Path) -> Image.Image:
    with Image.open(path) as image:
        scale = PHOTO_SIDE / min(image.size)
        size = round(image.width * scale), round(image.height * scale)
        return image.convert("RGB").resize(size, Image.Resampling.LANCZOS)


def main() -> None:
    """Runs it, prints a row per kind, per size and overall, and saves them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--seed", type=int, default=13)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--failures", type=Path)
    arguments = parser.parse_args()
    results = []
    seconds: dict[int, list[float]] = collections.defaultdict(list)
    made = drawn(arguments.repeats, arguments.seed)
    if arguments.photos:
        photos = subjects(arguments.photos)
        made = itertools.chain(made, drawn(arguments.repeats, arguments.seed, photos=photos))
    for number, (size, picture) in enumerate(made):
        start = perf_counter()
        found = find_panels(picture.image)
        seconds[size].append(perf_counter() - start)
        results.append((size, picture.kind, picture.style, found, picture))
        if arguments.failures and not named_rightly(found, picture):
            _write(arguments.failures, number, size, picture, found)
    settings = {"repeats": arguments.repeats, "seed": arguments.seed}
    times = {size: round(1000 * float(np.median(t)), 1) for size, t in seconds.items()}
    of_drawings = [r for r in results if r[2] in STYLES]
    save(__file__, _drawn_rows(of_drawings), **settings, milliseconds=times)
    if arguments.photos:
        of_photos = [r for r in results if r[2] not in STYLES]
        save(__file__, _source_rows(of_drawings, of_photos), "sources", **settings)


def _drawn_rows(results: list[Any]) -> list[dict[str, Any]]:
    rows = [_row(kind, [r for r in results if r[1] == kind], results) for kind in [*GOOD, *FAULTS]]
    rows += [_overall(f"{s} pixels", [r for r in results if r[0] == s]) for s in SIZES]
    rows += [_overall(f"style {s}", [r for r in results if r[2] == s]) for s in STYLES]
    return [*rows, _overall("all", results)]


def _source_rows(of_drawings: list[Any], of_photos: list[Any]) -> list[dict[str, Any]]:
    rows = []
    for name, own in (("drawn", of_drawings), ("photographs", of_photos)):
        rows.append(_judged(name, own))
        rows += [_judged(f"{name}, {s} pixels", [r for r in own if r[0] == s]) for s in SIZES]
        large = [r for r in own if r[0] >= LARGE]
        rows.append(_judged(f"{name}, {LARGE} pixels and more", large))
        rows.append(_judged(f"{name}, shared ground", [r for r in own if r[1] == "paper"]))
    return rows


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


def _judged(name: str, own: list[Any]) -> dict[str, Any]:
    """Shares of good grids and of faults, with their intervals."""
    good = [(found, picture) for *_, found, picture in own if picture.kind in GOOD]
    faults = [(found, picture) for *_, found, picture in own if picture.kind in FAULTS]
    return {
        "pictures": name,
        "good grids": len(good),
        "accepted": _share([bool(found.boxes) for found, _ in good]),
        "cut rightly": _share([fits(*one) for one in good]),
        "faults": len(faults),
        "accepted falsely": _share([bool(found.boxes) for found, _ in faults]),
        "named rightly": _share([named_rightly(*one) for one in faults]),
    }


def _share(hits: list[bool]) -> str:
    if not hits:
        return "–"
    share = wilson((sum(hits), len(hits)))
    return f"{share.value:.3f} [{share.low:.3f}, {share.high:.3f}]"


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
