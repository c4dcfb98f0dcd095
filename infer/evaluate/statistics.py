"""Formulas for tables of methods: intervals, paired differences, ranks, and what a sample can show.

A table has one row for each observation (a case, or a case in a round) and columns for methods and
aspects; NaN marks what is missing. Section numbers of sources are in the docstrings.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from scipy.special import ndtri

from dsd_jax.infer.evaluate.resampling import Labels, Resampling, interval_of
from dsd_jax.interval import Interval
from dsd_jax.types import Float

__all__ = [
    "Difference",
    "Means",
    "bootstrap",
    "clustered_error",
    "detectable_difference",
    "first_rank",
    "holm",
    "paired_difference",
    "rank_correlation",
    "sample_size",
    "variance_components",
    "weighted_pearson",
]

_ENTRIES = 4_000_000  # swaps that are drawn at once, which bounds the memory

Statistic = Callable[[np.ndarray], np.ndarray]
"""Takes means whose first axis counts draws, and gives one number for each draw."""


@dataclasses.dataclass(frozen=True, eq=False)
class Means:
    """Means of the columns of a table, of the data and of every draw.

    Attributes:
        estimate: Means of the data.
        draws: Means of each draw, from the same rows for all columns.
        confidence: Share of the draws that an interval holds.
    """

    estimate: Float[np.ndarray, " *columns"]
    draws: Float[np.ndarray, " draws *columns"]
    confidence: float

    def interval(self, statistic: Statistic = np.squeeze) -> Interval:
        """A statistic of the means with its interval.

        Args:
            statistic: For example `lambda means: means[:, 0] * means[:, 1]`, a product of means.
                Left out, the table has one column and the statistic is its mean.
        """
        drawn = np.atleast_1d(statistic(self.draws))
        if drawn.shape != self.draws.shape[:1]:
            raise ValueError(
                f"a statistic gives one number for each draw, got shape {drawn.shape} of "
                f"{self.draws.shape[0]} draws"
            )
        (value,) = np.atleast_1d(statistic(self.estimate[None]))
        return interval_of(float(value), drawn, self.confidence)


def bootstrap(
    values: Float[np.ndarray, " rows *columns"], resampling: Resampling = Resampling()
) -> Means:
    """Draws the means of all columns of a table.

    A mean is over the values that are there. All columns use the same draws, so a function of
    several means (a product of aspects, a difference of methods, a rank) has its interval too.

    Args:
        values: The table; NaN where a value is missing.
        resampling: Says which rows are drawn together.
    """
    table = np.asarray(values, np.float64)
    flat = table.reshape(len(table), -1)
    there = ~np.isnan(flat)
    groups, parts = resampling.grouped(len(table))
    size = int(groups.max(initial=-1)) + 1
    sums, counts = np.zeros((2, size, flat.shape[1]))
    np.add.at(sums, groups, np.where(there, flat, 0))
    np.add.at(counts, groups, there)

    def means(weights: np.ndarray) -> np.ndarray:
        number = weights @ counts
        return weights @ sums / np.where(number > 0, number, np.nan)

    drawn = np.concatenate([means(part) for part in parts])
    (estimate,) = means(np.ones((1, size)))
    shape = table.shape[1:]
    return Means(estimate.reshape(shape), drawn.reshape(len(drawn), *shape), resampling.confidence)


@dataclasses.dataclass(frozen=True)
class Difference:
    """A paired difference of two methods.

    Attributes:
        interval: The first method's statistic minus the second's, with its interval.
        p: Probability of a difference as large or larger if the methods were exchangeable.
        rows: Number of rows that both methods have.
    """

    interval: Interval
    p: float
    rows: int


def paired_difference(
    first: Float[np.ndarray, " rows *columns"],
    second: Float[np.ndarray, " rows *columns"],
    resampling: Resampling = Resampling(),
    statistic: Statistic = np.squeeze,
) -> Difference:
    """Compares two methods on the rows that both have.

    The interval is a bootstrap of both methods by the same draws. The test swaps the methods in
    whole groups of the outermost level, at random (Fisher's randomisation; for one column it flips
    the signs of differences), and counts the swaps that give as large a difference:
    `p = (1 + count) / (1 + draws)`, which is never 0 (Phipson and Smyth 2010).

    Args:
        first, second: Tables of the methods, row by row for the same cases and rounds. A row with a
            NaN in either is left out of both.
        resampling: See `bootstrap`. It must not be crossed.
        statistic: Statistic of the means of columns, such as their product; see `Means.interval`.

    Raises:
        ValueError: No row is common, or the resampling is crossed.
    """
    if resampling.crossed:
        raise ValueError("a paired difference needs nested levels")
    pair = np.stack([first, second], 1).astype(np.float64).reshape(len(first), 2, -1)
    common = np.asarray(~np.isnan(pair).any((1, 2)))
    if not common.any():
        raise ValueError("the methods have no common row")
    pair, kept = pair[common], _rows_of(resampling, common)
    columns = first.shape[1:]

    def difference(means: np.ndarray) -> np.ndarray:
        sides = means.reshape(len(means), 2, *columns)
        return np.atleast_1d(statistic(sides[:, 0])) - np.atleast_1d(statistic(sides[:, 1]))

    interval = bootstrap(pair, kept).interval(difference)
    rows = len(pair)
    groups = np.unique(kept.levels[0], return_inverse=True)[1] if kept.levels else np.arange(rows)
    sums = np.zeros((int(groups.max()) + 1, *pair.shape[1:]))
    np.add.at(sums, groups, pair)
    total = sums.sum(0)
    gain = (sums[:, 1] - sums[:, 0]).reshape(len(sums), -1)  # of the first side by a swap
    rng = np.random.default_rng([kept.seed, 1])
    # Sums in another order differ in their last digits, and an equal difference must count.
    least, count = abs(interval.value) * (1 - 1e-9) - 1e-15, 0
    most = max(1, _ENTRIES // len(sums))
    for start in range(0, kept.draws, most):
        size = min(most, kept.draws - start), len(sums)
        swapped = rng.integers(0, 2, size, np.int8).astype(np.float64) @ gain
        means = np.stack([total[0] + swapped, total[1] - swapped], 1) / rows
        count += int((np.abs(difference(means)) >= least).sum())
    return Difference(interval, (1 + count) / (1 + kept.draws), rows)


def _rows_of(resampling: Resampling, kept: np.ndarray) -> Resampling:
    """The resampling of some of the rows."""
    strata = None if resampling.strata is None else np.asarray(resampling.strata)[kept]
    levels = tuple(np.asarray(labels)[kept] for labels in resampling.levels)
    return dataclasses.replace(resampling, levels=levels, strata=strata)


def holm(p: Sequence[float]) -> list[float]:
    """Adjusts p values for the number of comparisons (Holm 1979), in the order given."""
    values = np.asarray(p, np.float64)
    order = np.argsort(values)
    steps = (len(values) - np.arange(len(values))) * values[order]
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return [float(value) for value in adjusted]


def clustered_error(values: Float[np.ndarray, " rows"], clusters: Labels) -> float:
    """Standard error of a mean whose rows are drawn in clusters (Miller 2024, section 2.2).

    `sqrt(sum over clusters of (sum of residuals)^2) / n`. It checks a bootstrap of `clusters`.
    Missing values (NaN) are left out.
    """
    there = ~np.isnan(values)
    codes = np.unique(np.asarray(clusters), return_inverse=True)[1]
    residuals = np.where(there, values - values[there].mean(), 0)
    return float(np.linalg.norm(np.bincount(codes, residuals)) / there.sum())


def first_rank(draws: Float[np.ndarray, "draws methods"]) -> Float[np.ndarray, " methods"]:
    """Share of draws in which each method has the highest statistic; methods in a tie share it.

    Draws for which a method's statistic is not defined (NaN) are left out.
    """
    known = draws[~np.isnan(draws).any(1)]
    if not len(known):
        return np.full(draws.shape[1], np.nan)
    best = known == known.max(1, keepdims=True)
    return (best / best.sum(1, keepdims=True)).mean(0)


def rank_correlation(
    x: Float[np.ndarray, " rows"],
    y: Float[np.ndarray, " rows"],
    kind: Literal["spearman", "kendall"] = "spearman",
    resampling: Resampling = Resampling(draws=2000),
) -> Interval:
    """Rank correlation with its bootstrap interval: Spearman's rho, or Kendall's tau-b.

    Equal values share their mean rank. Copies of a row in a draw are ties. The correlation is NaN
    where one side is constant.

    Raises:
        ValueError: A value is NaN.
    """
    if np.isnan(x).any() or np.isnan(y).any():
        raise ValueError("a rank correlation needs values without NaN")
    sides = [np.asarray(side, np.float64) for side in (x, y)]
    if kind == "kendall":
        signs = [np.sign(side[:, None] - side[None]) for side in sides]
        return resampling.interval(lambda weights: _kendall(weights, *signs), len(x))
    return resampling.interval(
        lambda weights: weighted_pearson(weights, *(_ranks(weights, side) for side in sides)),
        len(x),
    )


def _ranks(weights: np.ndarray, values: np.ndarray) -> Float[np.ndarray, "draws rows"]:
    """Mean rank of each row among the rows of a draw."""
    codes = np.unique(values, return_inverse=True)[1]
    order = np.argsort(codes, kind="stable")
    starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
    sizes = np.add.reduceat(weights[:, order], starts, axis=1)
    below = np.cumsum(sizes, 1) - sizes
    return (below + (sizes + 1) / 2)[:, codes]


def weighted_pearson(
    weights: Float[np.ndarray, "draws rows"], x: np.ndarray, y: np.ndarray
) -> Float[np.ndarray, " draws"]:
    """Pearson's correlation of every draw; NaN where one side is constant.

    Args:
        weights: Weights of the rows.
        x, y: Values of the rows, one list for all draws or one for each.
    """
    total = weights.sum(1, keepdims=True)
    x = x - (weights * x).sum(1, keepdims=True) / total
    y = y - (weights * y).sum(1, keepdims=True) / total
    across, up = ((weights * side**2).sum(1) for side in (x, y))
    scale = np.sqrt(across * up)
    tiny = 1e-12 * total[:, 0]
    defined = (across > tiny) & (up > tiny)
    return np.where(defined, (weights * x * y).sum(1) / np.where(defined, scale, 1), np.nan)


def _kendall(weights: np.ndarray, x: np.ndarray, y: np.ndarray) -> Float[np.ndarray, " draws"]:

    def pairs(signs: np.ndarray) -> np.ndarray:
        return ((weights @ signs) * weights).sum(1)

    scale = np.sqrt(pairs(np.abs(x)) * pairs(np.abs(y)))
    return np.where(scale > 0, pairs(x * y) / np.where(scale > 0, scale, 1), np.nan)


def variance_components(
    values: Float[np.ndarray, " rows"], levels: Sequence[Labels]
) -> Float[np.ndarray, " components"]:
    """Splits the variance of one value into that of each level and the rest within the last.

    With `levels=(subjects, cases)` and rows for rounds it gives the variance between subjects,
    between the cases of a subject, and between the rounds of a case. Nested analysis of variance by
    sums of squares and their expectations, for groups of any sizes (Searle, Casella and McCulloch
    1992, chapter 5); a negative estimate becomes 0, an inestimable one NaN.
    """
    values = np.asarray(values, np.float64)
    groups = [np.zeros(len(values), int)]
    for labels in levels:
        codes = np.unique(np.asarray(labels), return_inverse=True)[1]
        paths = groups[-1] * (int(codes.max()) + 1) + codes
        groups.append(np.unique(paths, return_inverse=True)[1])
    groups.append(np.arange(len(values)))
    sizes = [np.bincount(group) for group in groups]
    squares = [
        (np.bincount(group, values) ** 2 / size).sum()
        for group, size in zip(groups, sizes, strict=True)
    ]

    def share(inner: int, outer: int) -> float:
        """Sum over groups of `outer` of their sum of squared sizes of `inner`, by their size."""
        inside = sizes[inner][groups[inner]]  # each row of an inner group adds its size once
        return float((np.bincount(groups[outer], inside) / sizes[outer]).sum())

    found = np.full(len(groups), np.nan)
    for level in reversed(range(1, len(groups))):
        expected = [share(k, level) - share(k, level - 1) for k in range(level, len(groups))]
        rest = squares[level] - squares[level - 1]
        rest -= sum(c * found[level + i] for i, c in enumerate(expected[1:], 1))
        if expected[0] > 0:
            found[level] = max(rest / expected[0], 0)
    return found[1:]


def detectable_difference(error: float, power: float = 0.8, alpha: float = 0.05) -> float:
    """Smallest true difference that a two-sided test finds with a given power.

    Args:
        error: Standard error of the difference, such as `clustered_error` of paired differences; it
            shrinks with the square root of the number of clusters.
        power: Probability of finding it.
        alpha: Level of the test.
    """
    return float((ndtri(1 - alpha / 2) + ndtri(power)) * error)


def sample_size(share: float, half_width: float, confidence: float = 0.95) -> int:
    """Number of independent labels that gives a share an interval of `± half_width`.

    `z^2 p (1 - p) / d^2`, the normal approximation: 457 for 0.95 ± 0.02.
    """
    z = ndtri((1 + confidence) / 2)
    return math.ceil(z**2 * share * (1 - share) / half_width**2)
