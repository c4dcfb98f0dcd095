"""Pairs of pictures whose drift is known: planted motions, and changes of light."""

import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from benchmarks.grids.scenes import STYLES, TUNED_ON, scene

__all__ = [
    "LIGHTS",
    "TEXTURED",
    "Source",
    "blank",
    "drawings",
    "pasted",
    "photographs",
    "relit",
    "window",
]

Rng = np.random.Generator
Source = tuple[str, Image.Image]
"""The kind of a picture, and the picture, larger than what is looked at."""
MARGIN = 1.6  # what the source is larger by, so that motions bring in content and no border
FINER = 2  # pixels of the source per pixel of what is looked at
LIGHTS = ("gradient", "spots", "tint", "gamma", "shadow", "noise", "jpeg")
TEXTURED = ("photo", "comic", "noisy", "photographs")  # not on plain ground


def drawings(count: int, size: int, seed: int) -> Iterator[Source]:
    """Scenes of each style, in turn."""
    side = round(size * MARGIN) * FINER
    for number in range(count):
        for index, style in enumerate(STYLES):
            yield style, scene(style, side, np.random.default_rng([seed, size, index, number]))


def photographs(folder: Path, size: int, *, tuning: bool) -> Iterator[Source]:
    """The middle squares of the photographs in a folder of folders, one per subject."""
    side = round(size * MARGIN) * FINER
    for path in sorted(folder.glob("*/*.jpg")):
        if (path.parent.name in TUNED_ON) == tuning:
            with Image.open(path) as image:
                own = min(image.size)
                left, top = (image.width - own) // 2, (image.height - own) // 2
                square = image.convert("RGB").crop((left, top, left + own, top + own))
            yield "photographs", square.resize((side, side), Image.Resampling.LANCZOS)


def window(
    source: Image.Image,
    size: int,
    shift: tuple[float, float] = (0, 0),
    zoom: float = 1,
    rotation: float = 0,
) -> Image.Image:
    """The middle of a source, with its content moved as `Drift` says it."""
    side = size * FINER
    back = np.exp(1j * math.radians(rotation)) / zoom
    middle = 1 + 1j
    start = middle * source.width / 2 - back * (complex(*shift) * FINER + middle * side / 2)
    matrix = (back.real, -back.imag, start.real, back.imag, back.real, start.imag)
    fine = source.transform((side, side), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
    return fine.reduce(FINER)


def relit(image: Image.Image, kinds: Sequence[str], rng: Rng) -> Image.Image:
    """A picture under changes of light of `LIGHTS`, and with the traces of a camera."""
    light = (np.asarray(image) / 255) ** 2.2
    y, x = np.mgrid[-1 : 1 : image.height * 1j, -1 : 1 : image.width * 1j]
    if "gradient" in kinds:
        turn = rng.uniform(0, 2 * math.pi)
        slope = x * math.cos(turn) + y * math.sin(turn)
        light = light * np.exp(rng.uniform(0.3, 1.2) * slope)[..., None]
    if "spots" in kinds:
        lamps = np.full(x.shape, rng.uniform(0.3, 0.7))
        for _ in range(int(rng.integers(1, 4))):
            far = (x - rng.uniform(-1, 1)) ** 2 + (y - rng.uniform(-1, 1)) ** 2
            lamps += rng.uniform(0.5, 2) * np.exp(-far / (2 * rng.uniform(0.15, 0.6) ** 2))
        light = light * lamps[..., None]
    if "tint" in kinds:
        light = light * np.exp(rng.uniform(-0.5, 0.5, 3))
    if "shadow" in kinds:
        light = light * (1 - rng.uniform(0.3, 0.75) * _shadow(x, y, rng))[..., None]
    pixels = light.clip(0, 1) ** (1 / 2.2)
    if "gamma" in kinds:
        pixels **= math.exp(rng.uniform(-0.5, 0.5))
    if "noise" in kinds:
        pixels += rng.normal(0, rng.uniform(2, 10) / 255, pixels.shape)
    made = Image.fromarray((pixels.clip(0, 1) * 255).round().astype(np.uint8))
    if "jpeg" in kinds:
        file = io.BytesIO()
        made.save(file, "JPEG", quality=int(rng.integers(50, 95)))
        made = Image.open(file).convert("RGB")
    return made


def _shadow(x: np.ndarray, y: np.ndarray, rng: Rng) -> np.ndarray:
    """1 in the shadow of a wall or of something round, whose edge is sharp or soft."""
    turn, far = rng.uniform(0, 2 * math.pi), rng.uniform(-0.4, 0.4)
    depth = x * math.cos(turn) + y * math.sin(turn) - far
    if rng.random() < 0.5:
        wide, high = rng.uniform(0.3, 0.8, 2)
        left, top = rng.uniform(-0.7, 0.7, 2)
        depth = np.hypot((x - left) / wide, (y - top) / high) - 1
    return 1 / (1 + np.exp((depth / rng.uniform(0.005, 0.1)).clip(-30, 30)))


def pasted(ground: Image.Image, other: Image.Image, rng: Rng) -> tuple[Image.Image, Image.Image]:
    """A disc of another picture on a ground, and the same moved alone by 4 to 16 pixels of 256."""
    side = ground.width
    across = int(rng.uniform(0.24, 0.42) * side)
    left, top = (int(v) for v in rng.integers(side // 12, side - across - side // 12, 2))
    far, turn = rng.uniform(4, 16) * side / 256, rng.uniform(0, 2 * math.pi)
    step = round(far * math.cos(turn)), round(far * math.sin(turn))
    disc = other.crop((side // 4, side // 4, side // 4 + across, side // 4 + across))
    mask = Image.new("L", disc.size)
    ImageDraw.Draw(mask).ellipse((1, 1, across - 2, across - 2), fill=255)
    mask = mask.filter(ImageFilter.GaussianBlur(0.7))
    before, after = ground.copy(), ground.copy()
    before.paste(disc, (left, top), mask)
    after.paste(disc, (left + step[0], top + step[1]), mask)
    return before, after


def blank(size: int, rng: Rng) -> Image.Image:
    """One colour under a lamp, with noise."""
    red, green, blue = (int(v) for v in rng.integers(0, 256, 3))
    plain = Image.new("RGB", (size, size), (red, green, blue))
    return relit(plain, ("gradient", "spots", "noise", "jpeg"), rng)
