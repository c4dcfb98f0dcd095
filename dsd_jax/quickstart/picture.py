"""Writes the report of a quickstart as one picture, as the README shows it."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from dsd_jax.images import save_image
from dsd_jax.marks import GENERATED
from dsd_jax.quickstart.findings import Findings
from dsd_jax.quickstart.report import METRIC_NAMES
from dsd_jax.toy.score import METRICS
from dsd_jax.toy.world import PANEL

__all__ = ["write_picture"]

_INK, _SOFT, _PAPER, _LINE = "#1f2328", "#59636e", "#ffffff", "#d0d7de"
_WIDTH, _MARGIN = 1280, 24
_TITLE, _TEXT = 18, 14  # font sizes
_SIDE = 3 * PANEL  # side of a panel
_BETWEEN = 4  # pixels between the pictures of a group


@dataclasses.dataclass(frozen=True)
class _Group:
    """Pictures side by side with words below; `side` is the height of each."""

    pictures: Sequence[Image.Image]
    words: str
    side: int = _SIDE

    @property
    def width(self) -> int:
        return len(self.pictures) * (self.side + _BETWEEN) - _BETWEEN


def write_picture(findings: Findings, path: Path) -> None:
    """Writes the picture: grids, pairs, cases before and after, and the scores.

    Raises:
        UserError: It cannot be written.
    """
    bands = {
        "The teacher paints grids of one subject": [
            _Group(shown.pictures, "", 4 * PANEL) for shown in findings.grids[:8]
        ],
        "A judge keeps the pairs that show the same subject": [
            *(_Group(shown.pictures, "kept") for shown in findings.kept[:4]),
            *(_Group(shown.pictures, "rejected") for shown in findings.rejected[:2]),
        ],
        "After training: reference, text alone, reference and text; subjects never trained on": [
            _Group([example.reference, example.before, example.after], example.text)
            for example in findings.examples[:4]
        ],
    }
    drawn = [_band(title, groups) for title, groups in bands.items() if groups]
    drawn.append(_scores(findings))
    sheet = Image.new("RGB", (_WIDTH, sum(band.height for band in drawn)), _PAPER)
    top = 0
    for band in drawn:
        sheet.paste(band, (0, top))
        top += band.height
    save_image(sheet, path, mark=GENERATED)


def _band(title: str, groups: Sequence[_Group]) -> Image.Image:
    """The groups from margin to margin, under a title and over a line."""
    head, tallest = 2 * _TITLE + 8, max(group.side for group in groups)
    foot = _TEXT + 12 if any(group.words for group in groups) else 0
    band = Image.new("RGB", (_WIDTH, head + tallest + foot + _MARGIN // 2), _PAPER)
    draw = ImageDraw.Draw(band)
    draw.text((_MARGIN, _TITLE // 2 + 4), title, fill=_INK, font=_font(_TITLE))
    free = _WIDTH - 2 * _MARGIN - sum(group.width for group in groups)
    gap = min(free / max(1, len(groups) - 1), 80)
    left = float(_MARGIN)
    for group in groups:
        for number, picture in enumerate(group.pictures):
            x = round(left) + number * (group.side + _BETWEEN)
            size = group.side, group.side
            band.paste(picture.resize(size, Image.Resampling.NEAREST), (x, head))
        place = round(left), head + group.side + 4
        draw.text(place, group.words, fill=_SOFT, font=_font(_TEXT))
        left += group.width + gap
    draw.line((_MARGIN, band.height - 1, _WIDTH - _MARGIN, band.height - 1), fill=_LINE)
    return band


def _scores(findings: Findings) -> Image.Image:
    """The scores as a table, a line for each model."""
    line = _TITLE + 10
    band = Image.new("RGB", (_WIDTH, (len(findings.scores) + 1) * line + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(band)
    first, column = _MARGIN + 280, (_WIDTH - 2 * _MARGIN - 280) // len(METRICS)
    for number, metric in enumerate(METRICS):
        x = first + number * column
        draw.text((x, 12), METRIC_NAMES[metric], fill=_SOFT, font=_font(_TEXT))
        for row, intervals in enumerate(findings.scores.values(), start=1):
            draw.text((x, 12 + row * line), str(intervals[metric]), fill=_INK, font=_font(_TEXT))
    for row, name in enumerate(findings.scores, start=1):
        draw.text((_MARGIN, 12 + row * line), name, fill=_INK, font=_font(_TEXT))
    return band


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
