"""A vocabulary of light: its words in captions, and what they mean physically.

    lights = load_lights()
    light = lights.read("from the left with a warm lamp")
    light.description       # lit from the left by a warm lamp
    light.instruction()     # light it from the left with a warm lamp
    light.look.towards      # (-0.96, 0.0, 0.29)

The words are data: `lights.toml` beside this file, or a file of the user that replaces or extends
it.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from dsd_jax.errors import UserError, and_more, did_you_mean
from dsd_jax.structured import build, read_toml

__all__ = ["ASPECTS", "Light", "LightWord", "Lights", "Look", "load_lights"]

ASPECTS = ("direction", "source", "time", "temperature", "hardness", "contrast")
"""Properties of a light, each told by one entry of the vocabulary."""
_PRECEDENCE = ("time", "source", "direction", "temperature", "hardness", "contrast")
_OURS = Path(__file__).with_suffix(".toml")
_FILLERS = frozenset("a an and as at by for from in is it light lit of on the to with".split())
_GROUP = re.compile(r"\[([^][]*)\]")
_FIELD = re.compile(r"\{(\w+)\}")
_AN = re.compile(r"\ban?(?= (\w))")
_TRIES = 50  # draws of a light that differs from others, for each that is wanted

Rgb = tuple[float, float, float]
_WAVELENGTHS = (610e-9, 550e-9, 465e-9)  # metres; near the peaks of sRGB's primaries
_LUMINANCE = (0.2126, 0.7152, 0.0722)  # of linear sRGB
_SECOND_RADIATION = 1.438777e-2  # metre kelvin, in Planck's law
_DAYLIGHT = 6500.0  # kelvin, the white of sRGB


@dataclasses.dataclass(frozen=True)
class Look:
    """A light in numbers.

    Attributes:
        towards: Unit vector from the scene to the light: right, down, and towards the viewer.
        colour: Factors of linear red, green and blue; they leave the luminance of white at 1.
        hardness: Sharpness of shadows, from 0 (none) to 1 (a point light).
        contrast: Factor of the differences between light and shadow.
        exposure: Brightness in stops; 0 is that of a good photograph.
    """

    towards: tuple[float, float, float] = (0.0, 0.0, 1.0)
    colour: Rgb = (1.0, 1.0, 1.0)
    hardness: float = 0.5
    contrast: float = 1.0
    exposure: float = 0.0


@dataclasses.dataclass(frozen=True)
class LightWord:
    """An entry of the vocabulary; `lights.toml` explains it.

    Attributes:
        words: Its words in captions; `{}` is the place of adjectives.
        also: Other words that are read back as this entry.
        towards: Direction to the light: right, down, and towards the viewer. None says nothing.
        kelvin: Colour temperature. None says nothing.
        colour: Factors of linear red, green and blue, in place of `kelvin`.
        hardness, contrast: As in `Look`. None says nothing.
        exposure: Stops of brightness.
        only: For other aspects, the names of the entries that it goes with.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    words: str
    also: tuple[str, ...] = ()
    towards: tuple[float, float, float] | None = None
    kelvin: float | None = None
    colour: Rgb | None = None
    hardness: float | None = None
    contrast: float | None = None
    exposure: float = 0.0
    only: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not self.words.strip():
            raise UserError("words of a light must not be empty")
        if self.towards is not None and not any(self.towards):
            raise UserError("towards must not be (0, 0, 0)")
        if self.kelvin is not None and not 1000 <= self.kelvin <= 40_000:
            raise UserError(f"kelvin must be from 1,000 to 40,000, got {self.kelvin:g}")
        if self.colour is not None and not min(self.colour) > 0:
            raise UserError(f"colour takes three factors above 0, got {self.colour}")
        if self.hardness is not None and not 0 <= self.hardness <= 1:
            raise UserError(f"hardness must be from 0 to 1, got {self.hardness:g}")
        if self.contrast is not None and not self.contrast > 0:
            raise UserError(f"contrast must be above 0, got {self.contrast:g}")
        for aspect in self.only:
            if aspect not in ASPECTS:
                raise _no_aspect(aspect)

    def on(self, look: Look) -> Look:
        """A look with what this entry says about it."""
        said: dict[str, Any] = {"exposure": look.exposure + self.exposure}
        if self.towards is not None:
            length = math.hypot(*self.towards)
            said["towards"] = tuple(part / length for part in self.towards)
        if self.colour is not None or self.kelvin is not None:
            said["colour"] = _white(self.colour or _black_body(self.kelvin or _DAYLIGHT))
        said |= {
            name: value
            for name in ("hardness", "contrast")
            if (value := getattr(self, name)) is not None
        }
        return dataclasses.replace(look, **said)


