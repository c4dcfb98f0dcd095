"""Limits within which a picture passes as an evenly separated 2x2 grid."""

import dataclasses
from typing import Any, ClassVar

from dsd_jax.errors import UserError

__all__ = ["STEEPEST", "WIDEST", "GridCheck"]

STEEPEST = 0.12  # largest drift of a tilted separator, as a part of the side
WIDEST = 0.4  # largest width of a gutter, as a part of the side


@dataclasses.dataclass(frozen=True)
class GridCheck:
    """Limits of a grid; lengths are parts of the picture's side.

    Attributes:
        min_panel: Smallest side of a panel in pixels.
        max_gutter: Largest width of the space between panels.
        max_uneven: Largest difference of two panels' sides, as a part of the larger one.
        max_tilt: Largest drift of a separator from one end to the other.
        min_support: Smallest part of a separator's length along which the picture changes.
        min_step: Smallest size of such a change, in levels of 255.
        min_contrast: Smallest size of it, in multiples of the changes beside it.
        min_content: Smallest part of a panel that differs from its background.
        margin: Width that is cut off beside a separator, because it may be blurred.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    min_panel: int = 16
    max_gutter: float = 0.08
    max_uneven: float = 0.08
    max_tilt: float = 0.012
    min_support: float = 0.55
    min_step: float = 3.0
    min_contrast: float = 2.0
    min_content: float = 0.01
    margin: float = 0.004

    def __post_init__(self) -> None:
        if self.min_panel < 1:
            raise UserError(f"min_panel must be at least 1 pixel, got {self.min_panel}")
        for name in ("min_step", "min_contrast"):
            if not 0 <= getattr(self, name) <= 255:
                raise UserError(f"{name} must be from 0 to 255, got {getattr(self, name)}")
        for name, most in (
            ("max_gutter", WIDEST),
            ("max_uneven", 1),
            ("max_tilt", STEEPEST),
            ("min_support", 1),
            ("min_content", 1),
            ("margin", 0.2),
        ):
            if not 0 <= getattr(self, name) <= most:
                raise UserError(f"{name} must be from 0 to {most}, got {getattr(self, name)}")
