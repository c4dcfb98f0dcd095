"""The answers of which a story is made, and the rules that they obey.

A broken rule is told to the model in words, so a fault says what is wrong where.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from PIL import Image

from dsd_jax.errors import UserError
from dsd_jax.infer.story.layout import Layout
from dsd_jax.infer.story.letters import Letters
from dsd_jax.infer.story.page import Picture, letter
from dsd_jax.infer.story.script import Panel
from dsd_jax.llm.answers import Check, Fault
from dsd_jax.llm.reading import json_of
from dsd_jax.structured import build

__all__ = [
    "FORMS",
    "Hero",
    "Prompts",
    "Shown",
    "Told",
    "faults_of_hero",
    "faults_of_prompts",
    "faults_of_story",
    "reader",
]

T = TypeVar("T")

_HERO_WORDS, _PROMPT_WORDS = (2, 30), 100
_TITLE, _CAPTION, _SPEECH = 100, 200, 100  # characters
_BALLOONS = 2
_ARTICLE = re.compile(r"^(?:an?|the)\s+", re.IGNORECASE)
_PRONOUN = re.compile(
    r"\b(?:he|she|it|they|him|her|hers|his|its|them|their|theirs|this|these)\b", re.IGNORECASE
)
_POINTING = re.compile(
    r"\b(?:the same|as before|(?:first|last|next|other|previous) (?:panels?|pictures?))\b",
    re.IGNORECASE,
)


@dataclasses.dataclass(frozen=True)
class Hero:
    """The hero in words, and the scene of the picture that shows it."""

    hero: str
    scene: str

    @property
    def words(self) -> str:
        """The words that name the hero in every prompt."""
        return " ".join(self.hero.split()).rstrip(".")


@dataclasses.dataclass(frozen=True)
class Shown:
    """A panel as the story tells it; what it shows is not yet a prompt."""

    shows: str
    caption: str = ""
    speech: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Told:
    """A story in panels."""

    title: str
    panels: tuple[Shown, ...]


@dataclasses.dataclass(frozen=True)
class Prompts:
    """The prompts of all panels."""

    prompts: tuple[str, ...]


def _form(**properties: Mapping[str, Any]) -> Mapping[str, Any]:
    """The JSON schema of an object with these fields."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


_TEXT: Mapping[str, Any] = {"type": "string"}
_TEXTS: Mapping[str, Any] = {"type": "array", "items": _TEXT}
_SHOWN = _form(shows=_TEXT, caption=_TEXT, speech=_TEXTS)
FORMS: Mapping[type, Mapping[str, Any]] = {
    Hero: _form(hero=_TEXT, scene=_TEXT),
    Told: _form(title=_TEXT, panels={"type": "array", "items": _SHOWN}),
    Prompts: _form(prompts=_TEXTS),
}
"""JSON schemas of the answers."""


def reader(kind: type[T], rules: Callable[[T], Iterable[Fault]]) -> Check[T]:
    """Reads an answer of one kind, and lists the rules that it breaks."""

    def check(answer: str) -> tuple[T | None, list[Fault]]:
        content = json_of(answer)
        if content is None:
            return None, [Fault("not_as_asked", "it is not a single JSON object")]
        try:
            value = build(kind, content, "the answer")
        except UserError as error:
            return None, [Fault("not_as_asked", "; ".join(str(error).splitlines()))]
        return value, list(rules(value))

    return check


def faults_of_hero(hero: Hero) -> Iterator[Fault]:
    """Wants a name of some words."""
    least, most = _HERO_WORDS
    if not least <= len(hero.hero.split()) <= most:
        yield Fault("hero", f'"hero" has {len(hero.hero.split())} words, not {least} to {most}')


def faults_of_story(told: Told, count: int, layout: Layout, letters: Letters) -> Iterator[Fault]:
    """Wants `count` panels whose texts can be set in a layout by a font."""
    title = " ".join(told.title.split())
    if not 1 <= len(title) <= _TITLE or not title.isprintable():
        yield Fault("title", f'"title" has not 1 to {_TITLE} printable characters')
    if len(told.panels) != count:
        yield Fault("count", f"there are {len(told.panels)} panels, not {count}")
        return
    blank = Image.new("RGB", (64, 64), "white")
    boxes = [box for page in layout.pages(count) for box in page]
    for number, (panel, box) in enumerate(zip(told.panels, boxes, strict=True), start=1):
        name = f"panel {number}"
        if not panel.shows.strip():
            yield Fault("empty", f'"shows" of {name} is empty')
            continue
        if len(panel.speech) > _BALLOONS:
            yield Fault("speech", f"{name} has more than {_BALLOONS} texts of speech")
        for text, most in ((panel.caption, _CAPTION), *((said, _SPEECH) for said in panel.speech)):
            if len(text) > most:
                yield Fault("long", f"a text of {name} has {len(text)} characters, not {most}")
        words = Panel(panel.shows, panel.caption, panel.speech).words
        try:
            letter(Picture(blank, words), box.size, letters, name)
        except UserError as error:
            yield Fault("lettering", str(error))


def faults_of_prompts(prompts: Prompts, count: int, hero: Hero) -> Iterator[Fault]:
    """Wants `count` prompts, each of which names the hero and points to nothing outside itself."""
    if len(prompts.prompts) != count:
        yield Fault("count", f"there are {len(prompts.prompts)} prompts, not {count}")
        return
    named = _ARTICLE.sub("", hero.words)
    for number, text in enumerate(prompts.prompts, start=1):
        prompt, name = " ".join(text.split()), f"prompt {number}"
        place = prompt.casefold().find(named.casefold())
        if place < 0:
            yield Fault("no_hero", f'{name} does not name the hero in the words "{named}"')
        elif found := _PRONOUN.search(prompt[:place]):
            yield Fault("pronoun", f'{name} says "{found[0]}" before it names the hero')
        if found := _POINTING.search(prompt):
            yield Fault("pointing", f'{name} says "{found[0]}", which points to other pictures')
        if len(prompt.split()) > _PROMPT_WORDS:
            yield Fault("long", f"{name} has more than {_PROMPT_WORDS} words")
