"""The bootstrap: draws observations anew, by subjects, prompts, raters or whatever they share.

A draw is a weight for every row, the number of times that it was drawn. So a statistic that can
weight its rows has an interval, and all statistics of one table can use the same draws.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from dsd_jax.interval import Interval
from dsd_jax.types import Float, Int

__all__ = ["Labels", "Resampling", "WeightedStatistic", "interval_of"]

Labels = Sequence[str] | Sequence[int] | np.ndarray
"""A label for each row. Rows with one label belong together."""

WeightedStatistic = Callable[[np.ndarray], np.ndarray]
"""Takes weights of shape `[draws, rows]` and gives one number for each draw."""

_ENTRIES = 4_000_000  # drawn at once, which bounds the memory


@dataclasses.dataclass(frozen=True, eq=False)
class Resampling:
    """Says how rows are drawn anew.

    The interval is about what is drawn. Draw the outermost level alone (subjects) for the mean over
    all possible subjects: it carries the variance of everything within. Drawing further levels
    within it (prompts, rounds) counts their variance twice, so its intervals are wider than asked
    for (Davison and Hinkley 1997, section 3.8; `benchmarks/evaluation/coverage.py` measures both).

    Attributes:
        levels: Labels of the rows at every level that is drawn, outermost first, such as
            `(subjects,)` or `(subjects, prompts, rounds)`. Rows with the same labels at all levels
            stay together. Empty: every row is drawn on its own.
        strata: Labels of parts whose sizes stay as they are, such as categories; None for one part.
        crossed: Draw each level by itself instead of within the one before, and multiply the
            weights, for rows that are rater x item (the pigeonhole bootstrap of Owen 2007, whose
            intervals are never too short by much).
        draws: Number of draws.
        seed: Seed of the draws.
        confidence: Share of the draws that an interval holds.
    """

    levels: Sequence[Labels] = ()
    strata: Labels | None = None
    crossed: bool = False
    draws: int = 10_000
    seed: int = 0
    confidence: float = 0.95

    def weights(self, rows: int) -> Iterator[Float[np.ndarray, "_draws {rows}"]]:
        """Draws in parts: how often each row was drawn.

        Raises:
            ValueError: See `grouped`.
        """
        groups, drawn = self.grouped(rows)
        return (part[:, groups] for part in drawn)

    def grouped(
        self, rows: int
    ) -> tuple[Int[np.ndarray, " {rows}"], Iterator[Float[np.ndarray, "_draws _groups"]]]:
        """Gives the group of each row, and draws in parts: how often each group was drawn.

        A group holds the rows that stay together in all draws.

        Raises:
            ValueError: The labels are not one for each row, or crossed levels have strata.
        """
        if self.crossed and self.strata is not None:
            raise ValueError("crossed levels have no strata: a rater has items of many strata")
        for labels in (*self.levels, *(() if self.strata is None else (self.strata,))):
            if len(labels) != rows:
                raise ValueError(f"expected a label for each of {rows} rows, got {len(labels)}")
        levels = [_codes(labels) for labels in self.levels] or [np.arange(rows)]
        strata = np.zeros(rows, int) if self.strata is None else _codes(self.strata)
        if not self.crossed:
            tree = _Tree(strata, levels)
            return tree.groups, self._parts([tree], tree.size)
        trees = [_Tree(strata, (level,)) for level in levels]
        return np.arange(rows), self._parts(trees, rows)

    def _parts(self, trees: Sequence["_Tree"], groups: int) -> Iterator[np.ndarray]:
        rng = np.random.default_rng(self.seed)
        most = max(1, _ENTRIES // max(groups, 1))
        for start in range(0, self.draws, most):
            count = min(most, self.draws - start)
            drawn = [tree.draw(rng, count) for tree in trees]
            if self.crossed:
                expanded = [own[:, tree.groups] for own, tree in zip(drawn, trees, strict=True)]
                yield np.prod(expanded, axis=0)
            else:
                yield drawn[0]

    def interval(self, statistic: WeightedStatistic, rows: int) -> Interval:
        """Computes a statistic of the rows and its interval.

        Args:
            statistic: Gives one number for each draw.
            rows: Number of rows of the data.
        """
        (value,) = statistic(np.ones((1, rows)))
        drawn = [statistic(part) for part in self.weights(rows)]
        return interval_of(float(value), np.concatenate(drawn), self.confidence)


def interval_of(
    value: float, draws: Float[np.ndarray, " draws"], confidence: float = 0.95
) -> Interval:
    """The percentile interval of a statistic (Efron 1979).

    Draws for which the statistic is not defined (NaN) are left out; without any other draw the
    limits are NaN.
    """
    there = draws[~np.isnan(draws)]
    if not len(there):
        return Interval(value, float("nan"), float("nan"))
    tail = (1 - confidence) / 2
    low, high = np.quantile(there, [tail, 1 - tail])
    return Interval(value, float(low), float(high))


def _codes(labels: Labels) -> Int[np.ndarray, " rows"]:
    return np.unique(np.asarray(labels), return_inverse=True)[1]


class _Tree:
    """Rows as leaves of a tree: strata, then groups within groups."""

    def __init__(self, strata: np.ndarray, levels: Sequence[np.ndarray]) -> None:
        nodes = strata
        self.roots = int(strata.max(initial=-1)) + 1
        self.children: list[tuple[np.ndarray, np.ndarray]] = []  # first and number, of each node
        for level in levels:
            count = int(nodes.max(initial=-1)) + 1
            paths, inner = np.unique(
                nodes * (level.max(initial=0) + 1) + level, return_inverse=True
            )
            parents = paths // (level.max(initial=0) + 1)  # sorted, as the paths are
            number = np.bincount(parents, minlength=count)
            self.children.append((np.cumsum(number) - number, number))
            nodes = inner
        self.groups = nodes
        self.size = int(nodes.max(initial=-1)) + 1

    def draw(self, rng: np.random.Generator, count: int) -> Float[np.ndarray, "{count} groups"]:
        nodes = np.tile(np.arange(self.roots, dtype=np.int32), count)
        draw = np.repeat(np.arange(count, dtype=np.int32), self.roots)
        for first, number in self.children:
            own = number[nodes].astype(np.int32)
            starts, sizes = (np.repeat(each, own) for each in (first[nodes].astype(np.int32), own))
            nodes = starts + (rng.random(len(sizes), np.float32) * sizes).astype(np.int32)
            draw = np.repeat(draw, own)
        flat = draw.astype(np.int64) * self.size + nodes
        drawn = np.bincount(flat, minlength=count * self.size).reshape(count, self.size)
        return drawn.astype(np.float64)
