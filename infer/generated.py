"""Images that a pipeline has made."""

import dataclasses
import io
from collections.abc import Sequence
from typing import Any, overload

import numpy as np
from PIL import Image

from dsd_jax.images import beside
from dsd_jax.types import Float32

__all__ = ["Generated"]


@dataclasses.dataclass(frozen=True)
class Generated(Sequence[Image.Image]):
    """Images in order, as a sequence of PIL images. A notebook shows them side by side.

    Attributes:
        images: the targets (or, without reference, the complete images).
        references: the reconstructed reference frames; empty without reference.
        latents: final latents of the whole canvases, normalised.
        parameters: parameters of each image, as stored in its file; JSON types.
        notices: notices for the user, one sentence each.
    """

    images: list[Image.Image]
    references: list[Image.Image]
    latents: Float32[np.ndarray, "N C h w"]
    parameters: list[dict[str, Any]]
    notices: list[str]

    def __len__(self) -> int:
        return len(self.images)

    @overload
    def __getitem__(self, index: int) -> Image.Image: ...
    @overload
    def __getitem__(self, index: slice) -> list[Image.Image]: ...
    def __getitem__(self, index: int | slice) -> Image.Image | list[Image.Image]:
        return self.images[index]

    def _repr_png_(self) -> bytes:
        """The picture that a notebook shows."""
        file = io.BytesIO()
        beside(self.images).save(file, "PNG")
        return file.getvalue()
