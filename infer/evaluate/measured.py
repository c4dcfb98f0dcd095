"""Metrics of several runs, as quantities that a sample of subjects gives too."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from dsd_jax.errors import UserError
from dsd_jax.infer.evaluate.aggregate import Design, Grid, Mean, Quantity, common_cases, mean_of
from dsd_jax.infer.evaluate.cases import Case
from dsd_jax.infer.evaluate.numbers import Comparison, Sampler
from dsd_jax.infer.evaluate.runs import Run
from dsd_jax.infer.evaluate.scores import metrics_of, read_scores
from dsd_jax.infer.evaluate.statistics import holm, paired_difference

__all__ = ["Measured", "compared_metrics", "measure"]


@dataclasses.dataclass(frozen=True)
class Measured:
    """Scores of one metric for one run.

    Attributes:
        grid: A score for each case; for a metric of whole subjects, the subject's at each case.
        states: Number of scores in each state; "stale" are scores of images that have changed.
    """

    grid: Grid
    states: Mapping[str, int]

    @property
    def quantity(self) -> Quantity:
        """Mean over the cases."""
        return mean_of(self.grid, Mean())


def measure(runs: Sequence[Run], design: Design) -> dict[str, dict[str, Measured]]:
    """Reads the scores of all runs, by metric and method.

    Raises:
        UserError: A file of scores is damaged, or scores no case of its run.
    """
    names = sorted({name for run in runs for name in metrics_of(run.folder)})
    found: dict[str, dict[str, Measured]] = {name: {} for name in names}
    for name in names:
        for run in runs:
            if name in metrics_of(run.folder):
                found[name][run.method] = _measured(run, name, design)
    return found


def _measured(run: Run, metric: str, design: Design) -> Measured:
    columns = _columns(run.cases)
    images = {(image.case, image.sample): image.sha256 for image in run.images}
    sums, counts = np.zeros((2, len(run.cases)))
    states = Counter[str]()
    for score in read_scores(run.folder, metric):
        if score.case not in columns:
            raise UserError(
                f"{run.folder}: {metric} scores {score.case}, which is no case of the run; compute "
                "it again with `dsd evaluate score`"
            )
        now = images.get((score.case, score.sample), score.sha256)
        stale = bool(score.sha256) and score.sha256 != now
        states["stale" if stale else score.state] += 1
        if score.state == "ok" and score.value is not None and not stale:
            sums[columns[score.case]] += score.value
            counts[columns[score.case]] += 1
    values = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    return Measured(Grid(design, values[None], 1.0), states)


def _columns(cases: Sequence[Case]) -> dict[str, list[int]]:
    """Places of the cases by the id of a case or of a subject."""
    columns: dict[str, list[int]] = {}
    for number, case in enumerate(cases):
        columns.setdefault(case.subject, []).append(number)
    return columns | {case.id: [number] for number, case in enumerate(cases)}


def compared_metrics(
    methods: Mapping[str, Measured], metric: str, other: str, sampler: Sampler
) -> list[Comparison]:
    """Compares every method with one of them by a metric, on the cases that both have."""
    found = []
    for method, measured in methods.items():
        if method == other or other not in methods:
            continue
        mine, theirs = common_cases([measured.grid, methods[other].grid])
        cases = int((~np.isnan(mine.values)).sum())
        if cases:
            difference = paired_difference(
                mean_of(mine, Mean()).table,
                (against := mean_of(theirs, Mean())).table,
                sampler.resampling,
                against.value,
            )
            found.append(
                Comparison(method, other, metric, difference.interval, difference.p, cases)
            )
    adjusted = holm([each.p for each in found])
    return [dataclasses.replace(each, p=p) for each, p in zip(found, adjusted, strict=True)]
