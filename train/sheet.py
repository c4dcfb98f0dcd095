"""Sheets of sample pictures: a row per sample, titled columns, a caption under every row."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dsd_jax.errors import UserError
from dsd_jax.images import open_image, read_parameters
from dsd_jax.types import UInt8

__all__ = ["Sheet", "cells", "draw_sheet", "layout_of"]

SMALLEST = 128  # least width of a column in pixels; smaller pictures are enlarged
HEAD, LINE, GAP = 22, 15, 4  # pixels: height of the heads, height of a line of text, border
LINES = 2  # of a caption; the rest is cut
_TEXT, _PAPER = (40, 40, 40), (255, 255, 255)


class Sheet(NamedTuple):
    """A picture of samples, and their places in it (JSON, kept in the PNG)."""

    image: Image.Image
    layout: dict[str, Any]


def layout_of(heads: Sequence[str], rows: int, height: int, width: int) -> dict[str, Any]:
    """Describes the places of the pictures of a sheet.

    Args:
        heads: titles of the columns.
        rows: number of rows.
        height, width: size of a picture in pixels.
    """
    return {
        "heads": list(heads),
        "rows": rows,
        "picture": [height, width],
        "scale": max(1, -(-SMALLEST // width)),
    }


def draw_sheet(
    rows: UInt8[np.ndarray, "n H W 3"], heads: Sequence[str], captions: Sequence[str]
) -> Sheet:
    """Draws a sheet of pictures.

    Args:
        rows: a picture per row, which is one picture per head side by side.
        heads: titles of the columns.
        captions: captions of the rows.
    """
    count, height, whole, _ = rows.shape
    layout = layout_of(heads, count, height, whole // len(heads))
    boxes = _boxes(layout)
    right, bottom = (max(box[i] for row in boxes for box in row) for i in (2, 3))
    sheet = Image.new("RGB", (right + GAP, bottom + LINES * LINE + GAP), _PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for head, box in zip(heads, boxes[0], strict=True):
        pen.text((box[0], GAP), head, _TEXT, ImageFont.load_default(12))
    for pictures, row, caption in zip(rows, boxes, captions, strict=True):
        for pixels, box in zip(np.split(pictures, len(heads), axis=1), row, strict=True):
            size = box[2] - box[0], box[3] - box[1]
            picture = Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST)
            sheet.paste(picture, box[:2])
        for number, line in enumerate(_wrapped(caption, pen, font, right - GAP)):
            pen.text((GAP, row[0][3] + 1 + number * LINE), line, _TEXT, font)
    return Sheet(sheet, layout)


def cells(path: Path) -> UInt8[np.ndarray, "n columns h w 3"]:
    """Cuts the pictures out of a sheet that was saved with its layout.

    Raises:
        UserError: the file is not a sheet.
    """
    layout = read_parameters(path)
    if layout is None or "heads" not in layout:
        raise UserError(f"{path} is not a sheet of samples")
    pixels = np.asarray(open_image(path))
    try:
        if not 1 <= layout["rows"] <= len(pixels):
            raise ValueError
        return np.stack(
            [np.stack([_cell(pixels, box, layout) for box in row]) for row in _boxes(layout)]
        )
    except (ArithmeticError, LookupError, MemoryError, TypeError, ValueError):
        raise UserError(f"{path} is not a sheet of samples: its layout does not fit it") from None


def _cell(
    pixels: np.ndarray, box: tuple[int, int, int, int], layout: dict[str, Any]
) -> UInt8[np.ndarray, "h w 3"]:
    """A picture of a sheet in the size it was drawn from."""
    left, top, right, bottom = box
    found = pixels[top : bottom : layout["scale"], left : right : layout["scale"]]
    if list(found.shape[:2]) != layout["picture"]:
        raise ValueError("outside of the sheet")
    return found


def _boxes(layout: dict[str, Any]) -> list[list[tuple[int, int, int, int]]]:
    """Left, top, right and bottom of every picture, row by row."""
    height, width = (side * layout["scale"] for side in layout["picture"])
    rows = []
    for row in range(layout["rows"]):
        top = HEAD + row * (height + LINES * LINE + GAP)
        lefts = [GAP + column * (width + GAP) for column in range(len(layout["heads"]))]
        rows.append([(left, top, left + width, top + height) for left in lefts])
    return rows


def _wrapped(text: str, pen: ImageDraw.ImageDraw, font: Any, width: int) -> list[str]:
    """Breaks a text into at most `LINES` lines no wider than `width` pixels."""
    lines, words = [""], text.split()
    for number, word in enumerate(words):
        longer = f"{lines[-1]} {word}".strip()
        if pen.textlength(longer, font) <= width or not lines[-1]:
            lines[-1] = longer
        elif len(lines) < LINES:
            lines.append(word)
        else:
            lines[-1] += " ..." if number < len(words) else ""
            break
    return lines
