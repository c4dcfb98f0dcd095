"""The toy world: small subjects in simple scenes, drawn exactly as their words say.

A subject is a shape in a body colour with a marking in another colour; a scene is a background, a
place in the frame, a size, a tilt and a light. Words name all of these. Places lie 8 pixels apart,
one token of the toy FLUX, so a subject that moves keeps its tokens. In FLUX, whose tokens are small
beside subjects, this holds nearly. Horizons lie 4 pixels apart, one pixel of its latents.

A picture is its albedo, drawn in white light, times the light of each pixel (`light_field`). What
it shows lies in three layers: the subject before the ground, which reaches up to the horizon, and
the rest behind both (`disparity`).

A tenth of the subjects is held out (`is_held_out`): nothing that is trained ever sees them.
"""

import dataclasses
import functools
import hashlib
import itertools
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from dsd_jax.types import Float32, UInt8

__all__ = [
    "BACKGROUNDS",
    "COLOURS",
    "LIGHTS",
    "MARKINGS",
    "PANEL",
    "PLACES",
    "SHAPES",
    "SIDES",
    "SIZES",
    "STRENGTHS",
    "TILTS",
    "TINTS",
    "Scene",
    "Subject",
    "backdrop",
    "disparity",
    "grid",
    "is_held_out",
    "layers",
    "light_field",
    "render",
    "subjects",
]

PANEL = 32  # pixels along each side; a grid has twice as many
COLOURS = {
    "red": (214, 40, 40),
    "yellow": (250, 214, 40),
    "green": (40, 160, 75),
    "blue": (45, 95, 225),
    "purple": (140, 60, 185),
    "pink": (250, 150, 195),
    "white": (250, 250, 250),
    "black": (28, 28, 34),
}
SHAPES = (
    "circle", "square", "triangle", "diamond", "star", "heart", "plus", "fish", "house", "cat",
)  # fmt: skip
MARKINGS = ("dots", "stripes", "bars", "ring", "spot", "cross", "half", "cap")
BACKGROUNDS = {  # colours above and below a horizon, and its row of pixels
    "beach": ((170, 220, 240), (240, 215, 160), 16),
    "snow": ((185, 195, 225), (240, 244, 252), 20),
    "meadow": ((185, 228, 245), (150, 205, 115), 12),
    "sea": ((165, 215, 230), (75, 150, 195), 16),
    "forest": ((115, 160, 120), (150, 120, 95), 24),
    "wall": ((205, 140, 115), (232, 212, 196), 24),
    "room": ((238, 228, 200), (170, 125, 90), 20),
    "city": ((215, 210, 225), (150, 150, 165), 12),
}
PLACES = {"northwest": (-4, -4), "northeast": (4, -4), "southwest": (-4, 4), "southeast": (4, 4)}
SIZES = {"big": 10.5, "small": 9.0}  # radius in pixels
TILTS = {"upright": 0.0, "tilted": 20.0}  # degrees, clockwise
TINTS = {
    "day": (1.0, 1.0, 1.0),
    "warm": (1.0, 0.82, 0.6),
    "cool": (0.7, 0.87, 1.0),
    "night": (0.66, 0.7, 0.86),
}
SIDES = {"left": (-1, 0), "right": (1, 0), "above": (0, -1)}  # where light comes from: right, down
STRENGTHS = {"soft": 0.78, "hard": 0.6}  # light at the far side of the panel
LIGHTS = {
    **{tint: (tint, None, None) for tint in TINTS},
    **{" ".join(parts): parts for parts in itertools.product(TINTS, SIDES, STRENGTHS)},
}
"""Tint, side and strength of a light; from the front, a light has no side and no strength."""
OUTLINE = (58, 46, 52)

_UNUSUAL = 1 / 8  # share of the scenes with another size, tilt or light than the usual one
_GROUND = (0.35, 0.65)  # disparity of the ground, at the horizon and nearest
_BEHIND, _BEFORE = 0.1, 0.95  # disparity of what lies behind the ground, and of the subject
_STENCIL = 96  # pixels of a stencil along each side; it shows [-1.15, 1.15]
_EXTENT = 1.15
_FINE = 2  # samples of a pixel along each side


