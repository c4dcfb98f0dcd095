"""Converts between ComfyUI's images, tensors from 0 to 1, and PNG."""

import io
from collections.abc import Iterable

import numpy as np
import torch
from PIL import Image

from .client import ServerError

__all__ = ["picture", "reference_png", "stacked"]


def reference_png(image: torch.Tensor) -> bytes:
    """The one image of a batch [1, height, width, 3] as PNG.

    Raises:
        ValueError: There are several images, or none.
    """
    if len(image) != 1:
        raise ValueError(
            f"a reference is one image, and {len(image)} were given; choose one with the node "
            "'Get Image from Batch'"
        )
    pixels = (image[0, ..., :3].cpu().float().numpy() * 255).round().clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()


def picture(png: bytes) -> Image.Image:
    """A PNG of the server, decoded.

    Raises:
        ServerError: It is none.
    """
    try:
        image = Image.open(io.BytesIO(png), formats=["PNG"])
        image.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ServerError(f"the server sent a damaged image: {error}") from None
    return image


def stacked(pngs: Iterable[bytes]) -> torch.Tensor:
    """Images of one size as a batch [batch, height, width, 3]."""
    pixels = np.stack([np.asarray(picture(png).convert("RGB")) for png in pngs])
    return torch.from_numpy(pixels.astype(np.float32) / 255)
