"""Pictures with a structure in common: several texts, one noise, shared keys and values."""

import dataclasses

from dsd_jax.errors import UserError
from dsd_jax.infer.settings import Settings

__all__ = ["SharedStructure"]


@dataclasses.dataclass(frozen=True)
class SharedStructure:
    """Groups of pictures that are sampled from one noise and agree on a structure early.

    In the first steps, the image tokens of every picture of a group attend to those of the whole
    group too; after that each goes its own way. The texts differ in what is to differ, such as the
    light. A group depends on nothing outside it.

        shared = SharedStructure(panels=4, share=0.4)
        texts = [text for four in groups for text in four]  # the panels of a group side by side
        seeds = np.repeat(seeds, shared.panels)  # one seed, so one noise, per group
        prepared = prepare(pipeline.tokenizers, texts, None, seeds, settings)
        pictures = pipeline.run(prepared, shared=shared).images  # in the order of the texts

    Attributes:
        panels: Number of pictures of a group.
        share: Part of the steps that are taken together, from 0 (none: ordinary sampling) to 1.
    """

    panels: int = 4
    share: float = 0.4

    def __post_init__(self) -> None:
        if self.panels < 1:
            raise UserError(f"panels must be at least 1, got {self.panels}")
        if not 0 <= self.share <= 1:
            raise UserError(f"share must be from 0 to 1, got {self.share}")

    def check(self, count: int, settings: Settings) -> None:
        """Refuses images that make no groups.

        Args:
            count: Number of images.
            settings: Their settings.

        Raises:
            UserError: The number is no multiple of `panels`, or there is true guidance or a mask.
        """
        if count % self.panels:
            raise UserError(
                f"{count} images do not divide into groups of {self.panels} panels that share a "
                "structure; give the panels of a group side by side"
            )
        if settings.true_guidance:
            raise UserError(
                f"images that share a structure have no true guidance, got i_guidance="
                f"{settings.i_guidance}; leave it at 1"
            )
        if settings.step_mask is not None:
            raise UserError("images that share a structure take no step_mask; leave it out")

    def steps(self, count: int) -> int:
        """The number of steps, from the first on, that are taken together."""
        return round(self.share * count) if self.panels > 1 else 0
