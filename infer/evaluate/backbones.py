"""Models behind the metrics: vision transformers, LPIPS, SSCD, and plain pixels."""

import abc
import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh
from PIL import Image

from dsd_jax.convert.vision.lpips import find_lpips
from dsd_jax.convert.vision.networks import Network
from dsd_jax.convert.vision.open import VisionParts, find_vision, holds_depth, open_captions
from dsd_jax.convert.vision.sscd import find_sscd, holds_sscd
from dsd_jax.convert.vision.tables import kind_of
from dsd_jax.encoders import batched, in_groups
from dsd_jax.errors import UserError
from dsd_jax.images import to_array
from dsd_jax.infer.evaluate.depths import DepthBackbone
from dsd_jax.infer.evaluate.features import (
    Backbone,
    Family,
    Input,
    Kind,
    Prepared,
    UndefinedError,
    digest_of,
    model_digest,
)
from dsd_jax.infer.evaluate.moved import DriftBackbone
from dsd_jax.infer.evaluate.truth import TruthBackbone
from dsd_jax.sharding import batch_ways
from dsd_jax.types import Bool, Float32
from dsd_jax.vision import lpips, sscd
from dsd_jax.vision.captions import CaptionTower
from dsd_jax.vision.preprocess import IMAGENET_CROP, Preprocess
from dsd_jax.vision.tower import BATCH, VisionTower

__all__ = [
    "LpipsBackbone",
    "PixelBackbone",
    "SscdBackbone",
    "VisionBackbone",
    "open_backbones",
]

LEAST_MASK = 0.05
"""Share of a picture below which its subject, or its background, is too small to be measured."""
_GREY = 127  # in place of what a mask takes away
_FILE = ".safetensors"
_LPIPS_SIDE = 256  # pixels that both pictures are resized to
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,80}")


def open_backbones(given: Sequence[str], mesh: Mesh | None = None) -> list[Backbone]:
    """Opens `NAME=PATH` each, without reading weights, beside those that need none.

    A path is a folder or a hub id of a vision transformer or of a depth model, or a safetensors
    file of LPIPS or SSCD.

    Raises:
        UserError: A text of another form, a name twice, or a folder without a vision transformer.
    """
    backbones: dict[str, Backbone] = {
        own.name: own for own in (PixelBackbone(), TruthBackbone(), DriftBackbone())
    }
    built_in = set(backbones)
    for text in given:
        name, equals, path = text.partition("=")
        if not equals or not path or not _NAME.fullmatch(name):
            raise UserError(
                f"--backbone is NAME=PATH, such as dino-vits8=weights/dino-vits8, got {text!r}"
            )
        if name in backbones:
            reason = "is built in" if name in built_in else "is given twice"
            raise UserError(f"--backbone {text}: the name {name} {reason}; choose another name")
        kind: Callable[[str, str, Mesh | None], Backbone]
        if path.endswith(_FILE):
            kind = SscdBackbone if holds_sscd(path) else LpipsBackbone
        else:
            kind = DepthBackbone if holds_depth(path) else VisionBackbone
        backbones[name] = kind(name, path, mesh)
    return list(backbones.values())


class VisionBackbone:
    """A vision transformer; with CLIP also its text encoder. Weights are read at the first use.

    Pictures of DINO and DINOv2 models for 224 x 224 are prepared as published evaluations do:
    the shorter side becomes 256, then the middle is taken. Others follow the file of the model.

    Args:
        name: Name in the names of metrics.
        path: Folder or hub id.
        mesh: Devices; its batch axes split the pictures. None for one device.
    """

    def __init__(self, name: str, path: str, mesh: Mesh | None = None) -> None:
        parts = find_vision(path)
        family: Family = "clip" if kind_of(parts.component.config) in _LANGUAGE else "dino"
        if family == "dino" and _output(parts.preprocess) == (224, 224):
            parts = dataclasses.replace(parts, preprocess=IMAGENET_CROP)
        self.name, self.family, self.path, self.mesh = name, family, path, mesh
        self.parts: VisionParts = parts
        self.batch, self.texts = BATCH * batch_ways(mesh), parts.captions

    @functools.cached_property
    def digest(self) -> str:
        steps = dataclasses.astuple(self.parts.preprocess)
        return model_digest(self.path, self.parts.component.sha256(), steps)

    @functools.cached_property
    def _tower(self) -> VisionTower:
        return self.parts.load(mesh=self.mesh)

    @functools.cached_property
    def _captions(self) -> CaptionTower:
        return open_captions(self.path, mesh=self.mesh)

    def prepare(self, given: Input, pictures: Sequence[Image.Image]) -> Prepared:
        if given.kind == "text":
            return given.text
        if given.kind == "inside":
            scale = dataclasses.replace(
                self.parts.preprocess, scale=1 / 255, mean=(0, 0, 0), std=(1, 1, 1)
            )
            return _cells(scale(pictures[0])[..., 0], self.parts.component.config.patch)
        return self.parts.preprocess(_view(given.kind, pictures))

    def run(self, kind: Kind, prepared: Sequence[Prepared], /) -> np.ndarray:
        if kind == "text":
            return self._captions.features([str(text) for text in prepared])
        if kind == "inside":
            return np.stack(prepared)
        model = self._tower.embed_patches if kind == "patches" else self._tower.embed
        arrays: np.ndarray = in_groups(model, [np.stack(prepared)], self.batch)
        return arrays


_LANGUAGE = {"clip_vision_model", "siglip_vision_model"}


