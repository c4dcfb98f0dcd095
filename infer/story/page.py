"""Draws pages: panels cropped around their subject, then captions and balloons."""

import dataclasses
from collections.abc import Sequence

from PIL import Image, ImageDraw

from dsd_jax.infer.story.layout import Box, Layout
from dsd_jax.infer.story.letters import Letters
from dsd_jax.infer.story.place import Fractions, Placed, Words, busy_parts, place, subject_of

__all__ = ["Drawn", "Picture", "draw_pages", "letter"]

_LINE = 3  # pixels of a panel's frame
_TAIL = 0.5  # of the size of letters: half the width of a balloon's tail where it begins


@dataclasses.dataclass(frozen=True)
class Picture:
    """A panel to draw.

    Attributes:
        image: RGB, of any size.
        words: its texts, in reading order.
        subject: box of the subject. None finds what stands out.
    """

    image: Image.Image
    words: tuple[Words, ...] = ()
    subject: Fractions | None = None


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A panel as it was drawn, in its own pixels.

    Attributes:
        image: the panel with its texts.
        placed: the texts.
        ink: the box of the ink of each line of each text.
        subject: box of the subject.
    """

    image: Image.Image
    placed: tuple[Placed, ...]
    ink: tuple[tuple[Box, ...], ...]
    subject: Box


def draw_pages(
    pictures: Sequence[Picture], layout: Layout, letters: Letters = Letters()
) -> list[Image.Image]:
    """The pages of a story.

    Raises:
        UserError: a text that does not fit its panel, or a letter that the font lacks.
    """
    pages, left = [], list(enumerate(pictures, start=1))
    for boxes in layout.pages(len(pictures)):
        page = Image.new("RGB", layout.page, "white")
        draw = ImageDraw.Draw(page)
        for box in boxes:
            number, picture = left.pop(0)
            drawn = letter(
                picture, box.size, letters, f"panel {number}", right_to_left=layout.right_to_left
            )
            page.paste(drawn.image, box[:2])
            draw.rectangle((*box[:2], box.right - 1, box.bottom - 1), outline="black", width=_LINE)
        pages.append(page)
    return pages


def letter(
    picture: Picture,
    size: tuple[int, int],
    letters: Letters,
    what: str,
    *,
    right_to_left: bool = False,
) -> Drawn:
    """Draws a panel of a size, with its texts.

    Args:
        picture: the panel.
        size: width and height in pixels.
        letters: the font.
        what: name of the panel, for messages.
        right_to_left: order in which its texts are read.

    Raises:
        UserError: a text that does not fit, or a letter that the font lacks.
    """
    marked = picture.subject or subject_of(busy_parts(picture.image))
    image, subject = _cropped(picture.image.convert("RGB"), size, marked)
    panel = Box(0, 0, *size)
    placed = place(
        picture.words, panel, busy_parts(image), subject, letters, what, right_to_left=right_to_left
    )
    draw = ImageDraw.Draw(image)
    for one in placed:
        if one.words.kind == "balloon":
            _balloon(draw, one, subject)
        else:
            _frame(draw, one.box, 0)
    ink = tuple(tuple(letters.draw(draw, one.setting, one.inner)) for one in placed)
    return Drawn(image, tuple(placed), ink, subject)


def _cropped(
    image: Image.Image, size: tuple[int, int], marked: Fractions
) -> tuple[Image.Image, Box]:
    """Scales a picture to fill a panel and cuts what is too much, far from the subject."""
    scale = max(size[0] / image.width, size[1] / image.height)
    full = round(image.width * scale), round(image.height * scale)
    edges = [round(part * full[i % 2]) for i, part in enumerate(marked)]
    centre = (edges[0] + edges[2]) / 2, (edges[1] + edges[3]) / 2
    left, top = (
        round(min(max(middle - side / 2, 0), whole - side))
        for middle, side, whole in zip(centre, size, full, strict=True)
    )
    scaled = image.resize(full, Image.Resampling.LANCZOS)
    cropped = scaled.crop((left, top, left + size[0], top + size[1]))
    subject = Box(*edges).moved(-left, -top)
    inside = Box(
        max(subject.left, 0), max(subject.top, 0),
        min(subject.right, size[0]), min(subject.bottom, size[1]),
    )  # fmt: skip
    return cropped, inside


def _frame(draw: ImageDraw.ImageDraw, box: Box, radius: int) -> None:
    edges = (*box[:2], box.right - 1, box.bottom - 1)
    draw.rounded_rectangle(edges, radius, fill="white", outline="black", width=2)


def _balloon(draw: ImageDraw.ImageDraw, one: Placed, subject: Box) -> None:
    """A balloon whose tail points to the subject."""
    box, size = one.box, one.setting.size
    middle = (box.left + box.right) // 2, (box.top + box.bottom) // 2
    # The tail ends where the subject begins, or a little outside of the box if they touch.
    end = (
        min(max(middle[0], subject.left), subject.right),
        min(max(middle[1], subject.top), subject.bottom),
    )
    half = round(_TAIL * size)
    outside = not box.holds(Box(*end, *end))
    if outside:
        aside = (0, half) if abs(end[0] - middle[0]) > abs(end[1] - middle[1]) else (half, 0)
        root = [
            (middle[0] - aside[0], middle[1] - aside[1]),
            (middle[0] + aside[0], middle[1] + aside[1]),
        ]
        draw.polygon([*root, end], fill="white", outline="black", width=2)
    _frame(draw, box, round(0.9 * size))
    if outside:  # the line between balloon and tail goes
        inner = box.grown(-2)
        draw.rounded_rectangle(
            (*inner[:2], inner.right - 1, inner.bottom - 1), round(0.9 * size), fill="white"
        )
