"""Rotary position embedding over several position axes, as in FLUX (interleaved pairs)."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dsd_jax.types import Array, Float, Float32, Int

__all__ = ["apply_rope", "embed_positions", "rotated_by_product"]


def embed_positions(
    ids: Int[Array, "L axes"], axes_dim: tuple[int, ...], theta: int
) -> Float32[Array, "2 L H"]:
    """Cosine and signed sine of every (token, channel) angle, float32.

    Axis `a` of the ids owns `axes_dim[a]` channels; pair `j` of them turns by
    `ids[:, a] * theta ** (-2 j / axes_dim[a])` (RoFormer, equation 15, per axis). The sine carries
    the sign of the rotation (minus on the even channel of a pair), so that `apply_rope` is one
    multiply-add. The frequencies are formed in float64, as in the reference.
    """
    angles = []
    for axis, dim in enumerate(axes_dim):
        frequency = (theta ** (-np.arange(0, dim, 2, dtype=np.float64) / dim)).astype(np.float32)
        angle = ids[:, axis, None].astype(jnp.float32) * frequency[None, :]
        angles.append(jnp.repeat(angle, 2, axis=-1))
    angle = jnp.concatenate(angles, axis=-1)
    sign = jnp.where(jnp.arange(angle.shape[-1]) % 2 == 0, -1.0, 1.0)
    return jnp.stack([jnp.cos(angle), jnp.sin(angle) * sign[None, :]])


def apply_rope(x: Float[Array, "B L N H"], pe: Float32[Array, "2 L H"]) -> Float[Array, "B L N H"]:
    """Rotates the channel pairs (2j, 2j + 1) of every head; in float32, result in x's dtype.

    `pe` gets no gradient: positions are given.
    """
    pe = lax.stop_gradient(pe)
    if x.dtype != jnp.bfloat16:  # the product on a TPU would round it
        return _rotated_by_roll(x, pe)
    return lax.platform_dependent(x, pe, tpu=rotated_by_product, default=_rotated_by_roll)


def _rotated(x: Array, swapped: Array, pe: Array) -> Array:
    """Adds every channel, times the cosine, and the other of its pair, times the signed sine."""
    cos, sin = pe[0, None, :, None, :], pe[1, None, :, None, :]
    return x * cos + swapped * sin


def _rotated_by_roll(x: Array, pe: Array) -> Array:
    x32 = x.astype(jnp.float32)
    even = (jnp.arange(x.shape[-1]) % 2 == 0)[None, None, None, :]
    # A roll and a select stay in lanes; reshaping to (H/2, 2) would pad a minor axis of 2 on TPU.
    swapped = jnp.where(even, jnp.roll(x32, -1, axis=-1), jnp.roll(x32, 1, axis=-1))
    return _rotated(x32, swapped, pe).astype(x.dtype)


@jax.custom_vjp
def rotated_by_product(x: Array, pe: Array) -> Array:
    """Rotates with a swap on the matrix unit, where a roll of lanes would be slow: on TPU.

    Every column of the permutation has a single one, so the product is exact.
    """
    channel = np.arange(x.shape[-1])
    permutation = jnp.asarray(channel[:, None] == (channel ^ 1)[None, :], x.dtype)
    x32, swapped = x.astype(jnp.float32), jnp.dot(x, permutation).astype(jnp.float32)
    return _rotated(x32, swapped, pe).astype(x.dtype)


def _forward(x: Array, pe: Array) -> tuple[Array, Array]:
    return rotated_by_product(x, pe), pe


def _backward(pe: Array, gradient: Array) -> tuple[Array, None]:
    """Turns the gradient back: the rotation by the opposite angle is the transposed one."""
    return rotated_by_product(gradient, pe * jnp.asarray([1, -1], pe.dtype)[:, None, None]), None


rotated_by_product.defvjp(_forward, _backward)
