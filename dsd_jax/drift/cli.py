"""`dsd data drift`."""

from pathlib import Path

import tyro

from dsd_jax.drift.meter import measure_drift
from dsd_jax.files import write_file
from dsd_jax.images import open_still

__all__ = ["drift"]


def drift(
    a: tyro.conf.Positional[Path],
    b: tyro.conf.Positional[Path],
    json: Path | None = None,
) -> None:
    """Measure how far the content of B moved against A, whatever their light.

    Shows the shift, the zoom and the rotation of the whole picture, the shift of each of 4 x 4
    tiles, and a verdict: still, moved, part moved, other structure, or cannot tell.

    Args:
        a: The first picture.
        b: The second picture, of the same size.
        json: File for the figures.
    """
    first, second = open_still(a), open_still(b)
    for notice in (*first.notices, *second.notices):
        print(notice)
    found = measure_drift(first.image, second.image)
    print("\n".join(found.lines()))
    if json is not None:
        write_file(json, found.to_json())