def _black_body(kelvin: float) -> Rgb:
    """Linear red, green and blue of a black body beside those of daylight, by Planck's law."""

    def radiance(wavelength: float, temperature: float) -> float:
        return 1 / math.expm1(_SECOND_RADIATION / (wavelength * temperature))

    red, green, blue = (radiance(w, kelvin) / radiance(w, _DAYLIGHT) for w in _WAVELENGTHS)
    return red, green, blue


def _white(colour: Rgb) -> Rgb:
    luminance = sum(part * weight for part, weight in zip(colour, _LUMINANCE, strict=True))
    red, green, blue = (part / luminance for part in colour)
    return red, green, blue


@dataclasses.dataclass(frozen=True)
class Phrases:
    """Sentences about a light: `[]` is left out if the field in it is empty; see `lights.toml`."""

    description: str
    instruction: str
    plain: str

    def fill(self, pattern: str, words: Mapping[str, LightWord]) -> str:
        """Puts entries, by aspect, into a sentence."""
        texts = {aspect: entry.words for aspect, entry in words.items()}
        adjectives = [texts.get(aspect, "") for aspect in ("hardness", "temperature")]
        adjective = " ".join(filter(None, adjectives))
        if adjective or "source" in texts:
            texts["source"] = texts.get("source", self.plain).replace("{}", adjective)

        def field(found: re.Match[str]) -> str:
            return texts.get(found[1], "")

        def group(found: re.Match[str]) -> str:
            wanted = _FIELD.findall(found[1])
            return _FIELD.sub(field, found[1]) if all(map(texts.get, wanted)) else ""

        text = " ".join(_FIELD.sub(field, _GROUP.sub(group, pattern)).split())
        return _AN.sub(lambda found: "an" if found[1].lower() in "aeiou" else "a", text)


@dataclasses.dataclass(frozen=True)
class Light:
    """A light, in words of a vocabulary.

    Attributes:
        names: Name of the entry for each aspect that is said.
        words: The entries, in the same order.
        phrases: Sentences of the vocabulary.
    """

    names: tuple[tuple[str, str], ...]
    words: tuple[LightWord, ...]
    phrases: Phrases

    @property
    def named(self) -> dict[str, str]:
        """Name of the entry for each aspect that is said, as it stands in records."""
        return dict(self.names)

    @functools.cached_property
    def _by_aspect(self) -> dict[str, LightWord]:
        return {aspect: word for (aspect, _), word in zip(self.names, self.words, strict=True)}

    @functools.cached_property
    def look(self) -> Look:
        """The light in numbers."""
        look = Look()
        for aspect in _PRECEDENCE:
            if aspect in self._by_aspect:
                look = self._by_aspect[aspect].on(look)
        return look

    @property
    def description(self) -> str:
        """The light as a part of the description of a picture."""
        return self.phrases.fill(self.phrases.description, self._by_aspect)

    def instruction(self, before: "Light | None" = None) -> str:
        """The order to light a picture so.

        Args:
            before: Light of the picture. If this light says something about every aspect that
                `before` does, what both have in common goes unsaid.
        """
        words = self._by_aspect
        if before is not None and {*before.named} <= {*self.named}:
            changed = {
                aspect: words[aspect]
                for aspect, name in self.names
                if before.named.get(aspect) != name
            }
            words = changed or words
        return self.phrases.fill(self.phrases.instruction, words)


