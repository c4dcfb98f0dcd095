"""Examples and lights that a page offers, in words that a model knows."""

import dataclasses
import functools
import io
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from dsd_jax.lights import Lights, load_lights
from dsd_jax.toy.folder import toy_lights_path
from dsd_jax.toy.score import Case
from dsd_jax.toy.words import describe
from dsd_jax.toy.world import Scene, Subject

__all__ = ["FLUX", "PHOTOGRAPHIC", "TOY_LIGHTS", "Example", "LightMenu", "toy_examples"]


@dataclasses.dataclass(frozen=True)
class Example:
    """A request that a person can start with.

    Attributes:
        title: A few words about it.
        prompt: Its text.
        task: Its task.
        light: Light beside the text, by names of the vocabulary.
        edit: Whether it needs a reference. The others leave the LoRAs out.
        reference: File of the reference. None takes the picture that the person has given.
    """

    title: str
    prompt: str
    task: str | None = None
    light: Mapping[str, str] = dataclasses.field(default_factory=dict)
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


@dataclasses.dataclass(frozen=True)
class LightMenu:
    """The lights that a server offers.

    Attributes:
        presets: Lights to begin with, by names of the vocabulary.
        path: File of the vocabulary. None takes the one of photography.
        joint: Stands between a text and the light, as in the captions that the model knows.
    """

    presets: tuple[Mapping[str, str], ...]
    path: Path | None = None
    joint: str = ", "

    @functools.cached_property
    def vocabulary(self) -> Lights:
        """The vocabulary.

        Raises:
            UserError: The file cannot be used.
        """
        return load_lights(self.path)


PHOTOGRAPHIC = LightMenu(
    (
        {"direction": "left", "source": "window", "time": "morning"},
        {"direction": "behind", "source": "sun", "time": "golden_hour"},
        {"direction": "above", "source": "sun", "time": "noon"},
        {"direction": "above", "source": "overcast", "contrast": "low"},
        {"direction": "right", "source": "lamp", "temperature": "warm"},
        {"direction": "below", "source": "candle", "time": "night"},
        {"direction": "upper_left", "source": "moon", "time": "night"},
        {"direction": "right", "source": "neon", "time": "night"},
        {"direction": "front", "source": "softbox", "hardness": "soft"},
        {"direction": "left", "source": "flash", "hardness": "hard"},
    )
)
"""Lights for FLUX."""
TOY_LIGHTS = LightMenu(
    (
        {"direction": "left_hard", "temperature": "warm"},
        {"direction": "right_soft", "temperature": "cool"},
        {"direction": "above_hard", "temperature": "night"},
        {"direction": "left_hard", "temperature": "day"},
        {"temperature": "warm"},
        {"temperature": "night"},
    ),
    toy_lights_path(),
    joint=" ",
)
"""Lights for the toy."""
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
    """Subjects to put elsewhere, one to relight, one to paint by its depth, and a text alone."""
    moved = [
        _edit(
            f"{subject.shape.capitalize()} to the {after.background}",
            "identity",
            subject,
            before,
            after,
        )
        for subject, before, after in zip(_SUBJECTS, _BEFORE, _AFTER, strict=True)
    ]
    lit, before, mapped, scene = _SUBJECTS[4], _BEFORE[4], _SUBJECTS[5], _AFTER[5]
    others = [
        _edit("Heart in warm light", "relight", lit, before, before, TOY_LIGHTS.presets[0]),
        _edit("Diamond from a depth map", "depth", mapped, scene, scene),
    ]
    text = Example("Without a reference", describe(_SUBJECTS[0], _AFTER[2]), edit=False)
    return (*moved, *others, text)


def _edit(
    title: str,
    task: str,
    subject: Subject,
    before: Scene,
    after: Scene,
    light: Mapping[str, str] | None = None,
) -> Example:
    """An example with the text and the reference of a case."""
    case = Case(title, subject, before, after, seed=0, task=task)
    file = io.BytesIO()
    Image.fromarray(case.reference()).save(file, "PNG")
    return Example(title, case.text, task, light or {}, reference=file.getvalue())
