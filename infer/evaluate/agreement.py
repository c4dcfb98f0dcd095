"""Agreement of raters, and shares that are corrected for an imperfect judge.

Every function gives an `Interval`. It comes from a formula where there is a good one, otherwise
from a bootstrap over items (`Resampling`, which also draws clusters of items).
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy.special import ndtri

from dsd_jax.infer.evaluate.resampling import (
    Labels,
    Resampling,
    WeightedStatistic,
    interval_of,
)
from dsd_jax.infer.evaluate.statistics import first_rank
from dsd_jax.interval import Interval
from dsd_jax.types import Float

__all__ = [
    "Count",
    "Preferences",
    "bradley_terry",
    "cohen_kappa",
    "complement",
    "entropy",
    "krippendorff_alpha",
    "mean_correlation",
    "pearson",
    "ppi_mean",
    "ratio",
    "rogan_gladen",
    "unanimity",
    "weighted_kappa",
    "wilson",
]

_ITEMS = Resampling(draws=2000)


class Count(NamedTuple):
    """Successes among trials. Weighted samples have effective numbers, which need not be whole."""

    successes: float
    trials: float

    @property
    def share(self) -> float:
        """Share of successes; NaN without trials."""
        return self.successes / self.trials if self.trials else math.nan


def wilson(count: Count | tuple[float, float], confidence: float = 0.95) -> Interval:
    """A share with its score interval (Wilson 1927); 0 to 1 without trials."""
    successes, trials = count
    if not trials:
        return Interval(math.nan, 0.0, 1.0)
    z, share = _z(confidence), successes / trials
    middle = (share + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z * math.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    half /= 1 + z**2 / trials
    # At 0 and 1 the limits are exact but for rounding.
    return Interval(share, max(min(middle - half, share), 0), min(max(middle + half, share), 1))


def _z(confidence: float) -> float:
    return float(ndtri((1 + confidence) / 2))


def complement(share: Interval) -> Interval:
    """The share of all other items, with its interval."""
    return Interval(1 - share.value, 1 - share.high, 1 - share.low)


def ratio(numerator: Interval, denominator: Interval) -> Interval:
    """Ratio of two independent shares, from their intervals (Donner and Zou 2012, section 2).

    The method needs no variances, so it works with shares of 0 and 1. An infinite limit means that
    the denominator may be 0.
    """
    (a, a_low, a_high), (b, b_low, b_high) = numerator, denominator
    value = a / b if b else math.inf if a else math.nan

    def limit(above: float, below: float, sign: int) -> float:
        scale = below * (2 * b - below)
        if scale <= 0:
            return math.inf if sign > 0 else 0.0
        root = (a * b) ** 2 - above * below * (2 * a - above) * (2 * b - below)
        return (a * b + sign * math.sqrt(max(root, 0))) / scale

    return Interval(value, limit(a_low, b_high, -1), limit(a_high, b_low, 1))


# Two raters


def cohen_kappa(a: Labels, b: Labels, resampling: Resampling = _ITEMS) -> Interval:
    """Agreement of two raters beyond chance, for labels without an order (Cohen 1960).

    Raises:
        ValueError: The raters have other numbers of labels, or none.
    """
    codes = np.unique(np.concatenate([np.asarray(a), np.asarray(b)]), return_inverse=True)[1]
    return _kappa(codes, len(a), 1 - np.eye(codes.max(initial=0) + 1), resampling)


def weighted_kappa(
    a: Sequence[float] | np.ndarray,
    b: Sequence[float] | np.ndarray,
    weights: Literal["linear", "quadratic"] = "quadratic",
    resampling: Resampling = _ITEMS,
) -> Interval:
    """Agreement of two raters beyond chance where larger differences weigh more (Cohen 1968).

    The weight of a disagreement is the difference of the two ratings, or its square. A level that
    nobody used changes nothing.

    Raises:
        ValueError: The raters have other numbers of ratings, or none.
    """
    both = np.concatenate([np.asarray(a, np.float64), np.asarray(b, np.float64)])
    levels, codes = np.unique(both, return_inverse=True)
    apart = np.abs(levels[:, None] - levels[None])
    return _kappa(codes, len(a), apart if weights == "linear" else apart**2, resampling)


def _kappa(codes: np.ndarray, items: int, cost: np.ndarray, resampling: Resampling) -> Interval:
    if not items or len(codes) != 2 * items:
        raise ValueError(f"expected two ratings of each item, got {items}, {len(codes) - items}")
    size = len(cost)
    first, second = np.eye(size)[codes[:items]], np.eye(size)[codes[items:]]
    own = cost[codes[:items], codes[items:]]

    def kappa(weights: np.ndarray) -> np.ndarray:
        total = weights.sum(1)
        seen = weights @ own / total
        chance = np.einsum("di,ij,dj->d", weights @ first, cost, weights @ second) / total**2
        # Both raters use one and the same label: there is nothing to agree on.
        return np.where(chance > 0, 1 - seen / np.where(chance > 0, chance, 1), np.nan)

    return resampling.interval(kappa, items)


def pearson(
    x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"], confidence: float = 0.95
) -> Interval:
    """Pearson's correlation; its interval by Fisher's z, `atanh(r) ± z / sqrt(n - 3)`.

    NaN where a side is constant; the limits are -1 and 1 with fewer than four values.
    """
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return Interval(math.nan, -1.0, 1.0)
    r = float(np.clip(np.corrcoef(np.stack([x, y]))[0, 1], -1, 1))
    if len(x) < 4:
        return Interval(r, -1.0, 1.0)
    with np.errstate(divide="ignore"):
        middle, half = np.arctanh(r), _z(confidence) / math.sqrt(len(x) - 3)
    return Interval(r, float(np.tanh(middle - half)), float(np.tanh(middle + half)))


def mean_correlation(correlations: Sequence[float]) -> float:
    """Mean of correlations in Fisher's z, as metrics are compared over methods."""
    return float(np.tanh(np.mean(np.arctanh(correlations))))