@dataclasses.dataclass(frozen=True)
class Lights:
    """A vocabulary of light.

    Attributes:
        name: Name of the vocabulary.
        entries: Entries by aspect and name.
        phrases: Its sentences.
    """

    name: str
    entries: Mapping[str, Mapping[str, LightWord]]
    phrases: Phrases

    @functools.cached_property
    def id(self) -> str:
        """Name and digest; the digest changes with every entry and sentence."""
        content = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return f"{self.name}@{hashlib.sha256(content.encode()).hexdigest()[:12]}"

    def light(self, names: Mapping[str, str]) -> Light:
        """The light of some names, such as `{"direction": "left", "source": "lamp"}`.

        Raises:
            UserError: An aspect or a name is not known, or there is none.
        """
        for aspect, name in names.items():
            if aspect not in ASPECTS:
                raise _no_aspect(aspect)
            known = self.entries.get(aspect, {})
            if name not in known:
                raise UserError(
                    f"there is no {aspect} {name!r} in the lights {self.name!r}; expected "
                    f"{', '.join(known) or 'none'}{did_you_mean(name, known)}"
                )
        if not names:
            raise UserError(f"a light needs a word for one aspect: {', '.join(ASPECTS)}")
        said = tuple((aspect, names[aspect]) for aspect in ASPECTS if aspect in names)
        words = tuple(self.entries[aspect][name] for aspect, name in said)
        return Light(said, words, self.phrases)

    @functools.cached_property
    def readable(self) -> dict[tuple[str, ...], tuple[str, str]]:
        """Aspect and name of the entry that words are read as.

        Raises:
            UserError: Two entries have the same words, or words say nothing.
        """
        known: dict[tuple[str, ...], tuple[str, str]] = {}
        for aspect, entries in self.entries.items():
            for name, entry in entries.items():
                for text in (entry.words, *entry.also):
                    key = tuple(_telling(text))
                    if known.setdefault(key, (aspect, name)) != (aspect, name):
                        other = ".".join(known[key])
                        raise UserError(
                            f"the lights {self.name!r} have the words {text!r} twice, in {other} "
                            f"and in {aspect}.{name}"
                        )
                    if not key:
                        raise UserError(
                            f"the words {text!r} of {aspect}.{name} say nothing; use others"
                        )
        return known

    def read(self, text: str) -> Light:
        """Reads a light back from words, such as `from the left with a warm lamp`.

        Raises:
            UserError: A word is not known, two words contradict each other, or there is none.
        """
        words, names = _telling(text), dict[str, str]()
        longest = max(map(len, self.readable))
        while words:
            lengths = range(min(longest, len(words)), 0, -1)
            length = next((n for n in lengths if tuple(words[:n]) in self.readable), None)
            if length is None:
                known = sorted({" ".join(key) for key in self.readable})
                raise UserError(
                    f"there is no light {words[0]!r} in the lights {self.name!r}"
                    f"{did_you_mean(words[0], known)} (it knows {and_more(known)})"
                )
            aspect, name = self.readable[tuple(words[:length])]
            if names.setdefault(aspect, name) != name:
                raise UserError(
                    f"{text!r} names two lights by {aspect}, {names[aspect]} and {name}; name one"
                )
            words = words[length:]
        if not names:
            raise UserError(f"{text!r} names no light; try one such as {self._example()!r}")
        return self.light(names)

    def _example(self) -> str:
        return self.draw(np.random.default_rng(0)).description

    def draw(self, rng: np.random.Generator, aspects: int = 3) -> Light:
        """Draws a light.

        Args:
            rng: Generator of random numbers.
            aspects: Largest number of aspects that are said.
        """
        chosen: dict[str, str] = {}
        order = [aspect for aspect in ASPECTS if self.entries.get(aspect)]
        for aspect in rng.permutation(order).tolist():
            fitting = [name for name in self.entries[aspect] if self._fits(aspect, name, chosen)]
            if fitting and len(chosen) < aspects:
                chosen[aspect] = fitting[int(rng.integers(len(fitting)))]
        return self.light(chosen)

    def draw_different(self, rng: np.random.Generator, count: int, aspects: int = 3) -> list[Light]:
        """Draws lights that differ as long as the vocabulary has others, then repeats them."""
        found: dict[Light, None] = {}
        for _ in range(_TRIES * count):
            if len(found) == count:
                break
            found[self.draw(rng, aspects)] = None
        return list(itertools.islice(itertools.cycle(found), count))

    def _fits(self, aspect: str, name: str, chosen: Mapping[str, str]) -> bool:
        """Whether an entry goes with those that were chosen."""
        limits = self.entries[aspect][name].only
        return all(
            other_name in limits.get(other, (other_name,))
            and name in self.entries[other][other_name].only.get(aspect, (name,))
            for other, other_name in chosen.items()
        )


