"""Step masks: which steps of sampling run all blocks of the transformer.

The other steps run the first block alone and add what the blocks after it added last.
ParaAttention's first block cache decides so for each image by a threshold; a mask is fixed before
sampling, so that it suits compiled programs and batches. It is found offline, as in BudCache (arXiv
2606.13496): of all masks with a given number of full steps, the search wants the one whose final
latents are nearest to those of all steps.
"""

import dataclasses
import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dsd_jax.convert.hub import check_scheme
from dsd_jax.errors import UserError
from dsd_jax.structured import MalformedError, read_toml

__all__ = ["Found", "check_search", "mask_steps", "mask_text", "read_mask", "search_mask"]

_MASK = re.compile("1[01]*")
_EXPECTED = "step_mask must be a 0 or 1 for each step, such as 1101, or a file of `dsd mask`"


def read_mask(given: str) -> str:
    """Returns a mask of a 0 or 1 for each step, given as such or as a file.

    Raises:
        UserError: the file is not there, cannot be read or holds no mask; or the first step is a 0.
    """
    text = given
    if not re.fullmatch("[01]+", given):
        if "://" not in given and not Path(given).is_file():
            raise UserError(f"{_EXPECTED}; there is no file {given!r}")
        check_scheme(given)
        try:
            held = read_toml(given).get("mask")
        except MalformedError as error:
            raise UserError(f"{_EXPECTED}; {error}") from None
        if not isinstance(held, str) or not re.fullmatch("[01]+", held):
            raise UserError(
                f'{given} holds no step mask, such as mask = "1101"; write one with `dsd mask`'
            )
        text = held
    if not _MASK.fullmatch(text):
        raise UserError(f"the first step of a step_mask must be a 1, got {text}")
    return text


def mask_steps(mask: str) -> tuple[bool, ...]:
    """For each step of a mask, whether it runs all blocks."""
    return tuple(step == "1" for step in mask)


@dataclasses.dataclass(frozen=True)
class Found:
    """The result of a search.

    Attributes:
        mask: a 1 for each step that runs all blocks, a 0 for each other one.
        error: error of the final latents relative to those of all steps.
        even: error of a mask of as many full steps at even distances.
        trials: number of masks that were tried.
    """

    mask: str
    error: float
    even: float
    trials: int


def check_search(steps: int, full: int, trials: int) -> None:
    """Refuses a search that is out of reach; arguments as for `search_mask`.

    Raises:
        UserError: there are too few or too many full steps, or no trials.
    """
    if not 1 <= full <= steps:
        raise UserError(f"full must be from 1 to the number of steps, {steps}; got {full}")
    if trials < 1:
        raise UserError(f"trials must be at least 1, got {trials}")


def search_mask(
    error: Callable[[str], float], steps: int, full: int, trials: int, seed: int = 0
) -> Found:
    """Searches for the mask of `full` full steps of the smallest error.

    Simulated annealing from evenly spaced full steps: a trial moves one full step to the place of
    another step, nearby more often than far away. No mask is tried twice.

    Args:
        error: error of a mask.
        steps: number of steps.
        full: number of steps that run all blocks.
        trials: number of masks to try.
        seed: seed of the moves.

    Raises:
        UserError: `full` or `trials` is not in reach.
    """
    check_search(steps, full, trials)
    rng = np.random.default_rng(seed)
    current = np.zeros(steps, bool)
    current[np.arange(full) * steps // full] = True
    best = now = even = error(_text(current))
    best_mask, seen = current, {_text(current)}
    trials = min(trials, math.comb(steps - 1, full - 1))
    for trial in range(1, trials):
        proposed = _moved(current, seen, rng)
        seen.add(_text(proposed))
        found = error(_text(proposed))
        heat = 0.1 * even * (1 - trial / trials)
        if found < now or rng.random() < math.exp(min(0.0, (now - found) / max(heat, 1e-12))):
            current, now = proposed, found
        if found < best:
            best_mask, best = proposed, found
    return Found(_text(best_mask), best, even, trials)


def _moved(mask: np.ndarray, seen: set[str], rng: np.random.Generator) -> np.ndarray:
    """A mask that was not seen yet, one or more moves of a full step away."""
    moved = mask.copy()
    while _text(moved) in seen:
        start = rng.choice(np.flatnonzero(moved[1:]) + 1)
        free = np.flatnonzero(~moved)
        weights = 1.0 / np.abs(free - start)
        moved[rng.choice(free, p=weights / weights.sum())] = True
        moved[start] = False
    return moved


def _text(mask: np.ndarray) -> str:
    return "".join("1" if own else "0" for own in mask)


def mask_text(found: Found, settings: str) -> str:
    """Writes the file of a mask.

    Args:
        found: the mask.
        settings: the settings that it was found with, in words.
    """
    full = found.mask.count("1")
    return (
        f"# {full} of {len(found.mask)} steps run all blocks. Found by {found.trials} trials with "
        f"{settings}.\n"
        f"# Error of the final latents relative to all steps: {found.error:.4f}; at even "
        f"distances: {found.even:.4f}.\n"
        f'mask = "{found.mask}"\n'
    )
