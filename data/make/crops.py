"""Crops the panels of pairs from their grids; panels are never stored."""

from collections.abc import Callable, Sequence

from dsd_jax.data.make.ids import GridId
from dsd_jax.data.make.parts import Parts
from dsd_jax.data.make.stages import Box, Pair
from dsd_jax.data.pairs.record import png_bytes
from dsd_jax.images import open_image

__all__ = ["Pictures", "panel_png", "panels_of"]

Pictures = Callable[[Sequence[Pair]], list[tuple[bytes, bytes]]]
"""Reference and target panel of each pair, as PNG files; the pairs are of one grid."""


def panel_png(parts: Parts, grid: GridId, box: Box) -> bytes:
    """A panel of a grid as a PNG file.

    Raises:
        UserError: The picture of the grid is gone or damaged.
    """
    return png_bytes(open_image(parts.picture(grid)).crop(box))


def panels_of(parts: Parts) -> Pictures:
    """Makes the function that crops the panels of pairs in a work folder."""

    def pictures(pairs: Sequence[Pair]) -> list[tuple[bytes, bytes]]:
        cropped: dict[Box, bytes] = {}  # a panel is in up to three of a grid's pairs
        for pair in pairs:
            for box in (pair.reference_box, pair.target_box):
                if box not in cropped:
                    cropped[box] = panel_png(parts, pair.grid_id, box)
        return [(cropped[pair.reference_box], cropped[pair.target_box]) for pair in pairs]

    return pictures
