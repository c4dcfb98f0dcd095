"""Two frames as one canvas, and the canvas as a sequence of tokens.

Diffusion Self-Distillation denoises reference and target together: reference left, target right, on
one canvas of twice the width. There is no frame axis in the position ids; the target is simply the
right half of the columns (paper, section 3.2; released checkpoint).
"""

import jax.numpy as jnp

from dsd_jax.errors import UserError
from dsd_jax.types import Array, Float, Int

__all__ = [
    "BLACK",
    "PATCH",
    "check_size",
    "condition_canvas",
    "image_ids",
    "pack_latents",
    "split_frames",
    "text_ids",
    "unpack_latents",
]

PATCH = 2  # latent pixels per token, along each side
BLACK = -1.0  # of an image in [-1, 1]


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


def unpack_latents(img: Float[Array, "B L Cp"], height: int, width: int) -> Float[Array, "B h w C"]:
    """Inverse of `pack_latents`; `height` and `width` in latent pixels."""
    batch, _, packed = img.shape
    channels = packed // (PATCH * PATCH)
    x = img.reshape(batch, height // PATCH, width // PATCH, channels, PATCH, PATCH)
    return x.transpose(0, 1, 4, 2, 5, 3).reshape(batch, height, width, channels)


def image_ids(height: int, width: int) -> Int[Array, "L 3"]:
    """Position ids (0, row, column) of a canvas of `height` x `width` latent pixels."""
    rows, columns = height // PATCH, width // PATCH
    row, column = jnp.divmod(jnp.arange(rows * columns), columns)
    return jnp.stack([jnp.zeros_like(row), row, column], axis=-1)


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
