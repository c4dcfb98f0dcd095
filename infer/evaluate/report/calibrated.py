"""Section of a report about calibrated judges: their agreement with people, and corrected means."""

from collections.abc import Sequence

import numpy as np

from dsd_jax.errors import UserError, and_more
from dsd_jax.infer.evaluate.calibrate import (
    Calibration,
    agreements,
    corrected_mean,
    read_calibration,
)
from dsd_jax.infer.evaluate.numbers import NAMES, Number
from dsd_jax.infer.evaluate.panels import Panel
from dsd_jax.infer.evaluate.report.cells import NONE, plain, signed, with_interval
from dsd_jax.infer.evaluate.report.parts import ReportSettings, Row, Section, Table
from dsd_jax.interval import Interval

__all__ = ["calibration_section"]

_PROTOCOL = "dreambench++"  # of the archive, and so of every calibration


def calibration_section(
    panels: Sequence[Panel], settings: ReportSettings, rows: list[Row]
) -> list[Section]:
    """Shows how each calibrated judge errs, and the means that people would have given.

    Raises:
        UserError: A file of `dsd evaluate calibrate` is damaged, or is about another judge.
    """
    tables = []
    for path in settings.calibration:
        calibration = read_calibration(path)
        panel = _panel(panels, calibration, str(path))
        tables += [_agreement(calibration), _corrected(panel, calibration, rows)]
    words = (
        "Anchors are archived images that the judge rated anew. Corrected means add the mean error "
        "on them (people minus judge) to the judge's mean over all items with a score, by "
        "prediction-powered inference. They hold if the judge errs about these images as it does "
        "about the archived ones."
    )
    return [Section("Calibration", words, tables)] if tables else []


def _panel(panels: Sequence[Panel], calibration: Calibration, path: str) -> Panel:
    """The panel that a calibration is about.

    Raises:
        UserError: There is none.
    """
    own = [panel for panel in panels if panel.protocol == _PROTOCOL]
    for panel in own:
        if panel.judge == calibration.judge:
            asked = {each.rubric for ratings in panel.ratings.values() for each in ratings}
            if asked == {calibration.rubric}:
                return panel
            raise UserError(
                f"{path} calibrates {calibration.judge} with the rubric {calibration.rubric}, but "
                f"the runs were judged with {and_more(sorted(asked))}; calibrate it again"
            )
    judges = and_more([panel.judge for panel in own]) or "nobody"
    raise UserError(
        f"{path} calibrates {calibration.judge}, but the runs were judged by {judges} under "
        f"{_PROTOCOL}"
    )


def _agreement(calibration: Calibration) -> Table:
    columns = ["aspect", "sides", "images", "offset", "slope", "alpha", "kappa", "correlation"]
    lines = [
        [
            NAMES.get(each.aspect, each.aspect),
            " and ".join(each.sides),
            f"{each.items:,}",
            signed(each.offset),
            *(
                with_interval(Number(interval.value, interval))
                for interval in (each.slope, each.alpha, each.kappa, each.correlation)
            ),
        ]
        for each in agreements(calibration)
    ]
    notes = [f"{count:,} answers are {state}." for state, count in calibration.unscored.items()]
    title = f"Agreement of {calibration.judge} on the anchors, from 0 to {calibration.scale:g}"
    return Table(title, columns, lines, notes=notes)


def _corrected(panel: Panel, calibration: Calibration, rows: list[Row]) -> Table:
    aspects = list(dict.fromkeys(anchor.aspect for anchor in calibration.anchors))
    lines = []
    for method, grids in panel.methods.items():
        line = [method]
        for aspect in aspects:
            scores = grids[aspect].values if aspect in grids else np.full((1, 1), np.nan)
            there = ~np.isnan(scores)
            judged = scores.sum(0, where=there)[there.any(0)] / there.sum(0)[there.any(0)]
            if len(judged) < 2:
                line += [NONE, NONE]
                continue
            interval = corrected_mean(calibration, aspect, judged.tolist())
            corrected = Interval(*(x / calibration.scale for x in interval))
            line += [
                plain(float(judged.mean()) / calibration.scale),
                with_interval(Number(corrected.value, corrected)),
            ]
            rows.append(
                Row(
                    *(method, panel.protocol, panel.judge, "official", "present"),
                    f"{aspect} corrected",
                    *corrected,
                )
            )
        lines.append(line)
    names = [NAMES.get(aspect, aspect) for aspect in aspects]
    columns = ["method", *(word for name in names for word in (name, f"{name} corrected"))]
    return Table(f"Means of {calibration.judge}, as judged and corrected", columns, lines)
