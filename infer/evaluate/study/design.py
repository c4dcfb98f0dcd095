"""Design of a study: which cases, and who sees which pictures of them.

Everything follows from a seed. A list is what one rater sees. Within a list, and so in the study,
every method is shown equally often, and every two methods are compared equally often, give or take
one:

- Ratings of single pictures: a rater sees a case under all methods or not at all, and each case
  is given to equally many raters, give or take one.
- Comparisons of two pictures: a rater sees every two methods equally often, give or take one, each
  time on another case, and each comparison on a case is given to equally many raters, likewise.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np

from dsd_jax.errors import UserError
from dsd_jax.infer.evaluate.study.record import Mode

__all__ = ["CHECKS", "Budget", "Unit", "apart", "lists_of"]

CHECKS = 2
"""Attention checks in every list."""
_REPEATED = 0.1
_RATERS_PER_ITEM = 3


@dataclasses.dataclass(frozen=True)
class Unit:
    """A thing to rate: a case, and the methods whose pictures of it are shown."""

    case: str
    methods: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Budget:
    """Time of a rater.

    Attributes:
        minutes: Time for a list.
        seconds: Time for an item, all its questions together.
    """

    minutes: float
    seconds: float

    @property
    def items(self) -> int:
        """Items of a list, with repeats and checks."""
        return int(self.minutes * 60 // self.seconds)

    @property
    def units(self) -> int:
        """Items of a list that are neither repeats nor checks."""
        return max(0, int((self.items - CHECKS) / (1 + _REPEATED)))

    def repeats(self, units: int) -> int:
        """Number of items that a list of so many units repeats."""
        return min(max(1, round(_REPEATED * units)), self.items - CHECKS - units)


def lists_of(
    mode: Mode,
    cases: Sequence[str],
    methods: Sequence[str],
    budget: Budget,
    raters: int | None,
    rng: np.random.Generator,
) -> list[list[Unit]]:
    """The units of every list, without repeats and checks, in the order in which they are shown.

    Args:
        mode: Kind of question.
        cases, methods: What is compared.
        budget: Time of a rater.
        raters: Number of lists. Default: as many as give every unit three raters.
        rng: Source of every choice.

    Raises:
        UserError: The time is too short, or a comparison has fewer than two methods.
    """
    if mode == "pair" and len(methods) < 2:
        raise UserError("--mode pair compares two methods; give two runs at least")
    units, together = _sequence(mode, cases, methods, rng)
    size = min(budget.units, len(units))
    if size < (1 if mode == "pair" else together):
        raise UserError(
            f"{budget.minutes:g} minutes hold {budget.units} items of {budget.seconds:g} s, fewer "
            f"than the {together} pictures of one case; give more --minutes or fewer runs"
        )
    if mode != "pair":
        size -= size % together
    count = raters or math.ceil(_RATERS_PER_ITEM * len(units) / size)
    endless = itertools.cycle(units)
    return [apart(list(itertools.islice(endless, size)), rng) for _ in range(count)]


def _sequence(
    mode: Mode, cases: Sequence[str], methods: Sequence[str], rng: np.random.Generator
) -> tuple[list[Unit], int]:
    """All units in an order whose parts are balanced, and the size of the smallest such part."""
    cases = [cases[place] for place in rng.permutation(len(cases))]
    methods = [methods[place] for place in rng.permutation(len(methods))]
    if mode != "pair":
        return [Unit(case, (method,)) for case in cases for method in methods], len(methods)
    pairs = list(itertools.combinations(methods, 2))
    pairs = [pairs[place] for place in rng.permutation(len(pairs))]
    rounds = [
        [Unit(cases[(turn + place) % len(cases)], pair) for place, pair in enumerate(pairs)]
        for turn in range(len(cases))
    ]
    return list(itertools.chain.from_iterable(rounds)), len(pairs)


def apart(units: Sequence[Unit], rng: np.random.Generator) -> list[Unit]:
    """A random order in which units of one case are far from each other."""
    by_case: dict[str, list[Unit]] = {}
    for unit in (units[place] for place in rng.permutation(len(units))):
        by_case.setdefault(unit.case, []).append(unit)
    rounds = itertools.zip_longest(*by_case.values())
    return [unit for turn in rounds for unit in turn if unit is not None]
