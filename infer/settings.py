"""The settings of sampling, the same on the command line, in manifests and in Python."""

import dataclasses
from typing import Any, TypedDict, get_args

import numpy as np

from dsd_jax.errors import UserError
from dsd_jax.frames import PATCH, check_size
from dsd_jax.infer.arguments import check_choice
from dsd_jax.infer.mask import mask_steps, read_mask
from dsd_jax.infer.solvers import SolverName
from dsd_jax.text.plain import check_text

__all__ = ["MAX_PIXELS", "MAX_STEPS", "Settings", "SettingsDict", "check_seed"]

MAX_STEPS = 1000
MAX_PIXELS = 2**26  # 32 times what FLUX.1 was trained on; a larger size is a typing mistake
_FRAME, _PICTURE = 512, 1024  # default heights: with and without a reference


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings of sampling, with the names and defaults of the released command line tool.

    Attributes:
        guidance: Distilled guidance scale, an input of the model.
        i_guidance: True image guidance scale. Above 1 it turns true guidance on (three passes).
        t_guidance: True text guidance scale. It counts only when i_guidance is above 1.
        steps: Number of steps.
        height: Height of the canvas in pixels. Default: 512 with a reference, else 1024.
        width: Width of the canvas in pixels. With a reference it holds both frames side by side.
            Default: twice the height with a reference, else the height.
        negative_prompt: Text that true guidance leads away from.
        vae_sample: Sample the VAE posterior of the reference, as the released program does.
            Otherwise encode the reference by the mode of the posterior.
        guidance_every: True guidance takes its three passes in every so many-th step. The steps
            between take one pass and keep what it added. 3 makes 46 passes of 80.
        solver: Solver of the flow. dpmpp_2m is of second order: DPM-Solver++(2M).
        step_mask: File of `dsd mask`, or the mask itself: 1 for a step that runs all blocks, 0 for
            one that runs the first and keeps what the others added, such as 1101010.

    Raises:
        UserError: an unknown `solver`, or a `step_mask` that cannot be read.
    """

    guidance: float = 3.5
    i_guidance: float = 1.0
    t_guidance: float = 1.0
    steps: int = 28
    height: int | None = None
    width: int | None = None
    negative_prompt: str = ""
    vae_sample: bool = True
    guidance_every: int = 1
    solver: SolverName = "euler"
    step_mask: str | None = None

    def __post_init__(self) -> None:
        check_choice("solver", self.solver, get_args(SolverName))
        if self.step_mask is not None:  # a file is read at once: its name alone means no image
            object.__setattr__(self, "step_mask", read_mask(self.step_mask))

    @property
    def mask(self) -> tuple[bool, ...] | None:
        """Whether each step runs all blocks; None if all do."""
        return None if self.step_mask is None else mask_steps(self.step_mask)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels, of settings that were checked."""
        if self.height is None or self.width is None:
            raise ValueError("the settings have no size before they are checked")
        return self.height, self.width

    @property
    def true_guidance(self) -> bool:
        return self.i_guidance > 1

    def checked(self, *, two_frames: bool, downscale: int) -> "Settings":
        """The same settings with the default size filled in.

        Args:
            two_frames: whether there is a reference.
            downscale: image pixels per latent pixel, along each side.

        Raises:
            UserError: a size, number of steps or scale that cannot be used.
        """
        height = (_FRAME if two_frames else _PICTURE) if self.height is None else self.height
        width = (2 * height if two_frames else height) if self.width is None else self.width
        check_size(height, width, downscale)
        if two_frames and width % (unit := 2 * PATCH * downscale):
            raise UserError(
                f"width holds two frames, so it must be a multiple of {unit} pixels, got {width}; "
                f"the nearest is {max(1, round(width / unit)) * unit}"
            )
        if height * width > MAX_PIXELS:
            raise UserError(f"{height}x{width} pixels are more than the {MAX_PIXELS:,} accepted")
        if not 1 <= self.steps <= MAX_STEPS:
            raise UserError(f"steps must be from 1 to {MAX_STEPS}, got {self.steps}")
        if not 1 <= self.guidance_every <= MAX_STEPS:
            raise UserError(
                f"guidance_every must be from 1 to {MAX_STEPS}, got {self.guidance_every}"
            )
        if self.step_mask is not None and len(self.step_mask) != self.steps:
            raise UserError(
                f"the step_mask is for {len(self.step_mask)} steps, got steps={self.steps}; give "
                f"{len(self.step_mask)} steps, or a mask that `dsd mask` finds for {self.steps}"
            )
        for name in ("guidance", "i_guidance", "t_guidance"):
            value = getattr(self, name)
            if not (np.isfinite(value) and value >= 0):
                raise UserError(f"{name} must be a number from 0 up, got {value}")
        check_text(self.negative_prompt, "the negative prompt")
        if self.true_guidance and not two_frames:
            raise UserError(
                f"i_guidance={self.i_guidance} needs a reference image; give one, or leave it at 1"
            )
        return dataclasses.replace(self, height=height, width=width)

    def stated(self) -> dict[str, Any]:
        """The settings as JSON types, for the parameters of an image and for digests.

        `guidance_every`, `solver` and `step_mask` are left out at their defaults, so that settings
        mean the same image as before these existed.
        """
        stated, default = dataclasses.asdict(self), Settings()
        for name in ("guidance_every", "solver", "step_mask"):
            if stated[name] == getattr(default, name):
                del stated[name]
        return stated


class SettingsDict(TypedDict, total=False):
    """`Settings` as keyword arguments."""

    guidance: float
    i_guidance: float
    t_guidance: float
    steps: int
    height: int | None
    width: int | None
    negative_prompt: str
    vae_sample: bool
    guidance_every: int
    solver: SolverName
    step_mask: str | None


def check_seed(seed: int) -> int:
    """Returns the seed.

    Raises:
        UserError: it is not a whole number of 32 bits.
    """
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise UserError(f"a seed must be a whole number, got {seed!r}")
    if not 0 <= seed < 2**32:
        raise UserError(f"a seed must be from 0 to {2**32 - 1}, got {seed}")
    return seed
