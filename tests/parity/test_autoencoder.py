"""The VAE against diffusers' AutoencoderKL with random weights."""

import copy
import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from dsd_jax.autoencoder import (
    Autoencoder,
    Tiling,
    decode_tiled,
    encode_tiled,
    normalize,
    unnormalize,
)
from dsd_jax.config import BFLOAT16, FLOAT32, AutoencoderConfig, Precision
from dsd_jax.convert.vae import autoencoder_diffusers
from tests.parity.compare import (
    assert_bfloat16_as_good,
    assert_close,
    jit,
    load,
    randomise,
    relative_error,
    to_numpy,
)

LAYER, MODEL = 1e-5, 1e-4
FLUX_LIKE = AutoencoderConfig(block_channels=(16, 32, 32, 32), norm_groups=8)
TOY = AutoencoderConfig(block_channels=(16, 16, 32), latent_channels=4, norm_groups=8)
CONFIGS = {"factor 8": FLUX_LIKE, "factor 4": TOY}
SIZE = (48, 80)  # pixels, divisible by 16, neither square nor powers of two


def make_reference(config: AutoencoderConfig) -> AutoencoderKL:
    levels = len(config.block_channels)
    reference = AutoencoderKL(
        in_channels=config.in_channels,
        out_channels=config.in_channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=config.block_channels,
        layers_per_block=config.layers_per_block,
        latent_channels=config.latent_channels,
        norm_num_groups=config.norm_groups,
        scaling_factor=config.scale,
        shift_factor=config.shift,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    randomise(reference)
    return reference.eval()


@functools.cache
def make_pair(name: str) -> tuple[Autoencoder, AutoencoderKL]:
    reference = make_reference(CONFIGS[name])
    return load_ours(CONFIGS[name], FLOAT32, reference), reference


def load_ours(
    config: AutoencoderConfig, precision: Precision, reference: AutoencoderKL
) -> Autoencoder:
    return load(
        lambda rngs: Autoencoder(config, precision=precision, rngs=rngs),
        autoencoder_diffusers(config),
        reference,
    )


def random_input(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def random_image(batch: int = 2, size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.random.default_rng(1).uniform(-1, 1, (batch, *size, 3)).astype(np.float32)


def nchw(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(x)).permute(0, 3, 1, 2)


def nhwc(x: torch.Tensor) -> np.ndarray:
    return to_numpy(x.permute(0, 2, 3, 1))


@torch.no_grad()
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("encoder.conv_in", "encoder.conv_in"),
        ("encoder.down.0.block.0", "encoder.down_blocks.0.resnets.0"),
        ("encoder.down.1.block.0", "encoder.down_blocks.1.resnets.0"),
        ("encoder.down.0.downsample", "encoder.down_blocks.0.downsamplers.0"),
        ("encoder.mid.attn", "encoder.mid_block.attentions.0"),
        ("encoder.norm_out", "encoder.conv_norm_out"),
        ("decoder.mid", "decoder.mid_block"),
        ("decoder.up.1", "decoder.up_blocks.1"),
        ("decoder.up.3.block.0", "decoder.up_blocks.3.resnets.0"),
        ("decoder.conv_out", "decoder.conv_out"),
    ],
)
def test_layer(ours: str, theirs: str) -> None:
    model, reference = make_pair("factor 8")
    layer: Any = model
    for key in ours.split("."):
        layer = layer[int(key)] if key.isdigit() else getattr(layer, key)
    their_layer = reference.get_submodule(theirs)
    channels = next(p for p in their_layer.parameters() if p.ndim in (1, 4)).shape
    x = random_input(2, 10, 14, channels[1] if len(channels) == 4 else channels[0])
    x = x + np.linspace(-1, 1, x.shape[-1], dtype=np.float32)  # channels with a mean of their own
    kwargs = {"temb": None} if "resnets" in theirs else {}
    assert_close(jit(layer)(x), nhwc(their_layer(nchw(x), **kwargs)), LAYER, ours)


@torch.no_grad()
@pytest.mark.parametrize("name", CONFIGS)
def test_encode(name: str) -> None:
    model, reference = make_pair(name)
    image = random_image()
    posterior = jit(model, "encode")(image)
    theirs = reference.encode(nchw(image)).latent_dist
    factor = model.config.downscale
    assert posterior.mean.shape == (2, SIZE[0] // factor, SIZE[1] // factor, theirs.mean.shape[1])
    assert_close(posterior.mean, nhwc(theirs.mean), MODEL, "mean")
    assert_close(posterior.logvar, nhwc(theirs.logvar), MODEL, "log variance")
    assert_close(posterior.mode(), nhwc(theirs.mode()), MODEL, "mode")


@torch.no_grad()
@pytest.mark.parametrize("name", CONFIGS)
def test_decode(name: str) -> None:
    model, reference = make_pair(name)
    latents = random_input(2, 6, 10, model.config.latent_channels)
    image = jit(model, "decode")(latents)
    assert_close(image, nhwc(reference.decode(nchw(latents)).sample), MODEL, "image")


@torch.no_grad()
def test_log_variance_is_clipped_where_the_reference_clips_it() -> None:
    image, reference = random_image(), make_reference(TOY)
    reference.encoder.conv_out.weight *= 100
    ours = load_ours(TOY, FLOAT32, reference)
    posterior = jit(ours, "encode")(image)
    theirs = reference.encode(nchw(image)).latent_dist
    assert (posterior.logvar.min(), posterior.logvar.max()) == (-30, 20)
    assert_close(posterior.logvar, nhwc(theirs.logvar), MODEL, "clipped log variance")


@torch.no_grad()
def test_bfloat16_is_as_good_as_the_reference() -> None:
    reference = make_reference(TOY)
    half = copy.deepcopy(reference).to(torch.bfloat16)
    ours = load_ours(TOY, BFLOAT16, half)
    image, latents = random_image(1), random_input(1, 6, 10, 4)
    posterior = jit(ours, "encode")(jnp.asarray(image, jnp.bfloat16))
    assert posterior.mean.dtype == jnp.float32
    assert_bfloat16_as_good(
        posterior.mean,
        half.encode(nchw(image).bfloat16()).latent_dist.mean.permute(0, 2, 3, 1),
        reference.encode(nchw(image).bfloat16().float()).latent_dist.mean.permute(0, 2, 3, 1),
        "mean",
    )
    assert_bfloat16_as_good(
        jit(ours, "decode")(jnp.asarray(latents, jnp.bfloat16)),
        half.decode(nchw(latents).bfloat16()).sample.permute(0, 2, 3, 1),
        reference.decode(nchw(latents).bfloat16().float()).sample.permute(0, 2, 3, 1),
        "image",
    )


@torch.no_grad()
def test_tiling_strays_from_the_whole_no_more_than_the_reference_does() -> None:
    model, reference = make_pair("factor 4")
    tiling = Tiling(size=8, overlap=2)  # the reference overlaps by a quarter of a tile
    tiled = copy.deepcopy(reference)
    tiled.enable_tiling()
    tiled.tile_latent_min_size, tiled.tile_sample_min_size = 8, 32

    latents = random_input(1, 12, 22, 4)
    ours = decode_tiled(jit(model, "decode"), jnp.asarray(latents), model.config, tiling)
    theirs, whole = (vae.decode(nchw(latents)).sample for vae in (tiled, reference))
    assert relative_error(ours, nhwc(whole)) <= relative_error(theirs, whole) < 0.5

    image = random_image(1, (48, 88))
    ours = encode_tiled(jit(model, "encode"), jnp.asarray(image), model.config, tiling).mean
    theirs, whole = (vae.encode(nchw(image)).latent_dist.mean for vae in (tiled, reference))
    assert relative_error(ours, nhwc(whole)) <= relative_error(theirs, whole) < 0.5


def test_latents_are_normalised_as_the_pipeline_does() -> None:
    model, reference = make_pair("factor 8")
    z = random_input(1, 6, 10, 16)
    theirs = (nchw(z) - reference.config.shift_factor) * reference.config.scaling_factor
    assert_close(normalize(jnp.asarray(z), model.config), nhwc(theirs), 1e-6, "normalised")
    back = theirs / reference.config.scaling_factor + reference.config.shift_factor
    ours = unnormalize(jnp.asarray(nhwc(theirs)), model.config)
    assert_close(ours, nhwc(back), 1e-6, "unnormalised")
