"""Sets texts in boxes: breaks lines, and finds the largest size at which every letter fits.

Lines are measured by the ink of their glyphs, as FreeType draws them, and set without shaping, so
that every machine sets the same text alike.
"""

import bisect
import dataclasses
import functools
from pathlib import Path

from PIL import ImageDraw, ImageFont

from dsd_jax.errors import UserError
from dsd_jax.infer.story.layout import Box
from dsd_jax.text.plain import check_text

__all__ = ["FONT", "Letters", "Setting"]

FONT = Path(__file__).parent / "font" / "Comfortaa-Bold.ttf"
"""Latin, Greek and Cyrillic; SIL Open Font License, see `font/OFL.txt`."""

_LEADING = 1.2  # of a line, of the size
_MISSING = "\uffff"  # no font has it
_PROBED = 16  # pixels; the size at which a font shows whether it can be read, and its letters


@dataclasses.dataclass(frozen=True)
class Setting:
    """A text that is broken into lines at one size.

    Attributes:
        size: of the letters, in pixels.
        lines: the lines.
        width, height: of the ink of all lines, in pixels.
    """

    size: int
    lines: tuple[str, ...]
    width: int
    height: int


@dataclasses.dataclass(frozen=True)
class Letters:
    """A font that knows which letters it has.

    Attributes:
        path: TrueType or OpenType file.

    Raises:
        UserError: The file is no font.
    """

    path: Path = FONT

    def __post_init__(self) -> None:
        self._font(_PROBED)  # before a model is asked for texts, or a panel is painted

    def check(self, text: str, what: str) -> str:
        """Returns the text on one line.

        Raises:
            UserError: the font lacks a letter, or the text cannot be stored.
        """
        check_text(text, what)
        text = " ".join(text.split())
        lacking = sorted({letter for letter in text if not self._has(letter)})
        if lacking:
            listed = ", ".join(f"{one!r} (U+{ord(one):04X})" for one in lacking[:5])
            raise UserError(
                f"{self.path.name} has no {listed}, which {what} needs; give another font with "
                "--font"
            )
        return text

    def set(self, text: str, width: int, size: int) -> Setting:
        """Breaks a text into lines of at most `width` pixels; a longer word is cut."""
        lines: list[str] = []
        line = ""
        for word in text.split():
            joined = f"{line} {word}" if line else word
            if self._width(joined, size) <= width:
                line = joined
                continue
            if line:
                lines.append(line)
            line = word
            while self._width(line, size) > width and len(line) > 1:
                starts = [f"{line[:cut]}-" for cut in range(1, len(line))]
                fitting = bisect.bisect_right(starts, width, key=lambda s: self._width(s, size))
                lines.append(starts[max(fitting - 1, 0)])
                line = line[max(fitting, 1) :]
        lines.append(line)
        ink = [self._ink(line, size) for line in lines]
        step = self._step(size)
        top = min(box.top + step * i for i, box in enumerate(ink))
        bottom = max(box.bottom + step * i for i, box in enumerate(ink))
        return Setting(size, tuple(lines), max(box.width for box in ink), bottom - top)

    def draw(self, draw: ImageDraw.ImageDraw, setting: Setting, box: Box) -> list[Box]:
        """Draws a text in the middle of a box; returns the box of each line's ink."""
        size, step = setting.size, self._step(setting.size)
        ink = [self._ink(line, size) for line in setting.lines]
        first = min(one.top + step * i for i, one in enumerate(ink))
        top = box.top + (box.height - setting.height) // 2 - first
        found = []
        for i, (line, one) in enumerate(zip(setting.lines, ink, strict=True)):
            left = box.left + (box.width - one.width) // 2 - one.left
            draw.text((left, top + step * i), line, "black", self._font(size), anchor="ls")
            found.append(one.moved(left, top + step * i))
        return found

    def _step(self, size: int) -> int:
        return round(size * _LEADING)

    def _font(self, size: int) -> ImageFont.FreeTypeFont:
        return _font(self.path, size)

    def _width(self, line: str, size: int) -> int:
        return self._ink(line, size).width

    def _ink(self, line: str, size: int) -> Box:
        """The ink of a line whose baseline starts at 0, 0."""
        return _ink(self.path, line, size)

    def _has(self, letter: str) -> bool:
        return letter == " " or _drawn(self.path, letter) != _drawn(self.path, _MISSING)


@functools.lru_cache(maxsize=64)
def _font(path: Path, size: int) -> ImageFont.FreeTypeFont:
    try:
        return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)
    except OSError:
        raise UserError(f"{path} is no font that can be read (TrueType or OpenType)") from None


@functools.lru_cache(maxsize=4096)
def _ink(path: Path, line: str, size: int) -> Box:
    left, top, right, bottom = _font(path, size).getbbox(line, anchor="ls")
    return Box(int(left), int(top), int(right), int(bottom))


@functools.lru_cache(maxsize=4096)
def _drawn(path: Path, letter: str) -> tuple[tuple[int, int], bytes]:
    mask = _font(path, _PROBED).getmask(letter)
    return mask.size, bytes(mask)