@dataclasses.dataclass(frozen=True, order=True)
class Subject:
    """The thing that all pictures of a grid or pair show. Body and mark differ in colour."""

    shape: str
    body: str
    mark: str
    marking: str


@dataclasses.dataclass(frozen=True, order=True)
class Scene:
    """The surroundings and pose of a subject. Words leave out defaults of the last three."""

    background: str
    place: str
    size: str = "big"
    tilt: str = "upright"
    light: str = "day"

    @classmethod
    def draw(cls, rng: np.random.Generator, background: str | None = None) -> "Scene":
        """Draws a scene. Size, tilt and light are the usual ones seven times in eight.

        Args:
            rng: Generator of random numbers.
            background: Background of the scene. None draws one.
        """
        if background is None:
            background = list(BACKGROUNDS)[int(rng.integers(len(BACKGROUNDS)))]
        place = list(PLACES)[int(rng.integers(len(PLACES)))]
        size, tilt = (list(names)[int(rng.random() < _UNUSUAL)] for names in (SIZES, TILTS))
        scene = cls(background, place, size, tilt)
        return scene.relit(rng) if rng.random() < _UNUSUAL else scene

    def relit(self, rng: np.random.Generator) -> "Scene":
        """The same scene in another light."""
        others = [light for light in LIGHTS if light != self.light]
        return dataclasses.replace(self, light=others[int(rng.integers(len(others)))])


@functools.cache
def subjects(*, held_out: bool) -> tuple[Subject, ...]:
    """Lists all subjects that are held out, or all others."""
    return tuple(
        subject
        for shape, body, mark, marking in itertools.product(SHAPES, COLOURS, COLOURS, MARKINGS)
        if body != mark and is_held_out(subject := Subject(shape, body, mark, marking)) == held_out
    )


def is_held_out(subject: Subject) -> bool:
    """Whether the subject is kept from training: a tenth is, chosen by the hash of the words."""
    words = " ".join(dataclasses.astuple(subject))
    return hashlib.sha256(words.encode()).digest()[0] < 26


def render(subject: Subject, scene: Scene) -> UInt8[np.ndarray, "32 32 3"]:
    """Draws a subject in a scene, `[PANEL, PANEL, 3]`."""
    silhouette, inside, mark = np.moveaxis(
        layers(subject.shape, subject.marking, scene.place, scene.size, scene.tilt), 2, 0
    )
    picture = backdrop(scene.background)
    for cover, colour in (
        (silhouette, OUTLINE),
        (inside, COLOURS[subject.body]),
        (mark, COLOURS[subject.mark]),
    ):
        picture = picture + cover[..., None] * (np.asarray(colour, np.float32) - picture)
    picture = picture * light_field(scene.light)
    return np.rint(picture).astype(np.uint8)


def grid(subject: Subject, scenes: Sequence[Scene]) -> UInt8[np.ndarray, "64 64 3"]:
    """Draws four pictures of a subject: top-left, top-right, bottom-left, bottom-right."""
    panels = [render(subject, scene) for scene in scenes]
    return np.concatenate([np.concatenate(panels[i : i + 2], axis=1) for i in (0, 2)])


@functools.cache
def layers(
    shape: str, marking: str, place: str, size: str, tilt: str
) -> Float32[np.ndarray, "32 32 3"]:
    """Computes the cover of each pixel by silhouette, inside (no outline) and marking, 0 to 1."""
    across, down = PLACES[place]
    angle = math.radians(TILTS[tilt])
    middle = _FINE * PANEL / 2
    centre = (
        middle + _FINE * across,
        middle + _FINE * down,
    )
    # From a sample of the panel to a pixel of the stencil.
    scale = _STENCIL / (2 * _EXTENT) / (_FINE * SIZES[size])
    cos, sin = scale * math.cos(angle), scale * math.sin(angle)
    affine = (
        cos, sin, _STENCIL / 2 - cos * centre[0] - sin * centre[1],
        -sin, cos, _STENCIL / 2 + sin * centre[0] - cos * centre[1],
    )  # fmt: skip
    side = _FINE * PANEL
    drawn = _stencil(shape, marking).transform(
        (side, side), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR
    )
    samples = np.asarray(drawn, np.float32).reshape(PANEL, _FINE, PANEL, _FINE, 3)
    cover: np.ndarray = samples.mean((1, 3)) / np.float32(255)
    cover.flags.writeable = False
    return cover


