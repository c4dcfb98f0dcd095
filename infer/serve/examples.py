"""Examples that a page offers: texts that a model knows, with a reference where one ships."""

import dataclasses
import functools
import io

from PIL import Image

from dsd_jax.toy.words import describe
from dsd_jax.toy.world import Scene, Subject, render

__all__ = ["FLUX", "Example", "toy_examples"]


@dataclasses.dataclass(frozen=True)
class Example:
    """A request that a person can start with.

    Attributes:
        title: A few words about it.
        prompt: Its text.
        task: Its task.
        edit: Whether it needs a reference. The others leave the LoRAs out.
        reference: File of the reference. None takes the picture that the person has given.
    """

    title: str
    prompt: str
    task: str | None = None
    edit: bool = True
    reference: bytes | None = dataclasses.field(default=None, repr=False)


FLUX = (
    Example("At the beach", "this character building a sandcastle on a beach", "identity"),
    Example("Playing chess", "this character playing chess in a park", "identity"),
    Example("As a sticker", "a die-cut sticker of this character, white border", "identity"),
    Example("On a shelf", "this item on a wooden shelf beside books and a plant", "identity"),
    Example("In the snow", "this item in deep snow under pine trees", "identity"),
    Example("Laughing", "this character laughing with closed eyes", "expression"),
    Example("Paint a fox first", "a plush fox with a green scarf, white background", edit=False),
    Example("Paint a robot first", "a small round robot of brushed copper, studio", edit=False),
)
"""Examples for FLUX. Those with a reference take the person's own; the last two paint one."""

_SUBJECTS = (
    Subject("star", "red", "white", "dots"),
    Subject("cat", "purple", "yellow", "stripes"),
    Subject("fish", "yellow", "blue", "bars"),
    Subject("house", "green", "pink", "half"),
    Subject("heart", "pink", "red", "ring"),
    Subject("diamond", "blue", "white", "cross"),
)
_BEFORE, _AFTER = (
    (
        Scene("meadow", "southwest"), Scene("room", "northeast"), Scene("sea", "southeast"),
        Scene("snow", "northwest"), Scene("beach", "southeast"), Scene("wall", "northeast"),
    ),
    (
        Scene("sea", "northeast"), Scene("beach", "southwest"), Scene("city", "northwest"),
        Scene("forest", "southeast"), Scene("meadow", "northwest"), Scene("snow", "southwest"),
    ),
)  # fmt: skip


@functools.cache
def toy_examples() -> tuple[Example, ...]:
    """Examples for the toy: drawn subjects to put elsewhere, and a text alone."""
    edits = [
        Example(
            f"{subject.shape.capitalize()} to the {after.background}",
            describe(None, after),
            "identity",
            reference=_png(subject, before),
        )
        for subject, before, after in zip(_SUBJECTS, _BEFORE, _AFTER, strict=True)
    ]
    first, scene = _SUBJECTS[0], _AFTER[2]
    text = Example("Without a reference", describe(first, scene), edit=False)
    return (*edits, text)


def _png(subject: Subject, scene: Scene) -> bytes:
    file = io.BytesIO()
    Image.fromarray(render(subject, scene)).save(file, "PNG")
    return file.getvalue()
