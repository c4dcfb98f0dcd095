"""True guidance over image and text, as a wrapper around a velocity function.

The distilled guidance scale is an input of the model. What is here comes on top of it: three
predictions, with and without text and condition, combined as in InstructPix2Pix (equation 3) and in
the released model:

    u    empty text, zero condition tokens
    v    empty text, the condition
    c    the text,   the condition

    u + image_scale * (v - u) + text_scale * (c - v)
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from dsd_jax.types import Array, Float

__all__ = ["FIRST_STEP", "Conditioning", "VelocityFn", "guided", "with_null"]

FIRST_STEP = 2  # the released model takes its first two steps without true guidance

# (img [B, L, C], t scalar) -> velocity [B, L, C]
VelocityFn = Callable[[Array, Array], Array]


class Conditioning(NamedTuple):
    """What the model sees beside the noisy tokens; `img_cond` None: no condition at all."""

    txt: Float[Array, "B Lt Dt"]
    vec: Float[Array, "B Dv"]
    guidance: Float[Array, " B"]
    img_cond: Float[Array, "B Li C"] | None = None


def with_null(
    conditioning: Conditioning,
    null_txt: Float[Array, "B Lt Dt"],
    null_vec: Float[Array, "B Dv"],
) -> Conditioning:
    """The three conditionings [u, v, c] of every image as one batch of 3 B.

    The three of one image stay neighbours, so that a batch sharded over devices is not moved.
    """
    if conditioning.img_cond is None:
        raise ValueError("true guidance needs a condition image")

    def three(u: Array, v: Array, c: Array) -> Array:
        stacked = jnp.stack([u, v, c], axis=1)
        return stacked.reshape(-1, *stacked.shape[2:])

    txt, vec, guidance = conditioning.txt, conditioning.vec, conditioning.guidance
    img_cond = conditioning.img_cond
    return Conditioning(
        txt=three(null_txt, null_txt, txt),
        vec=three(null_vec, null_vec, vec),
        guidance=three(guidance, guidance, guidance),
        img_cond=three(jnp.zeros_like(img_cond), img_cond, img_cond),
    )


def guided(
    velocity_of_three: VelocityFn,
    image_scale: Float[Array, " B"],
    text_scale: Float[Array, " B"],
) -> VelocityFn:
    """Velocity with true guidance, from a velocity function over the batch of `with_null`."""

    def velocity(img: Array, t: Array) -> Array:
        out = velocity_of_three(jnp.repeat(img, 3, axis=0), t).astype(jnp.float32)
        u, v, c = jnp.moveaxis(out.reshape(-1, 3, *out.shape[1:]), 1, 0)
        image, text = image_scale[:, None, None], text_scale[:, None, None]
        return u + image * (v - u) + text * (c - v)

    return velocity
