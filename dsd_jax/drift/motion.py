"""Finds the shift, zoom and rotation that lay one picture's features over another's."""

import cmath
import dataclasses
import functools
import itertools
import math

import numpy as np
from scipy import fft

from dsd_jax.drift.features import Level
from dsd_jax.types import Bool, Float32

__all__ = ["Features", "Motion", "align", "likeness", "warp"]

ZOOMS = (0.93, 1.0, 1.07)
TURNS = (-3.4, 0.0, 3.4)  # degrees
REACH = 4  # shifts are searched up to this part of each side
STARTS = 4  # of the search that are refined, besides no motion at all
PARTS = 4  # along each side, whose likeness counts the same
BLANK = 100.0  # sum of squared features that makes no texture
OUTLIER = 0.1  # squared difference at which a pixel counts a quarter
KEEP = 1e-3  # information that there is no step, so that blank pictures have an answer
NEAR = 0.01  # pixels; a smaller step is the last
Features = Float32[np.ndarray, "c h w"]


@dataclasses.dataclass(frozen=True)
class Motion:
    """Moves a place z = x + iy, from the centre of the picture, to `turn * z + shift`.

    Attributes:
        turn: Zoom and rotation as one complex number; its angle is clockwise, as y points down.
        shift: In pixels, right and down.
    """

    turn: complex = 1.0
    shift: complex = 0.0

    def moved(self, z: complex) -> complex:
        """The place that a place moves to."""
        return self.turn * z + self.shift

    def after(self, step: "Motion") -> "Motion":
        """The motion that makes `step` first."""
        return Motion(self.turn * step.turn, self.turn * step.shift + self.shift)

    def enlarged(self, factor: float) -> "Motion":
        """The same motion of a picture that is larger by a factor."""
        return Motion(self.turn, self.shift * factor)


@functools.lru_cache(8)
def places(height: int, width: int) -> np.ndarray:
    """Every pixel as x + iy from the centre, complex64 [height * width]."""
    x = np.arange(width, dtype=np.float32) - (width - 1) / 2
    y = np.arange(height, dtype=np.float32) - (height - 1) / 2
    return (x + 1j * y[:, None]).astype(np.complex64).reshape(-1)


def warp(features: Features, motion: Motion) -> tuple[Features, Bool[np.ndarray, "h w"]]:
    """The features moved back by a motion, and where they are known; elsewhere they are 0."""
    _, height, width = features.shape
    moved = np.complex64(motion.turn) * places(height, width) + np.complex64(
        motion.shift + complex(width - 1, height - 1) / 2
    )
    x, y = moved.real, moved.imag
    seen = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    left, top = np.floor(np.clip(x, 0, width - 2)), np.floor(np.clip(y, 0, height - 2))
    right, down = (x - left) * seen, (y - top) * seen
    at = (top * width + left).astype(np.intp)
    flat = features.reshape(len(features), -1)
    above, below = (
        flat.take(start, 1) * (1 - right) + flat.take(start + 1, 1) * right
        for start in (at, at + width)
    )
    found = (above * (1 - down) + below * down) * seen
    return found.reshape(features.shape), seen.reshape(height, width)


def likeness(first: Features, second: Features, motion: Motion) -> float:
    """Correlation of the features where both are known: 1 for equal ones, about 0 for others."""
    moved, seen = warp(second, motion)
    known = first * seen
    both = float((known * moved).sum())
    return both / float(np.sqrt((known * known).sum() * (moved * moved).sum()) + 1e-9)