@functools.cache
def light_field(light: str) -> Float32[np.ndarray, "32 32 3"]:
    """The light at each pixel, as factors of red, green and blue: 1 is white light.

    Light from a side falls off evenly across the panel.
    """
    tint, side, strength = LIGHTS[light]
    factor = np.ones((PANEL, PANEL), np.float32)
    if side is not None and strength is not None:
        down, across = (np.mgrid[:PANEL, :PANEL].astype(np.float32) + 0.5) / PANEL - 0.5
        right, below = SIDES[side]
        away = 0.5 - (right * across + below * down)
        factor = 1 - (1 - np.float32(STRENGTHS[strength])) * away
    field: np.ndarray = factor[..., None] * np.asarray(TINTS[tint], np.float32)
    field.flags.writeable = False
    return field


def disparity(shape: str, scene: Scene) -> Float32[np.ndarray, "32 32"]:
    """The inverse distance of each pixel, from 0 (far) to 1 (near)."""
    horizon = BACKGROUNDS[scene.background][2]
    rows = np.arange(PANEL, dtype=np.float32)
    far, near = _GROUND
    ground = far + (near - far) * (rows - horizon) / (PANEL - 1 - horizon)
    behind = np.where(rows < horizon, np.float32(_BEHIND), ground)[:, None]
    whole = layers(shape, next(iter(MARKINGS)), scene.place, scene.size, scene.tilt)[..., 0]
    depths: np.ndarray = behind + whole * (np.float32(_BEFORE) - behind)
    return depths


@functools.cache
def backdrop(background: str) -> Float32[np.ndarray, "32 32 3"]:
    """The albedo of a background without a subject."""
    above, below, horizon = BACKGROUNDS[background]
    shown = np.empty((PANEL, PANEL, 3), np.float32)
    shown[:horizon], shown[horizon:] = above, below
    shown.flags.writeable = False
    return shown


# Stencils: silhouette, inside and marking as red, green and blue of one picture.

_DETAIL = 8  # times finer than the stencil, before it is scaled down
_LINE = 0.108  # width of the outline in units of the subject's radius


@functools.cache
def _stencil(shape: str, marking: str) -> Image.Image:
    whole, inside = _silhouette(shape)
    x, y = _coordinates()
    mark = inside & _marking(marking, x, y - np.float32(_MIDDLES.get(shape, 0.0)))
    fine = np.stack([whole, inside, mark], -1)
    fine = fine.reshape(_STENCIL, _DETAIL, _STENCIL, _DETAIL, 3)
    cover = fine.sum((1, 3), dtype=np.float32) / _DETAIL**2
    return Image.fromarray(np.rint(255 * cover).astype(np.uint8))


_MIDDLES = {"triangle": 0.22, "house": 0.15, "cat": 0.12, "heart": -0.08}  # of the markings


@functools.cache
def _coordinates() -> tuple[np.ndarray, np.ndarray]:
    pixels = _STENCIL * _DETAIL
    axis = ((np.arange(pixels) + 0.5) / pixels * 2 - 1) * _EXTENT
    x, y = np.meshgrid(*[axis.astype(np.float32)] * 2)
    return x, y


@functools.cache
def _silhouette(shape: str) -> tuple[np.ndarray, np.ndarray]:
    """The shape with its outline and without."""
    pixels = _STENCIL * _DETAIL
    picture = Image.new("1", (pixels, pixels))
    _shape(ImageDraw.Draw(picture), shape)
    whole = np.asarray(picture, bool)
    return whole, _eroded(whole, round(_LINE * pixels / (2 * _EXTENT)))


