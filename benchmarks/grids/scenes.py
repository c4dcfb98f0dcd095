"""2x2 grids with known faults, for measuring the check of grids.

One subject in four scenes of six styles (photograph, flat, comic, night, studio, noisy), or in four
photographs, laid out well or with one fault, blurred and made noisy as a decoder does it.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

__all__ = ["FAULTS", "GOOD", "STYLES", "TUNED_ON", "Drawn", "draw", "scene"]

Rng = np.random.Generator
Colour = tuple[int, int, int]
Region = tuple[int, int, int, int]
STYLES = ("photo", "flat", "comic", "night", "studio", "noisy")
GOOD = ("gutter", "thin gutter", "touching", "framed", "slightly off", "paper")
TUNED_ON = (
    *("backpack", "cat", "dog3", "fancy_boot", "teapot"),
    *("backpack_dog", "can", "cat2", "dog", "dog5", "dog8"),  # from here on, the check alone
    *("grey_sloth_plushie", "poop_emoji", "robot_toy", "vase"),
)
"""Folders of photographs that the drift meter and the check of grids were tuned on."""
PAPER = [(255, 255, 255)] * 3 + [(0, 0, 0), (20, 20, 30), (240, 232, 210), (90, 90, 95)]
"""Colours of the page. Some panels of the kind `paper` have it as their ground."""
FAULTS = {
    "uneven": {"uneven"},
    "wide gutter": {"wide_gutter"},
    "three panels": {"three_panels"},
    "blank panel": {"blank_panel"},
    "merged": {"merged"},
    "one picture": {"no_separator", "merged"},
    "tilted": {"crooked"},
    "more panels": {"too_many", "uneven", "merged", "no_separator", "three_panels"},
}
"""Kinds of fault, with the reasons that name them rightly."""


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A picture with the truth about it.

    Attributes:
        panels: the regions of the panels of a good picture.
        limits: what each box may cover. A panel on the ground of the gutter reaches into it.
    """

    image: Image.Image
    kind: str
    style: str
    panels: tuple[Region, ...]
    limits: tuple[Region, ...]


def draw(kind: str, style: str, size: int, rng: Rng, photos: Sequence[Image.Image] = ()) -> Drawn:
    """A grid of a kind of `GOOD` or `FAULTS` in one of the styles, of about `size` pixels.

    With photographs, which are four of one subject, `style` is their name.
    """
    wide = size if size < 128 else round(size * rng.choice([1, 1, 1.25]))
    canvas, regions = _layout(kind, wide, size, rng)
    subject = _subject(rng)
    blank = int(rng.integers(4)) if kind == "blank panel" else -1
    hues = rng.permutation(8)
    page, limits = canvas.getpixel((0, 0)), [*regions]
    bare = rng.permutation(4)[: rng.integers(2, 5)] if kind == "paper" else []
    for number, region in enumerate(regions):
        left, top, right, bottom = region
        width, height = right - left, bottom - top
        if photos:
            scene = _crop(photos[number % len(photos)], width, height, rng)
        else:
            scene = _scene(style, width, height, subject, int(hues[number % 8]), rng)
        if number == blank:
            scene = _blank(width, height, rng)
        if number in bare:
            scene = _on_paper(scene, page, rng)
            limits[number] = _grown(regions, number, canvas.size)
        canvas.paste(scene, (left, top))
    if not photos and style == "comic" and kind in ("gutter", "thin gutter"):
        _balloons(canvas, rng)
    if kind == "tilted":
        canvas = _turned(canvas, rng)
    if size >= 128:
        canvas = canvas.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 0.9))))
    noise = rng.normal(0, rng.uniform(0, 2.5 if size >= 128 else 1.0), (*canvas.size[::-1], 3))
    pixels = np.clip(np.asarray(canvas) + noise, 0, 255).astype(np.uint8)
    found = (tuple(regions), tuple(limits)) if kind in GOOD else ((), ())
    return Drawn(Image.fromarray(pixels), kind, style, *found)


def scene(style: str, size: int, rng: Rng) -> Image.Image:
    """A square picture of a subject in one of the styles."""
    return _scene(style, size, size, _subject(rng), int(rng.integers(8)), rng)


