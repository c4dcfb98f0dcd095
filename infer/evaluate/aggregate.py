"""Means of ratings over a benchmark, by the rules that DreamBench++ and the paper used.

Table 1 of the paper mixes two rules: its baselines follow `dsd-baseline`, its own row follows
`dsd-ours`, and neither is the rule of DreamBench++. All of them are here under a name, so a table
can hold every method by one rule.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from dsd_jax.infer.evaluate.cases import Case
from dsd_jax.infer.evaluate.ratings import Rating
from dsd_jax.types import Bool, Float

__all__ = [
    "AGGREGATORS",
    "CONCEPT",
    "Aggregator",
    "AggregatorName",
    "Design",
    "Grid",
    "Mean",
    "Quantity",
    "common_cases",
    "mean_of",
    "mean_of_products",
    "only",
    "property_of",
    "with_zeros",
]

Property = Literal["category", "prompt_class"]

CONCEPT = frozenset({"cp", "identity", "novelty", "sc"})
"""Aspects that are averaged as concept preservation is; the others follow the prompt."""


def property_of(aspect: str) -> Property:
    """Property by which tables split an aspect."""
    return "category" if aspect in CONCEPT else "prompt_class"


@dataclasses.dataclass(frozen=True)
class Mean:
    """A mean over groups of the means inside each group.

    Attributes:
        by: Property of cases that groups them; "" puts all cases in one group. "subject" gives the
            same weight to every subject that has a score.
        without: Property and value of cases that are left out, or None.
    """

    by: Literal["", "category", "prompt_class", "subject"] = ""
    without: tuple[Property, str] | None = None

    def group(self, case: Case) -> str | None:
        """Name of the group of a case; None if the case is left out."""
        if self.without is not None and getattr(case, self.without[0]) == self.without[1]:
            return None
        return str(getattr(case, self.by)) if self.by else ""


@dataclasses.dataclass(frozen=True)
class Aggregator:
    """A rule that makes one number of the ratings of a method.

    Attributes:
        words: The rule in a sentence.
        concept: Mean of concept preservation, and of aspects like it.
        prompt: Mean of prompt following.
        decimals: Digits to which means are rounded before they are multiplied; None keeps all.
    """

    words: str
    concept: Mean
    prompt: Mean
    decimals: int | None = None

    def of(self, aspect: str) -> Mean:
        """The mean that an aspect takes."""
        return self.concept if aspect in CONCEPT else self.prompt

    def rounded(self, value: float) -> float:
        """A mean as it is printed and multiplied."""
        return value if self.decimals is None else round(value, self.decimals)


_NO_STYLE: tuple[Property, str] = "category", "style"
_NO_STYLE_TRANSFER: tuple[Property, str] = "prompt_class", "style"

AggregatorName = Literal["official", "dsd-baseline", "dsd-ours", "macro"]

AGGREGATORS: dict[AggregatorName, Aggregator] = {
    "official": Aggregator(
        "DreamBench++: all items weigh the same, styles included; means are rounded to three "
        "decimals before they are multiplied.",
        Mean(),
        Mean(),
        decimals=3,
    ),
    "dsd-baseline": Aggregator(
        "The paper's baselines: CP is the plain mean of animals, humans and objects; PF is the "
        "plain mean of the three prompt classes.",
        Mean("category", _NO_STYLE),
        Mean("prompt_class"),
    ),
    "dsd-ours": Aggregator(
        "The paper's own row, here for every method: CP weighs items of animals, humans and "
        "objects the same (45/20/65 subjects); PF weighs photorealistic and imaginative prompts "
        "the same (4:2) and leaves style transfer out.",
        Mean(without=_NO_STYLE),
        Mean(without=_NO_STYLE_TRANSFER),
    ),
    "macro": Aggregator(
        "All subjects weigh the same, however many items each has.",
        Mean("subject"),
        Mean("subject"),
    ),
}
"""The rules of Table 1 by name."""


class Design:
    """The cases of a benchmark as matrices, which all grids on them share."""

    def __init__(self, cases: Sequence[Case]) -> None:
        self.cases = tuple(cases)
        self.subjects = list(dict.fromkeys(case.subject for case in cases))
        place = {name: number for number, name in enumerate(self.subjects)}
        self.member = np.eye(len(place))[:, [place[case.subject] for case in cases]]
        self._weights: dict[object, Float[np.ndarray, "cases groups"]] = {}

    def inside(self, mean: Mean) -> Float[np.ndarray, "cases groups"]:
        """1 where a case is in a group of a mean, otherwise 0. Subjects are one group."""
        if mean not in self._weights:
            names = [mean.group(case) for case in self.cases]
            if mean.by == "subject":
                names = [None if name is None else "" for name in names]
            groups = sorted({name for name in names if name is not None})
            self._weights[mean] = np.array([[x == group for group in groups] for x in names], float)
        return self._weights[mean]

    def crossed(self, rule: Aggregator) -> Float[np.ndarray, "cases 1"]:
        """Weight of a case in a mean of products; see `mean_of_products`."""
        pair = rule.concept, rule.prompt
        if pair not in self._weights:
            cells = [(pair[0].group(case), pair[1].group(case)) for case in self.cases]
            size = Counter(cells)
            self._weights[pair] = np.array(
                [[0.0 if None in cell else 1 / size[cell]] for cell in cells]
            )
        return self._weights[pair]

    def where(self, of: Property, value: str) -> Bool[np.ndarray, " cases"]:
        """Marks the cases of one category or prompt class."""
        return np.array([getattr(case, of) == value for case in self.cases], bool)


@dataclasses.dataclass(frozen=True, eq=False)
class Grid:
    """Scores of one aspect of a run by one judge.

    Attributes:
        design: The cases of the benchmark.
        values: Scores from 0 to `scale`, the mean over the images of a case; NaN where there is no
            score.
        scale: Highest score.
    """

    design: Design
    values: Float[np.ndarray, "rounds cases"]
    scale: float

    @classmethod
    def of(cls, design: Design, ratings: Sequence[Rating]) -> "Grid":
        """Makes a grid of ratings of one aspect. A round is a judge's repetition, or a judge.

        Raises:
            ValueError: There are no ratings, or they have several scales.
        """
        (scale,) = {rating.scale for rating in ratings}
        rounds = sorted({(rating.judge, rating.round) for rating in ratings})
        rows = {each: number for number, each in enumerate(rounds)}
        columns = {case.id: number for number, case in enumerate(design.cases)}
        sums, counts = np.zeros((2, len(rows), len(columns)))
        for rating in ratings:
            if rating.score is not None and rating.state == "ok":
                place = rows[rating.judge, rating.round], columns[rating.case]
                sums[place] += rating.score
                counts[place] += 1
        return cls(design, np.where(counts > 0, sums / np.maximum(counts, 1), np.nan), scale)

    @property
    def complete(self) -> bool:
        """Whether every case has a score in every round."""
        return not np.isnan(self.values).any()


@dataclasses.dataclass(frozen=True, eq=False)
class Quantity:
    """A number that follows from sums by subject, so a sample of subjects gives it too.

    Attributes:
        table: Whatever is summed, a row for each subject.
        value: The number, of sums or means of the columns of the table; NaN if a group is empty.
        rounds: The number in every round by itself; empty for a number made of others.
    """

    table: Float[np.ndarray, "subjects columns"]
    value: Callable[[Float[np.ndarray, "draws columns"]], Float[np.ndarray, " draws"]]
    rounds: tuple[float, ...] = ()

    @property
    def estimate(self) -> float:
        """The number of all subjects."""
        return float(self.value(self.table.sum(0, keepdims=True))[0])

    def __mul__(self, other: "Quantity") -> "Quantity":
        columns = self.table.shape[1]
        return Quantity(
            np.hstack([self.table, other.table]),
            lambda means: self.value(means[:, :columns]) * other.value(means[:, columns:]),
        )


def mean_of(grid: Grid, mean: Mean) -> Quantity:
    """Mean of a grid from 0 to 1: of each round, then over the rounds."""
    sums, counts = _sums(grid, grid.design.inside(mean))
    if mean.by == "subject":
        there = counts > 0
        sums, counts = np.where(there, sums / np.where(there, counts, 1), 0), there.astype(float)
    return _ratio(sums, counts, grid.scale)


def mean_of_products(concept: Grid, prompt: Grid, rule: Aggregator) -> Quantity:
    """Mean over cases of the product of two scores, from 0 to 1.

    Every case weighs as much as its group of `rule.concept` and its group of `rule.prompt` let it,
    and the weights of the cases that have both scores add up to 1. Rounds are paired by number.
    """
    rounds = min(len(concept.values), len(prompt.values))
    products = Grid(
        concept.design,
        concept.values[:rounds] * prompt.values[:rounds],
        concept.scale * prompt.scale,
    )
    if rule.concept.by == "subject":
        return mean_of(products, rule.concept)
    return _ratio(*_sums(products, concept.design.crossed(rule)), products.scale)


def only(grid: Grid, of: Property, value: str) -> Grid:
    """Keeps the scores of one category or one prompt class; the others become missing."""
    return _where(grid, grid.design.where(of, value))


def common_cases(grids: Sequence[Grid]) -> list[Grid]:
    """Keeps the cases that have a score in every round of every grid."""
    there = np.all([~np.isnan(row) for grid in grids for row in grid.values], axis=0)
    return [_where(grid, there) for grid in grids]


def with_zeros(grid: Grid) -> Grid:
    """Puts the worst score, 0, in place of every missing one."""
    return dataclasses.replace(grid, values=np.nan_to_num(grid.values))


def _where(grid: Grid, keep: Bool[np.ndarray, " cases"]) -> Grid:
    return dataclasses.replace(grid, values=np.where(keep, grid.values, np.nan))


def _sums(
    grid: Grid, weights: Float[np.ndarray, "cases groups"]
) -> tuple[
    Float[np.ndarray, "subjects rounds groups"], Float[np.ndarray, "subjects rounds groups"]
]:
    """Adds scores times weights, and weights, over the cases of each subject that have a score."""
    there = ~np.isnan(grid.values)
    sums, counts = (
        np.swapaxes(grid.design.member @ (each[..., None] * weights), 0, 1)
        for each in (np.nan_to_num(grid.values), there.astype(float))
    )
    return sums, counts


def _ratio(sums: np.ndarray, counts: np.ndarray, scale: float) -> Quantity:
    """Mean over rounds and groups of sums divided by counts and by the scale."""
    both = np.stack([sums, counts], 1)
    table, shape = both.reshape(len(both), -1), both.shape[1:]
    (own,) = _rounds(table.sum(0, keepdims=True), shape, scale)
    return Quantity(table, lambda means: _rounds(means, shape, scale).mean(1), tuple(own.tolist()))


def _rounds(
    means: Float[np.ndarray, "draws columns"], shape: tuple[int, ...], scale: float
) -> Float[np.ndarray, "draws rounds"]:
    """Mean of every round, from columns of the shape [2, rounds, groups]: sums and counts."""
    total, number = means.reshape(-1, *shape).swapaxes(0, 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((total / number / scale).mean(2))
