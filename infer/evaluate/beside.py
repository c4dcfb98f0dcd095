"""Metrics beside the exact truth: which of them agrees with it, where the truth is known."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from dsd_jax.infer.evaluate.metrics import mean_per_case
from dsd_jax.infer.evaluate.resampling import Resampling
from dsd_jax.infer.evaluate.runs import Run
from dsd_jax.infer.evaluate.scores import metrics_of, read_scores
from dsd_jax.infer.evaluate.statistics import rank_correlation
from dsd_jax.infer.evaluate.truth import TRUTHS
from dsd_jax.interval import Interval

__all__ = ["Agreement", "beside_truth"]

_DRAWS = 2000
_LEAST = 3  # rows that a correlation needs


@dataclasses.dataclass(frozen=True)
class Agreement:
    """A metric and the truth.

    Attributes:
        metric: Full name of the metric.
        rows: Number of cases of all runs that have a score.
        correlations: Spearman's rank correlation with each truth, by the truth's full name. NaN
            where all images are equally right.
    """

    metric: str
    rows: int
    correlations: Mapping[str, Interval]


def beside_truth(runs: Sequence[Run]) -> list[Agreement]:
    """Correlates every metric of images with every truth, over the cases of all runs together.

    A row is a case of a run, with the mean over its images. Intervals draw subjects anew, with all
    their rows. Metrics of whole subjects have no row and are left out.

    Returns:
        The metrics in alphabetical order; nothing if no run has scores of a truth.

    Raises:
        UserError: A file of scores is damaged.
    """
    tables = [_table(run) for run in runs]
    names = sorted({name for table in tables for name in table})
    subjects = [{case.id: case.subject for case in run.cases} for run in runs]
    truths = [name for name in names if name in TRUTHS]
    found = []
    for name in names:
        if name in TRUTHS:
            continue
        correlations, rows = {}, 0
        for truth in truths:
            triples = [
                (value, table[truth][case], own[case])
                for table, own in zip(tables, subjects, strict=True)
                for case, value in table.get(name, {}).items()
                if case in own and case in table.get(truth, {})
            ]
            if len(triples) < _LEAST:
                continue
            values, exact, labels = zip(*triples, strict=True)
            rows = len(triples)
            correlations[truth] = rank_correlation(
                np.asarray(values),
                np.asarray(exact),
                resampling=Resampling(levels=(labels,), draws=_DRAWS),
            )
        if correlations:
            found.append(Agreement(name, rows, correlations))
    return found


def _table(run: Run) -> dict[str, dict[str, float]]:
    """Mean score of every case, by metric."""
    table = {}
    for name in metrics_of(run.folder):
        valued = [
            (own.case, own.value) for own in read_scores(run.folder, name) if own.value is not None
        ]
        table[name] = mean_per_case([case for case, _ in valued], [value for _, value in valued])
    return table
