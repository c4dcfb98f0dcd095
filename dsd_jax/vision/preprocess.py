"""Prepares pictures for a vision transformer: resizes, crops and normalises them with Pillow.

The steps and their rounding are those of transformers' image processors with the Pillow backend, so
that features can be compared with published ones. Other resamplers, JAX's among them, give other
pixels.
"""

import dataclasses

import numpy as np
from PIL import Image

from dsd_jax.types import Float32

__all__ = ["CLIP_MEAN", "CLIP_STD", "IMAGENET_CROP", "IMAGENET_MEAN", "IMAGENET_STD", "Preprocess"]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """Steps from a picture to the input of a model.

    Attributes:
        resize: Length of the shorter side, with the aspect ratio kept; or (height, width) whatever
            the aspect ratio. None resizes nothing.
        resample: Pillow's filter.
        crop: (height, width) of a crop from the centre. A smaller picture is padded with black.
            None crops nothing.
        scale: Factor of the bytes of a pixel.
        mean, std: Per channel, of the scaled values.
        multiple: None, or a number that keeps the aspect ratio although `resize` has two lengths:
            the side whose scale changes less gets its length, and both are rounded to multiples of
            the number.
    """

    resize: int | tuple[int, int] | None = 224
    resample: Image.Resampling = Image.Resampling.BICUBIC
    crop: tuple[int, int] | None = (224, 224)
    scale: float = 1 / 255
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    multiple: int | None = None

    def __call__(self, image: Image.Image) -> Float32[np.ndarray, "H W 3"]:
        """The pixels of an RGB picture, channels last."""
        if self.resize is not None:
            height, width = self._size(image)
            image = image.resize((width, height), self.resample)
        if self.crop is not None:
            height, width = self.crop
            left, top = (image.width - width) // 2, (image.height - height) // 2
            image = image.crop((left, top, left + width, top + height))
        # The product is rounded to float32 before the mean is taken away, as in the reference.
        scaled = (np.asarray(image).astype(np.float64) * self.scale).astype(np.float32)
        return (scaled - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)

    def _size(self, image: Image.Image) -> tuple[int, int]:
        if not isinstance(self.resize, int):
            assert self.resize is not None
            return self.resize if self.multiple is None else self._rounded(image)
        short, long = sorted(image.size)
        longer = int(self.resize * long / short)
        return (longer, self.resize) if image.width <= image.height else (self.resize, longer)

    def _rounded(self, image: Image.Image) -> tuple[int, int]:
        assert isinstance(self.resize, tuple)
        assert self.multiple is not None
        step, sides = self.multiple, (image.height, image.width)
        down, across = (new / old for new, old in zip(self.resize, sides, strict=True))
        scale = across if abs(1 - across) < abs(1 - down) else down
        height, width = (max(step, round(scale * side / step) * step) for side in sides)
        return height, width


IMAGENET_CROP = Preprocess(resize=256, mean=IMAGENET_MEAN, std=IMAGENET_STD)
"""Shorter side to 256, bicubic, then the central 224 x 224: the evaluation of DINO and DINOv2."""
