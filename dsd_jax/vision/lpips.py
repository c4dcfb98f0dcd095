"""LPIPS: the distance of two pictures to a convolutional network (Zhang et al. 2018).

Both pictures pass the network. At each measured layer, the channels of every pixel are brought to
length 1; the squared difference of the two, weighted per channel by a learned head and averaged
over pixels, is the layer's share. Version 0.1 of the authors' weights, whose inputs are scaled.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from dsd_jax.config import Precision
from dsd_jax.layers import Conv
from dsd_jax.types import Array, Float, Float32

__all__ = ["ALEXNET", "BATCH", "VGG16", "ConvLayer", "Lpips"]

BATCH = 8  # pairs per call on one device
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_EPS = 1e-10


@dataclasses.dataclass(frozen=True)
class ConvLayer:
    """A convolution with ReLU, and what lies around it.

    Attributes:
        number: Its number among the `features` of torchvision's model.
        width: Number of channels.
        size, stride, padding: Of its kernel.
        pool: Side of the windows of a max pooling before it, of stride 2; 0 for none.
        measured: Whether its output is a layer of the distance.
    """

    number: int
    width: int
    size: int = 3
    stride: int = 1
    padding: int = 1
    pool: int = 0
    measured: bool = True


ALEXNET = (
    ConvLayer(0, 64, size=11, stride=4, padding=2),
    ConvLayer(3, 192, size=5, padding=2, pool=3),
    ConvLayer(6, 384, pool=3),
    ConvLayer(8, 256),
    ConvLayer(10, 256),
)
VGG16 = (
    ConvLayer(0, 64, measured=False),
    ConvLayer(2, 64),
    ConvLayer(5, 128, pool=2, measured=False),
    ConvLayer(7, 128),
    ConvLayer(10, 256, pool=2, measured=False),
    ConvLayer(12, 256, measured=False),
    ConvLayer(14, 256),
    ConvLayer(17, 512, pool=2, measured=False),
    ConvLayer(19, 512, measured=False),
    ConvLayer(21, 512),
    ConvLayer(24, 512, pool=2, measured=False),
    ConvLayer(26, 512, measured=False),
    ConvLayer(28, 512),
)


class Lpips(nnx.Module):
    """The network with its heads, one `[C]` for each measured layer."""

    def __init__(
        self, layers: tuple[ConvLayer, ...], *, precision: Precision, rngs: nnx.Rngs
    ) -> None:
        self.layers = layers
        widths = [3, *(layer.width for layer in layers)]
        self.convs = nnx.List(
            [
                Conv(
                    width,
                    layer.width,
                    size=layer.size,
                    stride=layer.stride,
                    padding=((layer.padding, layer.padding), (layer.padding, layer.padding)),
                    precision=precision,
                    rngs=rngs,
                )
                for width, layer in zip(widths, layers, strict=False)
            ]
        )
        self.heads = nnx.List(
            [
                nnx.Param(jnp.ones(layer.width, precision.param_dtype))
                for layer in layers
                if layer.measured
            ]
        )

    def __call__(
        self, a: Float32[Array, "B H W 3"], b: Float32[Array, "B H W 3"]
    ) -> Float32[Array, " B"]:
        """Distance of each pair of pictures, whose values lie in [-1, 1]; 0 or more."""
        total = jnp.zeros(len(a), jnp.float32)
        measured = self._measured(jnp.concatenate([a, b]))
        for head, features in zip(self.heads, measured, strict=True):
            unit = features.astype(jnp.float32)
            unit = unit / (jnp.sqrt(jnp.square(unit).sum(-1, keepdims=True)) + _EPS)
            difference = jnp.square(unit[: len(a)] - unit[len(a) :]).mean((1, 2))
            total += (difference * head[...].astype(jnp.float32)[None]).sum(-1)
        return total

    def _measured(self, x: Float32[Array, "B H W 3"]) -> list[Float[Array, "B h w C"]]:
        """Outputs of the measured layers."""
        shift, scale = (jnp.asarray(own, jnp.float32)[None, None, None] for own in (_SHIFT, _SCALE))
        x = (x - shift) / scale
        found = []
        for layer, conv in zip(self.layers, self.convs, strict=True):
            if layer.pool:
                window = (1, layer.pool, layer.pool, 1)
                x = lax.reduce_window(x, -jnp.inf, lax.max, window, (1, 2, 2, 1), "VALID")
            x = jax.nn.relu(conv(x))
            if layer.measured:
                found.append(x)
        return found
