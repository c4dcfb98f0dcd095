"""The pixel judge tells which subject and which scene a picture of the toy world shows.

It compares a picture with drawings of everything that it could show. First it takes the background
and the light that most pixels agree with, then compares silhouettes with the pixels that differ
from it, then tries every marking and pair of colours, in that light, on the silhouettes that fit
best. An attribute is unclear if another answer explains the picture nearly as well. All are unclear
if no drawing fits.
"""

import dataclasses
import functools
from typing import NamedTuple

import numpy as np

from dsd_jax.toy.world import (
    BACKGROUNDS,
    COLOURS,
    LIGHTS,
    MARKINGS,
    OUTLINE,
    PANEL,
    PLACES,
    SHAPES,
    SIZES,
    TILTS,
    Scene,
    Subject,
    backdrop,
    layers,
    light_field,
)
from dsd_jax.types import Bool, Float32, UInt8

__all__ = ["SCENE", "SUBJECT", "Seen", "judge"]

SUBJECT = ("shape", "body", "mark", "marking")
SCENE = ("background", "place", "size", "tilt", "light")
CALM = 0.55  # share of the pixels that must be background
FAR = 0.25  # of the range of a colour, per channel: this far from the background is not background
LIMIT = 0.16  # root mean square difference from the best drawing, beyond which nothing is clear
CLOSE = 1.05  # another answer whose squared error is less than this many times the best's is close
LEAST = 0.25  # squared error by which it must be worse at least, in pixels from black to white, lit
_FLOATS = np.float32


@dataclasses.dataclass(frozen=True)
class Seen:
    """The contents of a picture. None marks an attribute that is unclear.

    Attributes:
        error: Root mean square difference from the best drawing, where 1 is black to white.
    """

    shape: str | None
    body: str | None
    mark: str | None
    marking: str | None
    background: str | None
    place: str | None
    size: str | None
    tilt: str | None
    light: str | None
    error: float

    @property
    def subject(self) -> Subject | None:
        """The subject, if all of it is clear."""
        if self.shape is None or self.body is None or self.mark is None or self.marking is None:
            return None
        return Subject(self.shape, self.body, self.mark, self.marking)

    def mask(self) -> Bool[np.ndarray, "32 32"]:
        """The pixels of the subject; none if its shape or pose is unclear."""
        if self.shape is None or self.place is None or self.size is None or self.tilt is None:
            return np.zeros((PANEL, PANEL), bool)
        return layers(self.shape, MARKINGS[0], self.place, self.size, self.tilt)[..., 0] >= 0.5

    def shows(self, scene: Scene) -> bool:
        """Whether background and place are clear and those of a scene."""
        return (self.background, self.place) == (scene.background, scene.place)


class _Silhouettes(NamedTuple):
    """Every shape in every place, size and tilt, moved by up to a pixel; `n` of them."""

    keys: list[tuple[str, str, str, str]]  # shape, place, size, tilt
    moves: list[tuple[int, int]]
    whole: np.ndarray  # [n, pixels]
    squares: np.ndarray  # [n]


@functools.cache
def _silhouettes() -> _Silhouettes:
    keys, moves, whole = [], [], []
    for shape in SHAPES:
        for place in PLACES:
            for size in SIZES:
                for tilt in TILTS:
                    drawn = layers(shape, MARKINGS[0], place, size, tilt)[..., 0]
                    for down in (-1, 0, 1):
                        for across in (-1, 0, 1):
                            keys.append((shape, place, size, tilt))
                            moves.append((down, across))
                            whole.append(np.roll(drawn, (down, across), (0, 1)).ravel())
    stacked = np.stack(whole)
    return _Silhouettes(keys, moves, stacked, np.square(stacked).sum(1))


def _markings(
    shape: str, place: str, size: str, tilt: str, down: int, across: int
) -> Float32[np.ndarray, "markings 3 pixels"]:
    """Cover of silhouette, inside and marking, for every marking."""
    drawn = [layers(shape, marking, place, size, tilt) for marking in MARKINGS]
    moved = np.roll(np.stack(drawn), (down, across), (1, 2))
    return np.ascontiguousarray(moved.reshape(len(MARKINGS), -1, 3).transpose(0, 2, 1))


class _Backdrops(NamedTuple):
    keys: list[tuple[str, str]]  # background, light
    pixels: np.ndarray  # [n, pixels, 3], 0 to 1


@functools.cache
def _backdrops() -> _Backdrops:
    keys, pixels = [], []
    for background in BACKGROUNDS:
        for light in LIGHTS:
            keys.append((background, light))
            lit = backdrop(background) * light_field(light) / _FLOATS(255)
            pixels.append(lit.reshape(-1, 3))
    return _Backdrops(keys, np.stack(pixels))


