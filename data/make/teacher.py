"""What paints grids: a text-to-image model that takes a batch of prompts and seeds."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from PIL import Image

__all__ = ["Teacher"]


@runtime_checkable
class Teacher(Protocol):
    """Paints a picture per prompt, which depends on nothing but its prompt and seed.

    Attributes:
        batch_size: how many pictures are painted at once.
        parameters: all else that decides about a picture, such as steps and model; JSON types.
    """

    batch_size: int
    parameters: Mapping[str, Any]

    def __call__(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image | None]:
        """`batch_size` pictures; None for one that came out with values that are not finite."""
        ...
