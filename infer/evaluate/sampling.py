"""Stratified samples: as many of each kind as their share."""

import itertools
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

from dsd_jax.errors import UserError
from dsd_jax.infer.evaluate.cases import Case

__all__ = ["draw", "stratified"]

T = TypeVar("T")


def draw(
    strata: Mapping[tuple[str, ...], Sequence[T]], count: int, rng: np.random.Generator
) -> dict[tuple[str, ...], list[T]]:
    """Draws from strata in proportion to their sizes; fractions go to the largest remainders.

    Args:
        strata: Members by stratum.
        count: Number to draw, at most that of all members.
        rng: Source of the draw.
    """
    total = sum(map(len, strata.values()))
    quotas = {name: count * len(members) / total for name, members in strata.items()}
    sizes = {name: int(quota) for name, quota in quotas.items()}
    ranked = sorted(quotas, key=lambda name: (sizes[name] - quotas[name], name))
    for name in ranked[: count - sum(sizes.values())]:
        sizes[name] += 1
    return {
        name: [members[place] for place in sorted(rng.permutation(len(members))[: sizes[name]])]
        for name, members in sorted(strata.items())
    }


def stratified(cases: Sequence[Case], count: int, seed: int) -> list[Case]:
    """Draws cases that are spread over categories and classes of prompts as all of them are.

    The draw depends on the cases, the count and the seed alone, so that all methods share it.

    Args:
        cases: Cases to draw from.
        count: Number of cases to draw; all of them if there are fewer.
        seed: Seed of the draw.

    Returns:
        The drawn cases, in the order of the benchmark.

    Raises:
        UserError: The count is not positive.
    """
    if count < 1:
        raise UserError(f"a sample has at least 1 case, got {count}")
    strata: dict[tuple[str, ...], list[int]] = {}
    for number, case in enumerate(cases):
        strata.setdefault((case.category, case.prompt_class), []).append(number)
    drawn = draw(strata, min(count, len(cases)), np.random.default_rng(seed))
    return [cases[number] for number in sorted(itertools.chain(*drawn.values()))]
