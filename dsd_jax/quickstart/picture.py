"""Writes the report of a quickstart as one picture, as the README shows it."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from dsd_jax.images import save_image
from dsd_jax.marks import GENERATED
from dsd_jax.quickstart.findings import Example, Findings, Scored
from dsd_jax.quickstart.report import METRIC_NAMES
from dsd_jax.toy.world import PANEL

__all__ = ["write_picture"]

_INK, _SOFT, _PAPER, _LINE = "#1f2328", "#59636e", "#ffffff", "#d0d7de"
_WIDTH, _MARGIN = 1280, 24
_TITLE, _TEXT = 18, 14  # font sizes
_SIDE = 3 * PANEL  # side of a panel
_BETWEEN = 4  # pixels between the pictures of a group
_RIGHT = "#1a7f37"  # frame of a picture that is right
_SHOWN = {  # title and number of the examples of each task
    "identity": ("After training: reference, text alone, reference and text", 4),
    "relight": ("The same customiser relights: reference, picture in the light of the text", 6),
    "depth": ("The same customiser follows depth: map, picture", 6),
}


@dataclasses.dataclass(frozen=True)
class _Group:
    """Pictures side by side with words below.

    Attributes:
        side: Height of each picture in pixels.
        right: Whether the last picture gets a green frame.
    """

    pictures: Sequence[Image.Image]
    words: str
    side: int = _SIDE
    right: bool = False

    @property
    def width(self) -> int:
        return len(self.pictures) * (self.side + _BETWEEN) - _BETWEEN


def write_picture(findings: Findings, path: Path) -> None:
    """Writes the picture: grids, pairs, cases and scores of every task.

    Raises:
        UserError: It cannot be written.
    """
    bands = {
        "The teacher paints grids of one subject": [
            _Group(shown.pictures, "", 4 * PANEL) for shown in findings.grids[:8]
        ],
        "A judge keeps the pairs that fit": [
            *(_Group(shown.pictures, "kept") for shown in findings.kept[:4]),
            *(_Group(shown.pictures, "rejected") for shown in findings.rejected[:2]),
        ],
    }
    for scored in findings.scored:
        title, count = _SHOWN[scored.task]
        bands[title] = [_example(example) for example in scored.examples[:count]]
    drawn = [_band(title, groups) for title, groups in bands.items() if groups]
    drawn += map(_scores, findings.scored)
    sheet = Image.new("RGB", (_WIDTH, sum(band.height for band in drawn)), _PAPER)
    top = 0
    for band in drawn:
        sheet.paste(band, (0, top))
        top += band.height
    save_image(sheet, path, mark=GENERATED)


def _example(example: Example) -> _Group:
    pictures = [example.reference, example.before, example.after]
    shown = [picture for picture in pictures if picture is not None]
    return _Group(shown, example.text, right=example.right)


def _band(title: str, groups: Sequence[_Group]) -> Image.Image:
    """The groups from margin to margin, under a title and over a line."""
    head, tallest = 2 * _TITLE + 8, max(group.side for group in groups)
    words = [_lines(group) for group in groups]
    foot = max(len(lines) for lines in words) * (_TEXT + 4) + 8
    band = Image.new("RGB", (_WIDTH, head + tallest + foot + _MARGIN // 2), _PAPER)
    draw = ImageDraw.Draw(band)
    draw.text((_MARGIN, _TITLE // 2 + 4), title, fill=_INK, font=_font(_TITLE))
    free = _WIDTH - 2 * _MARGIN - sum(group.width for group in groups)
    gap = min(free / max(1, len(groups) - 1), 80)
    left = float(_MARGIN)
    for group, lines in zip(groups, words, strict=True):
        x = round(left)
        for picture in group.pictures:
            size = group.side, group.side
            band.paste(picture.resize(size, Image.Resampling.NEAREST), (x, head))
            x += group.side + _BETWEEN
        if group.right:
            x -= group.side + _BETWEEN
            corners = (x, head, x + group.side - 1, head + group.side - 1)
            draw.rectangle(corners, outline=_RIGHT, width=3)
        place = round(left), head + group.side + 4
        draw.multiline_text(place, "\n".join(lines), fill=_SOFT, font=_font(_TEXT), spacing=4)
        left += group.width + gap
    draw.line((_MARGIN, band.height - 1, _WIDTH - _MARGIN, band.height - 1), fill=_LINE)
    return band


def _lines(group: _Group) -> list[str]:
    """The words of a group in lines that are no wider than its pictures."""
    lines: list[str] = []
    for word in group.words.split():
        longer = f"{lines[-1]} {word}" if lines else ""
        if longer and _font(_TEXT).getlength(longer) <= group.width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _scores(scored: Scored) -> Image.Image:
    """The scores of a task as a table, a line for each model."""
    line = _TITLE + 10
    band = Image.new("RGB", (_WIDTH, (len(scored.scores) + 1) * line + _MARGIN // 2), _PAPER)
    draw = ImageDraw.Draw(band)
    first, column = _MARGIN + 280, (_WIDTH - 2 * _MARGIN - 280) // 4
    head = f"{scored.task}, {scored.cases} cases"
    draw.text((_MARGIN, 12), head, fill=_SOFT, font=_font(_TEXT))
    for number, (metric, name) in enumerate(METRIC_NAMES[scored.task].items()):
        x = first + number * column
        draw.text((x, 12), name, fill=_SOFT, font=_font(_TEXT))
        for row, intervals in enumerate(scored.scores.values(), start=1):
            draw.text((x, 12 + row * line), str(intervals[metric]), fill=_INK, font=_font(_TEXT))
    for row, name in enumerate(scored.scores, start=1):
        draw.text((_MARGIN, 12 + row * line), name, fill=_INK, font=_font(_TEXT))
    return band


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