def _layout(kind: str, width: int, height: int, rng: Rng) -> tuple[Image.Image, list[Region]]:
    """The page in the colour of its gutters, and the regions of its panels."""
    colour = _pick(rng, PAPER)
    page = Image.new("RGB", (width, height), colour)
    small = width < 128
    gutter = {
        "thin gutter": 1 if small else int(rng.integers(1, max(3, width // 160))),
        "touching": 0,
        "wide gutter": round(width * rng.uniform(0.11, 0.2)),
    }.get(kind, round(width * rng.uniform(0.012, 0.05)))
    if (
        kind not in ("gutter", "thin gutter", "touching", "wide gutter", "framed", "paper")
        and rng.random() < 0.4
    ):
        gutter = 0
    frame = gutter if kind == "framed" or (rng.random() < 0.15 and kind != "wide gutter") else 0
    x, y = width / 2, height / 2
    if kind == "slightly off":
        x += rng.uniform(-0.012, 0.012) * width
        y += rng.uniform(-0.012, 0.012) * height
    if kind == "uneven":
        which = rng.integers(3)
        if which != 0:
            x += rng.choice([-1, 1]) * rng.uniform(0.06, 0.2) * width
        if which != 1:
            y += rng.choice([-1, 1]) * rng.uniform(0.06, 0.2) * height
    columns = _cut(x, width, gutter, frame)
    rows = _cut(y, height, gutter, frame)
    if kind == "one picture":
        return page, [(frame, frame, width - frame, height - frame)]
    if kind == "more panels":
        across, down = _pick(rng, [(3, 2), (2, 3), (3, 3), (4, 1), (1, 4), (4, 4)])
        if (across, down) == (4, 4):
            gutter = max(gutter, 2)
        return page, [
            (a, c, b, d)
            for c, d in _even(height, down, gutter)
            for a, b in _even(width, across, gutter)
        ]
    cells = [(a, c, b, d) for c, d in rows for a, b in columns]
    if kind == "three panels":
        first, second = _pick(rng, [(0, 1), (2, 3), (0, 2), (1, 3)])
        cells[first] = (*cells[first][:2], *cells[second][2:])
        del cells[second]
    if kind == "merged":
        pairs = _pick(rng, [[(0, 1), (2, 3)], [(0, 2), (1, 3)]])
        cells = [(*cells[first][:2], *cells[second][2:]) for first, second in pairs]
    return page, cells


def _cut(at: float, side: int, gutter: int, frame: int) -> list[tuple[int, int]]:
    start = round(at - gutter / 2)
    return [(frame, start), (start + gutter, side - frame)]


def _even(side: int, count: int, gutter: int) -> list[tuple[int, int]]:
    own = (side - gutter * (count - 1)) / count
    return [(round(i * (own + gutter)), round(i * (own + gutter) + own)) for i in range(count)]


def _turned(canvas: Image.Image, rng: Rng) -> Image.Image:
    """Turns a picture by some degrees and crops it to the covered part."""
    width, height = canvas.size
    angle = float(rng.choice([-1, 1]) * rng.uniform(2.0, 6.0))
    turned = canvas.resize((round(width * 1.25), round(height * 1.25)), Image.Resampling.BICUBIC)
    turned = turned.rotate(angle, Image.Resampling.BICUBIC)
    left, top = (turned.width - width) // 2, (turned.height - height) // 2
    return turned.crop((left, top, left + width, top + height))


def _pick(rng: Rng, options: list[Any]) -> Any:
    return options[int(rng.integers(len(options)))]


def _colour(rng: Rng, low: int = 0, high: int = 255) -> Colour:
    red, green, blue = (int(c) for c in rng.integers(low, high + 1, 3))
    return red, green, blue


def _hue(number: int, rng: Rng, light: float) -> Colour:
    """One of eight hues, a little varied."""
    angle = 2 * math.pi * (number + rng.uniform(-0.2, 0.2)) / 8
    red, green, blue = (
        int(np.clip(255 * light * (0.6 + 0.4 * math.cos(angle - shift)), 0, 255))
        for shift in (0, 2.1, 4.2)
    )
    return red, green, blue


@dataclasses.dataclass(frozen=True)
class _Subject:
    shape: str
    body: Colour
    mark: Colour
    spots: int


def _subject(rng: Rng) -> _Subject:
    shape = _pick(rng, ["ellipse", "triangle", "box", "star"])
    return _Subject(shape, _colour(rng, 30, 230), _colour(rng), int(rng.integers(1, 5)))


def _scene(
    style: str, width: int, height: int, subject: _Subject, hue: int, rng: Rng
) -> Image.Image:
    scale = 2 if width < 400 else 1
    width, height = width * scale, height * scale
    image = _BACKGROUNDS[style](width, height, hue, rng)
    _paint(image, subject, rng, outline=style == "comic", dim=style == "night")
    if style == "photo":
        image = image.filter(ImageFilter.GaussianBlur(max(width, height) / 500))
    return image.resize((width // scale, height // scale), Image.Resampling.BOX)


def _paint(image: Image.Image, subject: _Subject, rng: Rng, *, outline: bool, dim: bool) -> None:
    """The subject at a random place, sometimes cut by the border."""
    width, height = image.size
    size = rng.uniform(0.22, 0.42) * min(width, height)
    x, y = rng.uniform(0.3, 0.7) * width, rng.uniform(0.35, 0.75) * height
    turn = rng.uniform(-0.4, 0.4)
    light = 0.25 if dim else rng.uniform(0.8, 1.1)
    body, mark = (
        tuple(int(min(255, c * light)) for c in colour) for colour in (subject.body, subject.mark)
    )
    corners = {"ellipse": 40, "triangle": 3, "box": 4, "star": 10}[subject.shape]
    points = []
    for i in range(corners):
        radius = size * (0.5 if subject.shape == "star" and i % 2 else 1)
        angle = turn + 2 * math.pi * i / corners
        points.append((x + radius * math.sin(angle), y - radius * math.cos(angle)))
    pen = ImageDraw.Draw(image)
    pen.polygon(
        points, fill=body, outline=(0, 0, 0) if outline else None, width=max(1, width // 60)
    )
    for i in range(subject.spots):
        angle = turn + 2 * math.pi * i / subject.spots
        cx, cy, r = x + size * 0.4 * math.sin(angle), y - size * 0.4 * math.cos(angle), size * 0.13
        pen.ellipse((cx - r, cy - r, cx + r, cy + r), fill=mark)


def _crop(photo: Image.Image, width: int, height: int, rng: Rng) -> Image.Image:
    """A random part of a photograph, at most a fifth of which is cut off along each side."""
    scale = min(photo.width / width, photo.height / height) * rng.uniform(0.8, 1)
    own = round(width * scale), round(height * scale)
    left, top = (int(rng.integers(a - b + 1)) for a, b in zip(photo.size, own, strict=True))
    part = photo.crop((left, top, left + own[0], top + own[1]))
    return part.resize((width, height), Image.Resampling.LANCZOS)


def _on_paper(scene: Image.Image, colour: Colour, rng: Rng) -> Image.Image:
    """An oval part of a scene, cut out and laid on the page."""
    width, height = scene.size
    across, down = (rng.uniform(0.25, 0.42) * side for side in scene.size)
    x = rng.uniform(across + 0.06 * width, width * 0.94 - across)
    y = rng.uniform(down + 0.06 * height, height * 0.94 - down)
    mask = Image.new("L", scene.size)
    ImageDraw.Draw(mask).ellipse((x - across, y - down, x + across, y + down), fill=255)
    return Image.composite(scene, Image.new("RGB", scene.size, colour), mask)


def _grown(cells: Sequence[Region], number: int, size: tuple[int, int]) -> Region:
    """What a panel on paper may cover: up to its neighbours, as it has no borders of its own."""
    right, down = number % 2, number // 2
    left, top = cells[0][2] * right, cells[0][3] * down
    return left, top, size[0] if right else cells[3][0], size[1] if down else cells[3][1]


def _clouds(width: int, height: int, rng: Rng, octaves: int = 5) -> np.ndarray:
    """Noise of several sizes in [0, 1], [height, width]."""
    total = np.zeros((height, width))
    for octave in range(octaves):
        cells = 2 ** (octave + 1)
        own = Image.fromarray(rng.random((cells, cells)).astype(np.float32))
        total += np.asarray(own.resize((width, height), Image.Resampling.BICUBIC)) / 2**octave
    total -= total.min()
    return total / max(float(total.max()), 1e-6)


def _photo(width: int, height: int, hue: int, rng: Rng) -> Image.Image:
    """Sky and ground with texture, and some objects."""
    sky = np.array(_hue(hue, rng, rng.uniform(0.6, 1.1)), float)
    ground = np.array(_colour(rng, 30, 200), float)
    horizon = height * (0.35 + 0.35 * rng.random()) + height * 0.08 * (
        _clouds(width, 1, rng)[0] - 0.5
    )
    below = np.arange(height)[:, None] > horizon
    pixels = np.where(below[..., None], ground, sky)
    texture = _clouds(width, height, rng, 7)[..., None] - 0.5
    pixels = pixels + texture * rng.uniform(40, 120) + np.linspace(-15, 15, height)[:, None, None]
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(2, 8))):
        x, y = rng.uniform(0, width), rng.uniform(0.2, 1.0) * height
        w, h = rng.uniform(0.04, 0.25) * width, rng.uniform(0.05, 0.5) * height
        shape = _pick(rng, [pen.ellipse, pen.rectangle])
        shape((x - w / 2, y - h / 2, x + w / 2, y + h / 2), fill=_colour(rng, 20, 220))
    return image


def _flat(width: int, height: int, hue: int, rng: Rng) -> Image.Image:
    return Image.new("RGB", (width, height), _hue(hue, rng, rng.uniform(0.5, 1.1)))


def _comic(width: int, height: int, hue: int, rng: Rng) -> Image.Image:
    """Flat areas behind thick lines, dots, and white balloons inside."""
    image = _flat(width, height, hue, rng)
    pen = ImageDraw.Draw(image)
    line = max(1, width // 80)
    pen.rectangle((0, height * rng.uniform(0.5, 0.8), width, height), fill=_colour(rng, 60, 240))
    step = max(6, width // int(rng.integers(10, 22)))
    for y in range(0, height // 2, step):
        for x in range((y // step % 2) * step // 2, width, step):
            pen.ellipse((x, y, x + step / 3, y + step / 3), fill=_hue(hue + 1, rng, 0.9))
    for _ in range(int(rng.integers(0, 3))):
        left, top = rng.uniform(0.1, 0.7) * width, rng.uniform(0.02, 0.2) * height
        right, bottom = left + width * rng.uniform(0.2, 0.35), top + height * rng.uniform(0.1, 0.2)
        balloon = (left, top, right, bottom)
        pen.ellipse(balloon, fill=(255, 255, 255), outline=(0, 0, 0), width=line)
    return image


def _night(width: int, height: int, hue: int, rng: Rng) -> Image.Image:
    """Dark to the edges, with some lights."""
    base = np.array(_hue(hue, rng, rng.uniform(0.06, 0.2)), float)
    pixels = base + _clouds(width, height, rng)[..., None] * rng.uniform(10, 40)
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(4, 14))):
        x, y, r = (
            rng.uniform(0, width),
            rng.uniform(0, height),
            rng.uniform(0.006, 0.03) * width,
        )
        pen.ellipse((x - r, y - r, x + r, y + r), fill=_colour(rng, 150, 255))
    return image


def _studio(width: int, height: int, hue: int, rng: Rng) -> Image.Image:
    """A light background with a soft fall-off, hardly different from panel to panel."""
    light = np.array(_hue(hue, rng, 1.0), float) * 0.12 + rng.uniform(195, 220)
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    fall = (x - rng.uniform(-0.5, 0.5)) ** 2 + (y - rng.uniform(-0.5, 0.5)) ** 2
    pixels = light - fall[..., None] * rng.uniform(3, 20)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _noisy(width: int, height: int, hue: int, rng: Rng) -> Image.Image:
    """Fine strong texture, such as gravel or leaves."""
    base = np.array(_hue(hue, rng, rng.uniform(0.5, 1.0)), float)
    cells = max(4, int(min(width, height) / rng.uniform(2, 6)))
    grain = Image.fromarray(rng.normal(0, 1, (cells, cells)).astype(np.float32))
    texture = np.asarray(grain.resize((width, height), Image.Resampling.BICUBIC))[..., None]
    pixels = base + texture * rng.uniform(15, 45)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _blank(width: int, height: int, rng: Rng) -> Image.Image:
    """One colour, or a gradient between two close ones."""
    first, second = (
        np.array(_colour(rng), float),
        rng.uniform(-30, 30, 3) * (rng.random() < 0.5),
    )
    pixels = (
        first + second * np.linspace(0, 1, height)[:, None, None] + np.zeros((height, width, 3))
    )
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _balloons(canvas: Image.Image, rng: Rng) -> None:
    """White balloons over the gutters."""
    width, height = canvas.size
    pen = ImageDraw.Draw(canvas)
    for _ in range(int(rng.integers(0, 3))):
        w, h = rng.uniform(0.08, 0.16) * width, rng.uniform(0.05, 0.1) * height
        x, y = rng.uniform(0.1, 0.4) * width, height / 2
        if rng.random() < 0.5:
            x, y = width / 2, rng.uniform(0.1, 0.4) * height
        line = max(1, width // 200)
        box = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
        pen.ellipse(box, fill=(255, 255, 255), outline=(0, 0, 0), width=line)


_BACKGROUNDS = {
    "photo": _photo,
    "flat": _flat,
    "comic": _comic,
    "night": _night,
    "studio": _studio,
    "noisy": _noisy,
}