def _output(preprocess: Preprocess) -> tuple[int, int] | None:
    """Size of the prepared picture; None if that depends on the picture."""
    resize = preprocess.resize
    return preprocess.crop or (resize if isinstance(resize, tuple) else None)


class _NetworkBackbone(abc.ABC):
    """A convolutional network of one file, whose weights are read late.

    Args:
        name: Name in the names of metrics.
        path: Safetensors file.
        mesh: Devices; its batch axes split the rows. None for one device.
    """

    texts = False
    size: int
    settings: object

    def __init__(self, name: str, path: str, mesh: Mesh | None = None) -> None:
        self.name, self.mesh, self.parts = name, mesh, self.find(path)
        self.batch = self.size * batch_ways(mesh)

    @staticmethod
    @abc.abstractmethod
    def find(path: str) -> Network[Any, Any]:
        """Opens the file."""

    @functools.cached_property
    def digest(self) -> str:
        return digest_of([self.parts.sha256(), self.settings])

    @functools.cached_property
    def model(self) -> Callable[..., np.ndarray]:
        """Calls the network on any number of rows."""
        network = self.parts.load(mesh=self.mesh)
        return batched(network, type(network).__call__, mesh=self.mesh, size=self.size)


class LpipsBackbone(_NetworkBackbone):
    """LPIPS of pictures as 256 x 256 pixels, whatever their aspect ratio."""

    family: Family = "lpips"
    size, settings, find = lpips.BATCH, _LPIPS_SIDE, staticmethod(find_lpips)

    def prepare(self, _given: Input, pictures: Sequence[Image.Image]) -> Prepared:
        size = (_LPIPS_SIDE, _LPIPS_SIDE)
        return np.stack([to_array(own.resize(size, Image.Resampling.BICUBIC)) for own in pictures])

    def run(self, _kind: Kind, prepared: Sequence[Prepared], /) -> np.ndarray:
        pairs = np.stack(prepared)
        return self.model(pairs[:, 0], pairs[:, 1])


class SscdBackbone(_NetworkBackbone):
    """Descriptors of SSCD of pictures as squares of 320 pixels."""

    family: Family = "sscd"
    size, find = sscd.BATCH, staticmethod(find_sscd)
    settings = dataclasses.astuple(sscd.PREPROCESS)

    def prepare(self, _given: Input, pictures: Sequence[Image.Image]) -> Prepared:
        (picture,) = pictures
        return sscd.PREPROCESS(picture)

    def run(self, _kind: Kind, prepared: Sequence[Prepared], /) -> np.ndarray:
        return self.model(np.stack(prepared))


class PixelBackbone:
    """Plain pixels as features, which need no weights: a low bar for every other backbone.

    The feature is the picture as 32 x 32 pixels, less its mean: the cosine of two is their
    correlation. Patches are 4 x 4 pixels.
    """

    name, batch, texts = "pixels", 64, False
    family: Family = "pixels"
    side, patch = 32, 4
    digest = "pixels-32-4"

    def prepare(self, given: Input, pictures: Sequence[Image.Image]) -> Prepared:
        small = _view(given.kind, pictures).resize((self.side, self.side), Image.Resampling.BICUBIC)
        pixels = np.asarray(small, np.float32) / 255
        if given.kind == "inside":
            return _cells(pixels[..., 0], self.patch)
        pixels -= pixels.mean()
        if given.kind == "patches":
            count, patch = self.side // self.patch, self.patch
            cells = pixels.reshape(count, patch, count, patch, 3).swapaxes(1, 2)
            return cells.reshape(count, count, -1)
        return pixels.ravel()

    def run(self, _kind: Kind, prepared: Sequence[Prepared], /) -> np.ndarray:
        return np.stack(prepared)


def _view(kind: Kind, pictures: Sequence[Image.Image]) -> Image.Image:
    """The part of a picture that is measured.

    The subject is cut out along the box around its mask, which is made square; what lies around it
    becomes grey. Of the background, the subject becomes grey.

    Raises:
        UndefinedError: Less than a twentieth of the picture is left.
    """
    if kind not in ("subject", "background"):
        return pictures[0]
    picture, drawn = pictures
    mask = drawn.convert("L").resize(picture.size, Image.Resampling.BILINEAR)
    inside = np.asarray(mask) > 127
    shown = inside if kind == "subject" else ~inside
    if shown.mean() < LEAST_MASK:
        raise UndefinedError(
            f"the {kind} covers {shown.mean():.1%} of the picture; {LEAST_MASK:.0%} are needed"
        )
    grey = Image.new("RGB", picture.size, (_GREY, _GREY, _GREY))
    grey.paste(picture, mask=Image.fromarray(shown.astype(np.uint8) * 255))
    if kind == "background":
        return grey
    rows, columns = np.flatnonzero(shown.any(1)), np.flatnonzero(shown.any(0))
    top, left = int(rows[0]), int(columns[0])
    height, width = int(rows[-1]) + 1 - top, int(columns[-1]) + 1 - left
    side = max(height, width)
    square = Image.new("RGB", (side, side), (_GREY, _GREY, _GREY))
    part = grey.crop((left, top, left + width, top + height))
    square.paste(part, ((side - width) // 2, (side - height) // 2))
    return square


def _cells(mask: Float32[np.ndarray, "H W"], patch: int) -> Bool[np.ndarray, "h w"]:
    """Patches of which more than half is white."""
    rows, columns = (side // patch for side in mask.shape)
    whole = mask[: rows * patch, : columns * patch].reshape(rows, patch, columns, patch)
    inside: np.ndarray = whole.mean((1, 3)) > 0.5
    return inside
