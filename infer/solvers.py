"""Solvers of the flow: pure functions that take packed latents from one time to the next.

A solver keeps what it needs between steps in a memory of its own, which `init` makes and `step`
replaces; `dsd_jax.infer.sampler` carries it through the loop without looking inside. A solver that
remembers earlier velocities is one more `Solver`.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp

from dsd_jax.flow import euler_step, predict_x_0
from dsd_jax.types import Array

__all__ = ["DPMPP_2M", "EULER", "SOLVERS", "Solver", "SolverName"]

SolverName = Literal["euler", "dpmpp_2m"]


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


def _dpmpp_2m(
    velocity: Array, img: Array, memory: tuple[Array, Array], t_cur: Array, t_next: Array
) -> tuple[Array, tuple[Array, Array]]:
    before, t_before = memory
    clean = predict_x_0(img, velocity, t_cur)
    last, this = _log_snr(t_cur) - _log_snr(t_before), _log_snr(t_next) - _log_snr(t_cur)
    # Infinite at t = 1 and t = 0, where the step is one of first order: Euler's.
    finite = jnp.isfinite(last) & jnp.isfinite(this) & (last > 0)
    weight = jnp.where(finite, this / (2 * last), 0)
    ahead = clean + weight * (clean - before)
    return img + (t_next / t_cur - 1) * (img - ahead), (clean, t_cur)


def _log_snr(t: Array) -> Array:
    """Half the logarithm of the ratio of signal to noise, `log((1 - t) / t)`."""
    return jnp.log((1 - t) / t)


# DPM-Solver++(2M) with the prediction of x_0, for alpha = 1 - t and sigma = t (Lu et al. 2022,
# "DPM-Solver++", algorithm 2).
DPMPP_2M = Solver(init=lambda img: (jnp.zeros_like(img), jnp.ones(())), step=_dpmpp_2m)

SOLVERS: dict[SolverName, Solver] = {"euler": EULER, "dpmpp_2m": DPMPP_2M}
"""Solvers by the names that settings use."""
