"""Positions of a vision transformer for another grid of patches than the stored one.

The released models were used with PyTorch's bicubic resizing, which differs from JAX's: its cubic
has another parameter, and it does not widen the filter unless `antialias` is set.
"""

import functools

import jax.numpy as jnp
import numpy as np

from dsd_jax.types import Array, Float32

__all__ = ["bicubic", "resize_positions"]


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic convolution kernel (Keys 1981, equation 4) with the free parameter `a`."""
    x = np.abs(distance)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0))


@functools.cache
def bicubic(source: int, target: int, *, antialias: bool) -> Float32[np.ndarray, "target source"]:
    """The matrix that resizes one axis as PyTorch does with `align_corners=False`.

    Without antialiasing a is -0.75, and samples beyond a border are those at the border. With it
    a is -0.5, the kernel is widened by the factor of shrinking, and samples beyond a border are
    left out.

    Args:
        source, target: Lengths of the axis.
        antialias: As in `torch.nn.functional.interpolate`.

    Returns:
        One row of weights per target sample; every row sums to 1.
    """
    step = source / target
    centre = (np.arange(target) + 0.5) * step - 0.5
    matrix = np.zeros((target, source))
    rows = np.arange(target)
    if antialias:
        width = max(step, 1.0)
        first = np.floor(centre + 1 - 2 * width).astype(int)
        taps = range(int(np.ceil(4 * width)) + 2)
    else:
        width, first, taps = 1.0, np.floor(centre).astype(int) - 1, range(4)
    for tap in taps:
        place = first + tap
        weight = _cubic((place - centre) / width, -0.5 if antialias else -0.75)
        inside = (place >= 0) & (place < source) if antialias else np.ones(target, bool)
        np.add.at(matrix, (rows, place.clip(0, source - 1)), weight * inside)
    return (matrix / matrix.sum(1, keepdims=True)).astype(np.float32)


def resize_positions(
    positions: Float32[Array, "L D"], grid: int, rows: int, columns: int, *, antialias: bool
) -> Float32[Array, "L_new D"]:
    """Positions of `rows` x `columns` patches from those of `grid` x `grid`, row by row."""
    if rows == columns == grid:
        return positions
    square = positions.reshape(grid, grid, -1)
    across = jnp.asarray(bicubic(grid, columns, antialias=antialias))
    down = jnp.asarray(bicubic(grid, rows, antialias=antialias))
    resized = jnp.einsum("rg,ch,ghd->rcd", down, across, square, precision="highest")
    return resized.reshape(rows * columns, -1)
