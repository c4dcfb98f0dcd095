"""Rectified flow: directions, endpoints, and the spacing of times."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsd_jax.errors import UserError
from dsd_jax.flow import Schedule, euler_step, interpolate, predict_x_0, velocity

SCHNELL = Schedule(dynamic=False)


def normal(seed: int, dtype: jnp.dtype = jnp.float32) -> jax.Array:
    draw = np.random.default_rng(seed).standard_normal((2, 6, 4), np.float32)
    return jnp.asarray(draw).astype(dtype)


def test_noise_is_at_one_and_the_image_at_zero() -> None:
    x_0, noise = normal(0), normal(1)
    mixed = interpolate(x_0, noise, jnp.asarray([0.0, 1.0]))
    np.testing.assert_array_equal(mixed[0], x_0[0])
    np.testing.assert_array_equal(mixed[1], noise[1])


def test_velocity_is_the_derivative_of_the_path() -> None:
    x_0, noise = normal(0), normal(1)
    primal, tangent = jax.jvp(
        lambda t: interpolate(x_0, noise, t), (jnp.asarray([0.3, 0.8]),), (jnp.ones(2),)
    )
    np.testing.assert_allclose(tangent, velocity(x_0, noise), atol=1e-6)
    np.testing.assert_allclose(primal[0], 0.7 * x_0[0] + 0.3 * noise[0], atol=1e-6)


def test_x_0_from_any_time() -> None:
    x_0, noise = normal(0), normal(1)
    x_t = interpolate(x_0, noise, jnp.asarray([0.4, 0.4]))
    np.testing.assert_allclose(predict_x_0(x_t, velocity(x_0, noise), 0.4), x_0, atol=1e-6)


def test_steps_along_the_true_velocity_end_in_the_image() -> None:
    x_0, x_t = normal(0), normal(1)
    noise, times = x_t, Schedule().timesteps(5, 2048)
    for t_cur, t_next in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
        x_t = euler_step(x_t, velocity(x_0, noise), t_cur, t_next)
    np.testing.assert_allclose(x_t, x_0, atol=1e-5)


def test_state_and_targets_are_float32_in_bfloat16_runs() -> None:
    x_0, noise = normal(0, jnp.bfloat16), normal(1, jnp.bfloat16)
    exact = 0.75 * x_0.astype(jnp.float32) + 0.25 * noise.astype(jnp.float32)
    mixed = interpolate(x_0, noise, jnp.asarray([0.25, 0.25]))
    np.testing.assert_array_equal(mixed, exact)
    assert velocity(x_0, noise).dtype == jnp.float32
    stepped = euler_step(normal(2), noise, 0.5, 0.25)
    np.testing.assert_array_equal(stepped, normal(2) - 0.25 * noise.astype(jnp.float32))


@pytest.mark.parametrize("schedule", [Schedule(), SCHNELL, Schedule(dynamic=False, shift=3.0)])
@pytest.mark.parametrize("steps", [1, 4, 28])
def test_times_fall_from_one_to_zero(schedule: Schedule, steps: int) -> None:
    times = schedule.timesteps(steps, 2048)
    assert times.dtype == np.float32
    assert times.shape == (steps + 1,)
    assert times[0] == 1
    assert times[-1] == 0
    assert (np.diff(times) < 0).all()


def test_schnell_is_even() -> None:
    np.testing.assert_allclose(SCHNELL.timesteps(4, 4096), [1, 0.75, 0.5, 0.25, 0])


def test_mu_is_linear_in_the_tokens() -> None:
    """0.5 at 256 tokens, 1.15 at 4096, and on the same line beyond."""
    assert Schedule().mu(256) == pytest.approx(0.5)
    assert Schedule().mu(4096) == pytest.approx(1.15)
    assert Schedule().mu(7936) == pytest.approx(1.8)


def test_shift_moves_the_middle_to_its_factor() -> None:
    """Half way, the odds of noise are the factor itself: 3 : 1, or e^mu : 1."""
    half = np.array([0.5])
    assert Schedule(dynamic=False, shift=3.0).warp(half, 0)[0] == pytest.approx(0.75)
    odds = np.exp(1.15)
    assert Schedule().warp(half, 4096)[0] == pytest.approx(odds / (1 + odds))


def test_no_steps() -> None:
    with pytest.raises(UserError, match="steps must be at least 1, got 0"):
        Schedule().timesteps(0, 256)
