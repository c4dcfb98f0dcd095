"""The depth of images against the depth maps that they were made from, as metrics."""

import functools
import math
from collections.abc import Callable, Sequence

import numpy as np
from jax.sharding import Mesh
from PIL import Image

from dsd_jax.convert.vision.open import DepthParts, find_depth
from dsd_jax.images import fit
from dsd_jax.infer.evaluate.features import (
    Family,
    Input,
    Kind,
    Prepared,
    UndefinedError,
    model_digest,
)
from dsd_jax.infer.evaluate.measures import ImageMetric, Shot, Task
from dsd_jax.sharding import batch_ways
from dsd_jax.types import Float32
from dsd_jax.vision.disparity import DepthTower

__all__ = ["DepthBackbone", "abs_rel", "depth_metrics", "depth_order"]

_SIDE = 64  # points along a side of the maps that are compared
_PAIRS = 4096
_APART = 0.05  # difference in the map from which on two points have an order
_FAR = 0.1  # of the map, below which a relative error means nothing
_GREY = 8  # difference of channels up to which a picture is grey, after JPEG too


class DepthBackbone:
    """Depth Anything. Weights are read at the first use.

    Args:
        name: Name in the names of metrics.
        path: Folder or hub id.
        mesh: Devices; its batch axes split the pictures. None for one device.
    """

    family: Family = "depth"
    texts = False

    def __init__(self, name: str, path: str, mesh: Mesh | None = None) -> None:
        self.name, self.path, self.mesh = name, path, mesh
        self.parts: DepthParts = find_depth(path)
        self.batch = batch_ways(mesh)

    @functools.cached_property
    def digest(self) -> str:
        steps = repr(self.parts.preprocess)
        return model_digest(self.path, self.parts.component.sha256(), steps, _SIDE)

    @functools.cached_property
    def _tower(self) -> DepthTower:
        return self.parts.load(mesh=self.mesh)

    def prepare(self, given: Input, pictures: Sequence[Image.Image]) -> Prepared:
        if given.kind == "depth":
            return self.parts.preprocess(pictures[0])
        reference, image = pictures
        channels = np.asarray(reference, np.int16)
        if np.ptp(channels, axis=-1).max() > _GREY:
            raise UndefinedError("the reference has colours, so it is no depth map")
        # The canvas showed the middle of the map, in the shape of the image.
        shown = fit(reference, image.height, image.width).convert("L")
        depth = _small(np.asarray(shown, np.float32) / 255)
        if depth.max() < _FAR or np.ptp(depth) <= _APART:
            raise UndefinedError("the depth map is black or flat")
        return depth

    def run(self, kind: Kind, prepared: Sequence[Prepared], /) -> np.ndarray:
        arrays = [np.asarray(own) for own in prepared]
        if kind == "map":
            return np.stack(arrays)
        return np.stack([_small(own) for own in self._tower.disparities(arrays, self.batch)])


def _small(values: Float32[np.ndarray, "h w"]) -> Float32[np.ndarray, "side side"]:
    image = Image.fromarray(values).resize((_SIDE, _SIDE), Image.Resampling.BILINEAR)
    return np.asarray(image)


def depth_order(
    disparity: Float32[np.ndarray, "h w"], reference: Float32[np.ndarray, "h w"]
) -> float:
    """Share of sampled pairs of points that stand in the order of the reference, from 0 to 1.

    Pairs whose points are equally deep in the reference are left out; equal disparities count half.
    The pairs are the same for all maps of one size.

    Args:
        disparity: Of the image; larger is nearer.
        reference: From 0 (far) to 1 (near).

    Returns:
        NaN if all sampled points are equally deep in the reference.
    """
    drawn = np.random.default_rng(0).integers(0, reference.size, (2, _PAIRS))
    (a, b), (c, d) = reference.ravel()[drawn], disparity.ravel()[drawn]
    apart = np.abs(a - b) > _APART
    if not apart.any():
        return math.nan
    agree = np.sign(a - b) * np.sign(c - d)
    return float((agree[apart].mean() + 1) / 2)


def abs_rel(disparity: Float32[np.ndarray, "h w"], reference: Float32[np.ndarray, "h w"]) -> float:
    """Mean of |disparity - reference| / reference, after the best scale and shift; 0 is perfect.

    Scale and shift are those of least squares (Ranftl et al. 2020, equation 4). Points in the
    farthest tenth of the reference are left out of the mean.

    Args:
        disparity, reference: See `depth_order`.

    Returns:
        NaN if all points are in the farthest tenth.
    """
    x, y = disparity.ravel().astype(np.float64), reference.ravel().astype(np.float64)
    near = y >= _FAR
    if not near.any():
        return math.nan
    columns = np.stack([x, np.ones_like(x)], axis=1)
    scale, shift = np.linalg.lstsq(columns, y, rcond=None)[0]
    return float((np.abs(scale * x + shift - y)[near] / y[near]).mean())


def depth_metrics() -> list[ImageMetric]:
    """`depth-order` and `abs-rel` of an image against its reference, which is a depth map."""
    families: frozenset[Family] = frozenset(["depth"])

    def task(formula: Callable[..., float], shot: Shot) -> Task:
        inputs = Input("depth", (shot.image,)), Input("map", (shot.reference, shot.image))
        return Task(inputs, formula)

    return [
        ImageMetric(name, families, functools.partial(task, formula))
        for name, formula in (("depth-order", depth_order), ("abs-rel", abs_rel))
    ]
