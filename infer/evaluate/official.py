"""Agreement of judges with people, rounded as the scripts of DreamBench++ round it.

Their tables can be compared digit by digit only with every intermediate rounding in place.
"""

import dataclasses

import numpy as np

from dsd_jax.infer.evaluate.aggregate import Grid
from dsd_jax.infer.evaluate.agreement import krippendorff_alpha, pearson
from dsd_jax.infer.evaluate.resampling import Resampling
from dsd_jax.types import Float

__all__ = ["Agreement", "official_agreement", "official_pearson"]

_ONCE = Resampling(draws=1)  # the tables have no intervals


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Krippendorff's alpha (interval level) of one method and one aspect.

    Attributes:
        people: Between the groups of people.
        judge: Between a judge and each group, mean over groups, then over rounds.
        std: Standard deviation of the latter over the rounds; None with one round.
    """

    people: float
    judge: float
    std: float | None


def official_agreement(people: Grid, judge: Grid) -> Agreement:
    """Computes H-H and G-H as `krippendorff_analysis.py` does.

    Each alpha, each mean over groups and the mean over rounds is rounded to three decimals.

    Args:
        people: Ratings by people; a round is a group.
        judge: Ratings by the judge.
    """
    rounds = [
        np.round(np.mean([_alpha(np.stack([group, row])) for group in people.values]), 3)
        for row in judge.values
    ]
    std = round(float(np.std(rounds, ddof=1)), 3) if len(rounds) > 1 else None
    return Agreement(_alpha(people.values), float(np.round(sum(rounds) / len(rounds), 3)), std)


def official_pearson(people: Grid, other: Float[np.ndarray, " cases"]) -> tuple[float, float]:
    """Computes Pearson's correlation with people as `pearson.py` does.

    Args:
        people: Ratings by people; the first two rounds are the groups.
        other: Ratings of the first round of a judge, or scores of a metric; NaN where missing.

    Returns:
        The mean over both groups, and half the difference between them.
    """
    found = [_pearson(group, other) for group in people.values[:2]]
    return (found[0] + found[-1]) / 2, abs(found[0] - found[-1]) / 2


def _alpha(ratings: Float[np.ndarray, "raters items"]) -> float:
    return float(np.round(krippendorff_alpha(ratings, "interval", _ONCE).value, 3))


def _pearson(a: Float[np.ndarray, " cases"], b: Float[np.ndarray, " cases"]) -> float:
    both = ~np.isnan(a) & ~np.isnan(b)
    return float(np.round(pearson(a[both], b[both]).value, 4))