def judge(picture: UInt8[np.ndarray, "32 32 3"]) -> Seen:
    """Measures a picture of `PANEL` x `PANEL` pixels."""
    pixels = picture.reshape(-1, 3).astype(_FLOATS) / _FLOATS(255)
    backdrops = _backdrops()
    away = np.abs(backdrops.pixels - pixels).mean(2)
    calm = int(CALM * PANEL**2)
    misfits = np.partition(away, calm, axis=1)[:, :calm].mean(1)
    calmest = np.argpartition(away[int(misfits.argmin())], calm)[:calm]
    unlike = np.square(backdrops.pixels[:, calmest] - pixels[calmest]).sum((1, 2))
    best = int(unlike.argmin())
    background, light = backdrops.keys[best]
    behind = backdrops.pixels[best]
    hypotheses = _hypotheses(pixels, behind, light)
    errors = np.asarray([h.error for h in hypotheses])
    found = hypotheses[int(errors.argmin())]
    error = float(errors.min())
    least = LEAST * float(np.square(light_field(light)).mean())
    rms = float(np.sqrt(max(error, 0.0) / pixels.size))
    values: dict[str, str | None] = {}
    for position, name in enumerate((*SUBJECT, "place", "size", "tilt")):
        value = found.key[position]
        others = [h.error for h in hypotheses if h.key[position] != value]
        rival = min(others, default=np.inf)
        clear = rms < LIMIT and rival > max(error * CLOSE, error + least)
        values[name] = value if clear else None
    for position, (name, value) in enumerate((("background", background), ("light", light))):
        rival = min(
            e for e, key in zip(unlike, backdrops.keys, strict=True) if key[position] != value
        )
        clear = misfits[best] < LIMIT / 2 and rival > max(
            unlike[best] * CLOSE, unlike[best] + least
        )
        values[name] = value if clear else None
    return Seen(**values, error=rms)


class _Hypothesis(NamedTuple):
    key: tuple[str, ...]  # shape, body, mark, marking, place, size, tilt
    error: float  # squared, summed over the picture


def _hypotheses(pixels: np.ndarray, behind: np.ndarray, light: str) -> list[_Hypothesis]:
    """The best colours for every marking on the silhouettes that fit, and their runners-up."""
    lit = light_field(light).reshape(-1, 3)
    palette = np.asarray(list(COLOURS.values()), _FLOATS) / 255
    names = list(COLOURS)
    products = palette[:, None] * palette
    outline = np.asarray(OUTLINE, _FLOATS) / 255 * lit
    unlike = np.square(pixels - behind).sum(1)
    found = []
    for shape, place, size, tilt, down, across in _candidates(pixels, behind, lit):
        cover = _markings(shape, place, size, tilt, down, across)
        on = cover[0, 0] > 0  # the silhouette is the same for every marking
        whole, inside, mark = (part[:, on, None] for part in np.moveaxis(cover, 1, 0))
        light_on, behind_on = lit[on], behind[on]
        base = (behind_on + whole * (outline[on] - behind_on)) * (1 - inside) * (1 - mark)
        body, mark = inside * (1 - mark) * light_on, mark * light_on
        rest = pixels[on] - base
        # |rest - body B - mark M|^2, for every pair of colours at once.
        total = np.square(rest).sum((1, 2)) + unlike[~on].sum()
        of_body = (body * rest).sum(1) @ palette.T
        of_mark = (mark * rest).sum(1) @ palette.T
        squares = np.square(palette).T
        bodies = np.square(body).sum(1) @ squares - 2 * of_body
        marks = np.square(mark).sum(1) @ squares - 2 * of_mark
        both = 2 * (body * mark).sum(1) @ products.reshape(-1, 3).T
        both = both.reshape(len(MARKINGS), len(names), len(names))
        errors = total[:, None, None] + bodies[:, :, None] + marks[:, None, :] + both
        diagonal = np.arange(len(names))
        errors[:, diagonal, diagonal] = np.inf
        for marking, table in zip(MARKINGS, errors, strict=True):
            for b, m in _interesting(table):
                key = (shape, names[b], names[m], marking, place, size, tilt)
                found.append(_Hypothesis(key, float(table[b, m])))
    return found


def _interesting(table: np.ndarray) -> list[tuple[int, int]]:
    """The best pair of colours, the best with another body, and the best with another mark."""
    b, m = np.unravel_index(int(table.argmin()), table.shape)
    other_body, other_mark = table.copy(), table.copy()
    other_body[b], other_mark[:, m] = np.inf, np.inf
    pairs = [np.unravel_index(int(t.argmin()), t.shape) for t in (table, other_body, other_mark)]
    return [(int(x), int(y)) for x, y in pairs]


def _candidates(
    pixels: np.ndarray, behind: np.ndarray, lit: np.ndarray
) -> list[tuple[str, str, str, str, int, int]]:
    """The best silhouettes: six over all, and the best of every shape, place, size and tilt."""
    away = np.minimum((np.abs(pixels - behind) / lit).max(1) / _FLOATS(FAR), 1)
    every = _silhouettes()
    scores = every.squares - 2 * (every.whole @ away)
    order = np.argsort(scores, kind="stable").tolist()
    chosen = dict.fromkeys(order[:6])
    seen: set[tuple[int, str]] = set()
    for number in order:
        new = set(enumerate(every.keys[number])) - seen
        if new:
            chosen[number] = None
            seen |= new
    return [(*every.keys[number], *every.moves[number]) for number in chosen]
