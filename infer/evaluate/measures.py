"""The table of metrics: what each looks at, and how it makes a number of it.

A metric measures one image of a run, or the images of one subject together. It names the inputs
whose arrays a backbone has to make, and a formula over these arrays. The full name of a metric
contains the name of its backbone: `dino@dino-vits8`.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from dsd_jax.infer.evaluate.cases import Case, Picture
from dsd_jax.infer.evaluate.features import Family, File, Files, Input, Kind, UndefinedError
from dsd_jax.infer.evaluate.metrics import (
    average_precision,
    copy_angle,
    cosine,
    diversity,
    mean_similarity,
    structure_novelty,
    vendi,
)
from dsd_jax.vision.sscd import COPIED

__all__ = ["ImageMetric", "Set", "SetMetric", "Shot", "Task", "image_metrics", "set_metrics"]

COPY = 0.5
"""Copy angle above which an image counts as a copy: nearer to the reference than halfway from the
middle."""


@dataclasses.dataclass(frozen=True)
class Shot:
    """An image of a run and all that a metric of it may look at.

    Attributes:
        image: The image.
        mask: Its mask, white where the subject is, or None.
        gallery: True pictures of all subjects that look alike, by subject.
        files: Digests of masks.
    """

    case: Case
    image: File
    mask: Path | None
    gallery: Mapping[str, Sequence[File]]
    files: Files

    @property
    def reference(self) -> File:
        """The picture that the method got."""
        return _file(self.case.reference)

    @property
    def others(self) -> tuple[File, ...]:
        """True pictures of the subject that the method did not get, not even as a copy."""
        every = map(_file, (*self.case.references[1:], *self.case.targets))
        return tuple(dict.fromkeys(own for own in every if own != self.reference))


@dataclasses.dataclass(frozen=True)
class Set:
    """Images of one subject, as many as the metrics of sets take or fewer."""

    images: tuple[File, ...]


@dataclasses.dataclass(frozen=True)
class Task:
    """A number to be computed.

    Attributes:
        inputs: What a backbone makes arrays of.
        value: Makes the number of these arrays, in the same order; raises UndefinedError where
            there is none.
    """

    inputs: tuple[Input, ...]
    value: Callable[..., float]


@dataclasses.dataclass(frozen=True)
class ImageMetric:
    """A metric of one image.

    Attributes:
        name: Name without backbone.
        families: Families of backbones that it is made for.
        task: Names inputs and formula; raises UndefinedError where the metric says nothing, and
            UserError where a file cannot be read.
        text: Whether it needs an encoder of texts.
    """

    name: str
    families: frozenset[Family]
    task: Callable[[Shot], Task]
    text: bool = False


@dataclasses.dataclass(frozen=True)
class SetMetric:
    """A metric of `count` images of one subject; see `ImageMetric`."""

    name: str
    families: frozenset[Family]
    task: Callable[[Set], Task]
    count: int


def _file(picture: Picture) -> File:
    return File(picture.path, picture.sha256)


def _seen(picture: File, kind: Kind = "feature") -> Input:
    return Input(kind, (picture,))


def _one(a: np.ndarray, b: np.ndarray) -> float:
    return float(cosine(a[None], b[None])[0])


def _mean(image: np.ndarray, *real: np.ndarray) -> float:
    return mean_similarity(image[None], np.stack(real))


def _others(shot: Shot) -> tuple[File, ...]:
    if not shot.others:
        raise UndefinedError("the case has no other true picture of the subject")
    return shot.others


def _reference(shot: Shot) -> Task:
    return Task((_seen(shot.image), _seen(shot.reference)), _one)


def _other(shot: Shot) -> Task:
    return Task((_seen(shot.image), *map(_seen, _others(shot))), _mean)


def _all(shot: Shot) -> Task:
    return Task((_seen(shot.image), *map(_seen, (shot.reference, *shot.others))), _mean)


def _masked(shot: Shot, kind: Kind) -> Task:
    inputs = []
    for name, picture, mask in (
        ("image", shot.image, shot.mask),
        ("reference", shot.reference, shot.case.reference.mask),
    ):
        if mask is None:
            raise UndefinedError(f"the {name} has no mask")
        inputs.append(Input(kind, (picture, shot.files.file(mask))))
    return Task(tuple(inputs), _one)


def _text(shot: Shot) -> Task:
    return Task((_seen(shot.image), Input("text", text=shot.case.prompt)), _one)


def _angle(shot: Shot) -> Task:
    def value(image: np.ndarray, reference: np.ndarray, *others: np.ndarray) -> float:
        rows = np.stack(others)
        same = np.broadcast_to(image, rows.shape), np.broadcast_to(reference, rows.shape)
        return float(copy_angle(same[0], same[1], rows).mean())

    pictures = (shot.image, shot.reference, *_others(shot))
    return Task(tuple(map(_seen, pictures)), value)


def _copied(shot: Shot) -> Task:
    task = _angle(shot)
    return dataclasses.replace(task, value=lambda *arrays: float(task.value(*arrays) > COPY))


def _detected(shot: Shot) -> Task:
    task = _reference(shot)
    return dataclasses.replace(task, value=lambda *arrays: float(_one(*arrays) > COPIED))


def _structure(shot: Shot) -> Task:
    def value(image: np.ndarray, reference: np.ndarray, inside: np.ndarray | None = None) -> float:
        novelty = structure_novelty(image, reference, inside)
        if math.isnan(novelty):
            raise UndefinedError("all parts of a picture are alike")
        return novelty

    pictures = shot.image, shot.reference
    return Task(tuple(_seen(own, "patches") for own in pictures), value)


def _structure_inside(shot: Shot) -> Task:
    task, mask = _structure(shot), shot.case.reference.mask
    if mask is None:
        raise UndefinedError("the reference has no mask")
    inside = Input("inside", (shot.files.file(mask),))
    return dataclasses.replace(task, inputs=(*task.inputs, inside))


def _distance(shot: Shot) -> Task:
    return Task((Input("distance", (shot.image, shot.reference)),), float)


def _distance_others(shot: Shot) -> Task:
    pairs = tuple(Input("distance", (shot.image, own)) for own in _others(shot))
    return Task(pairs, lambda *found: float(np.mean(found)))


def _rank(shot: Shot) -> Task:
    """Average precision of the subject's true pictures among those of look-alike subjects."""
    if len(shot.gallery) < 2:
        raise UndefinedError("no other subject of the category has pictures")
    owners = [name for name, files in shot.gallery.items() for _ in files]
    pictures = [file for files in shot.gallery.values() for file in files]

    def value(image: np.ndarray, *others: np.ndarray) -> float:
        near = _each(image, np.stack(others))
        return average_precision(near, np.asarray(owners) == shot.case.subject)

    return Task((_seen(shot.image), *map(_seen, pictures)), value)


