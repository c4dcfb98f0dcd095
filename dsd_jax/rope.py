"""Rotary position embedding over several position axes, as in FLUX (interleaved pairs)."""

import jax.numpy as jnp
import numpy as np

from dsd_jax.types import Array, Float, Float32, Int

__all__ = ["apply_rope", "embed_positions"]


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
    """Rotates the channel pairs (2j, 2j + 1) of every head; in float32, result in x's dtype."""
    cos, sin = pe[0, None, :, None, :], pe[1, None, :, None, :]
    x32 = x.astype(jnp.float32)
    even = (jnp.arange(x.shape[-1]) % 2 == 0)[None, None, None, :]
    # A roll and a select stay in lanes; reshaping to (H/2, 2) would pad a minor axis of 2 on TPU.
    swapped = jnp.where(even, jnp.roll(x32, -1, axis=-1), jnp.roll(x32, 1, axis=-1))
    return (x32 * cos + swapped * sin).astype(x.dtype)
