"""Measures drift: one motion of the whole picture, and a shift of each of 4 x 4 tiles."""

import cmath
import dataclasses
import json
import math
from typing import Literal, TypeAlias

import numpy as np
from PIL import Image
from scipy import fft, ndimage

from dsd_jax.drift.features import Level, levels
from dsd_jax.drift.motion import Features, Motion, align, likeness, warp
from dsd_jax.errors import UserError
from dsd_jax.types import Float32

__all__ = ["Drift", "Place", "Verdict", "measure_drift"]

TILES = 4  # along each side
NARROW = 8  # times a side may be longer than the other
CONTRAST = 0.08  # of the logarithm; what the strongest fiftieth of a textured picture has at least
ALIKE = 0.25  # likeness; relit pictures have more, pictures of other things less
SURE = 0.1  # pixels of standard error that a motion has at most
STILL = 0.3  # pixels that the centre moves, or the border about it, at most where nothing moved
SPREAD = 1.5  # pixels about a place over which its difference is averaged
FAINT = 0.05  # squared features that are no texture
TILE_ALIKE = 0.4  # likeness that a part that moved alone has where it is now
TILE_GAIN = 0.15  # likeness that it has more there than where it was
TILE_BLANK = 40.0  # sum of squared features that is too small a part

Place: TypeAlias = tuple[float, float]
"""Pixels to the right and down."""
Verdict = Literal["still", "moved", "part moved", "other structure", "cannot tell"]

_MEANING: dict[Verdict, str] = {
    "still": "the content stands where it was",
    "moved": "the content moved as a whole",
    "part moved": "some tiles moved, and the rest stayed",
    "other structure": "no motion lays one picture over the other",
    "cannot tell": "there is too little texture",
}


@dataclasses.dataclass(frozen=True)
class Drift:
    """Motion of the content of picture A in picture B, which has the same size.

    Attributes:
        verdict: `still`; `moved`, as a whole; `part moved`, while the rest stayed; `other
            structure`, which has no motion; `cannot tell`, as there is too little texture.
        shift_px: Way from A's centre to the place of its content in B.
        zoom: More than 1 where B shows the content larger, about the centre.
        rotation_degrees: Counter-clockwise, about the centre.
        residual: Difference in structure that remains when the motion is undone: 0 for none, about
            1 for pictures that share nothing.
        tiles: Rows of 4 x 4 tiles of A, each with the shift of its content, or None where it is
            not found again.
    """

    verdict: Verdict
    shift_px: Place | None = None
    zoom: float | None = None
    rotation_degrees: float | None = None
    residual: float | None = None
    tiles: tuple[tuple[Place | None, ...], ...] | None = None

    @property
    def largest_px(self) -> float | None:
        """The longest shift of any tile. None where no motion was found."""
        if self.tiles is None:
            return None
        return max((math.hypot(*tile) for row in self.tiles for tile in row if tile), default=None)

    def to_json(self) -> str:
        """The attributes by name."""
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"

    def lines(self) -> list[str]:
        """The figures for a terminal, line by line."""
        residual = "" if self.residual is None else f" (residual {self.residual:.2f})"
        lines = [f"{self.verdict}{residual}: {_MEANING[self.verdict]}"]
        if self.tiles and self.shift_px and self.rotation_degrees is not None:
            lines += [
                "shift {:+.2f} px right, {:+.2f} px down".format(*self.shift_px),
                f"zoom {self.zoom:.4f}",
                f"rotation {self.rotation_degrees:+.2f} degrees (+ is counter-clockwise)",
                "tiles, px right and down:",
            ]
            for row in self.tiles:
                tiles = ("{:+.1f} {:+.1f}".format(*tile) if tile else "not found" for tile in row)
                lines.append("".join(f"{tile:>16}" for tile in tiles))
        return lines


def measure_drift(first: Image.Image, second: Image.Image) -> Drift:
    """Measures how far the second picture's content moved against the first's.

    Light, tint and gamma may differ. Shifts up to a quarter of the sides are found, zooms from 0.88
    to 1.13, and rotations up to 6 degrees. The content of a picture that moved further counts as
    another structure. A picture is still if neither its centre nor its border moves by more than a
    quarter of a percent of the longer side, or 0.3 pixels in small pictures.

    Args:
        first: A, RGB.
        second: B, RGB, of the same size.

    Raises:
        UserError: The sizes differ, or the pictures are long and narrow.
    """
    if first.size != second.size:
        sizes = " and ".join(f"{image.width}x{image.height}" for image in (first, second))
        raise UserError(
            f"drift is measured between pictures of one size, got {sizes} pixels; "
            "resize or crop one of them"
        )
    if max(first.size) > NARROW * min(first.size):
        raise UserError(
            f"a picture of {first.width}x{first.height} pixels is too narrow to measure drift in; "
            f"one side may be at most {NARROW} times the other"
        )
    a, b = levels(first), levels(second)
    if not all(_is_textured(each[0]) for each in (a, b)):
        return Drift("cannot tell")
    motion, error = align(a, b)
    alike = likeness(a[-1].features, b[-1].features, motion)
    residual = round(1 - alike, 4)
    if alike < ALIKE:
        return Drift("other structure", residual=residual)
    if error > SURE:
        return Drift("cannot tell", residual=residual)
    scale = a[-1].scale
    steps = _steps_of_tiles(a[-1].features, b[-1].features, motion)
    tiles = [
        None if step is None else _place((motion.moved(z + step) - z) * scale) for z, step in steps
    ]
    radius = max(a[-1].strength.shape) / 2
    moved = max(abs(motion.shift), radius * abs(motion.turn - 1)) > STILL
    return Drift(
        "moved" if moved else "part moved" if any(step for _, step in steps) else "still",
        shift_px=_place(motion.shift * scale),
        zoom=round(abs(motion.turn), 5),
        rotation_degrees=round(-math.degrees(cmath.phase(motion.turn)), 4) + 0.0,
        residual=residual,
        tiles=tuple(tuple(tiles[row : row + TILES]) for row in range(0, TILES * TILES, TILES)),
    )


