"""The FLUX VAE: images to latents and back, 8 pixels per latent pixel and 16 channels.

It is the convolutional autoencoder of latent diffusion (Rombach et al. 2022, appendix E) with 16
latent channels and without the 1x1 convolutions around the latents. Arrays are NHWC, which is what
TPUs and tensor cores want; kernels are HWIO.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from dsd_jax.attention import attention
from dsd_jax.config import AutoencoderConfig, Precision
from dsd_jax.errors import UserError
from dsd_jax.layers import Conv, Linear
from dsd_jax.sharding import constrain
from dsd_jax.types import Array, Float, Float32, Int

__all__ = [
    "Autoencoder",
    "Decoder",
    "Encoder",
    "Posterior",
    "Tiling",
    "decode_tiled",
    "encode_tiled",
    "normalize",
    "unnormalize",
]

GROUP_NORM_EPS = 1e-6
LOGVAR_RANGE = (-30.0, 20.0)


class Posterior(NamedTuple):
    """Diagonal Gaussian over latents, float32, before `normalize`."""

    mean: Float32[Array, "*B h w C"]
    logvar: Float32[Array, "*B h w C"]

    def mode(self) -> Float32[Array, "*B h w C"]:
        """The most probable latents."""
        return self.mean

    def sample(self, key: Array) -> Float32[Array, "*B h w C"]:
        """Random latents from one key; `jax.vmap(Posterior.sample)` takes one key per image."""
        noise = jax.random.normal(key, self.mean.shape, self.mean.dtype)
        return self.mean + jnp.exp(0.5 * self.logvar) * noise


class GroupNorm(nnx.Module):
    """Zero mean and unit variance per image and group of channels, then scale and bias `[C]`.

    Works in float32 and returns it: the next layer rounds to its compute dtype, after the swish.
    """

    def __init__(self, channels: int, groups: int, *, precision: Precision) -> None:
        self.scale = nnx.Param(jnp.ones(channels, precision.param_dtype))
        self.bias = nnx.Param(jnp.zeros(channels, precision.param_dtype))
        self.groups = groups

    def __call__(self, x: Float[Array, "B h w C"]) -> Float32[Array, "B h w C"]:
        x32 = x.astype(jnp.float32)
        centred = x32 - self._mean(x32)
        factor = lax.rsqrt(self._mean(jnp.square(centred)) + GROUP_NORM_EPS)
        factor = factor * self.scale[...].astype(jnp.float32)[None, None, None, :]
        bias = self.bias[...].astype(jnp.float32)[None, None, None, :]
        return centred * factor + bias

    def _mean(self, x: Float32[Array, "B h w C"]) -> Float32[Array, "B 1 1 C"]:
        # Columns, rows, then the channels of a group: no reduction cuts the channel axis into
        # groups while the array is large, and three short sums round less than one long one.
        mean = x.mean(2).mean(1).reshape(x.shape[0], self.groups, -1).mean(-1)
        return jnp.repeat(mean, x.shape[-1] // self.groups, axis=-1)[:, None, None, :]


class ResnetBlock(nnx.Module):
    """Twice group norm, swish, 3x3 convolution; added to the input, projected if C changes."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        groups: int,
        *,
        precision: Precision,
        rngs: nnx.Rngs,
    ) -> None:
        self.norm1 = GroupNorm(in_channels, groups, precision=precision)
        self.conv1 = Conv(in_channels, out_channels, precision=precision, rngs=rngs)
        self.norm2 = GroupNorm(out_channels, groups, precision=precision)
        self.conv2 = Conv(out_channels, out_channels, precision=precision, rngs=rngs)
        self.shortcut = (
            Linear((in_channels,), (out_channels,), precision=precision, rngs=rngs)
            if in_channels != out_channels
            else None
        )

    def __call__(self, x: Float[Array, "B h w C"]) -> Array:
        hidden = self.conv1(jax.nn.silu(self.norm1(x)))
        hidden = self.conv2(jax.nn.silu(self.norm2(hidden)))
        return hidden + (x if self.shortcut is None else self.shortcut(x))


