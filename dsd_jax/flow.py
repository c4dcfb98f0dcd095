"""Rectified flow: the one page that fixes the direction of time.

t = 1 is noise and t = 0 is the image:

    x_t      = (1 - t) * x_0 + t * noise
    velocity = noise - x_0 = d x_t / d t

so that a sampler walks `timesteps` downwards from 1 to 0. Sources: Liu et al. 2022, "Flow Straight
and Fast"; Esser et al. 2024, "Scaling Rectified Flow Transformers", sections 2 and, for the shift,
5.3.2.
"""

import dataclasses
import math
from typing import TypeVar

import jax.numpy as jnp
import numpy as np

from dsd_jax.errors import UserError
from dsd_jax.types import Array, Float, Float32

__all__ = ["Schedule", "euler_step", "interpolate", "predict_x_0", "velocity"]

Times = TypeVar("Times", np.ndarray, Array)


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Spacing of the sampling times (defaults: FLUX.1-dev).

    Attributes:
        dynamic: shift by `mu`, which grows with the number of image tokens; otherwise by `shift`.
        base_shift, max_shift: `mu` at `base_tokens` and at `max_tokens`, linear in between and
            beyond.
        shift: factor of the static shift; 1 leaves the times evenly spaced (FLUX.1-schnell).
    """

    dynamic: bool = True
    base_shift: float = 0.5
    max_shift: float = 1.15
    base_tokens: int = 256
    max_tokens: int = 4096
    shift: float = 1.0

    def mu(self, num_tokens: int) -> float:
        """Log of the shift factor for a canvas of `num_tokens` packed tokens."""
        slope = (self.max_shift - self.base_shift) / (self.max_tokens - self.base_tokens)
        return self.base_shift + slope * (num_tokens - self.base_tokens)

    def warp(self, t: Times, num_tokens: int) -> Times:
        """Shifts times towards noise: `a t / (1 + (a - 1) t)`, with a = e^mu or the static factor.

        With a = e^mu this is diffusers' exponential form `e^mu / (e^mu + 1 / t - 1)`.
        """
        factor = math.exp(self.mu(num_tokens)) if self.dynamic else self.shift
        return factor * t / (1 + (factor - 1) * t)

    def timesteps(self, num_steps: int, num_tokens: int) -> np.ndarray:
        """Decreasing times `[num_steps + 1]` from 1 to 0, float32.

        Raises:
            UserError: fewer than one step.
        """
        if num_steps < 1:
            raise UserError(f"steps must be at least 1, got {num_steps}")
        even = np.linspace(1.0, 1.0 / num_steps, num_steps)
        return np.append(self.warp(even, num_tokens), 0.0).astype(np.float32)


def interpolate(
    x_0: Float[Array, " B *shape"], noise: Float[Array, " B *shape"], t: Float32[Array, " B"]
) -> Float32[Array, " B *shape"]:
    """`x_t = (1 - t) * x_0 + t * noise`, one time per batch element, in float32."""
    t = t.reshape(t.shape + (1,) * (x_0.ndim - 1))
    return (1 - t) * x_0.astype(jnp.float32) + t * noise.astype(jnp.float32)


def velocity(
    x_0: Float[Array, "*shape"], noise: Float[Array, "*shape"]
) -> Float32[Array, "*shape"]:
    """The regression target `noise - x_0`, in float32."""
    return noise.astype(jnp.float32) - x_0.astype(jnp.float32)


def predict_x_0(
    x_t: Float32[Array, "*shape"], velocity: Float[Array, "*shape"], t: float | Array
) -> Float32[Array, "*shape"]:
    """Clean latents implied by a velocity at time `t`, a scalar: `x_t - t * velocity`."""
    return x_t - t * velocity.astype(jnp.float32)


def euler_step(
    x_t: Float32[Array, "*shape"],
    velocity: Float[Array, "*shape"],
    t_cur: float | Array,
    t_next: float | Array,
) -> Float32[Array, "*shape"]:
    """One Euler step from `t_cur` to `t_next`; the state is float32 whatever the model runs in.

    The times are scalars, or one for each item of the first axis.
    """
    length = t_next - t_cur
    if jnp.ndim(length):
        length = jnp.reshape(length, (-1, *[1] * (x_t.ndim - 1)))
    return x_t + length * velocity.astype(jnp.float32)