def _eroded(mask: np.ndarray, radius: int) -> np.ndarray:
    """Pixels of a mask whose neighbours up to `radius` away, along both axes, are in it too."""
    for _ in range(2):  # along the rows, then along the columns
        sums = np.cumsum(np.pad(mask, ((0, 0), (radius + 1, radius))), axis=1, dtype=np.int32)
        width = 2 * radius + 1
        mask = (sums[:, width:] - sums[:, :-width] == width).T
    return mask


def _points(draw: ImageDraw.ImageDraw, points: Sequence[tuple[float, float]]) -> None:
    draw.polygon([_at(*point) for point in points], fill=1)


def _disc(draw: ImageDraw.ImageDraw, x: float, y: float, across: float, down: float) -> None:
    draw.ellipse([_at(x - across, y - down), _at(x + across, y + down)], fill=1)


def _at(x: float, y: float) -> tuple[float, float]:
    half = _STENCIL * _DETAIL / 2
    return half + x / _EXTENT * half, half + y / _EXTENT * half


def _star() -> list[tuple[float, float]]:
    radii = itertools.cycle((1.12, 0.58))
    turns = [math.pi * i / 5 - math.pi / 2 for i in range(10)]
    return [(r * math.cos(a), 0.06 + r * math.sin(a)) for r, a in zip(radii, turns, strict=False)]


def _shape(draw: ImageDraw.ImageDraw, shape: str) -> None:
    match shape:
        case "circle":
            _disc(draw, 0, 0, 0.92, 0.92)
        case "square":
            _points(draw, [(-0.82, -0.82), (0.82, -0.82), (0.82, 0.82), (-0.82, 0.82)])
        case "triangle":
            _points(draw, [(0, -1.08), (1.08, 0.85), (-1.08, 0.85)])
        case "diamond":
            _points(draw, [(0, -1.12), (0.9, 0), (0, 1.12), (-0.9, 0)])
        case "star":
            _points(draw, _star())
        case "heart":
            _disc(draw, -0.46, -0.4, 0.52, 0.52)
            _disc(draw, 0.46, -0.4, 0.52, 0.52)
            _points(draw, [(-0.92, -0.15), (0, -0.6), (0.92, -0.15), (0, 1.02)])
        case "plus":
            _points(draw, [(-0.42, -1), (0.42, -1), (0.42, 1), (-0.42, 1)])
            _points(draw, [(-1, -0.42), (1, -0.42), (1, 0.42), (-1, 0.42)])
        case "fish":
            _disc(draw, -0.18, 0, 0.88, 0.66)
            _points(draw, [(0.35, 0), (1.1, -0.72), (1.1, 0.72)])
        case "house":
            _points(draw, [(-0.72, -0.2), (0.72, -0.2), (0.72, 0.95), (-0.72, 0.95)])
            _points(draw, [(0, -1.08), (1.05, -0.12), (-1.05, -0.12)])
        case "cat":
            _disc(draw, 0, 0.16, 0.9, 0.78)
            _points(draw, [(-0.88, -1.02), (-0.12, -0.5), (-0.86, 0.2)])
            _points(draw, [(0.88, -1.02), (0.12, -0.5), (0.86, 0.2)])


def _marking(marking: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    radius = np.hypot(x, y)
    match marking:
        case "dots":
            return np.hypot(np.abs(x) - 0.36, y) < 0.28
        case "stripes":
            return np.abs(np.abs(y) - 0.36) < 0.18
        case "bars":
            return np.abs(np.abs(x) - 0.36) < 0.18
        case "ring":
            return (radius > 0.28) & (radius < 0.62)
        case "spot":
            return radius < 0.42
        case "cross":
            return (np.minimum(np.abs(x - y), np.abs(x + y)) < 0.28) & (radius < 0.85)
        case "half":
            return x > 0
        case "cap":
            return y < -0.22
    raise ValueError(marking)