class AttentionBlock(nnx.Module):
    """Self-attention over all latent pixels, one head of width C; added to the input."""

    def __init__(self, channels: int, groups: int, *, precision: Precision, rngs: nnx.Rngs) -> None:
        def linear() -> Linear:
            return Linear((channels,), (channels,), precision=precision, rngs=rngs)

        self.norm = GroupNorm(channels, groups, precision=precision)
        self.q, self.k, self.v, self.proj = linear(), linear(), linear(), linear()

    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h w C"]:
        batch, height, width, channels = x.shape
        normed = self.norm(x).reshape(batch, height * width, 1, channels)
        # Blocks of queries: fused kernels do not take a head of 512, and the weights of a large
        # image do not fit in memory at once (16 GB at 65,536 tokens).
        attn = attention(self.q(normed), self.k(normed), self.v(normed), implementation="mapped")
        return x + self.proj(attn).reshape(x.shape)


class Mid(nnx.Module):
    """Resnet block, attention, resnet block, at the lowest resolution."""

    def __init__(self, channels: int, groups: int, *, precision: Precision, rngs: nnx.Rngs) -> None:
        self.block_1 = ResnetBlock(channels, channels, groups, precision=precision, rngs=rngs)
        self.attn = AttentionBlock(channels, groups, precision=precision, rngs=rngs)
        self.block_2 = ResnetBlock(channels, channels, groups, precision=precision, rngs=rngs)

    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h w C"]:
        return self.block_2(self.attn(self.block_1(x)))