# Any number of raters


def krippendorff_alpha(
    ratings: Float[np.ndarray, "raters items"],
    level: Literal["nominal", "ordinal", "interval"] = "interval",
    resampling: Resampling = _ITEMS,
) -> Interval:
    """Krippendorff's alpha (Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability").

    1 is perfect agreement, 0 that of chance. Items with fewer than two ratings do not count.

    Args:
        ratings: Ratings; NaN where a rater gave none.
        level: Level of measurement: what a difference of two ratings means.
        resampling: Says which items are drawn together; a label for each item.

    Returns:
        Alpha; NaN where all ratings are equal, or no item has two.
    """
    ratings = np.asarray(ratings, np.float64)
    there = ~np.isnan(ratings)
    paired = there.sum(0) >= 2
    present = there & paired
    if level == "interval":
        return resampling.interval(_interval_alpha(ratings, present), ratings.shape[1])
    values, codes = np.unique(ratings[present], return_inverse=True)
    counts = np.zeros((ratings.shape[1], len(values)))
    np.add.at(counts, (np.nonzero(present)[1], codes), 1)
    pairs = counts.sum(1)
    inside = counts[:, :, None] * counts[:, None] - counts[:, :, None] * np.eye(len(values))
    inside /= np.maximum(pairs - 1, 1)[:, None, None]
    inside = inside.reshape(len(inside), -1)

    def alpha(weights: np.ndarray) -> np.ndarray:
        marginal = weights @ counts  # ratings of each value
        total = marginal.sum(1)
        apart = _distances(marginal, level)
        seen = (weights @ inside * apart.reshape(len(weights), -1)).sum(1)
        chance = np.einsum("di,dij,dj->d", marginal, apart, marginal)
        return _one_minus(seen * (total - 1), chance)

    return resampling.interval(alpha, ratings.shape[1])


def _distances(marginal: np.ndarray, level: str) -> Float[np.ndarray, "draws values values"]:
    """Squared differences of values; ordinal ones count the ratings between two values."""
    size = marginal.shape[1]
    if level == "nominal":
        return np.broadcast_to(1 - np.eye(size), (len(marginal), size, size))
    middle = np.cumsum(marginal, 1) - marginal / 2
    return (middle[:, :, None] - middle[:, None]) ** 2


def _interval_alpha(ratings: np.ndarray, present: np.ndarray) -> WeightedStatistic:
    """Alpha of squared differences, from sums of squares, so values may be continuous."""
    # Centred, so that sums of squares keep their digits.
    filled = np.where(present, ratings - (ratings[present].mean() if present.any() else 0), 0.0)
    number = present.sum(0)
    sums, squares = filled.sum(0), (filled**2).sum(0)
    own = 2 * (squares * number - sums**2) / np.maximum(number - 1, 1)

    def alpha(weights: np.ndarray) -> np.ndarray:
        total = weights @ number
        chance = 2 * (total * (weights @ squares) - (weights @ sums) ** 2)
        return _one_minus(weights @ own * (total - 1), chance)

    return alpha


def _one_minus(seen: np.ndarray, chance: np.ndarray) -> Float[np.ndarray, " draws"]:
    defined = chance > 1e-12
    return np.where(defined, 1 - seen / np.where(defined, chance, 1), np.nan)


