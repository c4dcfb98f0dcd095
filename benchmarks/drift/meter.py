"""The drift meter on pairs of pictures whose drift is known.

    python -m benchmarks.drift.meter [--photos FOLDER] [--tuning]

`--photos` adds photographs: a folder with a folder of JPEG files per subject. `--tuning` takes the
pictures that the meter was tuned on, instead of the others, and saves nothing.
"""

import argparse
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.drift.scenes import (
    LIGHTS,
    TEXTURED,
    Source,
    blank,
    drawings,
    pasted,
    photographs,
    relit,
    window,
)
from benchmarks.results import save, table
from dsd_jax.drift import Drift, measure_drift

SECTIONS = {
    "": (
        "The drift meter under changes of light",
        """Pictures of 256 x 256 pixels. *Moved* pairs have a shift of up to 16 pixels along each
axis, a zoom from 0.9 to 1.1 and a rotation of up to 5 degrees at once, and the second picture has
the change of light; a pair is *right* within 0.5 pixels, 0.5 % and 0.3 degrees, all three. Pairs of
light alone are a *false alarm* if the verdict is any other than still. Brackets hold 95 % intervals
(Wilson's); the errors are those that 99 of 100 pairs stay below. *All at once* is harder than a
photographer would light: seven changes on top of each other. The meter was tuned on other seeds,
and on photographs of other subjects.""",
    ),
    "verdicts": (
        "The verdicts of the drift meter",
        """Pairs of 256 x 256 pixels of one kind each: a disc of another picture that moves alone by
4 to 16 pixels on ground with texture, two pictures of different things, and two of one colour under
different lamps.""",
    ),
    "sizes": (
        "The drift meter by size",
        """Drawn pictures under all changes of light at once, with shifts of up to a sixteenth of
the side and at most 16 pixels. The limits are the same 0.5 pixels, 0.5 % and 0.3 degrees at every
size. The time is that of one core, counted while the process
runs.""",
    ),
}

SIZE = 256
SEEDS = {False: 18, True: 7}  # by whether the meter is tuned
ALL = "all at once"
MOST_SHIFT, MOST_ZOOM, MOST_TURN = 16.0, 0.1, 5.0
Errors = tuple[float, float, float]
"""Pixels, percent and degrees."""
LIMITS: Errors = (0.5, 0.5, 0.3)
NONE: Errors = (math.inf,) * 3


