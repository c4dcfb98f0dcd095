"""Pictures: untrusted files to arrays in [-1, 1], arrays to PNG files with their parameters."""

import contextlib
import io
import json
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, overload

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from dsd_jax.errors import UserError
from dsd_jax.files import replacing
from dsd_jax.types import Array, Float32, UInt8

__all__ = [
    "NotFiniteError",
    "fit",
    "from_array",
    "open_image",
    "read_parameters",
    "save_png",
    "signed",
    "to_array",
]

MAX_PIXELS = 64_000_000  # 192 MB decoded; far above any camera's needs here, far below a bomb
MIN_SIDE = 16
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
_KEY = "parameters"

# What Pillow raises about damaged files.
_UNREADABLE = (OSError, EOFError, LookupError, SyntaxError, TypeError, ValueError, struct.error)


class NotFiniteError(UserError):
    """An image that no picture can show: the fault of its settings or of the weights."""


def open_image(source: str | Path | bytes | Image.Image) -> Image.Image:
    """A fully decoded RGB picture from a path, file bytes, or a PIL image.

    The size is checked before anything is decoded. EXIF rotation is applied, transparency is laid
    over white, 16-bit and CMYK pictures are brought to 8-bit RGB; of several frames the first.

    Raises:
        UserError: missing, unreadable, truncated, tiny or huge file, or not a picture.
    """
    if isinstance(source, Image.Image):
        return _decode("the image", source)
    name = "the image" if isinstance(source, bytes) else str(source)
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    with warnings.catch_warnings():
        # Pillow warns of large pictures, which are refused here before they are decoded, and of
        # damaged metadata, which is of no interest.
        warnings.simplefilter("ignore")
        try:
            image = Image.open(file, formats=FORMATS)
        except FileNotFoundError:
            raise UserError(f"there is no image at {name}") from None
        except UnidentifiedImageError:
            raise UserError(
                f"{name} is not a picture that can be read ({', '.join(FORMATS)})"
            ) from None
        except Image.DecompressionBombError:
            raise UserError(
                f"{name} has far more than the {MAX_PIXELS:,} pixels accepted"
            ) from None
        except _UNREADABLE as error:
            raise UserError(f"cannot read {name}: {_reason(error)}") from None
        with image:
            return _decode(name, image)


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _decode(name: str, image: Image.Image) -> Image.Image:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise UserError(f"{name} has {width}x{height} pixels; at most {MAX_PIXELS:,} are accepted")
    if min(width, height) < MIN_SIDE:
        raise UserError(f"{name} has {width}x{height} pixels; both sides must be >= {MIN_SIDE}")
    try:
        image.load()
    except _UNREADABLE as error:
        raise UserError(f"cannot decode {name}: {_reason(error)}; the file is damaged") from None
    with contextlib.suppress(*_UNREADABLE):  # a damaged rotation tag; the picture itself is whole
        image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise UserError(f"{name} holds floating-point values; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        # PIL would clip 16-bit values at 255 instead of scaling them.
        image = Image.fromarray((np.asarray(image).clip(0, 65_535) / 257).round().astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert("RGB")


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
def signed(pixels: Any) -> Any:
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


def save_png(
    image: Image.Image, path: str | Path, parameters: Mapping[str, Any] | None = None
) -> None:
    """Writes a PNG with `parameters` as JSON in a text chunk; complete or not at all.

    Raises:
        UserError: the destination cannot be written.
    """
    path = Path(path)
    info = PngImagePlugin.PngInfo()
    if parameters is not None:
        info.add_text(_KEY, json.dumps(parameters, ensure_ascii=True, sort_keys=True))
    with replacing(path) as partial:
        image.save(partial, format="PNG", pnginfo=info)


def read_parameters(path: str | Path) -> dict[str, Any] | None:
    """The parameters that `save_png` stored, or None where there are none."""
    try:
        with Image.open(path, formats=("PNG",)) as image:
            image.load()
            return dict(json.loads(image.info[_KEY]))
    except (*_UNREADABLE, Image.DecompressionBombError):
        return None
