"""Where the picture of a grid is, and where in it the panels of a pair are."""

from collections.abc import Callable, Sequence
from pathlib import Path

from dsd_jax.data.make.parts import Parts, Row, part_of

__all__ = ["Box", "Pictures", "boxes_of", "grid_file"]

Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels."""
Pictures = Callable[[Sequence[Row]], list[tuple[bytes, bytes]]]
"""Reference and target panel, as PNG files, of each of some rows of pairs of one grid."""


def grid_file(parts: Parts, grid: str) -> Path:
    """The picture of a grid, a PNG file."""
    return parts.root / "grids" / f"part-{part_of(grid, parts.count):05d}" / f"{grid}.png"


def boxes_of(pair: Row) -> tuple[Box, Box] | None:
    """Where reference and target are in the grid of a row of pairs; None if it has no panels."""
    if "reference_box" not in pair:
        return None
    return tuple(pair["reference_box"]), tuple(pair["target_box"])
