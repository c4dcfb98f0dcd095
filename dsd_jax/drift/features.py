"""Features of a picture that stay when only its light changes: edges and texture, evened out.

Light multiplies what a surface reflects and changes slowly over it. In the logarithm it is added, a
tint adds a constant to a channel, and gamma scales. So a band of the logarithm, divided by its own
local strength, hardly changes with any of them.
"""

import dataclasses

import numpy as np
from PIL import Image
from scipy import ndimage

from dsd_jax.types import Float32

__all__ = ["Level", "levels"]

FINEST, COARSEST = 128, 64  # pixels of the longer side that the first and last level have at most
DARK = 16.0  # of 255; darker pixels hold more noise than texture
FINE, BROAD = 1.0, 2.5  # deviations of the two Gaussians that cut the band
AROUND = 15  # pixels of the window that the local strength is taken from
FLOOR = 0.4  # smallest strength, in units of that of the textured parts
FAINT = 1e-5  # squared contrast that is no texture


@dataclasses.dataclass(frozen=True)
class Level:
    """A picture at one size.

    Attributes:
        features: Three channels of the normalised band, about -2 to 2.
        strength: The band before it was normalised: the local contrast, squared.
        scale: Pixels of the picture along each side of a pixel here.
    """

    features: Float32[np.ndarray, "c h w"]
    strength: Float32[np.ndarray, "h w"]
    scale: int


def levels(image: Image.Image) -> list[Level]:
    """The features of an RGB picture at sizes that halve, the smallest first."""
    scale = -(-max(image.size) // FINEST)
    pixels = _reduced(np.asarray(image, np.float32).transpose(2, 0, 1), scale)
    made = [_level(pixels, scale)]
    while max(pixels.shape) > COARSEST:
        pixels, scale = _reduced(pixels, 2), scale * 2
        made.insert(0, _level(pixels, scale))
    return made


def _reduced(pixels: np.ndarray, factor: int) -> np.ndarray:
    """Means of squares of pixels; what is left over is cut off evenly, to keep the centre."""
    _, height, width = pixels.shape
    top, left = height % factor // 2, width % factor // 2
    height, width = height // factor, width // factor
    kept = pixels[:, top : top + height * factor, left : left + width * factor]
    rows = kept.reshape(-1, height, factor, width * factor).sum(2)
    columns = rows.reshape(-1, height, width, factor)
    return np.asarray(columns.sum(3) / np.float32(factor * factor))


def _level(pixels: np.ndarray, scale: int) -> Level:
    light = np.log(pixels + DARK)
    fine, broad = (
        ndimage.gaussian_filter(light, (0, sigma, sigma), truncate=3) for sigma in (FINE, BROAD)
    )
    band = fine - broad
    strength = (band * band).sum(0)
    around = ndimage.uniform_filter(strength, AROUND)
    textured = (around * around).mean() / (around.mean() + FAINT)
    even = band / np.sqrt(around + FLOOR**2 * textured + FAINT)
    return Level(even / np.sqrt(1 + (even * even).sum(0) / 4), strength, scale)
