"""Cases of a report with their images, those first about which judges or methods disagree most."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from dsd_jax.errors import UserError
from dsd_jax.images import open_image
from dsd_jax.infer.evaluate.cases import Case
from dsd_jax.infer.evaluate.panels import Panel
from dsd_jax.infer.evaluate.report.parts import Report
from dsd_jax.page import Card, Picture

__all__ = ["Disagreement", "cards_of", "disagreements"]

_SIDE = 256  # pixels of the longer side of a thumbnail


@dataclasses.dataclass(frozen=True)
class Disagreement:
    """Spread of the ratings of a case, from 0 to 1.

    Attributes:
        case: Position of the case.
        judges: Largest difference between judges about one aspect of one method; NaN if no image
            has two judges.
        methods: Largest difference between methods in the eyes of one judge; NaN with one method.
    """

    case: int
    judges: float
    methods: float


def disagreements(cases: Sequence[Case], panels: Sequence[Panel]) -> list[Disagreement]:
    """Rates the cases that have ratings, those first on which judges differ most.

    Where no image has two judges, those come first on which methods differ most.
    """
    by_aspect: dict[tuple[str, str], dict[tuple[str, str], np.ndarray]] = {}
    for panel in panels:
        for method, grids in panel.methods.items():
            for aspect, grid in grids.items():
                seen = by_aspect.setdefault((panel.protocol, aspect), {})
                seen[method, panel.judge] = _mean(grid.values) / grid.scale
    nothing = np.full(len(cases), np.nan)
    between_judges, between_methods = [nothing], [nothing]
    for seen in by_aspect.values():
        for position, spreads in ((0, between_judges), (1, between_methods)):
            for name in {key[position] for key in seen}:
                group = [values for key, values in seen.items() if key[position] == name]
                if len(group) > 1:
                    spreads.append(np.max(group, 0) - np.min(group, 0))
    judges, methods = (_largest(spreads) for spreads in (between_judges, between_methods))
    found = [
        Disagreement(number, float(judges[number]), float(methods[number]))
        for number in range(len(cases))
    ]
    return sorted(found, key=lambda each: tuple(-np.nan_to_num([each.judges, each.methods])))


def cards_of(report: Report, limit: int) -> Iterator[Card]:
    """Makes a card for each of the first cases that have images."""
    cases = report.runs[0].run.cases
    images = {
        each.run.method: {image.case: image.path for image in reversed(each.run.images)}
        for each in report.runs
    }
    there = {case for own in images.values() for case in own}
    shown = [each for each in disagreements(cases, report.panels) if cases[each.case].id in there]
    for each in shown[:limit]:
        case = cases[each.case]
        pictures = [_picture(case.reference.path, "reference", marked=True)]
        for method, own in images.items():
            if case.id in own:
                scores = _scores(each.case, method, report.panels)
                pictures.append(_picture(own[case.id], f"{method}{scores}"))
        facts = [("case", case.id)]
        spreads = ("between judges", each.judges), ("between methods", each.methods)
        facts += [(name, f"{value:.2f}") for name, value in spreads if not np.isnan(value)]
        yield Card(pictures, case.prompt, facts)


def _scores(case: int, method: str, panels: Sequence[Panel]) -> str:
    """Scores of an image in the words below it: the mean over rounds, a line for each judge."""
    lines = []
    for panel in panels:
        grids = panel.methods.get(method, {})
        parts = [
            f"{aspect} {value:.1f}".replace(".0", "")
            for aspect, grid in grids.items()
            if not np.isnan(value := float(_mean(grid.values[:, case : case + 1])[0]))
        ]
        if parts:
            lines.append(f"\n{panel.protocol}, {panel.judge}: {', '.join(parts)}")
    return "".join(lines)


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over rounds of what is there."""
    there = (~np.isnan(values)).sum(0)
    return np.where(there > 0, np.nansum(values, 0) / np.maximum(there, 1), np.nan)


def _largest(spreads: Sequence[np.ndarray]) -> np.ndarray:
    return np.fmax.reduce(np.stack(spreads), axis=0)


def _picture(path: Path, words: str, *, marked: bool = False) -> Picture:
    """A small copy of an image; a red square if it cannot be read any more."""
    try:
        image = open_image(path)
    except UserError:  # whose message holds a path, which a shared page should not
        gone = Image.new("RGB", (_SIDE, _SIDE), "#b8432f")
        return Picture(gone, f"{words}\nThe image cannot be read.", marked)
    image.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    return Picture(image, words, marked)