def _likeness_of_parts(first: Features, second: Features, motion: Motion) -> float:
    """The mean likeness of 4 x 4 parts.

    A motion that explains a strong subject has less of it than one that explains a weak background
    in more of the picture.
    """
    moved, seen = warp(second, motion)
    known = first * seen
    rows, columns = (np.arange(PARTS) * side // PARTS for side in seen.shape)

    def sums(product: Features) -> np.ndarray:
        return np.add.reduceat(np.add.reduceat(product.sum(0), rows, 0), columns, 1)

    both, own, other = sums(known * moved), sums(known * known), sums(moved * moved)
    return float((both / np.sqrt(own * other + BLANK)).mean())


def align(first: list[Level], second: list[Level]) -> tuple[Motion, float]:
    """The motion of the second picture's content against the first's, and its standard error.

    Both are in pixels of the finest level. The error is that of the content's place at the
    picture's border, in the direction that the texture tells least about; it may be infinite.
    """
    a, b = first[0].features, second[0].features
    starts = [_refine(a, b, start, 3) for start in (Motion(), *_search(a, b))]
    motion = max(starts, key=lambda start: _likeness_of_parts(a, b, start))
    for one, other in zip(first, second, strict=True):
        if one is not first[0]:
            motion = motion.enlarged(2)
        motion = _refine(one.features, other.features, motion, 8)
    return motion, _standard_error(first[-1].features, second[-1].features, motion)


def _search(first: Features, second: Features) -> list[Motion]:
    """The likeliest motions of a grid of zooms and rotations, each with its best shift."""
    _, height, width = first.shape
    taper = _taper(height)[:, None] * _taper(width)
    turns = [cmath.rect(zoom, math.radians(turn)) for zoom, turn in itertools.product(ZOOMS, TURNS)]
    moved = np.stack([warp(second, Motion(turn))[0] for turn in turns]) * taper
    padded = [fft.next_fast_len(side + side // REACH, real=True) for side in (height, width)]
    own = fft.rfft2(first * taper, padded).conj()
    found = fft.irfft2((fft.rfft2(moved, padded) * own).sum(1), padded)
    down, right = height // REACH, width // REACH
    found = np.roll(found, (down, right), (1, 2))[:, : 2 * down + 1, : 2 * right + 1]
    found = found.reshape(len(turns), -1) / np.sqrt((moved * moved).sum((1, 2, 3)) + 1)[:, None]
    best = found.argmax(1)
    likeliest = np.argsort(-found.max(1), kind="stable")[:STARTS]
    starts = []
    for index in likeliest:
        y, x = divmod(int(best[index]), 2 * right + 1)
        starts.append(Motion(turns[index], turns[index] * complex(x - right, y - down)))
    return starts


def _taper(side: int) -> np.ndarray:
    """1 inside, and down to 0 over an eighth at both ends."""
    inside = np.minimum(np.arange(side) + 1, side - np.arange(side)) / (side / 8)
    return np.minimum(inside, 1).astype(np.float32)


def _refine(first: Features, second: Features, motion: Motion, steps: int) -> Motion:
    """Takes Gauss-Newton steps towards the least robust difference (Benhimane and Malis, 2004)."""
    radius = max(first.shape) / 2
    own = _gradient(first)
    for _ in range(steps):
        moved, seen = warp(second, motion)
        moved = np.where(seen, moved, first)
        rest, weights = _weighted(first, moved, seen)
        slopes = _slopes((own + _gradient(moved)) / 2, radius)
        heavy = (slopes * weights).reshape(4, -1)
        normal = heavy @ slopes.reshape(4, -1).T
        step = np.linalg.solve(
            normal + KEEP * np.eye(4, dtype=np.float32), heavy @ rest.reshape(-1)
        )
        zoom, turn, x, y = (-step).tolist()
        motion = motion.after(Motion(1 + complex(zoom, turn) / radius, complex(x, y)))
        if np.abs(step).sum() < NEAR:
            break
    return motion


def _standard_error(first: Features, second: Features, motion: Motion) -> float:
    """Root of the rest's variance over the least information that both pictures share.

    The information is the product of the gradients of one with those of the other. The noise of
    the two is independent, so it cancels there.
    """
    radius = max(first.shape) / 2
    moved, seen = warp(second, motion)
    moved = np.where(seen, moved, first)
    rest, weights = _weighted(first, moved, seen)
    one, other = (_slopes(_gradient(each), radius) for each in (first, moved))
    shared = (one * weights).reshape(4, -1) @ other.reshape(4, -1).T
    least = float(np.linalg.eigvalsh(shared + shared.T)[0]) / 2
    variance = float((rest * rest * weights).sum() / (weights.sum() * len(first) + 1e-9))
    return float(np.sqrt(variance / least)) if least > 0 else np.inf


def _gradient(features: Features) -> Float32[np.ndarray, "2 c h w"]:
    """The gradient to the right and down."""
    return np.stack(np.gradient(features, axis=(2, 1)))


def _slopes(gradient: Float32[np.ndarray, "2 c h w"], radius: float) -> np.ndarray:
    """Gains of the features by a pixel of zoom, of rotation, right and down: [4, c, h * w].

    A pixel of zoom or rotation moves a place at `radius` from the centre by one pixel.
    """
    _, channels, height, width = gradient.shape
    right, down = gradient.reshape(2, channels, -1)
    z = places(height, width) / np.float32(radius)
    return np.stack([right * z.real + down * z.imag, down * z.real - right * z.imag, right, down])


def _weighted(first: Features, moved: Features, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The difference [c, h * w], and the weight of each pixel (Geman and McClure's)."""
    rest = (moved - first).reshape(len(first), -1)
    return rest, seen.reshape(-1) / (1 + (rest * rest).sum(0) / OUTLIER) ** 2