def main() -> None:
    """Runs all three, prints their tables, and saves them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--tuning", action="store_true")
    parser.add_argument("--repeats", type=int, default=6, help="drawings of each style")
    arguments = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    seed = SEEDS[arguments.tuning]
    sources = [("drawn", source) for source in drawings(arguments.repeats, SIZE, seed)]
    if arguments.photos:
        found = photographs(arguments.photos, SIZE, tuning=arguments.tuning)
        sources += [("photographs", source) for source in found for _ in range(2)]
    tables = {
        "": list(_lights(sources, seed)),
        "verdicts": list(_verdicts([source for _, source in sources], seed)),
        "sizes": list(_sizes(seed)),
    }
    for variant, rows in tables.items():
        if arguments.tuning:
            print(table(rows))
        else:
            drawn = sum(kind == "drawn" for kind, _ in sources)
            counts = {"drawings": drawn, "photographs": len(sources) - drawn}
            save(__file__, rows, variant, seed=seed, **counts)


def _lights(sources: Sequence[tuple[str, Source]], seed: int) -> Iterator[dict[str, Any]]:
    results: list[tuple[str, str, Errors, bool]] = []
    for number, (kind, (_, source)) in enumerate(sources):
        first = window(source, SIZE)
        for index, name in enumerate((*LIGHTS, ALL)):
            rng = np.random.default_rng([seed, number, index])
            lights = LIGHTS if name == ALL else (name,)
            errors, _ = _planted(source, SIZE, lights, rng)
            alarm = measure_drift(first, relit(first, lights, rng)).verdict != "still"
            results.append((kind, name, errors, alarm))
    for kind in dict.fromkeys(kind for kind, _ in sources):
        for name in (*LIGHTS, ALL):
            yield _row(kind, name, [r for r in results if r[:2] == (kind, name)])
        yield _row(kind, "all rows", [r for r in results if r[0] == kind])
    yield _row("all", "all rows", results)


def _planted(
    source: Image.Image, size: int, lights: Sequence[str], rng: np.random.Generator
) -> tuple[Errors, float]:
    """The errors about a random motion, and the seconds it took to find it."""
    most = min(MOST_SHIFT, size / 16)
    across, down = rng.uniform(-most, most, 2).tolist()
    zoom = float(rng.uniform(1 - MOST_ZOOM, 1 + MOST_ZOOM))
    turn = float(rng.uniform(-MOST_TURN, MOST_TURN))
    first = window(source, size)
    second = relit(window(source, size, (across, down), zoom, turn), lights, rng)
    start = process_time()
    found = measure_drift(first, second)
    seconds = process_time() - start
    return _errors(found, (across, down), zoom, turn), seconds


def _errors(found: Drift, shift: tuple[float, float], zoom: float, turn: float) -> Errors:
    if found.shift_px is None or found.zoom is None or found.rotation_degrees is None:
        return NONE
    return (
        max(abs(a - b) for a, b in zip(found.shift_px, shift, strict=True)),
        100 * abs(found.zoom - zoom),
        abs(found.rotation_degrees - turn),
    )


def _is_right(errors: Errors) -> bool:
    return all(error <= limit for error, limit in zip(errors, LIMITS, strict=True))


def _row(kind: str, name: str, results: Sequence[tuple[str, str, Errors, bool]]) -> dict[str, Any]:
    errors = [errors for _, _, errors, _ in results]
    worst = np.quantile(np.array(errors), 0.99, axis=0, method="higher")
    pixels, percent, degrees = (f"{v:.2f}" if math.isfinite(v) else "none" for v in worst)
    return {
        "pictures": kind,
        "light": name,
        "moved pairs": len(results),
        "right": _share(sum(map(_is_right, errors)), len(results)),
        "error, px": pixels,
        "error, %": percent,
        "error, degrees": degrees,
        "pairs of light alone": len(results),
        "false alarms": _share(sum(alarm for *_, alarm in results), len(results)),
    }


def _share(count: int, number: int) -> str:
    """A share and its 95 % interval (Wilson, 1927)."""
    z = 1.959964
    share = count / number
    middle = share + z * z / (2 * number)
    half = z * math.sqrt(share * (1 - share) / number + z * z / (4 * number * number))
    low, high = ((middle + side * half) / (1 + z * z / number) for side in (-1, 1))
    return f"{share:.4f} [{max(low, 0):.3f}, {min(high, 1):.3f}]"


def _verdicts(sources: Sequence[Source], seed: int) -> Iterator[dict[str, Any]]:
    textured = [source for source in sources if source[0] in TEXTURED]
    alone, relit_alone, others, blanks = [], [], [], []
    for number, (_, source) in enumerate(textured):
        rng = np.random.default_rng([seed, number])
        other = window(textured[(number + len(textured) // 2) % len(textured)][1], SIZE)
        ground = window(source, SIZE)
        before, after = pasted(ground, other, rng)
        alone.append(measure_drift(before, after))
        relit_alone.append(measure_drift(before, relit(after, LIGHTS, rng)))
        others.append(measure_drift(ground, relit(other, LIGHTS, rng)))
        blanks.append(measure_drift(blank(SIZE, rng), blank(SIZE, rng)))
    for name, expected, found in (
        ("a subject moves alone", "part moved", alone),
        ("a subject moves alone, relit", "part moved", relit_alone),
        ("different things", "other structure", others),
        ("blank", "cannot tell", blanks),
    ):
        verdicts = [drift.verdict for drift in found]
        missed = sorted({verdict for verdict in verdicts if verdict != expected})
        yield {
            "pairs": name,
            "number": len(found),
            "expected": expected,
            "said": _share(verdicts.count(expected), len(found)),
            "said instead": ", ".join(f"{v} ({verdicts.count(v)})" for v in missed) or "–",
        }


def _sizes(seed: int) -> Iterator[dict[str, Any]]:
    for size, count in ((64, 8), (128, 8), (256, 8), (512, 4), (1024, 1)):
        found = [
            _planted(source, size, LIGHTS, np.random.default_rng([seed, size, number]))
            for number, (_, source) in enumerate(drawings(count, size, seed))
        ]
        alarms = 0
        for number, (_, source) in enumerate(drawings(count, size, seed)):
            first = window(source, size)
            second = relit(first, LIGHTS, np.random.default_rng([seed, size, number, 1]))
            alarms += measure_drift(first, second).verdict != "still"
        errors = [errors for errors, _ in found]
        seconds = float(np.median([seconds for _, seconds in found]))
        yield {
            "pixels": f"{size} x {size}",
            "pairs": len(found),
            "motion found": sum(each != NONE for each in errors),
            "right": _share(sum(map(_is_right, errors)), len(found)),
            "false alarms": _share(alarms, len(found)),
            "median error, px": f"{np.median([pixels for pixels, *_ in errors]):.3f}",
            "milliseconds": f"{1000 * seconds:.0f}",
            "pairs a second": f"{1 / seconds:.1f}",
        }


if __name__ == "__main__":
    main()
