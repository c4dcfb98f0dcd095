"""Numbers of the tables of a report, with standard deviations over rounds and intervals."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from dsd_jax.infer.evaluate.aggregate import (
    AGGREGATORS,
    Aggregator,
    AggregatorName,
    Design,
    Grid,
    Mean,
    Quantity,
    common_cases,
    mean_of,
    mean_of_products,
    only,
    property_of,
    with_zeros,
)
from dsd_jax.infer.evaluate.cases import Case
from dsd_jax.infer.evaluate.panels import Panel
from dsd_jax.infer.evaluate.resampling import Resampling, interval_of
from dsd_jax.infer.evaluate.statistics import first_rank, holm, paired_difference
from dsd_jax.interval import Interval

__all__ = [
    "NAMES",
    "PRODUCT",
    "PRODUCTS",
    "TREATMENTS",
    "Comparison",
    "Number",
    "Numbers",
    "Sampler",
    "Treatment",
    "by_column",
    "columns_of",
    "compared",
    "firsts",
    "overall",
    "quantities",
    "treated",
]

Treatment = Literal["present", "common", "worst"]
"""Cases that count: those that a method has, those that all methods have, or all of them."""

TREATMENTS: dict[Treatment, str] = {
    "present": "cases with a score",
    "common": "cases that all methods have",
    "worst": "all cases, 0 where a score is missing",
}

PRODUCT, PRODUCTS, ROOT = "cp*pf", "mean cp*pf", "overall"

NAMES = {"cp": "CP", "pf": "PF", "sc": "SC", PRODUCT: "CP·PF", PRODUCTS: "mean of CP·PF"}
"""Names of numbers in tables; others keep their own."""


@dataclasses.dataclass(frozen=True)
class Number:
    """A number of a method.

    Attributes:
        value: The number; NaN if it cannot be formed.
        interval: Its interval over subjects, if asked for.
        std: Standard deviation over rounds; None with one round.
    """

    value: float
    interval: Interval | None = None
    std: float | None = None


Numbers = Mapping[str, Mapping[str, Number]]
"""Numbers by method and name."""


class Sampler:
    """The draws of subjects that all intervals of a report share.

    Subjects are drawn within their category, with all their prompts, images and rounds.
    """

    def __init__(self, design: Design, draws: int = 10_000, seed: int = 0) -> None:
        categories = {case.subject: case.category for case in design.cases}
        strata = [categories[subject] for subject in design.subjects]
        self.resampling = Resampling(strata=strata, draws=draws, seed=seed)
        self._weights = np.concatenate(list(self.resampling.weights(len(strata)))).astype(float)

    def draws(self, quantity: Quantity) -> np.ndarray:
        """A quantity in every draw."""
        return quantity.value(self._weights @ quantity.table)

    def interval(self, quantity: Quantity) -> Interval:
        """A quantity with its interval."""
        return interval_of(quantity.estimate, self.draws(quantity))


def treated(panel: Panel, treatment: Treatment) -> Panel:
    """The panel on the cases that a treatment of missing scores keeps."""
    if treatment == "present":
        return panel
    places = [(method, aspect) for method, own in panel.methods.items() for aspect in own]
    grids = [panel.methods[method][aspect] for method, aspect in places]
    made = common_cases(grids) if treatment == "common" else [with_zeros(grid) for grid in grids]
    methods: dict[str, dict[str, Grid]] = {method: {} for method in panel.methods}
    for (method, aspect), grid in zip(places, made, strict=True):
        methods[method][aspect] = grid
    return dataclasses.replace(panel, methods=methods)


def columns_of(cases: Sequence[Case], aspect: str, rule: Aggregator) -> list[str]:
    """Categories or prompt classes that a rule takes for an aspect, in the order of the cases."""
    of, mean = property_of(aspect), rule.of(aspect)
    names = dict.fromkeys(getattr(case, of) for case in cases if mean.group(case) is not None)
    return [name for name in names if name]


def by_column(grid: Grid, aspect: str, names: Sequence[str]) -> dict[str, float]:
    """Mean over the items of each category or prompt class."""
    of = property_of(aspect)
    return {name: mean_of(only(grid, of, name), Mean()).estimate for name in names}


def overall(panel: Panel, name: AggregatorName, sampler: Sampler | None = None) -> Numbers:
    """Numbers of every method by one rule: its aspects, then those made of two of them.

    Args:
        panel: The ratings.
        name: Name of the aggregator.
        sampler: Draws for intervals; None leaves them out.
    """
    rule = AGGREGATORS[name]
    numbers: dict[str, dict[str, Number]] = {}
    for method, grids in panel.methods.items():
        own = numbers[method] = {}
        for made, quantity in quantities(grids, rule).items():
            rounds = quantity.rounds if made in grids else ()
            own[made] = Number(
                rule.rounded(quantity.estimate),
                sampler.interval(quantity) if sampler else None,
                rule.rounded(float(np.std(rounds, ddof=1))) if len(rounds) > 1 else None,
            )
        if PRODUCT in own and rule.decimals is not None:
            product = own["cp"].value * own["pf"].value
            own[PRODUCT] = dataclasses.replace(own[PRODUCT], value=product)
    return numbers


def quantities(grids: Mapping[str, Grid], rule: Aggregator) -> dict[str, Quantity]:
    """Everything that a rule makes of the aspects of a method.

    CP and PF have a product of means and a mean of products. PF and SC have OmniContext's overall
    score: the mean over categories of `sqrt(PF x SC)`. Other aspects are never merged.
    """
    made = {aspect: mean_of(grid, rule.of(aspect)) for aspect, grid in grids.items()}
    if {"cp", "pf"} <= grids.keys():
        made[PRODUCT] = made["cp"] * made["pf"]
        made[PRODUCTS] = mean_of_products(grids["cp"], grids["pf"], rule)
    elif {"pf", "sc"} <= grids.keys():
        pf, sc = grids["pf"], grids["sc"]
        rounds = min(len(pf.values), len(sc.values))
        roots = np.sqrt(pf.values[:rounds] * sc.values[:rounds])
        made[ROOT] = mean_of(dataclasses.replace(pf, values=roots), Mean("category"))
    return made


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A paired difference: a method minus the one that all are compared with.

    Attributes:
        method, other: The methods.
        number: What was compared.
        interval: The difference with its interval.
        p: Probability of such a difference if the methods were exchangeable, by Holm's adjustment
            for all comparisons of this number.
        cases: Number of cases that both methods have.
    """

    method: str
    other: str
    number: str
    interval: Interval
    p: float
    cases: int