def _is_textured(level: Level) -> bool:
    return float(np.quantile(level.strength, 0.98)) > CONTRAST**2


def _place(z: complex) -> Place:
    return round(z.real, 3) + 0.0, round(z.imag, 3) + 0.0  # + 0.0: no -0.0


def _steps_of_tiles(
    first: Features, second: Features, motion: Motion
) -> list[tuple[complex, complex | None]]:
    """The centre of each tile, and how far its content moved besides the picture's motion.

    Only what the motion leaves unlike is searched, in a window of twice the tile's size that fades
    towards its ends. A tile has a step of its own if it fits clearly better there. None: its
    content is not found.
    """
    other, seen = warp(second, motion)
    one = first * seen
    _, height, width = one.shape
    size = down, right = round(height / TILES) * 2, round(width / TILES) * 2
    fade = (np.hanning(down + 2)[1:-1, None] * np.hanning(right + 2)[1:-1]).astype(np.float32)
    centres = [
        (round(height * (row + 0.5) / TILES), round(width * (column + 0.5) / TILES))
        for row in range(TILES)
        for column in range(TILES)
    ]
    a, b, weights = (_windows(x, centres, size) for x in (one, other, _unlike(one, other)[None]))
    weights *= fade
    product, own, others = ((x * fade).sum((1, 2, 3)) for x in (a * b, a * a, b * b))
    alike = _normalised(product, own, others, FAINT)
    found = _normalised(
        _correlation(a * weights, b),
        (a * a * weights).sum((1, 2, 3))[:, None, None],
        _correlation(weights, (b * b).sum(1, keepdims=True)).clip(0),
        TILE_BLANK,
    )
    zero_y, zero_x = down // 4, right // 4
    found = np.roll(found, (zero_y, zero_x), (1, 2))[:, : 2 * zero_y + 1, : 2 * zero_x + 1]
    steps: list[tuple[complex, complex | None]] = []
    for (centre_y, centre_x), near, here in zip(centres, found, alike.tolist(), strict=True):
        y, x = divmod(int(near.argmax()), near.shape[1])
        step: complex | None = None if here < ALIKE else 0
        if near[y, x] > max(TILE_ALIKE, near[zero_y, zero_x] + TILE_GAIN):
            step = complex(_top(near[y], x) - zero_x, _top(near[:, x], y) - zero_y)
        steps.append((complex(centre_x - width / 2, centre_y - height / 2), step))
    return steps


def _unlike(first: Features, second: Features) -> Float32[np.ndarray, "h w"]:
    """The part of the features about each place that differs, squared: 0 to 1."""
    difference = ndimage.gaussian_filter(((first - second) ** 2).sum(0), SPREAD)
    both = ndimage.gaussian_filter((first**2 + second**2).sum(0), SPREAD)
    return np.minimum(difference / (both + FAINT), 1) ** 2


def _windows(
    features: Features, centres: list[tuple[int, int]], size: tuple[int, int]
) -> Float32[np.ndarray, "n c y x"]:
    """Windows about the centres; outside the picture there is nothing."""
    down, right = size
    padded = np.pad(features, ((0, 0), (down // 2, down // 2), (right // 2, right // 2)))
    return np.stack([padded[:, y : y + down, x : x + right] for y, x in centres])


def _correlation(
    first: Float32[np.ndarray, "n c y x"], second: Float32[np.ndarray, "n c y x"]
) -> Float32[np.ndarray, "n y x"]:
    """The product, summed over a window, for every step of the second."""
    product = fft.rfft2(second) * fft.rfft2(first).conj()
    return fft.irfft2(product.sum(1), first.shape[2:])


def _normalised(both: np.ndarray, own: np.ndarray, other: np.ndarray, blank: float) -> np.ndarray:
    """A product of two over their sizes; `blank` keeps it small where both are blank."""
    return both / (np.sqrt(own * other) + blank)


def _top(values: np.ndarray, index: int) -> float:
    """The place of the top of a parabola through the largest value and its neighbours."""
    if not 0 < index < len(values) - 1:
        return float(index)
    before, top, after = (float(value) for value in values[index - 1 : index + 2])
    bend = before - 2 * top + after
    return index + (before - after) / (2 * bend) if bend < 0 else float(index)
