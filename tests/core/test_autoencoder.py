import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dsd_jax.autoencoder import (
    Autoencoder,
    Posterior,
    Tiling,
    decode_tiled,
    encode_tiled,
    normalize,
    unnormalize,
)
from dsd_jax.config import BFLOAT16, FLOAT32, AutoencoderConfig, Precision
from dsd_jax.errors import UserError
from dsd_jax.sharding import AUTOENCODER_RULES, LOGICAL_TO_MESH, MeshConfig, make_mesh, param_specs
from dsd_jax.weights import param_shapes
from tests.tiny_modules import random_module

TINY = AutoencoderConfig(
    block_channels=(8, 16), latent_channels=4, layers_per_block=1, norm_groups=4
)


@functools.cache
def tiny(precision: Precision = FLOAT32) -> Autoencoder:
    return random_module(lambda rngs: Autoencoder(TINY, precision=precision, rngs=rngs))


@functools.cache
def compiled(method: str) -> Callable[..., Any]:
    return jax.jit(getattr(tiny(), method))


def encode(image: jax.Array) -> Posterior:
    return compiled("encode")(image)


def decode(latents: jax.Array) -> jax.Array:
    return compiled("decode")(latents)


def normal(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def test_an_image_does_not_depend_on_its_neighbours_in_the_batch() -> None:
    images, latents = normal(3, 12, 20, 3), normal(3, 6, 10, 4, seed=1)
    scale = np.asarray([50, 1, 1], np.float32)[:, None, None, None]
    for run, x in ((lambda x: encode(x).mean, images), (decode, latents)):
        one, other = (np.asarray(run(x * factor)) for factor in (np.ones_like(scale), scale))
        np.testing.assert_array_equal(one[1:], other[1:])
        assert not np.allclose(one[0], other[0])


def test_a_size_that_is_no_multiple_of_the_downscale_is_refused() -> None:
    with pytest.raises(UserError, match=r"the image is 12x21 .* needs multiples of 2; resize"):
        tiny().encode(normal(1, 12, 21, 3))
    with pytest.raises(UserError, match=r"the image is 13x20 .* needs multiples of 2; resize"):
        encode_tiled(encode, normal(1, 13, 20, 3), TINY)


def test_posterior_samples_have_its_mean_and_variance(key: jax.Array) -> None:
    mean, logvar = normal(1, 3, 4, 2), normal(1, 3, 4, 2, seed=1)
    posterior = Posterior(mean, logvar)
    samples = np.asarray(jax.vmap(posterior.sample)(jax.random.split(key, 4000)))
    np.testing.assert_allclose(samples.mean(0), mean, atol=0.12)
    np.testing.assert_allclose(samples.std(0), np.exp(np.asarray(logvar) / 2), rtol=0.06)
    np.testing.assert_array_equal(posterior.mode(), mean)


def test_a_key_per_image_makes_samples_independent_of_the_batch(key: jax.Array) -> None:
    posterior = Posterior(normal(3, 3, 4, 2), normal(3, 3, 4, 2, seed=1))
    keys = jax.random.split(key, 3)
    together = jax.vmap(Posterior.sample)(posterior, keys)
    last = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)[2:]), posterior)
    alone = jax.vmap(Posterior.sample)(last, keys[2:])
    np.testing.assert_allclose(together[2:], alone, rtol=1e-6)
    noise = np.asarray(together) - np.asarray(posterior.mean)
    assert not np.allclose(np.sign(noise[0]), np.sign(noise[1]))


def test_normalize_and_back() -> None:
    latents = normal(1, 3, 4, 4)
    normalised = normalize(latents, tiny().config)
    np.testing.assert_allclose(normalised, (latents - 0.1159) * 0.3611, rtol=1e-5, atol=1e-6)
    back = unnormalize(normalised, tiny().config)
    np.testing.assert_allclose(back, latents, rtol=1e-5, atol=1e-6)


def test_moments_and_pixels_are_float32_in_bfloat16() -> None:
    vae = tiny(BFLOAT16)
    posterior = jax.jit(vae.encode)(normal(1, 8, 12, 3))
    image = np.asarray(jax.jit(vae.decode)(posterior.mode()))
    assert {x.dtype for x in (*posterior, image)} == {jnp.dtype(jnp.float32)}
    # Pixels that were rounded to bfloat16 would be equal to their rounding.
    assert (image != image.astype(jnp.bfloat16).astype(np.float32)).mean() > 0.9


