"""Operators that re-light a picture and move no pixel.

    look = load_lights().read("from the left with a warm lamp").look
    relit(picture, look, np.random.default_rng(0))

Light multiplies what a surface sends to the camera. So each operator gives gains of linear light,
one per pixel or one per channel, and `developed` applies their product. A gain brightens dark
pixels fully and white ones not at all, as a film does: nothing clips, and a gain of 1 changes
nothing.
"""

import numpy as np
from PIL import Image

from dsd_jax.errors import UserError
from dsd_jax.lights import Look, Rgb
from dsd_jax.types import Float32, UInt8

__all__ = [
    "colour_gains",
    "contrast_gains",
    "developed",
    "direction_gains",
    "linear",
    "relief_gains",
    "relit",
]

Gains = Float32[np.ndarray, "*H_W_C"]
Vector = tuple[float, float, float]
"""Unit vector to the right, down and towards the camera."""

LUMINANCE = np.array([0.2126, 0.7152, 0.0722], np.float32)  # of linear sRGB (IEC 61966-2-1)
DARK = 1e-3  # luminance below which the logarithm would hold noise
CELLS = 12  # along the longer side; what is larger counts as light, what is smaller as detail
RELIEF = 0.25  # depth of a scene as a part of the longer side of its picture
FINE = 96  # pixels of the longer side of a relief, whose smaller slopes are noise

STOPS = 2.5  # powers of two between the sides of a picture that is lit from one
LOCAL = 0.5  # factor of detail between a light without shadows and a point light
FRONT = 0.4  # part of the stops between the middle and the border in light along the view
TURN, VARIED = 0.2, 0.2  # radians and parts by which random numbers vary a light
ADAPTED = 0.4, 0.6  # part of a lamp's colour that the white balance takes away, at random


def relit(
    picture: UInt8[np.ndarray, "H W 3"],
    look: Look,
    rng: np.random.Generator,
    disparity: Float32[np.ndarray, "h w"] | None = None,
) -> UInt8[np.ndarray, "H W 3"]:
    """A picture in another light; everything stays where it is.

    The light lies over that of the picture: shadows that are there remain, fainter or deeper.

    Args:
        picture: sRGB.
        look: The light in numbers; `Light.look` of a light in words.
        rng: Varies direction, strength and white balance a little. Equal states of it give equal
            pictures.
        disparity: Nearness of every place, of any size; larger is nearer. Its slopes are lit like
            surfaces. None lights the picture as a plane.

    Raises:
        UserError: The disparity holds values that are not finite, or is no grey picture.
    """
    turn, strength, adapted = (
        rng.uniform(-TURN, TURN),
        rng.uniform(1 - VARIED, 1 + VARIED),
        rng.uniform(*ADAPTED),
    )
    right, down, near = look.towards
    towards = (
        float(right * np.cos(turn) - down * np.sin(turn)),
        float(right * np.sin(turn) + down * np.cos(turn)),
        near,
    )
    height, width = picture.shape[:2]
    light = linear(picture)
    gains = direction_gains(
        height, width, towards, hardness=look.hardness, stops=STOPS * look.contrast * strength
    )
    gains = gains * 2.0**look.exposure * colour_gains(look.colour, adapted)
    local = look.contrast * (1 + LOCAL * (look.hardness - 0.5))
    gains = gains * contrast_gains(light, broad=look.contrast, local=local)
    if disparity is not None:
        gains = gains * relief_gains(disparity, height, width, towards, hardness=look.hardness)
    return developed(light, gains)


def linear(picture: UInt8[np.ndarray, "H W 3"]) -> Float32[np.ndarray, "H W 3"]:
    """Decodes sRGB to linear light in [0, 1] (IEC 61966-2-1)."""
    x = np.arange(256) / 255
    levels = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    return levels.astype(np.float32)[picture]


def developed(light: Float32[np.ndarray, "H W 3"], gains: Gains) -> UInt8[np.ndarray, "H W 3"]:
    """Multiplies light by gains, and encodes the product as sRGB.

    A gain g takes the brightest channel x of a pixel to g x / (1 + (g - 1) x) where g is more than
    1, and to g x elsewhere. The other channels keep their ratio to it. So white stays white at
    most, and hues stay what the gains make them.

    Args:
        light: Linear light in [0, 1].
        gains: Positive gains that broadcast to the shape of the light.
    """
    lit = light * gains
    before, after = light.max(2, keepdims=True), lit.max(2, keepdims=True)
    gain = after / np.maximum(before, 1e-6)
    held = after / (1 + np.maximum(gain - 1, 0) * before)
    lit = lit * (held / np.maximum(after, 1e-6))
    encoded = np.where(
        lit <= 0.0031308, lit * 12.92, 1.055 * np.maximum(lit, 1e-9) ** (1 / 2.4) - 0.055
    )
    return np.round(encoded.clip(0, 1) * 255).astype(np.uint8)