class Level(nnx.Module):
    """Resnet blocks at one resolution; the first one changes the number of channels."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        depth: int,
        groups: int,
        *,
        precision: Precision,
        rngs: nnx.Rngs,
    ) -> None:
        self.block = nnx.List(
            ResnetBlock(
                in_channels if i == 0 else out_channels,
                out_channels,
                groups,
                precision=precision,
                rngs=rngs,
            )
            for i in range(depth)
        )

    def __call__(self, x: Float[Array, "B h w C"]) -> Array:
        for block in self.block:
            x = block(x)
        return x


class DownLevel(Level):
    """A level of the encoder; all but the last halve the resolution at their end."""

    downsample: Conv | None = None

    def __call__(self, x: Float[Array, "B h w C"]) -> Array:
        x = super().__call__(x)
        if self.downsample is not None:
            x = self.downsample(x)
        return constrain(x, "batch", None, None, None)


class UpLevel(Level):
    """A level of the decoder; all but the last double the resolution at their end."""

    upsample: Conv | None = None

    def __call__(self, x: Float[Array, "B h w C"]) -> Array:
        x = super().__call__(x)
        if self.upsample is not None:
            x = self.upsample(upsample_nearest(x))
        return constrain(x, "batch", None, None, None)


def upsample_nearest(x: Float[Array, "B h w C"]) -> Array:
    """Every pixel four times, as a 2x2 square."""
    batch, height, width, channels = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None, :], (batch, height, 2, width, 2, channels))
    return x.reshape(batch, 2 * height, 2 * width, channels)


def _output_conv(
    in_channels: int, out_channels: int, *, precision: Precision, rngs: nnx.Rngs
) -> Conv:
    """Last convolution, in float32: rounding pixels to bfloat16 would cost one of their 8 bits."""
    precision = dataclasses.replace(precision, compute_dtype=jnp.float32)
    return Conv(in_channels, out_channels, precision=precision, rngs=rngs)


class Encoder(nnx.Module):
    """Image to the moments (mean, log variance) of the latents."""

    def __init__(self, config: AutoencoderConfig, *, precision: Precision, rngs: nnx.Rngs) -> None:
        groups, channels = config.norm_groups, config.block_channels
        self.conv_in = Conv(config.in_channels, channels[0], precision=precision, rngs=rngs)
        levels: list[DownLevel] = []
        for i, out in enumerate(channels):
            level = DownLevel(
                channels[max(i - 1, 0)],
                out,
                config.layers_per_block,
                groups,
                precision=precision,
                rngs=rngs,
            )
            if i < len(channels) - 1:
                # Below and on the right only, as the released VAE does.
                padding = (0, 1), (0, 1)
                level.downsample = Conv(
                    out, out, stride=2, padding=padding, precision=precision, rngs=rngs
                )
            levels.append(level)
        self.down = nnx.List(levels)
        self.mid = Mid(channels[-1], groups, precision=precision, rngs=rngs)
        self.norm_out = GroupNorm(channels[-1], groups, precision=precision)
        self.conv_out = _output_conv(
            channels[-1], 2 * config.latent_channels, precision=precision, rngs=rngs
        )

    def __call__(self, image: Float[Array, "B H W C_image"]) -> Float32[Array, "B h w moments"]:
        x = constrain(self.conv_in(image), "batch", None, None, None)
        for level in self.down:
            x = level(x)
        return self.conv_out(jax.nn.silu(self.norm_out(self.mid(x))))


class Decoder(nnx.Module):
    """Latents to an image."""

    def __init__(self, config: AutoencoderConfig, *, precision: Precision, rngs: nnx.Rngs) -> None:
        groups, channels = config.norm_groups, config.block_channels[::-1]
        self.conv_in = Conv(config.latent_channels, channels[0], precision=precision, rngs=rngs)
        self.mid = Mid(channels[0], groups, precision=precision, rngs=rngs)
        levels: list[UpLevel] = []
        for i, out in enumerate(channels):
            level = UpLevel(
                channels[max(i - 1, 0)],
                out,
                config.layers_per_block + 1,
                groups,
                precision=precision,
                rngs=rngs,
            )
            if i < len(channels) - 1:
                level.upsample = Conv(out, out, precision=precision, rngs=rngs)
            levels.append(level)
        self.up = nnx.List(levels)
        self.norm_out = GroupNorm(channels[-1], groups, precision=precision)
        self.conv_out = _output_conv(
            channels[-1], config.in_channels, precision=precision, rngs=rngs
        )

    def __call__(self, latents: Float[Array, "B h w C"]) -> Float32[Array, "B H W C_image"]:
        x = self.mid(constrain(self.conv_in(latents), "batch", None, None, None))
        for level in self.up:
            x = level(x)
        return self.conv_out(jax.nn.silu(self.norm_out(x)))


class Autoencoder(nnx.Module):
    """The VAE. Images are in [-1, 1], channels last; latents are a factor `downscale` smaller."""

    def __init__(self, config: AutoencoderConfig, *, precision: Precision, rngs: nnx.Rngs) -> None:
        self.config, self.precision = config, precision
        self.encoder = Encoder(config, precision=precision, rngs=rngs)
        self.decoder = Decoder(config, precision=precision, rngs=rngs)

    def encode(self, image: Float[Array, "B H W C_image"]) -> Posterior:
        """Posterior of latents that are not normalised; its log variance is clipped to [-30, 20].

        Raises:
            UserError: height or width is not a multiple of `config.downscale`.
        """
        _check_image(image.shape[1], image.shape[2], self.config)
        mean, logvar = jnp.split(self.encoder(image), 2, axis=-1)
        return Posterior(mean, jnp.clip(logvar, *LOGVAR_RANGE))

    def decode(self, latents: Float[Array, "B h w C"]) -> Float32[Array, "B H W C_image"]:
        """Decodes latents that are not normalised to an image, not clipped to [-1, 1]."""
        return self.decoder(latents)


def normalize(
    latents: Float[Array, "B h w C"], config: AutoencoderConfig
) -> Float[Array, "B h w C"]:
    """`(z - shift) * scale`: the latents that the flow model is trained on."""
    return (latents - config.shift) * config.scale


def unnormalize(
    latents: Float[Array, "B h w C"], config: AutoencoderConfig
) -> Float[Array, "B h w C"]:
    """The inverse of `normalize`: the latents that `Autoencoder.decode` takes."""
    return latents / config.scale + config.shift


def _check_image(height: int, width: int, config: AutoencoderConfig) -> None:
    if height % config.downscale or width % config.downscale:
        raise UserError(
            f"the image is {height}x{width} (height x width), but this VAE needs multiples of "
            f"{config.downscale}; resize or crop it"
        )


@dataclasses.dataclass(frozen=True)
class Tiling:
    """Size and overlap of the tiles of a large image, in latent pixels.

    Attributes:
        size: side of a tile; an image not larger than this is not cut.
        overlap: least overlap of neighbours, over which they are blended linearly.
    """

    size: int = 128
    overlap: int = 32

    def __post_init__(self) -> None:
        if not 0 < self.overlap <= self.size // 2:
            raise UserError(
                f"tiles of {self.size} latent pixels cannot overlap by {self.overlap}; choose an "
                f"overlap from 1 to {self.size // 2}"
            )


def encode_tiled(
    encode: Callable[[Array], Posterior],
    image: Float[Array, "B H W C_image"],
    config: AutoencoderConfig,
    tiling: Tiling | None = None,
) -> Posterior:
    """`encode` of a large image in the memory of one tile; the moments of tiles are blended.

    Call it outside `jit`, with a compiled `encode`: all tiles have one shape, hence one program.
    An image that fits one tile gives `encode(image)` itself. A larger one differs from it,
    because group norm and attention see one tile at a time: the less, the larger the tiles.

    Raises:
        UserError: height or width is not a multiple of `config.downscale`.
    """
    _check_image(image.shape[1], image.shape[2], config)
    return _run_tiled(encode, image, config.downscale, 1, tiling or Tiling())


def decode_tiled(
    decode: Callable[[Array], Array],
    latents: Float[Array, "B h w C"],
    config: AutoencoderConfig,
    tiling: Tiling | None = None,
) -> Float32[Array, "B H W C_image"]:
    """`decode` of large latents in the memory of one tile; see `encode_tiled`."""
    return _run_tiled(decode, latents, 1, config.downscale, tiling or Tiling())


Result = TypeVar("Result")  # an array or a tree of arrays [B, height, width, C]


def _run_tiled(
    run: Callable[[Array], Result], x: Array, in_unit: int, out_unit: int, tiling: Tiling
) -> Result:
    """Runs tile after tile and adds them up, weighted; a unit is pixels per latent pixel."""
    height, width = x.shape[1] // in_unit, x.shape[2] // in_unit
    if height <= tiling.size and width <= tiling.size:
        return run(x)
    rows, columns = _place(height, out_unit, tiling), _place(width, out_unit, tiling)
    tile = (x.shape[0], rows.size * in_unit, columns.size * in_unit, x.shape[3])
    total: Result | None = None
    for row, row_weight in zip(rows.starts, rows.weights, strict=True):
        for column, column_weight in zip(columns.starts, columns.weights, strict=True):
            part = run(lax.dynamic_slice(x, (0, row * in_unit, column * in_unit, 0), tile))
            if total is None:
                total = jax.tree.map(
                    lambda p: jnp.zeros(
                        (p.shape[0], height * out_unit, width * out_unit, p.shape[3]), p.dtype
                    ),
                    part,
                )
            total = _add_tile(
                total, part, row * out_unit, column * out_unit, row_weight, column_weight
            )
    assert total is not None  # there is at least one tile
    return total


class _Places(NamedTuple):
    """The tiles along one side: starts and size in latent pixels, a row of weights for each."""

    starts: list[int]
    size: int
    weights: Float32[np.ndarray, "tiles pixels"]


def _place(length: int, out_unit: int, tiling: Tiling) -> _Places:
    """Evenly spread tiles of one size, the last one ending where the image ends.

    A tile's weight falls linearly to its borders over the overlap, but not to the borders of the
    image; the weights of all tiles that cover a pixel are scaled to sum to one.
    """
    size = min(tiling.size, length)
    step = tiling.size - tiling.overlap
    tiles = 1 + max(0, math.ceil((length - tiling.size) / step))
    starts = [round(i * (length - size) / max(tiles - 1, 1)) for i in range(tiles)]
    position = np.arange(size * out_unit) + 0.5
    ramp = tiling.overlap * out_unit
    weights = np.zeros((tiles, length * out_unit))
    for i, start in enumerate(starts):
        rise = position / ramp if i > 0 else 1.0
        fall = position[::-1] / ramp if i < tiles - 1 else 1.0
        begin = start * out_unit
        weights[i, begin : begin + len(position)] = np.minimum(np.minimum(rise, fall), 1.0)
    weights /= weights.sum(0)
    own = [
        weights[i, start * out_unit : (start + size) * out_unit] for i, start in enumerate(starts)
    ]
    return _Places(starts, size, np.stack(own).astype(np.float32))


@jax.jit(donate_argnums=0)
def _add_tile(
    total: Result,
    part: Result,
    row: int | Int[Array, ""],
    column: int | Int[Array, ""],
    row_weight: Float32[Array | np.ndarray, " h"],
    column_weight: Float32[Array | np.ndarray, " w"],
) -> Result:
    weight = (row_weight[:, None] * column_weight[None, :])[None, :, :, None]

    def add(total: Array, part: Array) -> Array:
        start = (0, row, column, 0)
        before = lax.dynamic_slice(total, start, part.shape)
        return lax.dynamic_update_slice(total, before + part * weight.astype(part.dtype), start)

    return jax.tree.map(add, total, part)
