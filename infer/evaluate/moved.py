"""The drift of images against their references, as metrics: for edits that must keep the scene."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from dsd_jax.drift import measure_drift
from dsd_jax.infer.evaluate.features import Family, Input, Kind, Prepared, UndefinedError
from dsd_jax.infer.evaluate.measures import ImageMetric, Shot, Task

__all__ = ["DriftBackbone", "drift_metrics"]

_NUMBERS = ("drift", "still", "structure-residual")


class DriftBackbone:
    """The drift meter: longest shift, whether nothing moved, and what remains of the structure."""

    name, batch, texts = "meter", 64, False
    family: Family = "drift"
    digest = "meter-1"

    def prepare(self, _given: Input, pictures: Sequence[Image.Image]) -> Prepared:
        image, reference = pictures
        if image.size != reference.size:
            image = image.resize(reference.size, Image.Resampling.BICUBIC)
        found = measure_drift(reference, image)
        if found.verdict == "cannot tell":
            raise UndefinedError("there is too little texture to see a shift")
        figures = (found.largest_px, found.verdict == "still", found.residual)
        return np.asarray([math.nan if own is None else own for own in figures], np.float32)

    def run(self, _kind: Kind, prepared: Sequence[Prepared], /) -> np.ndarray:
        return np.stack(prepared)


def drift_metrics() -> list[ImageMetric]:
    """Metrics of the drift meter.

    `drift` is the longest shift of any of 4 x 4 tiles in pixels of the reference, undefined where
    no motion joins the two pictures; `still` is 1 where nothing moved, else 0; `structure-residual`
    is what differs in structure once the motion is undone, 0 for nothing.
    """
    families: frozenset[Family] = frozenset(["drift"])

    def metric(number: int, name: str) -> ImageMetric:
        def value(figures: np.ndarray) -> float:
            if math.isnan(figures[number]):
                raise UndefinedError("no motion joins the two pictures")
            return float(figures[number])

        def task(shot: Shot) -> Task:
            return Task((Input("distance", (shot.image, shot.reference)),), value)

        return ImageMetric(name, families, task)

    return [metric(number, name) for number, name in enumerate(_NUMBERS)]
