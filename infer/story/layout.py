"""Layouts as data: the box of each panel on a page."""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from dsd_jax.errors import UserError, did_you_mean
from dsd_jax.structured import build, read_toml

__all__ = ["Box", "Layout", "load_layout"]

_OURS = Path(__file__).with_name("layouts.toml")
_SMALLEST = 120  # pixels of a panel's side, below which no text is legible


class Box(NamedTuple):
    """A rectangle in pixels; right and bottom lie outside."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def size(self) -> tuple[int, int]:
        return self.width, self.height

    def moved(self, right: int, down: int) -> "Box":
        return Box(self.left + right, self.top + down, self.right + right, self.bottom + down)

    def grown(self, by: int) -> "Box":
        return Box(self.left - by, self.top - by, self.right + by, self.bottom + by)

    def holds(self, other: "Box") -> bool:
        """Whether another box lies inside."""
        return (
            self.left <= other.left
            and self.top <= other.top
            and other.right <= self.right
            and other.bottom <= self.bottom
        )

    def common(self, other: "Box") -> int:
        """Pixels of both."""
        across = min(self.right, other.right) - max(self.left, other.left)
        down = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(across, 0) * max(down, 0)


@dataclasses.dataclass(frozen=True)
class Layout:
    """The panels of a page.

    Attributes:
        page: Width and height in pixels.
        rows: Relative widths of the panels of each row, in reading order.
        heights: Relative heights of the rows. Default: all equal.
        right_to_left: Read each row from the right, as in manga.
        margin, gutter: White around the panels and between them, in pixels.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    page: tuple[int, int]
    rows: tuple[tuple[float, ...], ...]
    heights: tuple[float, ...] = ()
    right_to_left: bool = False
    margin: int = 30
    gutter: int = 16

    def __post_init__(self) -> None:
        if not self.rows or not all(self.rows):
            raise UserError("rows must have at least one row, each of at least one panel")
        if self.heights and len(self.heights) != len(self.rows):
            raise UserError(f"{len(self.rows)} rows but {len(self.heights)} heights; give one each")
        if min(itertools.chain(*self.rows, self.heights)) <= 0:
            raise UserError("widths and heights must be above 0")
        if min(self.margin, self.gutter) < 0 or max(self.page) > 10_000:
            raise UserError("margin and gutter must be at least 0, and a page at most 10000 pixels")
        for box in self.boxes(self.panels):
            if min(box.size) < _SMALLEST:
                raise UserError(
                    f"a panel of {box.width}x{box.height} pixels is smaller than {_SMALLEST}; "
                    "enlarge the page, or take fewer panels"
                )

    @property
    def panels(self) -> int:
        """Panels of a full page."""
        return sum(map(len, self.rows))

    def pages(self, panels: int) -> list[list[Box]]:
        """The boxes of the panels of a story, page by page, in reading order."""
        counts = [min(self.panels, panels - done) for done in range(0, panels, self.panels)]
        return [self.boxes(count) for count in counts]

    def boxes(self, count: int) -> list[Box]:
        """The boxes of a page's first `count` panels.

        Rows keep their heights, so the end of a page that is not full stays white. A row that is
        not full fills the width.
        """
        found: list[Box] = []
        width, height = self.page
        heights = self._cut(self.heights or [1.0] * len(self.rows), height)
        for row, (top, bottom) in zip(self.rows, heights, strict=True):
            taken = row[: count - len(found)]
            for left, right in self._cut(taken, width) if taken else ():
                sides = (width - right, width - left) if self.right_to_left else (left, right)
                found.append(Box(sides[0], top, sides[1], bottom))
        return found

    def _cut(self, shares: Sequence[float], length: int) -> list[tuple[int, int]]:
        """Start and end of each share of a side of the page."""
        free = length - 2 * self.margin - (len(shares) - 1) * self.gutter
        ends = [sum(shares[:i]) / sum(shares) * free for i in range(len(shares) + 1)]
        starts = [self.margin + i * self.gutter for i in range(len(shares))]
        return [
            (start + round(a), start + round(b))
            for start, (a, b) in zip(starts, itertools.pairwise(ends), strict=True)
        ]


def load_layout(name: str, path: Path | None = None) -> Layout:
    """A layout by its name.

    Args:
        name: one of ours, or of the file.
        path: a TOML file with more layouts.

    Raises:
        UserError: no such layout, or a file that holds something else.
    """
    known = dict(_read(_OURS))
    if path is not None:
        known |= _read(path)
    if name not in known:
        listed = ", ".join(known)
        raise UserError(
            f"there is no layout {name!r}; layouts are {listed}{did_you_mean(name, known)}"
        )
    return known[name]


@functools.cache
def _read(path: Path) -> dict[str, Layout]:
    found = {}
    for name, table in read_toml(path).items():
        if not isinstance(table, dict):
            raise UserError(f"{path}: {name} must be a table with page and rows")
        found[name] = build(Layout, table, f"{path}: [{name}]")
    return found
