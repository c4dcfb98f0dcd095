"""Depth Anything (Yang et al. 2024): disparity of a picture, by DINOv2 and a DPT decoder.

DPT (Ranftl et al. 2021, section 3): tokens of four blocks become maps of four resolutions, which
are fused from the coarsest to the finest. The disparity is relative: larger is nearer, 0 or more,
and its scale and shift are unknown.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dsd_jax.config import DepthConfig, Execution, Precision
from dsd_jax.layers import Conv, Linear
from dsd_jax.types import Array, Float, Float32, Shape
from dsd_jax.vision.vit import Vit

__all__ = ["Depth", "bilinear", "resize_bilinear"]


@functools.cache
def bilinear(source: int, target: int) -> Float32[np.ndarray, "target source"]:
    """The matrix that resizes one axis as PyTorch's bilinear with `align_corners=True`.

    The first and the last sample keep their places; a single target sample is the first one.
    """
    step = (source - 1) / (target - 1) if target > 1 else 0.0
    place = np.arange(target) * step
    first = np.minimum(place.astype(int), source - 1)
    matrix, rows = np.zeros((target, source)), np.arange(target)
    np.add.at(matrix, (rows, first), 1 - (place - first))
    np.add.at(matrix, (rows, np.minimum(first + 1, source - 1)), place - first)
    return matrix.astype(np.float32)


def resize_bilinear(
    x: Float[Array, "B h w C"], height: int, width: int
) -> Float[Array, "B {height} {width} C"]:
    """Maps of another size, corners on corners; computed in float32, the result in x's dtype."""
    down, across = (
        jnp.asarray(bilinear(source, target))
        for source, target in zip(x.shape[1:3], (height, width), strict=True)
    )
    y = jnp.einsum("th,bhwc->btwc", down, x.astype(jnp.float32), precision="highest")
    return jnp.einsum("tw,bhwc->bhtc", across, y, precision="highest").astype(x.dtype)


class Upscale(nnx.Module):
    """Makes `factor` x `factor` pixels of each: a transposed convolution without overlap."""

    def __init__(self, channels: int, factor: int, *, precision: Precision, rngs: nnx.Rngs) -> None:
        self.pixels = Linear(
            (channels,), (factor, factor, channels), precision=precision, rngs=rngs, bias=False
        )
        self.bias = nnx.Param(jnp.zeros(channels, precision.param_dtype))

    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B H W C"]:
        y = self.pixels(x).swapaxes(2, 3)
        batch, height, inner, width, _, channels = y.shape
        y = y.reshape(batch, height * inner, width * inner, channels)
        return y + self.bias[...].astype(y.dtype)[None, None, None]


class Reassemble(nnx.Module):
    """Tokens of one block to a map of its own resolution, in the width of the fusion."""

    def __init__(
        self, config: DepthConfig, number: int, *, precision: Precision, rngs: nnx.Rngs
    ) -> None:
        channels, scale = config.widths[number], config.scales[number]
        self.project = Linear((config.vision.width,), (channels,), precision=precision, rngs=rngs)
        self.resize: Upscale | Conv | None
        if scale > 1:
            self.resize = Upscale(channels, int(scale), precision=precision, rngs=rngs)
        elif scale < 1:
            stride = int(1 / scale)
            self.resize = Conv(channels, channels, stride=stride, precision=precision, rngs=rngs)
        else:
            self.resize = None
        self.conv = Conv(channels, config.fusion_width, bias=False, precision=precision, rngs=rngs)

    def __call__(self, tokens: Float[Array, "B h w D"]) -> Float[Array, "B H W C"]:
        x = self.project(tokens)
        return self.conv(x if self.resize is None else self.resize(x))


class ResidualConvs(nnx.Module):
    """Two convolutions, each after a ReLU, added to their input."""

    def __init__(self, width: int, *, precision: Precision, rngs: nnx.Rngs) -> None:
        self.conv1 = Conv(width, width, precision=precision, rngs=rngs)
        self.conv2 = Conv(width, width, precision=precision, rngs=rngs)

    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h w C"]:
        return x + self.conv2(jax.nn.relu(self.conv1(jax.nn.relu(x))))


class Fusion(nnx.Module):
    """Adds a finer map to what has been fused, and resizes the sum.

    Released files hold `fine` for the coarsest map too, where there is nothing to add to.
    """

    def __init__(self, width: int, *, precision: Precision, rngs: nnx.Rngs) -> None:
        self.fine = ResidualConvs(width, precision=precision, rngs=rngs)
        self.fused = ResidualConvs(width, precision=precision, rngs=rngs)
        self.project = Linear((width,), (width,), precision=precision, rngs=rngs)

    def __call__(
        self, fused: Array | None, fine: Float[Array, "B h w C"], size: Shape
    ) -> Float[Array, "B H W C"]:
        x = fine if fused is None else fused + self.fine(fine)
        return self.project(resize_bilinear(self.fused(x), *size))


class Depth(nnx.Module):
    """Pictures to disparities. Pictures are preprocessed already, by the model's own settings."""

    def __init__(
        self,
        config: DepthConfig,
        *,
        precision: Precision,
        execution: Execution | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        self.config, self.precision = config, precision
        self.execution = execution or Execution()
        self.vision = Vit(config.vision, precision=precision, execution=execution, rngs=rngs)
        width, count = config.fusion_width, len(config.taps)
        self.reassemble = nnx.List(
            [Reassemble(config, k, precision=precision, rngs=rngs) for k in range(count)]
        )
        self.fusions = nnx.List(
            [Fusion(width, precision=precision, rngs=rngs) for _ in range(count)]
        )
        self.conv1 = Conv(width, width // 2, precision=precision, rngs=rngs)
        self.conv2 = Conv(width // 2, config.head_width, precision=precision, rngs=rngs)
        self.last = Linear((config.head_width,), (1,), precision=precision, rngs=rngs)

    @property
    def stacks(self) -> dict[str, int]:
        """Path and depth of the stack of blocks, for `dsd_jax.stack.layer_paths`."""
        return {f"vision.{name}": depth for name, depth in self.vision.stacks.items()}

    def __call__(self, pixels: Float32[Array, "B H W 3"]) -> Float32[Array, "B H_out W_out"]:
        """The disparity of every pixel that lies in a patch.

        Pixels on the right and below that do not fill a patch are left out.
        """
        vision = self.config.vision
        rows, columns = (side // vision.patch for side in pixels.shape[1:3])
        maps = []
        for tokens, reassemble in zip(
            self.vision.hidden(pixels, self.config.taps), self.reassemble, strict=True
        ):
            normed = self.vision.final_norm(tokens[:, vision.first_patch :])
            maps.append(reassemble(normed.reshape(len(normed), rows, columns, -1)))
        # Every sum is resized to the next finer map, the last one to twice the finest.
        height, width = maps[0].shape[1:3]
        sizes: list[Shape] = [own.shape[1:3] for own in maps[-2::-1]] + [(2 * height, 2 * width)]
        first, *others = self.fusions
        fused = first(None, maps[-1], sizes[0])
        for fusion, fine, size in zip(others, maps[-2::-1], sizes[1:], strict=True):
            fused = fusion(fused, fine, size)
        x = resize_bilinear(self.conv1(fused), rows * vision.patch, columns * vision.patch)
        x = jax.nn.relu(self.last(jax.nn.relu(self.conv2(x))))
        return x[..., 0].astype(jnp.float32)
