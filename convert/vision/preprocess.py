"""`preprocessor_config.json` of transformers' image processors."""

import dataclasses
import re
from collections.abc import Mapping

from PIL import Image

from dsd_jax.convert.fields import Fields, Json
from dsd_jax.errors import UserError
from dsd_jax.vision.preprocess import Preprocess

__all__ = ["preprocess_from_json"]

_LARGEST = 4096  # pixels of a side
_HALF = (0.5, 0.5, 0.5)
_SQUARE = Preprocess((224, 224), crop=None, mean=_HALF, std=_HALF)
# What each kind of processor does where its file says nothing.
_DEFAULTS = {
    "ViT": dataclasses.replace(_SQUARE, resample=Image.Resampling.BILINEAR),
    "CLIP": Preprocess(),
    "Bit": Preprocess(),
    "Siglip": _SQUARE,
    "DPT": dataclasses.replace(_SQUARE, resize=(384, 384)),
}


def preprocess_from_json(data: Json, where: str) -> Preprocess:
    """Reads the settings of an image processor.

    Args:
        data: The content of the file.
        where: The path of the file, for messages.

    Raises:
        UserError: The processor is of a kind that is not known, or a setting is not supported.
    """
    read = Fields(where, data)
    name = str(data.get("image_processor_type") or data.get("feature_extractor_type"))
    kind = re.sub(r"(ImageProcessor|FeatureExtractor)(Fast|Pil)?$", "", name)
    if kind not in _DEFAULTS:
        raise UserError(
            f"{where} is for a {name}; expected an image processor of {', '.join(_DEFAULTS)}"
        )
    default = _DEFAULTS[kind]
    read.one_of("do_rescale", True, default=True)
    read.one_of("do_normalize", True, default=True)
    crops = read.one_of("do_center_crop", True, False, default=default.crop is not None)
    filters = [int(own) for own in Image.Resampling]
    mean, std = (read.reals(f"image_{k}", getattr(default, k)) for k in ("mean", "std"))
    if len(mean) != 3 or len(std) != 3 or 0 in std:
        raise UserError(f"{where}: image_mean and image_std need three numbers each, std above 0")
    return Preprocess(
        resize=_resize(where, data, default)
        if read.one_of("do_resize", True, False, default=True)
        else None,
        resample=Image.Resampling(read.one_of("resample", *filters, default=default.resample)),
        crop=_sides(where, "crop_size", data.get("crop_size", 224)) if crops else None,
        scale=read.real("rescale_factor", 1 / 255),
        mean=mean,
        std=std,
        multiple=_multiple(read),
    )


def _multiple(read: Fields) -> int | None:
    """The number that both sides are multiples of when the aspect ratio is kept."""
    read.one_of("do_pad", False, default=False)
    if read.one_of("keep_aspect_ratio", False, True, default=False):
        return read.number("ensure_multiple_of", 1)
    read.one_of("ensure_multiple_of", 1, default=1)
    return None


def _resize(where: str, data: Json, default: Preprocess) -> int | tuple[int, int] | None:
    """The length of the shorter side, or both sides."""
    size = data.get("size", default.resize)
    if isinstance(size, Mapping) and "shortest_edge" in size:
        size = size["shortest_edge"]
    elif isinstance(default.resize, tuple) or isinstance(size, Mapping):
        return _sides(where, "size", size)
    return _sides(where, "size", size)[0]


def _sides(where: str, key: str, size: object) -> tuple[int, int]:
    """(height, width) from one number or from a mapping of both."""
    pair = (size.get("height"), size.get("width")) if isinstance(size, Mapping) else (size, size)
    sides = tuple(side for side in pair if type(side) is int and 0 < side <= _LARGEST)
    if len(sides) != 2:
        raise UserError(f"{where}: {key} is {size!r}, expected sides from 1 to {_LARGEST} pixels")
    return sides
