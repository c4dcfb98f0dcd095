"""True guidance over image and text, as a wrapper around a velocity function.

The distilled guidance scale is an input of the model. True guidance comes on top of it: three
predictions, with and without text and condition, combined as in InstructPix2Pix (equation 3) and in
the released model:

    u    empty text, zero condition tokens
    v    empty text, the condition
    c    the text,   the condition

    u + image_scale * (v - u) + text_scale * (c - v)

What this adds to c changes slowly along a trajectory, so it can be kept for a few steps, which then
take a single pass.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax.numpy as jnp

from dsd_jax.frames import FluxInputs
from dsd_jax.types import Array, Float

__all__ = ["FIRST_STEP", "TrueGuidance", "combined", "guided", "with_null"]

At = TypeVar("At")

FIRST_STEP = 2  # the released model takes its first two steps without true guidance


class TrueGuidance(NamedTuple):
    """The empty text and the scales of every image."""

    null_txt: Float[Array, "B Lt Dt"]
    null_vec: Float[Array, "B Dv"]
    image_scale: Float[Array, " B"]
    text_scale: Float[Array, " B"]


def with_null(inputs: FluxInputs, guidance: TrueGuidance) -> FluxInputs:
    """Makes the inputs of the three passes [u, v, c] of every image, as one batch of 3 B.

    The three of one image stay neighbours, so that a batch sharded over devices is not moved.
    """
    if inputs.img_cond is None:
        raise ValueError("true guidance needs a condition image")

    def three(u: Array, v: Array, c: Array) -> Array:
        stacked = jnp.stack([u, v, c], axis=1)
        return stacked.reshape(-1, *stacked.shape[2:])

    img_cond, scale = inputs.img_cond, inputs.guidance
    return FluxInputs(
        txt=three(guidance.null_txt, guidance.null_txt, inputs.txt),
        vec=three(guidance.null_vec, guidance.null_vec, inputs.vec),
        guidance=None if scale is None else three(scale, scale, scale),
        img_cond=three(jnp.zeros_like(img_cond), img_cond, img_cond),
    )


def guided(
    velocity_of_three: Callable[[Array, At], Array], guidance: TrueGuidance
) -> Callable[[Array, At], tuple[Array, Array]]:
    """Wraps a velocity function over the batch of `with_null` with true guidance.

    Its second argument, such as the time, is passed on. The result is that of `combined`.
    """

    def velocity(img: Array, at: At) -> tuple[Array, Array]:
        return combined(velocity_of_three(jnp.repeat(img, 3, axis=0), at), guidance)

    return velocity


def combined(of_three: Float[Array, "B3 L C"], guidance: TrueGuidance) -> tuple[Array, Array]:
    """Combines the velocities of the three passes, float32.

    Returns:
        The velocity, and what guidance has added to that of the single pass c.
    """
    image, text = (x[:, None, None] for x in (guidance.image_scale, guidance.text_scale))
    out = of_three.astype(jnp.float32)
    u, v, c = jnp.moveaxis(out.reshape(-1, 3, *out.shape[1:]), 1, 0)
    found = u + image * (v - u) + text * (c - v)
    return found, found - c
