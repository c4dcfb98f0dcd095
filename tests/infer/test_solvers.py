"""Solvers against a flow whose solution is known: data of one normal distribution."""

import jax.numpy as jnp
import numpy as np
import pytest

from dsd_jax.infer.sampler import Method, sample
from dsd_jax.infer.solvers import DPMPP_2M, EULER, Solver

MEAN, SPREAD = 0.7, 0.4
NOISE = np.array([-1.5, -0.3, 0.2, 1.1])


def exact(t: float) -> np.ndarray:
    """Every particle keeps its place in the distribution of its time."""
    return (1 - t) * MEAN + np.hypot((1 - t) * SPREAD, t) * NOISE


def velocity(x, t):
    """`E[noise - x_0 | x_t]` for x_0 of N(MEAN, SPREAD^2)."""
    variance = ((1 - t) * SPREAD) ** 2 + t**2
    centred = (x - (1 - t) * MEAN) / variance
    return t * centred - (MEAN + (1 - t) * SPREAD**2 * centred)


def error(solver: Solver, times: np.ndarray) -> float:
    carry = Method(solver).start(jnp.asarray(exact(times[0]), jnp.float32), true_guidance=False)
    steps = jnp.asarray(times, jnp.float32)
    made = sample(solver, velocity, carry, steps, steps[:-1]).img
    return float(np.abs(made - exact(times[-1])).max())


@pytest.mark.parametrize(
    ("solver", "order"), [(EULER, 1), (DPMPP_2M, 2)], ids=["euler", "dpmpp_2m"]
)
def test_a_solver_has_its_order(solver, order):
    coarse, fine = (error(solver, np.linspace(0.9, 0.1, steps + 1)) for steps in (20, 40))
    assert np.log2(coarse / fine) == pytest.approx(order, abs=0.25)


def test_the_second_order_pays_from_noise_to_image():
    times = np.linspace(1, 0, 13)
    assert error(DPMPP_2M, times) < 0.5 * error(EULER, times)


def test_one_step_is_eulers():
    times = np.linspace(1, 0, 2)
    assert error(DPMPP_2M, times) == pytest.approx(error(EULER, times), rel=1e-5)
