"""The exact truth about images of the toy world, as metrics beside all others."""

import functools
import json
from collections.abc import Sequence

import numpy as np
from PIL import Image

from dsd_jax.errors import UserError
from dsd_jax.infer.evaluate.features import Family, Input, Kind, Prepared, UndefinedError
from dsd_jax.infer.evaluate.measures import ImageMetric, Shot, Task
from dsd_jax.structured import parse_json
from dsd_jax.toy.score import METRICS, from_tags, score
from dsd_jax.toy.world import PANEL

__all__ = ["TRUTHS", "TruthBackbone", "truth_metrics"]

_BENCH = "toy"
TRUTHS = tuple(f"{name}@{_BENCH}" for name in METRICS)
"""Full names of the metrics."""


class TruthBackbone:
    """The pixel judge of the toy world: the metrics of `dsd_jax.toy.score` as four numbers."""

    name, batch, texts = _BENCH, 64, False
    family: Family = "truth"
    digest = "toy-1"

    def prepare(self, given: Input, pictures: Sequence[Image.Image]) -> Prepared:
        (picture,) = pictures
        if picture.size != (PANEL, PANEL):
            raise UserError(
                f"{given.files[0].path} has {picture.width}x{picture.height} pixels; a picture of "
                f"the toy world has {PANEL}x{PANEL}"
            )
        tags = parse_json(given.text, "the tags", dict)
        return np.asarray(score(from_tags(tags["case"], tags), np.asarray(picture)), np.float32)

    def run(self, _kind: Kind, prepared: Sequence[Prepared], /) -> np.ndarray:
        return np.stack(prepared)


def truth_metrics() -> list[ImageMetric]:
    """`identity`, `prompt`, `both` and `copied`: 1 where it is so, 0 where not."""
    families: frozenset[Family] = frozenset(["truth"])
    return [
        ImageMetric(name, families, functools.partial(_task, number))
        for number, name in enumerate(METRICS)
    ]


def _task(number: int, shot: Shot) -> Task:
    if shot.case.bench != _BENCH:
        raise UndefinedError("the case is not of the toy world")
    tags = json.dumps({"case": shot.case.id, **dict(sorted(shot.case.tags.items()))})
    return Task((Input("truth", (shot.image,), tags),), lambda truth: float(truth[number]))
