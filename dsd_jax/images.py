"""Pictures: untrusted files to arrays in [-1, 1], arrays to files with parameters and a mark."""

import contextlib
import io
import json
import os
import struct
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, overload

import numpy as np
from PIL import ExifTags, Image, ImageOps, PngImagePlugin, UnidentifiedImageError, features

from dsd_jax.errors import UserError
from dsd_jax.files import write_file
from dsd_jax.inside import open_regular
from dsd_jax.marks import XMP, Mark, mark_png
from dsd_jax.structured import parse_json
from dsd_jax.types import AnyArray, Array, Float32, UInt8

__all__ = [
    "WRITTEN",
    "Frame",
    "NotFiniteError",
    "Source",
    "beside",
    "encode_image",
    "fit",
    "from_array",
    "open_frame",
    "open_image",
    "open_still",
    "read_parameters",
    "save_image",
    "signed",
    "to_array",
    "written_format",
]

MAX_PIXELS = 64_000_000  # 192 MB decoded; far above any camera's needs here, far below a bomb
_MOST_BYTES = 1 << 28  # of a file, which is read whole
MIN_SIDE = 16
WRITTEN = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""Endings of pictures that can be written, and their formats."""
FORMATS: tuple[str, ...] = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
if features.check("avif"):  # Pillow can be built without it
    FORMATS = (*FORMATS, "AVIF")
_KEY = "parameters"
_MOST_EXIF = 65_000  # characters of the description in the one segment that a JPEG has for EXIF
_DEEP = "deep"  # in `Image.info`: a picture whose values were scaled to 8 bits
Source: TypeAlias = str | Path | bytes | Image.Image
"""A picture: a path, the bytes of a file, or a PIL image."""

# Errors of Pillow about damaged files.
_UNREADABLE = (OSError, EOFError, LookupError, SyntaxError, TypeError, ValueError, struct.error)


class NotFiniteError(UserError):
    """An image with NaN or infinity, because of its settings or of the weights."""


def open_image(source: Source) -> Image.Image:
    """A fully decoded RGB picture from a path, file bytes, or a PIL image.

    The size is checked before anything is decoded. EXIF rotation is applied, transparency is laid
    over white, 16-bit and CMYK pictures become 8-bit RGB, and the first of several frames is taken.

    Raises:
        UserError: missing, unreadable, truncated, tiny or huge file, or not a picture.
    """
    with _opened(source, MIN_SIDE) as (name, stored):
        return _over_white(name, stored)


class Frame(NamedTuple):
    """A reference as a frame of the canvas, RGB, and what the user should know about it."""

    image: Image.Image
    notices: tuple[str, ...] = ()


def open_still(source: Source) -> Frame:
    """Reads a picture of one frame as `open_image` does, with a notice of its transparency.

    Raises:
        UserError: missing, unreadable, truncated, tiny or huge file, not a picture, or animated.
    """
    with _opened(source, MIN_SIDE) as (name, image):
        # A photograph with a preview (MPO) also counts two frames, of which the first is meant.
        try:
            frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
        except _UNREADABLE as error:
            raise UserError(
                f"cannot read the frames of {name}: {_reason(error)}; the file is damaged"
            ) from None
        if frames > 1:
            raise UserError(f"{name} has {frames} frames; give a picture of one frame")
        notices: tuple[str, ...] = ()
        if _is_clear(image):
            notices = (f"{name} is partly transparent; white is laid under it",)
        return Frame(_over_white(name, image), notices)


def open_frame(source: Source, height: int, width: int) -> Frame:
    """Reads a reference as the released program does: crops, resizes, then rotates by EXIF.

    The alpha channel is dropped, so transparent parts show the colours stored under them. Pictures
    of any size from 1x1 on are read.

    Args:
        source: the reference.
        height, width: size of the frame.

    Raises:
        UserError: missing, unreadable, truncated or huge file, or not a picture.
    """
    with _opened(source, 1) as (name, image):
        orientation = 1
        with contextlib.suppress(*_UNREADABLE):  # damaged metadata; the picture is complete
            orientation = int(image.getexif().get(ExifTags.Base.Orientation, 1))
        notices: tuple[str, ...] = ()
        if _DEEP in image.info:
            notices = (f"{name} has 16 bits a channel; its values are scaled to 8 bits",)
        if _is_clear(image):
            notices = (f"{name} is partly transparent; its alpha channel is dropped",)
        rgb = _rgb(name, image)
    turn = _TURNS.get(orientation)
    if turn is None:
        return Frame(fit(rgb, height, width), notices)
    size = (width, height) if orientation >= 5 else (height, width)  # 5 to 8: turned sideways
    return Frame(fit(rgb, *size).transpose(turn), notices)


_TURNS = {  # EXIF orientation -> what brings the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@contextlib.contextmanager
def _opened(source: Source, smallest: int) -> Iterator[tuple[str, Image.Image]]:
    """The name of a picture for messages, and the picture, decoded, in at most 8 bits a channel."""
    if isinstance(source, Image.Image):
        yield "the image", _decoded("the image", source, smallest)
        return
    name = "the image" if isinstance(source, bytes) else str(source)
    file = io.BytesIO(source if isinstance(source, bytes) else _read(name))
    with warnings.catch_warnings():
        # Pillow warns of large pictures, which are refused before they are decoded, and of damaged
        # metadata, which is not used.
        warnings.simplefilter("ignore")
        try:
            with _open_file(name, file) as image:
                yield name, _decoded(name, image, smallest)
        except _LargeMetadata:
            with _open_file(name, _without_metadata(file)) as image:
                yield name, _decoded(name, image, smallest)


def _read(name: str) -> bytes:
    """The bytes of a regular file."""
    try:
        with open_regular(name) as file:
            if os.fstat(file.fileno()).st_size > _MOST_BYTES:
                raise UserError(f"{name} has more than {_MOST_BYTES:,} bytes")
            return file.read(_MOST_BYTES)
    except FileNotFoundError:
        raise UserError(f"there is no image at {name}") from None
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {name}: {_reason(error)}") from None


def _open_file(name: str, file: io.BytesIO) -> Image.Image:
    try:
        return Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        raise UserError(
            f"{name} is not a picture that can be read ({', '.join(FORMATS)})"
        ) from None
    except Image.DecompressionBombError:
        raise UserError(f"{name} has far more than the {MAX_PIXELS:,} pixels accepted") from None
    except _UNREADABLE as error:
        _raise_if_metadata(error)
        raise UserError(f"cannot read {name}: {_reason(error)}") from None


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


class _LargeMetadata(Exception):  # noqa: N818 - never leaves this file
    """Raised when Pillow refuses a PNG because of texts or a colour profile that we do not need."""


def _raise_if_metadata(error: BaseException) -> None:
    if "MAX_TEXT" in str(error):
        raise _LargeMetadata from error


def _without_metadata(file: io.BytesIO) -> io.BytesIO:
    """A PNG with nothing but its picture, its transparency and its rotation."""
    data = file.getvalue()
    kept, place = [data[:8]], 8
    while place + 12 <= len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        end = place + 12 + length
        kind = data[place + 4 : place + 8]
        if kind[:1].isupper() or kind in (b"tRNS", b"eXIf"):  # capital: needed for the picture
            kept.append(data[place:end])
        place = end
    return io.BytesIO(b"".join(kept))


def _decoded(name: str, image: Image.Image, smallest: int) -> Image.Image:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise UserError(f"{name} has {width}x{height} pixels; at most {MAX_PIXELS:,} are accepted")
    if min(width, height) < smallest:
        raise UserError(f"{name} has {width}x{height} pixels; both sides must be >= {smallest}")
    try:
        image.load()
    except _UNREADABLE as error:
        _raise_if_metadata(error)
        raise UserError(f"cannot decode {name}: {_reason(error)}; the file is damaged") from None
    if image.mode == "F":
        raise UserError(f"{name} holds floating-point values; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        # PIL would clip 16-bit values at 255 instead of scaling them.
        exif, values = image.getexif(), np.asarray(image).clip(0, 65_535)
        deep = image.mode != "I" or values.max() > 255  # 32 bits may hold what 8 could
        image = Image.fromarray((values / 257 if deep else values).round().astype(np.uint8))
        image.info["exif"] = exif.tobytes()
        if deep:
            image.info[_DEEP] = True
    return image


def _rgb(name: str, image: Image.Image) -> Image.Image:
    try:
        return image.convert("RGB")
    except ValueError:
        raise UserError(
            f"{name} has the mode {image.mode}, which has no way to RGB; convert it before"
        ) from None


def _over_white(name: str, image: Image.Image) -> Image.Image:
    """Upright by its EXIF, RGB, white where it is transparent."""
    with contextlib.suppress(*_UNREADABLE):  # a damaged rotation tag; the picture is complete
        image = ImageOps.exif_transpose(image)
    if _has_alpha(image):
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return _rgb(name, image)


def _is_clear(image: Image.Image) -> bool:
    """Whether any pixel is transparent in part."""
    return _has_alpha(image) and bool(np.asarray(image.convert("RGBA"))[..., 3].min() < 255)


def _has_alpha(image: Image.Image) -> bool:
    return "A" in image.getbands() or "transparency" in image.info


def fit(image: Image.Image, height: int, width: int) -> Image.Image:
    """Centre crop to the aspect ratio, then resize with PIL's default (bicubic) filter.

    For a square frame this is the crop to a square of the released command line tool.
    """
    own_width, own_height = image.size
    crop_width = min(own_width, max(1, round(own_height * width / height)))
    crop_height = min(own_height, max(1, round(own_width * height / width)))
    left, top = (own_width - crop_width) // 2, (own_height - crop_height) // 2
    return image.crop((left, top, left + crop_width, top + crop_height)).resize((width, height))


def to_array(image: Image.Image) -> Float32[np.ndarray, "h w 3"]:
    """RGB picture as an array in [-1, 1]."""
    return signed(np.asarray(image))


@overload
def signed(pixels: UInt8[Array, "*B h w 3"]) -> Float32[Array, "*B h w 3"]: ...
@overload
def signed(pixels: UInt8[np.ndarray, "*B h w 3"]) -> Float32[np.ndarray, "*B h w 3"]: ...
def signed(pixels: AnyArray) -> AnyArray:
    """Bytes as float32 in [-1, 1]; takes arrays of NumPy and of JAX."""
    return pixels.astype(np.float32) / 255 * 2 - 1


def from_array(array: np.ndarray) -> Image.Image:
    """Picture from `[h, w, 3]` in [-1, 1]; values outside are clipped.

    Raises:
        NotFiniteError: NaN or infinity.
    """
    if not np.isfinite(array).all():
        raise NotFiniteError(
            "the model produced values that are not finite; try --dtype float32, and check that "
            "the weights and the LoRA belong together"
        )
    unit = np.clip(np.asarray(array, np.float32) / 2 + 0.5, 0, 1)
    return Image.fromarray((unit * 255).round().astype(np.uint8))


def beside(images: Sequence[Image.Image]) -> Image.Image:
    """Pictures side by side, on white; at least one."""
    sheet = Image.new(
        "RGB",
        (sum(image.width for image in images), max(image.height for image in images)),
        "white",
    )
    left = 0
    for image in images:
        sheet.paste(image, (left, 0))
        left += image.width
    return sheet


def save_image(
    image: Image.Image,
    path: str | Path,
    parameters: Mapping[str, object] | None = None,
    mark: Mark | None = None,
) -> None:
    """Writes a picture in the format of its ending; complete or not at all.

    Args:
        image: RGB.
        path: ends in one of `WRITTEN`.
        parameters: see `encode_image`.
        mark: see `encode_image`.

    Raises:
        UserError: another ending, parameters too long for a JPEG, or the destination cannot be
            written.
    """
    write_file(path, encode_image(image, written_format(Path(path)), parameters, mark))


def encode_image(
    image: Image.Image,
    kind: str,
    parameters: Mapping[str, object] | None = None,
    mark: Mark | None = None,
    quality: int = 95,
) -> bytes:
    """The file of a picture.

    Args:
        image: RGB.
        kind: a format of `WRITTEN`.
        parameters: stored as JSON, in a text chunk of PNG or in the EXIF of the others.
        mark: says that a model made the picture; None for a picture that no model made.
        quality: quality of JPEG and WebP, from 1 to 100.

    Raises:
        UserError: parameters too long for a JPEG.
    """
    options: dict[str, Any] = {} if kind == "PNG" else {"quality": quality}
    if parameters is not None:
        text = json.dumps(parameters, ensure_ascii=True, sort_keys=True)
        if kind == "PNG":
            options["pnginfo"] = info = PngImagePlugin.PngInfo()
            info.add_text(_KEY, text)
        else:
            if kind == "JPEG" and len(text) > _MOST_EXIF:
                raise UserError(
                    f"the parameters have {len(text):,} characters, and a JPEG holds "
                    f"{_MOST_EXIF:,}; write .png or .webp, or use a shorter text"
                )
            exif = Image.Exif()
            exif[ExifTags.Base.ImageDescription] = text
            options["exif"] = exif
    if mark is not None and kind != "PNG":
        options["xmp"] = XMP
    file = io.BytesIO()
    image.save(file, kind, **options)
    data = file.getvalue()
    if mark is None:
        return data
    return mark.finish(mark_png(data) if kind == "PNG" else data, kind)


def written_format(path: Path) -> str:
    """Pillow's name of the format that the ending of a path stands for.

    Raises:
        UserError: another ending than those of `WRITTEN`.
    """
    kind = WRITTEN.get(path.suffix.lower())
    if kind is None:
        raise UserError(f"{path} must end in one of {', '.join(WRITTEN)}, which tells its format")
    return kind


def read_parameters(path: str | Path) -> dict[str, Any] | None:
    """The parameters that `save_image` stored, or None where there are none."""
    try:
        with Image.open(path, formats=tuple(set(WRITTEN.values()))) as image:
            image.load()
            stored = image.info.get(_KEY) or image.getexif()[ExifTags.Base.ImageDescription]
            return parse_json(stored, str(path), dict)
    except (*_UNREADABLE, Image.DecompressionBombError):
        return None
