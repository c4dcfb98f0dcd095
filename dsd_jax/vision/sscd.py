"""SSCD, a descriptor that finds copies (Pizzi et al. 2022): a ResNet with a generalised mean.

A bottleneck ResNet as torchvision's (He et al. 2016, strides in the 3 x 3 convolution), with a
generalised mean of exponent 3 in place of the mean, and a Linear to the descriptor of length 1.
Two pictures whose descriptors have a cosine above 0.75 are copies with a precision of 90 % on the
DISC benchmark, by the authors' README for `sscd_disc_mixup`.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from PIL import Image

from dsd_jax.config import Precision
from dsd_jax.layers import Conv, Linear
from dsd_jax.types import Array, Float, Float32
from dsd_jax.vision.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess

__all__ = ["BATCH", "COPIED", "PREPROCESS", "ResNetSizes", "Sscd"]

BATCH = 8  # pictures per call on one device
COPIED = 0.75
EXPANSION = 4  # channels of a block's output for each of its inner channels
_EXPONENT, _LEAST = 3.0, 1e-6
PREPROCESS = Preprocess(
    resize=(320, 320),
    resample=Image.Resampling.BILINEAR,
    crop=None,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
)
"""The whole picture as a square, one of the two ways of the authors' README."""


@dataclasses.dataclass(frozen=True)
class ResNetSizes:
    """Sizes of a ResNet; the defaults are ResNet-50's with the descriptor of the released SSCD.

    Attributes:
        width: Channels of the first convolution, and inner channels of the first stage; every
            stage doubles them.
        depths: Number of blocks of each stage.
        dims: Length of the descriptor.
    """

    width: int = 64
    depths: tuple[int, ...] = (3, 4, 6, 3)
    dims: int = 512

    @property
    def blocks(self) -> list[tuple[int, int, int]]:
        """(channels in, inner channels, stride) of every block, stage by stage."""
        found, channels = [], self.width
        for stage, depth in enumerate(self.depths):
            inner = self.width * 2**stage
            for block in range(depth):
                found.append((channels, inner, 2 if stage and not block else 1))
                channels = inner * EXPANSION
        return found

    @property
    def features(self) -> int:
        """Channels of the last block."""
        return self.blocks[-1][1] * EXPANSION


class BatchNorm(nnx.Module):
    """Batch norm with the statistics of training, `[C]`."""

    def __init__(self, channels: int, *, precision: Precision) -> None:
        dtype = precision.param_dtype
        self.scale, self.bias = (nnx.Param(make(channels, dtype)) for make in (jnp.ones, jnp.zeros))
        self.variance, self.mean = (
            nnx.Param(make(channels, dtype)) for make in (jnp.ones, jnp.zeros)
        )

    def __call__(self, x: Float[Array, "B h w C"]) -> Array:
        scale, bias, variance, mean = (
            own[...].astype(jnp.float32)[None, None, None]
            for own in (self.scale, self.bias, self.variance, self.mean)
        )
        return ((x.astype(jnp.float32) - mean) * lax.rsqrt(variance + 1e-5) * scale + bias).astype(
            x.dtype
        )


class ConvNorm(nnx.Module):
    """A convolution without bias that keeps the size but for its stride, and a batch norm."""

    def __init__(
        self, inside: int, out: int, size: int, stride: int, *, precision: Precision, rngs: nnx.Rngs
    ) -> None:
        around = (size // 2, size // 2)
        self.conv = Conv(
            inside,
            out,
            size=size,
            stride=stride,
            padding=(around, around),
            bias=False,
            precision=precision,
            rngs=rngs,
        )
        self.norm = BatchNorm(out, precision=precision)

    def __call__(self, x: Float[Array, "B h w C"]) -> Array:
        return self.norm(self.conv(x))


class Bottleneck(nnx.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions beside a shortcut."""

    def __init__(
        self, inside: int, inner: int, stride: int, *, precision: Precision, rngs: nnx.Rngs
    ) -> None:
        def layer(channels: int, out: int, size: int, step: int = 1) -> ConvNorm:
            return ConvNorm(channels, out, size, step, precision=precision, rngs=rngs)

        out = inner * EXPANSION
        self.reduce, self.spread = layer(inside, inner, 1), layer(inner, inner, 3, stride)
        self.expand = layer(inner, out, 1)
        self.shortcut = layer(inside, out, 1, stride) if stride > 1 or inside != out else None

    def __call__(self, x: Float[Array, "B h w C"]) -> Array:
        y = self.expand(jax.nn.relu(self.spread(jax.nn.relu(self.reduce(x)))))
        return jax.nn.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class Sscd(nnx.Module):
    """The network; maps normalised pictures to descriptors of length 1."""

    def __init__(self, sizes: ResNetSizes, *, precision: Precision, rngs: nnx.Rngs) -> None:
        self.stem = ConvNorm(3, sizes.width, 7, 2, precision=precision, rngs=rngs)
        self.blocks = nnx.List(
            [Bottleneck(*block, precision=precision, rngs=rngs) for block in sizes.blocks]
        )
        self.fc = Linear((sizes.features,), (sizes.dims,), precision=precision, rngs=rngs)

    def __call__(self, x: Float32[Array, "B H W 3"]) -> Float32[Array, "B E"]:
        x = jax.nn.relu(self.stem(x))
        around = ((0, 0), (1, 1), (1, 1), (0, 0))
        x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), around)
        for block in self.blocks:
            x = block(x)
        powers = jnp.maximum(x.astype(jnp.float32), _LEAST) ** _EXPONENT
        found = self.fc(powers.mean((1, 2)) ** (1 / _EXPONENT)).astype(jnp.float32)
        return found / jnp.maximum(jnp.linalg.norm(found, axis=-1, keepdims=True), 1e-12)