def unanimity(answers: Sequence[Sequence[str]]) -> Interval:
    """Share of items whose repeated answers are all equal, with Wilson's interval.

    One minus it is the flip rate. With two answers (both orders of a pair, an item and its repeat)
    it is the consistency of position or of repetition (Shi et al., arXiv 2406.07791).

    Args:
        answers: Answers of each item. Items with fewer than two do not count.
    """
    repeated = [own for own in answers if len(own) > 1]
    return wilson(Count(sum(len(set(own)) == 1 for own in repeated), len(repeated)))


def entropy(answers: Sequence[Sequence[str]]) -> float:
    """Mean entropy, in bits, of the repeated answers of an item; NaN without repeated ones."""
    found = []
    for own in answers:
        if len(own) > 1:
            shares = np.unique(np.asarray(own), return_counts=True)[1] / len(own)
            found.append(float(-(shares * np.log2(shares)).sum()))
    return float(np.mean(found)) if found else math.nan


# Shares and means corrected for a judge that errs


def rogan_gladen(
    apparent: Count, sensitivity: Count, specificity: Count, confidence: float = 0.95
) -> Interval:
    """True share of yes from a judge's share of yes (Rogan and Gladen 1978).

    `(apparent + specificity - 1) / (sensitivity + specificity - 1)`, kept within [0, 1]. The
    interval is that of Lang and Reiczigel (2014), which adds a few pseudo-counts to each share.

    Args:
        apparent: Items that the judge said yes to, of all.
        sensitivity: Items that it said yes to, of those labelled yes.
        specificity: Items that it said no to, of those labelled no.
        confidence: Confidence of the interval.

    Returns:
        The share; NaN, 0 and 1 where the judge tells yes from no no better than a coin.
    """
    counts = (apparent, sensitivity, specificity)
    skill = sensitivity.share + specificity.share - 1
    if any(count.trials == 0 for count in counts) or skill <= 0:
        return Interval(math.nan, 0.0, 1.0)
    value = (apparent.share + specificity.share - 1) / skill
    z = _z(confidence)
    added = (z**2, 2.0, 2.0)
    n = [count.trials + more for count, more in zip(counts, added, strict=True)]
    share, yes, no = (
        (count.successes + more / 2) / size
        for count, more, size in zip(counts, added, n, strict=True)
    )
    middle = (share + no - 1) / (yes + no - 1)
    noise = [yes * (1 - yes) / n[1], no * (1 - no) / n[2]]
    shift = 2 * z**2 * (middle * noise[0] - (1 - middle) * noise[1])
    spread = share * (1 - share) / n[0] + middle**2 * noise[0] + (1 - middle) ** 2 * noise[1]
    half = z * math.sqrt(spread) / (yes + no - 1)
    low, high = (_within(middle + shift + side) for side in (-half, half))
    return Interval(_within(value), low, high)


def _within(value: float) -> float:
    return min(max(value, 0.0), 1.0)


def ppi_mean(
    judged: Float[np.ndarray, " all"],
    human: Float[np.ndarray, " labelled"],
    judged_labelled: Float[np.ndarray, " labelled"],
    weights: Float[np.ndarray, " labelled"] | None = None,
    confidence: float = 0.95,
) -> Interval:
    """Mean of human ratings from many judge's ratings and a few human ones.

    Prediction-powered inference (Angelopoulos et al. 2023): the judge's mean over all items, plus
    the mean of `human - judge` over the labelled ones, with the normal interval of both variances.

    Args:
        judged: The judge's ratings of all items.
        human, judged_labelled: Ratings of the labelled items by people, and by the judge.
        weights: How many items each labelled one stands for; None if all have one chance.
        confidence: Confidence of the interval.

    Raises:
        ValueError: Fewer than two labelled items, or lists of different lengths.
    """
    if len(human) != len(judged_labelled) or len(human) < 2 or len(judged) < 2:
        raise ValueError(
            "the correction needs two or more items, rated by people and by the judge, got "
            f"{len(human)} and {len(judged_labelled)} of {len(judged)}"
        )
    shares = np.ones(len(human)) if weights is None else np.asarray(weights, np.float64)
    shares = shares / shares.sum()
    error = np.asarray(human, np.float64) - judged_labelled
    mean_error = float(shares @ error)
    variance = float((shares**2 @ (error - mean_error) ** 2) * len(error) / (len(error) - 1))
    value = float(np.mean(judged)) + mean_error
    half = _z(confidence) * math.sqrt(variance + float(np.var(judged, ddof=1)) / len(judged))
    return Interval(value, value - half, value + half)


# Pairwise preferences


@dataclasses.dataclass(frozen=True)
class Preferences:
    """Strengths of methods from pairwise preferences.

    Attributes:
        strength: Natural logarithm of each method's strength; their mean is 0.
        first: Share of draws in which each method is the strongest.
        tie: Davidson's parameter: two equal methods tie with probability `tie / (2 + tie)`.
    """

    strength: dict[str, Interval]
    first: dict[str, float]
    tie: Interval