def _no_aspect(aspect: str) -> UserError:
    return UserError(
        f"a light has no {aspect!r}; expected {', '.join(ASPECTS)}{did_you_mean(aspect, ASPECTS)}"
    )


def _telling(text: str) -> list[str]:
    """The words of a text that tell a light."""
    return [word for word in re.findall(r"[^\W_]+", text.lower()) if word not in _FILLERS]


_Entries = Mapping[str, LightWord]


@dataclasses.dataclass(frozen=True)
class _File:
    """The contents of a file."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    name: str
    extends: str | None = None
    description: str | None = None
    instruction: str | None = None
    plain: str | None = None
    direction: _Entries = dataclasses.field(default_factory=dict)
    source: _Entries = dataclasses.field(default_factory=dict)
    time: _Entries = dataclasses.field(default_factory=dict)
    temperature: _Entries = dataclasses.field(default_factory=dict)
    hardness: _Entries = dataclasses.field(default_factory=dict)
    contrast: _Entries = dataclasses.field(default_factory=dict)


@functools.cache
def load_lights(path: Path | None = None) -> Lights:
    """The vocabulary of a file, or ours.

    Raises:
        UserError: The file cannot be read or used.
    """
    where = str(path or _OURS)
    file = build(_File, read_toml(path or _OURS), where)
    ours = None if path is None else load_lights()
    if file.extends is not None and (ours is None or file.extends != ours.name):
        raise UserError(
            f"{where}: extends must be {ours.name if ours else 'absent'!r}, got {file.extends!r}"
        )
    entries: dict[str, Mapping[str, LightWord]] = {}
    for aspect in ASPECTS:
        before = ours.entries.get(aspect, {}) if ours and file.extends else {}
        if both := {**before, **getattr(file, aspect)}:
            entries[aspect] = both
    phrases = {} if ours is None else dataclasses.asdict(ours.phrases)
    phrases |= {
        name: text
        for name in ("description", "instruction", "plain")
        if (text := getattr(file, name)) is not None
    }
    lights = Lights(file.name, entries, Phrases(**phrases))
    _check(lights, where)
    return lights


def _check(lights: Lights, where: str) -> None:
    if not lights.entries:
        raise UserError(f"{where} has no entries; give one in {', '.join(ASPECTS)}")
    for text in (lights.phrases.description, lights.phrases.instruction):
        for field in _FIELD.findall(text):
            if field not in ASPECTS:
                raise UserError(f"{where}: {text!r}: {_no_aspect(field)}")
    for aspect, entries in lights.entries.items():
        for name, entry in entries.items():
            for other, allowed in entry.only.items():
                known = lights.entries.get(other, {})
                for each in allowed:
                    if each not in known:
                        raise UserError(
                            f"{where}: {aspect}.{name} goes only with the {other} {each!r}, which "
                            f"is not there{did_you_mean(each, known)}"
                        )
    try:
        _ = lights.readable  # finds words that are there twice
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