def _each(image: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Cosine of one feature with each of several."""
    return cosine(np.broadcast_to(image, rows.shape), rows)


def _pictures(*families: Family) -> frozenset[Family]:
    return frozenset(families)


_ANY = _pictures("dino", "clip", "pixels")
_SIMILAR: tuple[tuple[str, Family], ...] = (
    ("dino", "dino"),
    ("clip-i", "clip"),
    ("cosine", "pixels"),
)


def image_metrics() -> list[ImageMetric]:
    """All metrics of one image."""
    rows = []
    for name, family in _SIMILAR:
        own = _pictures(family)
        rows += [
            ImageMetric(name, own, _reference),
            ImageMetric(f"{name}-others", own, _other),
            ImageMetric(f"{name}-all", own, _all),
            ImageMetric(f"{name}-subject", own, functools.partial(_masked, kind="subject")),
            ImageMetric(f"{name}-background", own, functools.partial(_masked, kind="background")),
        ]
    rows += [
        ImageMetric("clip-t", _pictures("clip"), _text, text=True),
        ImageMetric("copy-angle", _ANY, _angle),
        ImageMetric(f"copy-angle-over-{COPY}", _ANY, _copied),
        ImageMetric("structure-novelty", _ANY, _structure),
        ImageMetric("structure-novelty-subject", _ANY, _structure_inside),
        ImageMetric("rank", _ANY, _rank),
        ImageMetric("sscd", _pictures("sscd"), _reference),
        ImageMetric(f"sscd-over-{COPIED}", _pictures("sscd"), _detected),
        ImageMetric("lpips", _pictures("lpips"), _distance),
        ImageMetric("lpips-others", _pictures("lpips"), _distance_others),
    ]
    return rows


def set_metrics(count: int) -> list[SetMetric]:
    """All metrics of `count` images of one subject.

    Their names contain the count, since values of sets of different sizes cannot be compared.
    """

    def images(given: Set) -> tuple[File, ...]:
        if len(given.images) < count:
            raise UndefinedError(f"the subject has {len(given.images)} images, not {count}")
        return given.images

    def of_features(formula: Callable[[np.ndarray], float], given: Set) -> Task:
        inputs = tuple(map(_seen, images(given)))
        return Task(inputs, lambda *rows: formula(np.stack(rows)))

    def of_distances(given: Set) -> Task:
        pairs = itertools.combinations(images(given), 2)
        inputs = tuple(Input("distance", pair) for pair in pairs)
        return Task(inputs, lambda *found: float(np.mean(found)))

    return [
        SetMetric(f"diversity-{count}", _ANY, functools.partial(of_features, diversity), count),
        SetMetric(f"vendi-{count}", _ANY, functools.partial(of_features, vendi), count),
        SetMetric(f"lpips-diversity-{count}", _pictures("lpips"), of_distances, count),
    ]
