"""The exact truth about images of the toy world, as metrics beside all others."""

import functools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from dsd_jax.errors import UserError
from dsd_jax.images import open_image, save_image
from dsd_jax.infer.evaluate.features import (
    Family,
    File,
    Files,
    Input,
    Kind,
    Prepared,
    UndefinedError,
)
from dsd_jax.infer.evaluate.measures import ImageMetric, Shot, Task
from dsd_jax.infer.evaluate.runs import Run
from dsd_jax.structured import parse_json
from dsd_jax.toy.judge import Seen, judge
from dsd_jax.toy.score import METRICS, from_tags, score_seen
from dsd_jax.toy.world import PANEL

__all__ = ["TRUTHS", "TruthBackbone", "drawn_masks", "truth_metrics"]

_BENCH = "toy"
TRUTHS = tuple(f"{name}@{_BENCH}" for name in METRICS)
"""Full names of the metrics."""


class TruthBackbone:
    """The pixel judge of the toy world: the metrics of `dsd_jax.toy.score` as four numbers."""

    name, batch, texts = _BENCH, 64, False
    family: Family = "truth"
    digest = "toy-2"

    def prepare(self, given: Input, pictures: Sequence[Image.Image]) -> Prepared:
        (picture,) = pictures
        if picture.size != (PANEL, PANEL):
            raise UserError(
                f"{given.files[0].path} has {picture.width}x{picture.height} pixels; a picture of "
                f"the toy world has {PANEL}x{PANEL}"
            )
        tags = parse_json(given.text, "the tags", dict)
        case = from_tags(tags["case"], tags)
        return np.asarray(score_seen(case, _seen(picture.tobytes())), np.float32)

    def run(self, _kind: Kind, prepared: Sequence[Prepared], /) -> np.ndarray:
        return np.stack(prepared)


@functools.lru_cache(4096)
def _seen(pixels: bytes) -> Seen:
    """Looks at a picture as the pixel judge does, once for truth and mask."""
    return judge(np.frombuffer(pixels, np.uint8).reshape(PANEL, PANEL, 3))


def drawn_masks(run: Run, folder: Path, files: Files) -> dict[str, Path]:
    """Writes masks of the images of a toy run as the pixel judge sees the subject.

    Args:
        run: A run; of other benchmarks nothing is known, so nothing is written.
        folder: Folder of the masks, which are named by the digests of the images.
        files: Digests of the images as they are; an image that has changed gets no mask.

    Returns:
        The mask of an image by its digest. It is black where the judge is not sure.

    Raises:
        UserError: The folder cannot be written.
    """
    toy = {case.id for case in run.cases if case.bench == _BENCH}
    masks = {}
    for image in run.images:
        path = folder / f"{image.sha256}.png"
        if image.case in toy and not path.exists():
            try:
                files.check(File(image.path, image.sha256))
                picture = open_image(image.path)
            except UserError:
                continue  # its scores tell the reason
            if picture.size != (PANEL, PANEL):
                continue
            white = _seen(picture.tobytes()).mask().astype(np.uint8) * 255
            save_image(Image.fromarray(np.repeat(white[..., None], 3, 2)), path)
        if path.exists():
            masks[image.sha256] = path
    return masks


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
