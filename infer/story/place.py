"""Finds room for the texts of a panel: inside it, away from its subject, in reading order."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float64
from PIL import Image

from dsd_jax.errors import UserError
from dsd_jax.infer.story.layout import Box
from dsd_jax.infer.story.letters import Letters, Setting

__all__ = ["Fractions", "Placed", "Words", "busy_parts", "place", "subject_of"]

Fractions = tuple[float, float, float, float]
"""Left, top, right and bottom of a part of a picture, from 0 to 1."""

_CELLS = 32  # of the map of busy parts, along each side
_SHARES = (0.92, 0.7, 0.5, 0.36)  # of a panel's width, for the lines of a text
_PLACES = 9  # along each side
_LARGEST, _SMALLEST = 34, 12  # size of letters, in pixels
_NARROW = 0.3  # room of the narrowest letters, in squares of their size
_EDGE = 6  # pixels between a text's box and the edge of the panel
_APART = 4  # pixels between two texts


class Words(NamedTuple):
    """A text of a panel: what the narrator tells, or what somebody says."""

    kind: Literal["caption", "balloon"]
    text: str


@dataclasses.dataclass(frozen=True)
class Placed:
    """A text with its box in the panel."""

    words: Words
    setting: Setting
    box: Box

    @property
    def inner(self) -> Box:
        """The part of the box in which all ink lies."""
        return self.box.grown(-_padding(self.words.kind, self.setting.size))


def busy_parts(image: Image.Image) -> Float64[np.ndarray, "32 32"]:
    """Measures in each part of a picture by how much it stands out, from 0 to 1.

    That is the distance of its colours from the median of the picture's border, and the steps
    within it.
    """
    small = image.convert("RGB").resize((4 * _CELLS, 4 * _CELLS), Image.Resampling.BOX)
    pixels = np.asarray(small, np.float64) / 255
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    apart = np.abs(pixels - np.median(border, axis=0)).max(-1)
    across = np.abs(np.diff(pixels, axis=1, append=pixels[:, -1:])).max(-1)
    down = np.abs(np.diff(pixels, axis=0, append=pixels[-1:])).max(-1)
    cells = (apart + across + down).reshape(_CELLS, 4, _CELLS, 4).mean((1, 3))
    return cells / max(float(cells.max()), 1e-9)


def subject_of(busy: Float64[np.ndarray, "32 32"]) -> Fractions:
    """The box around what stands out most, for pictures whose subject nobody has marked."""
    strong = busy > (busy.mean() + busy.max()) / 2
    rows, columns = (np.flatnonzero(strong.any(axis)) for axis in (1, 0))
    if not len(rows):
        return 0.25, 0.25, 0.75, 0.75
    edges = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    left, top, right, bottom = (float(edge) / _CELLS for edge in edges)
    return left, top, right, bottom


def place(
    words: Sequence[Words],
    panel: Box,
    busy: Float64[np.ndarray, "32 32"],
    subject: Box,
    letters: Letters,
    what: str,
    *,
    right_to_left: bool = False,
) -> list[Placed]:
    """Places the texts of a panel.

    The largest letters are taken with which no text touches the subject; if there are none, those
    with which the least of it is covered.

    Args:
        words: the texts, in reading order: each is below the one before it, or beside it.
        panel: the panel; its left and top are 0.
        busy: parts that texts avoid.
        subject: box that texts avoid more.
        letters: the font.
        what: name of the panel, for messages.
        right_to_left: a text that is read later is left of an earlier one beside it.

    Raises:
        UserError: the texts do not fit with the smallest letters, or the font lacks a letter.
    """
    checked = [
        Words(one.kind, text)
        for one in words
        if (text := letters.check(one.text, f"the text of {what}"))
    ]
    count = sum(len(one.text) for one in checked)
    sums = np.pad(busy.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    best: list[Placed] | None = None
    least = float("inf")
    largest = min(_LARGEST, max(_SMALLEST, panel.height // 13))
    for size in range(largest, _SMALLEST - 1, -2):
        if count * _NARROW * size**2 > panel.width * panel.height:
            continue  # measuring a long text takes seconds
        room = _Room(panel, sums, subject, letters, right_to_left)
        found = room.place(checked, size)
        if found is None:
            continue
        covered = sum(subject.common(one.box) for one in found)
        if covered < least:
            best, least = found, covered
        if not covered:
            break
    if best is None:
        raise UserError(
            f"{count} letters do not fit in {what} of {panel.width}x{panel.height} pixels; shorten "
            "its texts, or choose a layout with larger panels"
        )
    return best


@dataclasses.dataclass(frozen=True)
class _Room:
    """A panel that texts are placed in: its busy parts summed from the top left, its subject."""

    panel: Box
    sums: Float64[np.ndarray, "33 33"]
    subject: Box
    letters: Letters
    right_to_left: bool

    def place(self, words: Sequence[Words], size: int) -> list[Placed] | None:
        """Places all texts with letters of one size; None if there is no room."""
        found: list[Placed] = []
        for one in words:
            options = [
                placed
                for setting in _settings(one, size, self.panel, self.letters)
                for placed in _options(one, setting, self.panel)
                if not any(placed.box.grown(_APART).common(other.box) for other in found)
                and (not found or self._is_later(found[-1].box, placed.box))
            ]
            if not options:
                return None
            found.append(min(options, key=self._cost))
        return found

    def _is_later(self, first: Box, second: Box) -> bool:
        """Whether a text in the second box is read after one in the first."""
        if second.top >= first.bottom:
            return True
        beside = second.right <= first.left if self.right_to_left else second.left >= first.right
        return beside and second.top >= first.top

    def _cost(self, placed: Placed) -> float:
        """Cost of a place: the subject first, then a cut word, busy parts, and the way down."""
        box, panel = placed.box, self.panel
        left, right = (round(x * _CELLS / panel.width) for x in (box.left, box.right))
        top, bottom = (round(y * _CELLS / panel.height) for y in (box.top, box.bottom))
        right, bottom = min(max(right, left + 1), _CELLS), min(max(bottom, top + 1), _CELLS)
        sums = self.sums
        inside = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
        busy = float(inside) / max((right - left) * (bottom - top), 1)
        on_subject = self.subject.common(box) / (box.width * box.height)
        cut = " ".join(placed.setting.lines) != placed.words.text
        return 10 * on_subject + 2 * cut + busy + 0.3 * box.top / panel.height


def _settings(words: Words, size: int, panel: Box, letters: Letters) -> list[Setting]:
    """The ways to break a text; only the smallest letters may fill more than half of a panel."""
    around = 2 * (_padding(words.kind, size) + _EDGE)
    highest = panel.height // (1 if size < _SMALLEST + 2 else 2) - around
    widths = {max(size, round(share * panel.width) - around) for share in _SHARES}
    ways = (letters.set(words.text, width, size) for width in sorted(widths, reverse=True))
    return [
        way
        for way in dict.fromkeys(ways)
        if way.width <= panel.width - around and way.height <= highest
    ]


def _options(words: Words, setting: Setting, panel: Box) -> list[Placed]:
    """The places of a text in its panel, top to bottom."""
    around = 2 * _padding(words.kind, setting.size)
    width, height = setting.width + around, setting.height + around
    free = panel.width - width - 2 * _EDGE, panel.height - height - 2 * _EDGE
    return [
        Placed(words, setting, Box(left, top, left + width, top + height))
        for top, left in itertools.product(
            *(
                [panel_edge + _EDGE + round(i * room / (_PLACES - 1)) for i in range(_PLACES)]
                for panel_edge, room in ((panel.top, free[1]), (panel.left, free[0]))
            )
        )
    ]


def _padding(kind: str, size: int) -> int:
    """Pixels between the ink and the edge of its box; a balloon's corners are round."""
    return 7 if kind == "caption" else max(8, round(0.55 * size))
