"""Two frames as one canvas, and the canvas as a sequence of tokens.

Diffusion Self-Distillation denoises reference and target together: reference left, target right, on
one canvas of twice the width. There is no frame axis in the position ids; the target is simply the
right half of the columns (paper, section 3.2; released checkpoint).
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dsd_jax.errors import UserError
from dsd_jax.types import Array, Float, Int

__all__ = [
    "BLACK",
    "PATCH",
    "Canvas",
    "FluxInputs",
    "check_size",
    "condition_canvas",
    "pack_latents",
    "split_frames",
    "text_ids",
    "unpack_latents",
]

PATCH = 2  # latent pixels per token, along each side
BLACK = -1.0  # the black of an image in [-1, 1]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Canvas:
    """Size, in latent pixels, of what is denoised together: two frames, or one picture.

    As an argument of a jitted function it is static.
    """

    height: int
    width: int

    @classmethod
    def from_pixels(cls, height: int, width: int, downscale: int) -> "Canvas":
        """The canvas of an image.

        Args:
            height, width: size of the image in pixels.
            downscale: image pixels per latent pixel, along each side.

        Raises:
            UserError: the image does not divide into tokens.
        """
        check_size(height, width, downscale)
        return cls(height // downscale, width // downscale)

    @property
    def tokens(self) -> int:
        """L, the number of packed tokens."""
        return (self.height // PATCH) * (self.width // PATCH)

    @property
    def image_ids(self) -> Int[Array, "L 3"]:
        """Position ids (0, row, column) of the tokens."""
        row, column = jnp.divmod(jnp.arange(self.tokens), self.width // PATCH)
        return jnp.stack([jnp.zeros_like(row), row, column], axis=-1)


class FluxInputs(NamedTuple):
    """The inputs of the model other than the noisy tokens and their time.

    Attributes:
        txt: T5 token embeddings, padded, not masked.
        vec: pooled CLIP embedding.
        guidance: distilled guidance scale; a model without guidance embedding ignores it.
        img_cond: condition tokens; None is not the same as zeros, which still add the bias of the
            condition embedding.
    """

    txt: Float[Array, "B Lt Dt"]
    vec: Float[Array, "B Dv"]
    guidance: Float[Array, " B"] | None = None
    img_cond: Float[Array, "B L C"] | None = None


def check_size(height: int, width: int, downscale: int) -> None:
    """Refuses an image size that does not divide into tokens.

    Raises:
        UserError: a side that is not a positive multiple of `PATCH * downscale` pixels.
    """
    unit = PATCH * downscale
    if height < unit or width < unit or height % unit or width % unit:
        near = (max(unit, round(side / unit) * unit) for side in (height, width))
        raise UserError(
            f"height and width must be positive multiples of {unit} pixels, got {height}x{width}; "
            f"the nearest is {'x'.join(map(str, near))}"
        )


def pack_latents(latents: Float[Array, "B h w C"]) -> Float[Array, "B L Cp"]:
    """2x2 patches as tokens, row by row; within a token, channel first, then row, then column."""
    batch, height, width, channels = latents.shape
    x = latents.reshape(batch, height // PATCH, PATCH, width // PATCH, PATCH, channels)
    x = x.transpose(0, 1, 3, 5, 2, 4)
    return x.reshape(batch, (height // PATCH) * (width // PATCH), channels * PATCH * PATCH)


def unpack_latents(img: Float[Array, "B L Cp"], canvas: Canvas) -> Float[Array, "B h w C"]:
    """Inverse of `pack_latents`."""
    batch, _, packed = img.shape
    channels = packed // (PATCH * PATCH)
    rows, columns = canvas.height // PATCH, canvas.width // PATCH
    x = img.reshape(batch, rows, columns, channels, PATCH, PATCH)
    return x.transpose(0, 1, 4, 2, 5, 3).reshape(batch, canvas.height, canvas.width, channels)


def text_ids(length: int) -> Int[Array, "L 3"]:
    """Position ids of text tokens: all zero."""
    return jnp.zeros((length, 3), jnp.int32)


def condition_canvas(reference: Float[Array, "B h w C"]) -> Float[Array, "B h w2 C"]:
    """[reference | black], the picture that is encoded as the condition, in [-1, 1].

    It is encoded as one picture, so that the VAE mixes across the seam, as in the released model.
    """
    return jnp.concatenate([reference, jnp.full_like(reference, BLACK)], axis=2)


def split_frames(canvas: Float[Array, "B h w C"]) -> tuple[Array, Array]:
    """Reference (left) and target (right) of a canvas of pixels or latents."""
    half = canvas.shape[2] // 2
    return canvas[:, :, :half], canvas[:, :, half:]