def bradley_terry(
    left: Sequence[str],
    right: Sequence[str],
    outcome: Sequence[float] | np.ndarray,
    resampling: Resampling = Resampling(draws=1000),
    prior: float = 0.0,
) -> Preferences:
    """Fits strengths to pairwise preferences with ties (Davidson 1970).

    `P(i beats j) = s_i / (s_i + s_j + tie sqrt(s_i s_j))`, fitted by MM iterations (Hunter 2004,
    section 4). Intervals and ranks come from a bootstrap over answers, whose draws have a prior of
    at least a tenth of a comparison, since a draw may leave a method without a win.

    Args:
        left, right: Methods of each answer.
        outcome: 1 if the left one was preferred, -1 if the right one, 0 for a tie.
        resampling: Says which answers are drawn together, such as those of a rater.
        prior: Number of wins and of losses of each method against each other that are added.

    Raises:
        ValueError: The lists differ in length, or an outcome is something else; or, without a
            prior, some methods never lost to the others, so that no strengths fit.
    """
    sides = np.asarray(outcome, np.float64)
    if not len(left) == len(right) == len(sides) or not len(sides):
        raise ValueError("expected two methods and an outcome for each answer")
    if not np.isin(sides, (-1, 0, 1)).all():
        raise ValueError("an outcome is 1 (left), -1 (right) or 0 (tie)")
    names, codes = np.unique(np.concatenate([left, right]), return_inverse=True)
    size, rows = len(names), len(sides)
    a, b = codes[:rows], codes[rows:]
    winner, loser = np.where(sides >= 0, a, b), np.where(sides >= 0, b, a)
    cells = np.zeros((rows, 2, size, size))
    cells[np.arange(rows), (sides == 0).astype(int), winner, loser] = 1
    cells[:, 1] += cells[:, 1].transpose(0, 2, 1)  # ties have no side
    flat = cells.reshape(rows, -1)

    def fit(weights: np.ndarray, prior: float) -> np.ndarray:
        tables = (weights @ flat).reshape(len(weights), 2, size, size)
        return _davidson(tables[:, 0] + prior * (1 - np.eye(size)), tables[:, 1])

    everything = np.ones((1, rows))
    if not prior and not _connected((everything @ flat).reshape(2, size, size).sum(0)):
        raise ValueError(
            "some methods were never beaten by the others, so their strength has no limit; give a "
            "prior, or collect more answers"
        )
    (found,) = fit(everything, prior)
    draws = np.concatenate([fit(part, max(prior, 0.1)) for part in resampling.weights(rows)])
    each = [
        interval_of(float(value), drawn, resampling.confidence)
        for value, drawn in zip(found, draws.T, strict=True)
    ]
    methods = [str(name) for name in names]
    shares = first_rank(draws[:, :-1])
    return Preferences(
        dict(zip(methods, each[:-1], strict=True)),
        {method: float(share) for method, share in zip(methods, shares, strict=True)},
        each[-1],
    )


def _connected(beaten: np.ndarray) -> bool:
    """Whether every method can be reached from every other along wins and ties."""
    reach = (beaten > 0) | np.eye(len(beaten), dtype=bool)
    for _ in range(len(beaten)):
        reach = (reach.astype(int) @ reach.astype(int)) > 0
    return bool(reach.all())


def _davidson(
    wins: Float[np.ndarray, "draws M M"], ties: Float[np.ndarray, "draws M M"]
) -> Float[np.ndarray, "draws parameters"]:
    """Logarithms of the strengths, and the tie parameter, of each draw.

    Args:
        wins: How often the row beat the column.
        ties: How often the two tied, symmetric.
    """
    games = wins + wins.transpose(0, 2, 1) + ties
    score = wins.sum(2) + ties.sum(2) / 2
    tied = ties.sum((1, 2)) / 2
    strength = np.ones(score.shape)
    tie = np.ones(len(score))
    for _ in range(_STEPS):
        root = np.sqrt(strength)
        both = root[:, :, None] * root[:, None]
        rate = games / (strength[:, :, None] + strength[:, None] + tie[:, None, None] * both)
        ratio = root[:, None] / root[:, :, None]  # of the column's to the row's
        new = score / (rate * (1 + tie[:, None, None] / 2 * ratio)).sum(2)
        new /= np.exp(np.log(new).mean(1, keepdims=True))
        new_tie = tied / (rate * both).sum((1, 2)) * 2
        moved = max(np.abs(np.log(new / strength)).max(), np.abs(new_tie - tie).max())
        strength, tie = new, new_tie
        if moved < _CLOSE:
            break
    return np.concatenate([np.log(strength), tie[:, None]], 1)


_STEPS, _CLOSE = 5000, 1e-9
