"""Frames, canvases and tokens."""

import jax.numpy as jnp
import numpy as np
import pytest

from dsd_jax.errors import UserError
from dsd_jax.frames import (
    Canvas,
    check_size,
    condition_canvas,
    pack_latents,
    split_frames,
    text_ids,
    unpack_latents,
)


def test_a_token_is_a_patch_channel_first() -> None:
    """Within a token: channel, then row, then column; tokens row by row."""
    latents = jnp.arange(1 * 4 * 6 * 2).reshape(1, 4, 6, 2).astype(jnp.float32)
    img = pack_latents(latents)
    assert img.shape == (1, 6, 8)
    row, column = 1, 2  # the last token
    patch = latents[0, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
    np.testing.assert_array_equal(img[0, row * 3 + column], jnp.moveaxis(patch, -1, 0).reshape(-1))


def test_packing_comes_back() -> None:
    latents = jnp.asarray(np.random.default_rng(0).standard_normal((2, 6, 10, 16), np.float32))
    np.testing.assert_array_equal(unpack_latents(pack_latents(latents), Canvas(6, 10)), latents)


def test_ids_follow_the_tokens() -> None:
    """Packing the coordinates themselves gives the ids."""
    rows, columns = np.meshgrid(np.arange(6) // 2, np.arange(10) // 2, indexing="ij")
    coordinates = jnp.asarray(np.stack([rows, columns], -1)[None].astype(np.float32))
    img = pack_latents(coordinates)[0]
    ids = Canvas(6, 10).image_ids
    assert ids.shape == (Canvas(6, 10).tokens, 3) == (15, 3)
    assert not ids[:, 0].any()
    np.testing.assert_array_equal(ids[:, 1], img[:, 0])
    np.testing.assert_array_equal(ids[:, 2], img[:, 4])
    assert not text_ids(7).any()
    assert text_ids(7).shape == (7, 3)


def test_reference_is_left_and_target_is_right() -> None:
    reference = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 3)), jnp.float32)
    canvas = condition_canvas(reference)
    left, right = split_frames(canvas)
    np.testing.assert_array_equal(left, reference)
    np.testing.assert_array_equal(right, np.full((2, 8, 8, 3), -1.0))


def test_the_target_owns_the_right_columns_of_the_canvas() -> None:
    canvas = Canvas(4, 16)
    img = jnp.repeat(canvas.image_ids[None].astype(jnp.float32), 4, 2)
    _, target = split_frames(unpack_latents(img, canvas))
    assert target[..., 2].min() == 4


@pytest.mark.parametrize(
    ("height", "width", "near"),
    [(512, 1000, "512x992"), (520, 1024, "512x1024"), (8, 1024, "16x1024"), (0, 512, "16x512")],
)
def test_sizes_that_do_not_divide(height: int, width: int, near: str) -> None:
    with pytest.raises(UserError) as error:
        check_size(height, width, 8)
    assert f"multiples of 16 pixels, got {height}x{width}; the nearest is {near}" in str(
        error.value
    )


def test_a_canvas_is_measured_in_latent_pixels() -> None:
    assert Canvas.from_pixels(512, 1024, 8) == Canvas(64, 128)
    assert Canvas.from_pixels(512, 1024, 8).tokens == 2048
    with pytest.raises(UserError, match="multiples of 16 pixels, got 512x1000"):
        Canvas.from_pixels(512, 1000, 8)


def test_sizes_that_do() -> None:
    check_size(512, 1024, 8)
    check_size(16, 16, 8)
    check_size(24, 8, 4)
