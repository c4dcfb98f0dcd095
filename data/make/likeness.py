"""Compares pictures by their pixels, and finds copies among many pictures.

All of it is arithmetic on integers, so a picture has the same hash on every machine.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from PIL import Image

from dsd_jax.data.make.ids import PANELS, GridId, PanelId

__all__ = ["DISTANCE", "duplicates", "hashes", "similarity"]

SIDE = 32  # pixels along each side for the structure
WAVES = 8  # waves per direction that describe the structure
DISTANCE = 3  # of 64 bits that may differ between copies
SHADES = 1  # of 16 levels that colours of copies may differ by, in each of 4 x 4 fields
FIELDS = 4
BANDS = 5  # parts of the 64 bits; copies that differ in three parts agree in two
THUMB = 16  # pixels along each side for comparisons
WORST = 8  # number of those 256 pixels that count

# Rows of a discrete cosine transform, in steps of 1/4096.
_COSINES = np.rint(
    4096
    * np.cos(np.pi * np.arange(WAVES)[:, None] * (2 * np.arange(SIDE)[None, :] + 1) / (2 * SIDE))
).astype(np.int64)


def hashes(image: Image.Image) -> str:
    """Hashes a picture to 64 hex digits: 16 of structure, 48 of colour.

    The structure is a perceptual hash: whether each of the 8 x 8 slowest waves of the brightness
    lies above their median. The colour is the mean of 4 x 4 fields, a digit per channel.
    """
    gray = _pixels(image.convert("L"), SIDE)
    waves = (_COSINES @ gray @ _COSINES.T).reshape(-1)
    # The first wave is the mean, which tells nothing about structure.
    bits = waves > np.median(waves[1:])
    structure = int("".join("1" if bit else "0" for bit in bits), 2)
    shades = _pixels(image, FIELDS).reshape(-1) // 16
    return f"{structure:016x}" + "".join(f"{shade:x}" for shade in shades)


def similarity(first: Image.Image, second: Image.Image) -> float:
    """Similarity of two pictures where they differ most: 1 for equal pixels, 0 for opposite ones.

    Both are reduced to 16 x 16 pixels, and the eight that differ most count. So a picture in
    another light, or with another face, is less similar than a copy.
    """
    a, b = (_pixels(image, THUMB) for image in (first, second))
    differences = np.sort(np.abs(a - b).sum(2).reshape(-1))[-WORST:]
    return round(1 - int(differences.sum()) / (WORST * 3 * 255), 4)


def _pixels(image: Image.Image, side: int) -> np.ndarray:
    return np.asarray(image.resize((side, side), Image.Resampling.BOX)).astype(np.int64)


def duplicates(grids: Mapping[GridId, Sequence[str]]) -> dict[PanelId, PanelId]:
    """Finds panels that are copies of a panel of another grid.

    The copy with the smallest id stays; the answer does not depend on the order of the grids.
    Panels of one grid are not compared. Time is linear in the number of panels, if few are similar.

    Args:
        grids: `hashes` of the panels of each grid.

    Returns:
        Each copy, and the panel that it repeats.
    """
    panels = [
        (PanelId(grid, number), looks)
        for grid in sorted(grids, key=str)
        for number, looks in zip(PANELS, grids[grid], strict=False)
    ]
    if not panels:
        return {}
    every = np.frombuffer(b"".join(bytes.fromhex(looks) for _, looks in panels), np.dtype("V32"))
    looks, of = np.unique(every, return_inverse=True)
    alike: dict[int, list[int]] = {}
    for a, b in _near(looks):
        alike.setdefault(a, []).append(b)
        alike.setdefault(b, []).append(a)
    kept: dict[int, int] = {}  # hash -> first panel that has it
    found: dict[PanelId, PanelId] = {}
    for number, look in enumerate(of.tolist()):
        panel, _ = panels[number]
        before = [kept[each] for each in (look, *alike.get(look, ())) if each in kept]
        others = [each for each in before if panels[each][0].grid != panel.grid]
        if others:
            found[panel] = panels[min(others)][0]
        else:
            kept.setdefault(look, number)
    return found


def _near(looks: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yields pairs of different hashes that may belong to copies, each once."""
    raw = looks.view(np.uint8).reshape(len(looks), 32)
    structure = np.ascontiguousarray(raw[:, :8]).view(">u8")[:, 0].astype(np.uint64)
    shades = np.stack([raw[:, 8:] >> 4, raw[:, 8:] & 15], 2).reshape(len(looks), -1).astype(np.int8)
    edges = np.linspace(0, 64, BANDS + 1).astype(int)
    bands = [sum(1 << bit for bit in range(a, b)) for a, b in itertools.pairwise(edges.tolist())]
    found: set[tuple[int, int]] = set()
    for chosen in itertools.combinations(bands, BANDS - DISTANCE):
        keys = structure & np.uint64(sum(chosen))
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        starts, offset = np.arange(len(keys)), 0
        while len(starts):  # with the next, the one after it, and so on while the key is the same
            offset += 1
            starts = starts[starts + offset < len(keys)]
            starts = starts[keys[starts] == keys[starts + offset]]
            a, b = order[starts], order[starts + offset]
            close = np.bitwise_count(structure[a] ^ structure[b]) <= DISTANCE
            a, b = a[close], b[close]
            same = np.abs(shades[a] - shades[b]).max(1, initial=0) <= SHADES
            found.update(zip(a[same].tolist(), b[same].tolist(), strict=True))
    return iter({(min(pair), max(pair)) for pair in found})
