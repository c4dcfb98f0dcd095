"""Solvers of the flow: pure functions that take packed latents from one time to the next.

A solver keeps what it needs between steps in a memory of its own, which `init` makes and `step`
replaces; `dsd_jax.infer.sampler` carries it through the loop without looking inside. A solver that
remembers earlier velocities, or a cache of features, is one more `Solver`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from dsd_jax.flow import euler_step
from dsd_jax.types import Array

__all__ = ["EULER", "Solver"]


class Solver(NamedTuple):
    """One way of taking steps, each with one velocity of the model.

    Attributes:
        init: initial latents -> memory before the first step, any pytree of arrays.
        step: (velocity at these latents and this time, latents, memory, time now, next time) ->
            (latents, memory).
    """

    init: Callable[[Array], Any]
    step: Callable[[Array, Array, Any, Array, Array], tuple[Array, Any]]


def _euler(
    velocity: Array, img: Array, memory: tuple[()], t_cur: Array, t_next: Array
) -> tuple[Array, tuple[()]]:
    return euler_step(img, velocity, t_cur, t_next), memory


EULER = Solver(init=lambda _: (), step=_euler)  # the released model's, and the default