def test_a_sharded_batch_gives_the_same_images() -> None:
    images, latents = normal(8, 8, 12, 3), normal(8, 4, 6, 4, seed=1)
    expected = encode(images).mean, decode(latents)
    with jax.set_mesh(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))):
        mean = jax.jit(lambda x: tiny().encode(x).mean)(images)
        decoded = jax.jit(tiny().decode)(latents)
    assert mean.sharding.spec[0] == LOGICAL_TO_MESH["batch"]
    assert decoded.sharding.spec[0] == LOGICAL_TO_MESH["batch"]
    np.testing.assert_allclose(mean, expected[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(decoded, expected[1], rtol=1e-4, atol=1e-5)


def test_parameters_of_the_published_size() -> None:
    vae = nnx.eval_shape(
        lambda: Autoencoder(AutoencoderConfig(), precision=BFLOAT16, rngs=nnx.Rngs(0))
    )
    shapes = param_shapes(vae)
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 83_819_683
    assert shapes["encoder.down.1.block.0.shortcut.kernel"] == (128, 256)
    assert shapes["decoder.up.2.block.0.conv1.kernel"] == (3, 3, 512, 256)
    assert shapes["decoder.mid.attn.proj.kernel"] == (512, 512)
    specs = param_specs(shapes, AUTOENCODER_RULES, make_mesh(MeshConfig(fsdp=8, data=1)))
    assert not any(any(spec) for spec in specs.values())


def test_a_gradient_passes_the_decoder() -> None:
    gradient = jax.jit(jax.grad(lambda z: jnp.square(tiny().decode(z)).mean()))
    value = np.asarray(gradient(normal(1, 6, 10, 4)))
    assert np.isfinite(value).all()
    assert np.abs(value).min() > 0


# Tiling


def upscale(x: jax.Array) -> jax.Array:
    """A decoder that looks at one pixel at a time: tiles agree exactly where they overlap."""
    return jnp.asarray(np.asarray(x).repeat(2, axis=1).repeat(2, axis=2))


def downscale(x: jax.Array) -> Posterior:
    half = np.asarray(x)[:, ::2, ::2]
    return Posterior(jnp.asarray(half), jnp.asarray(-half))


@pytest.mark.parametrize("length", [7, 8, 9, 15, 37])
@pytest.mark.parametrize(("size", "overlap"), [(8, 4), (7, 2)])
def test_tiles_cover_every_pixel_once(length: int, size: int, overlap: int) -> None:
    x = normal(2, length, 11, 3)
    tiling = Tiling(size, overlap)
    tiled = decode_tiled(upscale, x, TINY, tiling)
    np.testing.assert_allclose(tiled, upscale(x), rtol=1e-5, atol=1e-5)
    image = normal(2, 22, 2 * length, 3)
    posterior = encode_tiled(downscale, image, TINY, tiling)
    expected = downscale(image)
    np.testing.assert_allclose(posterior.mean, expected.mean, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(posterior.logvar, expected.logvar, rtol=1e-5, atol=1e-5)


def test_all_tiles_have_one_shape_and_keep_the_overlap() -> None:
    shapes: list[tuple[int, ...]] = []

    def constant(x: jax.Array) -> jax.Array:
        shapes.append(x.shape)
        shape = (1, 2 * x.shape[1], 2 * x.shape[2], 1)
        return jnp.asarray(np.full(shape, len(shapes), np.float32))

    blended = decode_tiled(constant, normal(1, 5, 20, 4), TINY, Tiling(8, 4))
    assert set(shapes) == {(1, 5, 8, 4)}
    assert len(shapes) == 4
    row = np.asarray(blended)[0, 0, :, 0]
    # From tile number to tile number in small steps: a linear ramp over 8 pixels.
    assert (row[0], row[-1]) == (1, 4)
    assert np.diff(row).min() >= 0
    assert np.diff(row).max() < 0.2


def test_what_fits_one_tile_is_not_changed_at_all() -> None:
    latents, image = normal(1, 8, 6, 4), normal(1, 16, 12, 3)
    tiling = Tiling(size=8, overlap=2)
    np.testing.assert_array_equal(decode_tiled(decode, latents, TINY, tiling), decode(latents))
    np.testing.assert_array_equal(
        encode_tiled(encode, image, TINY, tiling).logvar, encode(image).logvar
    )


def test_larger_tiles_come_closer_to_the_whole() -> None:
    latents = normal(1, 24, 40, 4)
    whole = np.asarray(decode(latents))

    def error(size: int, overlap: int) -> float:
        tiled = np.asarray(decode_tiled(decode, latents, TINY, Tiling(size, overlap)))
        return float(np.linalg.norm(tiled - whole) / np.linalg.norm(whole))

    errors = [error(8, 2), error(16, 4), error(24, 8)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.1


def test_no_seam_is_seen_between_tiles() -> None:
    latents = normal(1, 16, 44, 4)
    tiled = decode_tiled(decode, latents, TINY, Tiling(16, 4))

    def steps(image: jax.Array) -> np.ndarray:
        """Mean difference of every column to the next."""
        return np.abs(np.diff(np.asarray(image), axis=2)).mean((0, 1, 3))

    assert steps(tiled).max() < 1.1 * steps(decode(latents)).max()


@pytest.mark.parametrize(("size", "overlap"), [(8, 0), (8, 5), (8, -1)])
def test_an_impossible_overlap_is_refused(size: int, overlap: int) -> None:
    with pytest.raises(UserError, match=r"tiles of 8 latent pixels .* overlap from 1 to 4"):
        Tiling(size, overlap)


def test_the_configuration_gives_the_downscale() -> None:
    assert AutoencoderConfig().downscale == 8
    assert dataclasses.replace(TINY, block_channels=(8, 8, 8)).downscale == 4
