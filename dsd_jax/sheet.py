"""Contact sheets: many pictures on one, each with a line of text."""

import math
from collections.abc import Iterable, Sequence

from PIL import Image, ImageDraw, ImageFont

__all__ = ["contact_sheet"]

_LINE, _GAP = 18, 6  # height of a caption and space between cells, in pixels


def contact_sheet(
    pictures: Iterable[Image.Image],
    captions: Sequence[str],
    *,
    side: int = 192,
    columns: int | None = None,
) -> Image.Image:
    """Pictures in rows, scaled down to fit a square cell each, with captions below.

    Args:
        pictures: as many as captions; each is read when it is placed.
        captions: texts, each cut to the width of its cell.
        side: side of a cell in pixels.
        columns: cells per row. Default: about as many as rows.
    """
    columns = columns or max(1, math.ceil(math.sqrt(len(captions))))
    rows = math.ceil(len(captions) / columns)
    step = side + _GAP, side + _LINE + _GAP
    sheet = Image.new("RGB", (columns * step[0] + _GAP, rows * step[1] + _GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for i, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        left, top = _GAP + i % columns * step[0], _GAP + i // columns * step[1]
        small = picture.convert("RGB")
        small.thumbnail((side, side))
        sheet.paste(small, (left + (side - small.width) // 2, top + (side - small.height) // 2))
        text = _cut(" ".join(caption.split()), font, side)
        draw.text((left, top + side + 2), text, fill="black", font=font)
    return sheet


def _cut(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    while text and font.getlength(text) > width:
        text = text.removesuffix("…")[:-1] + "…" if len(text) > 1 else ""
    return text