def direction_gains(
    height: int, width: int, towards: Vector, *, hardness: float, stops: float
) -> Float32[np.ndarray, "H W 1"]:
    """Gains of a light beside the picture: the side that it stands on is brighter.

    A light behind the scene brightens the border about a dark middle; one at the camera does the
    opposite.

    Args:
        height, width: Size of the picture.
        towards: Direction to the light.
        hardness: 0 for an even slope, 1 for a steep step in the middle.
        stops: Powers of two between the brightest and the darkest place of a light that stands
            exactly beside the picture.
    """
    x = np.linspace(-1, 1, width) if width > 1 else np.zeros(1)
    y = (np.linspace(-1, 1, height) if height > 1 else np.zeros(1))[:, None]
    right, down, near = towards
    side = np.hypot(right, down)
    # The slope reaches -1 and 1 at opposite corners, in every direction.
    slope = (x * right + y * down) / max(abs(right) + abs(down), 1e-9)
    steep = 1 + 4 * hardness
    slope = np.tanh(steep * slope) / np.tanh(steep)
    middle = 1 - (x * x + y * y)
    exponent = stops / 2 * (side * slope + FRONT * near * middle)
    return (2.0**exponent)[..., None].astype(np.float32)


def relief_gains(
    disparity: Float32[np.ndarray, "h w"],
    height: int,
    width: int,
    towards: Vector,
    *,
    hardness: float,
) -> Float32[np.ndarray, "H W 1"]:
    """Gains of surfaces by their slope: those that face the light are brighter (Lambert's law).

    The relief of a scene is its disparity, scaled to a depth of `RELIEF`. A surface that faces the
    camera has the gain 1. A soft light also reaches surfaces that face away from it.

    Args:
        disparity: Nearness of every place; larger is nearer. It may have another size than the
            picture.
        height, width: Size of the picture.
        towards: Direction to the light.
        hardness: 0 for light from half of the sky, 1 for a point.

    Raises:
        UserError: The disparity holds values that are not finite, or is no grey picture.
    """
    if disparity.ndim != 2 or not disparity.size or not np.isfinite(disparity).all():
        raise UserError(
            "a disparity map must hold finite numbers [height, width], got "
            f"{disparity.dtype} {list(disparity.shape)}; make it with `dsd data depth`"
        )
    scale = min(1, FINE / max(height, width))
    size = max(2, round(width * scale)), max(2, round(height * scale))
    relief = _resized(disparity, size)
    low, high = np.quantile(relief, (0.01, 0.99))
    relief = (relief - low).clip(0, high - low) / max(float(high - low), 1e-6)
    down, right = np.gradient(relief * (RELIEF * max(size)))
    normals = np.stack([-right, -down, np.ones_like(right)], -1)
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    wrap = 1 - 0.8 * hardness
    lit = np.maximum(normals @ np.asarray(towards, np.float32) + wrap, 0.0)
    front = max(towards[2] + wrap, 0.2)
    ambient = 0.25
    return _resized(ambient + (1 - ambient) * lit / front, (width, height))[..., None]


def colour_gains(colour: Rgb, adapted: float) -> Float32[np.ndarray, " 3"]:
    """Gains of red, green and blue under a lamp, in a picture of a camera that adapts in part.

    Args:
        colour: Factors of linear light, of luminance 1; see `Look`.
        adapted: Part of the colour that the white balance takes away, from 0 to 1.
    """
    gains = np.array(colour, np.float32) ** (1 - adapted)
    return gains / (gains @ LUMINANCE)


def contrast_gains(
    light: Float32[np.ndarray, "H W 3"], *, broad: float, local: float
) -> Float32[np.ndarray, "H W 1"]:
    """Gains that change contrast about the mean and keep the hue of every pixel.

    Luminance is split in the logarithm into its mean, what varies broadly, and detail; the last
    two are scaled. Equal factors are a gamma.

    Args:
        light: Linear light in [0, 1].
        broad: Factor of broad differences: below 1 fills shadows in, above 1 deepens them.
        local: Factor of detail: below 1 is flat light, above 1 is crisp.
    """
    height, width = light.shape[:2]
    luminance = np.log((light @ LUMINANCE) + DARK)
    cells = CELLS / max(height, width)
    few = max(1, round(width * cells)), max(1, round(height * cells))
    base = _resized(_resized(luminance, few), (width, height))
    change = (broad - 1) * (base - base.mean()) + (local - 1) * (luminance - base)
    return np.exp(change)[..., None].astype(np.float32)


def _resized(values: np.ndarray, size: tuple[int, int]) -> Float32[np.ndarray, "h w"]:
    """Values at another size (width, height); every new place is a mean of those about it."""
    image = Image.fromarray(np.ascontiguousarray(values, np.float32))
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR))