def compared(panel: Panel, other: str, name: AggregatorName, sampler: Sampler) -> list[Comparison]:
    """Compares every method with one of them, on the cases that both have.

    The test swaps the two methods in whole subjects at random.
    """
    rule = AGGREGATORS[name]
    found: dict[str, list[Comparison]] = {}
    for method in panel.methods:
        if method == other:
            continue
        pair = {key: panel.methods[key] for key in (method, other)}
        common = treated(dataclasses.replace(panel, methods=pair), "common").methods
        once = {
            key: {aspect: _once(grid) for aspect, grid in grids.items()}
            for key, grids in common.items()
        }
        cases = int((~np.isnan(next(iter(once[method].values())).values)).sum())
        if not cases or once[method].keys() != once[other].keys():
            continue
        mine, theirs = (quantities(once[key], rule) for key in (method, other))
        for number in mine:
            if np.isnan(mine[number].estimate - theirs[number].estimate):
                continue
            difference = paired_difference(
                mine[number].table, theirs[number].table, sampler.resampling, mine[number].value
            )
            made = Comparison(method, other, number, difference.interval, difference.p, cases)
            found.setdefault(number, []).append(made)
    for number, row in found.items():
        adjusted = holm([each.p for each in row])
        pairs = zip(row, adjusted, strict=True)
        found[number] = [dataclasses.replace(each, p=p) for each, p in pairs]
    return [each for row in found.values() for each in row]


def firsts(panel: Panel, name: AggregatorName, number: str, sampler: Sampler) -> dict[str, float]:
    """Share of the draws in which each method has the highest number."""
    rule = AGGREGATORS[name]
    drawn = {
        method: sampler.draws(made[number])
        for method, grids in panel.methods.items()
        if number in (made := quantities(grids, rule))
    }
    if len(drawn) < 2:
        return {}
    shares = first_rank(np.stack(list(drawn.values()), 1))
    return dict(zip(drawn, shares.tolist(), strict=True))


def _once(grid: Grid) -> Grid:
    """The mean over the rounds as one round."""
    return dataclasses.replace(grid, values=grid.values.mean(0, keepdims=True))
