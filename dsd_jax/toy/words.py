"""The words of the toy world: exact descriptions, written and read back.

    a red star with blue dots on snow at northwest small warm left hard
    a grid of the same red star with blue dots, top-left on snow at northwest, top-right on ...
    this thing on meadow at northeast tilted
    make the light warm left hard

One word is one token of the toy tokenisers, and a whole grid prompt fits `T5_LENGTH` of them.
"""

import dataclasses
import functools
import itertools
import re
from collections.abc import Sequence

from dsd_jax.lights import Light, Lights, load_lights
from dsd_jax.toy.folder import toy_lights_path
from dsd_jax.toy.world import (
    BACKGROUNDS,
    COLOURS,
    MARKINGS,
    PLACES,
    SHAPES,
    SIDES,
    SIZES,
    STRENGTHS,
    TILTS,
    TINTS,
    Scene,
    Subject,
)

__all__ = [
    "KINDS",
    "OPENINGS",
    "PANELS",
    "T5_LENGTH",
    "WORDS",
    "describe",
    "describe_grid",
    "describe_order",
    "describe_pair",
    "describe_scene",
    "describe_subject",
    "parse_grid",
    "parse_light",
    "parse_scene",
    "parse_subject",
]

T5_LENGTH = 56  # tokens of the longest grid prompt, its end included
PANELS = ("top-left", "top-right", "bottom-left", "bottom-right")
BESIDE = "right-hand"  # the one of two pictures that the words describe
OPENINGS = ("the same", "one", "four", "this")  # of a grid prompt, after "a grid of"
_UNSAID = {field.default for field in dataclasses.fields(Scene)}
KINDS: tuple[tuple[str, ...], ...] = (
    tuple(COLOURS), tuple(SHAPES), tuple(MARKINGS), tuple(BACKGROUNDS), tuple(PLACES),
    tuple(SIZES), tuple(TILTS), tuple(TINTS), tuple(SIDES), tuple(STRENGTHS),
    (*PANELS, BESIDE),
)  # fmt: skip
"""Kinds of words that describe the contents of a picture and their places."""
WORDS = (
    *itertools.chain(*KINDS),
    "thing", "it", "its", "put", "move", "show", "now", "make", "to", "from", "is", "but", "here",
    "again", "place", "picture", "pictures", "of", "light",
)  # fmt: skip
"""Words of the toy tokenisers beside the common ones."""


def describe_subject(subject: Subject) -> str:
    """`red star with blue dots`."""
    return f"{subject.body} {subject.shape} with {subject.mark} {subject.marking}"


def describe_scene(scene: Scene) -> str:
    """`on snow at northwest small night`; the usual size, tilt and light go unsaid."""
    rest = [word for word in (scene.size, scene.tilt, scene.light) if word not in _UNSAID]
    return " ".join(["on", scene.background, "at", scene.place, *rest])


def describe(subject: Subject | None, scene: Scene) -> str:
    """Describes one picture; without a subject it is `this thing on ...`."""
    named = "this thing" if subject is None else f"a {describe_subject(subject)}"
    return f"{named} {describe_scene(scene)}"


def describe_grid(
    subject: Subject | None, scenes: Sequence[Scene], opening: str = OPENINGS[0]
) -> str:
    """Describes a grid of one subject in four scenes, in the order of `PANELS`."""
    named = "this thing" if subject is None else f"{opening} {describe_subject(subject)}"
    told = [f"{p} {describe_scene(scene)}" for p, scene in zip(PANELS, scenes, strict=True)]
    return ", ".join([f"a grid of {named}", *told])


def describe_pair(scene: Scene) -> str:
    """Describes two pictures of one subject by the right-hand scene, as for a customiser."""
    return f"two pictures of this thing, {BESIDE} {describe_scene(scene)}"


def describe_order(before: str, after: str) -> str:
    """`make the light warm left hard`; what both lights have in common goes unsaid."""
    return _light(after).instruction(_light(before))


def _light(name: str) -> Light:
    """The light of the vocabulary that a light of the world is."""
    return _vocabulary().read(f"{name} from here" if name in TINTS else name)


@functools.cache
def _vocabulary() -> Lights:
    return load_lights(toy_lights_path())


def parse_subject(text: str) -> Subject | None:
    """Reads the first subject that a text names completely. None means that it names none."""
    colours, shapes, markings = map("|".join, (COLOURS, SHAPES, MARKINGS))
    found = re.search(
        rf"\b({colours}) ({shapes}) with (?:a )?({colours}) ({markings})\b", text.lower()
    )
    if found is None or found[1] == found[3]:
        return None
    return Subject(shape=found[2], body=found[1], mark=found[3], marking=found[4])


def parse_scene(text: str) -> Scene | None:
    """Reads the scene that a text names, with defaults for what it leaves unsaid.

    None means that background or place are not named. Other words, such as a subject's, do not
    matter.
    """
    words = re.findall(r"[a-z-]+", text.lower())

    def named(choices: Sequence[str], default: str | None = None) -> str | None:
        return next((word for word in words if word in choices), default)

    background, place = named(list(BACKGROUNDS)), named(list(PLACES))
    if background is None or place is None:
        return None
    return Scene(
        background,
        place,
        size=named(list(SIZES), Scene.size) or "",
        tilt=named(list(TILTS), Scene.tilt) or "",
        light=parse_light(text) or Scene.light,
    )


def parse_light(text: str) -> str | None:
    """Reads the light that a text names; None if it names none.

    A light from a side is white and soft where the text says nothing else.
    """
    words = re.findall(r"[a-z-]+", text.lower())
    tint, side, strength = (
        next((word for word in words if word in known), None) for known in (TINTS, SIDES, STRENGTHS)
    )
    if side is None:
        return tint
    return f"{tint or next(iter(TINTS))} {side} {strength or next(iter(STRENGTHS))}"


def parse_grid(text: str) -> tuple[Subject, tuple[Scene, ...]] | None:
    """Reads subject and scenes of a grid prompt. None means that it is not a complete one."""
    head, *rest = re.split("|".join(rf"\b{panel}\b" for panel in PANELS), text.lower())
    subject, scenes = parse_subject(head), [parse_scene(part) for part in rest]
    if subject is None or len(scenes) != len(PANELS):
        return None
    whole = tuple(scene for scene in scenes if scene is not None)
    return (subject, whole) if len(whole) == len(PANELS) else None
