"""Stage 6 (`dsd data caption`): describes the targets of kept pairs, and the edits to them."""

import asyncio
import dataclasses
import functools
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, ClassVar

from dsd_jax.data.make.crops import Pictures
from dsd_jax.data.make.ids import Id, PairId, PanelId
from dsd_jax.data.make.routes import lights_in, lit_prompt, route_named
from dsd_jax.data.make.stages import DESCRIPTIONS, Description, Pair, Prompt, Words
from dsd_jax.errors import UserError
from dsd_jax.lights import Light, Lights, load_lights
from dsd_jax.llm.answers import (
    Check,
    Fault,
    Written,
    clip_faults,
    one_line,
    user,
    written,
)
from dsd_jax.llm.messages import Ask, Picture, Request
from dsd_jax.llm.wording import Wording
from dsd_jax.tasks import task_named

__all__ = ["CaptionConfig", "Describer", "lights_of", "told_by_prompts"]

_ABOUT_PICTURES = re.compile(r"\b(images?|transform\w*)\b", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class CaptionConfig:
    """`[caption]`.

    Attributes:
        provider: Model that describes. Empty if all pairs are described by their prompts.
        description: Describes the target.
        instruction: Puts the edit from reference to target into words.
        both_ways: Describes a pair from target to reference too.
        retries: Most further questions for a text that breaks a rule.
        temperature: Temperature of the model. None uses the model's default.
        max_tokens: Largest number of tokens of an answer, hidden reasoning included.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    provider: str = ""
    description: bool = True
    instruction: bool = True
    both_ways: bool = True
    retries: int = 2
    temperature: float | None = None
    max_tokens: int = 1024

    def __post_init__(self) -> None:
        if not (self.description or self.instruction):
            raise UserError("a pair needs words: description, instruction, or both")
        if self.retries < 0:
            raise UserError(f"retries must not be negative, got {self.retries}")


_Work = Callable[[], Awaitable[Written[str]]]


@dataclasses.dataclass(frozen=True)
class Describer:
    """Describes the pairs of a grid; a panel that is in several pairs is described once.

    Attributes:
        config: Settings of the stage.
        wording: Texts of the stage.
        count_tokens: Counts the CLIP tokens of a text, start and end included.
        pictures: Crops the panels of pairs.
        lights: Vocabulary of the lights of pairs.
    """

    config: CaptionConfig
    wording: Wording
    count_tokens: Callable[[str], int]
    pictures: Pictures
    lights: Lights = dataclasses.field(default_factory=load_lights)

    async def __call__(self, pairs: Sequence[Pair], ask: Ask) -> list[Description]:
        """Rows for the pairs of one grid; `kept` if there are texts for a direction."""
        wanted: dict[Id, _Work] = {}
        panels = await asyncio.to_thread(self.pictures, pairs)
        for pair, (reference, target) in zip(pairs, panels, strict=True):
            shown = [Picture(reference), Picture(target)]
            lights = lights_of(pair, self.lights)
            ways = [(pair.id, shown, lights)]
            if self.config.both_ways:
                ways.append((pair.id.flipped(), shown[::-1], lights[::-1]))
            for way, pictures, lit in ways:
                _, end = way.panels
                if self.config.description and end not in wanted:
                    wanted[end] = self._description(pair, end, pictures[1], ask)
                if self.config.instruction and way not in wanted:
                    wanted[way] = self._instruction(pair, way, pictures, lit, ask)
        texts = await asyncio.gather(*(work() for work in wanted.values()))
        results = dict(zip(wanted, texts, strict=True))
        return [self._row(pair.id, results) for pair in pairs]

    def _row(self, pair: PairId, results: Mapping[Id, Written[str]]) -> Description:
        forward = _words(pair, results)
        reverse = _words(pair.flipped(), results) if self.config.both_ways else None
        row = Description(
            id=pair, wording=self.wording.id, forward=forward, reverse=reverse, status="kept"
        )
        ways = [forward, *([reverse] if reverse is not None else [])]
        if any(ways):
            models = {model for way in ways for model in (way.caption_model, way.instruction_model)}
            return dataclasses.replace(row, model=", ".join(sorted(filter(None, models))))
        reason = forward.no_caption or forward.no_instruction
        return dataclasses.replace(row, status=Written[str](reason=reason).status, reason=reason)

    def _request(self, item: Id, *parts: str | Picture) -> Request:
        return Request(
            stage=DESCRIPTIONS.name,
            item=str(item),
            messages=(user(*parts),),
            wording=self.wording.id,
            max_tokens=self.config.max_tokens,
            temperature=self.config.temperature,
        )

    def _description(self, pair: Pair, item: PanelId, panel: Picture, ask: Ask) -> _Work:
        text = task_named(pair.task).description
        request = self._request(item, panel, self.wording(text))
        return functools.partial(self._written, request, self._check_description, ask)

    def _instruction(
        self,
        pair: Pair,
        item: PairId,
        pictures: Sequence[Picture],
        lights: Sequence[Light],
        ask: Ask,
    ) -> _Work:
        first, second = self.wording("first"), self.wording("second")
        text = task_named(pair.task).instruction
        told = dict(zip(("before", "after"), (light.description for light in lights), strict=False))
        asked = self.wording(text, **told)
        request = self._request(item, first, pictures[0], second, pictures[1], asked)
        return functools.partial(self._written, request, _check_instruction, ask)

    async def _written(self, request: Request, check: Check[str], ask: Ask) -> Written[str]:
        def again(faults: str) -> str:
            return self.wording("again", faults=faults)

        return await written(ask, request, check, again, self.config.retries)

    def _check_description(self, answer: str) -> tuple[str, list[Fault]]:
        text, faults = one_line(answer)
        return text, faults + clip_faults(self.count_tokens(text))


def lights_of(pair: Pair, vocabulary: Lights) -> list[Light]:
    """The lights of reference and target that were asked for; empty for tasks without lights."""
    named = [each for each in (pair.reference_light, pair.target_light) if each is not None]
    return lights_in(vocabulary, named)


def told_by_prompts(
    pair: Pair, prompt: Prompt, config: CaptionConfig, wording: Wording, vocabulary: Lights
) -> Description:
    """The row of a pair whose panels were painted from a scene and their lights.

    Its texts are those words, and nobody is asked. A pair of an exact route has no reverse, because
    its reference is no good target.
    """
    scene = prompt.prompt
    assert scene is not None  # of a kept pair
    before, after = lights_of(pair, vocabulary)

    def words(start: Light, end: Light) -> Words:
        return Words(
            caption=lit_prompt(scene, end) if config.description else None,
            instruction=end.instruction(start) if config.instruction else None,
        )

    one_way = route_named(pair.route).exact or not config.both_ways
    return Description(
        id=pair.id,
        wording=wording.id,
        forward=words(before, after),
        reverse=None if one_way else words(after, before),
        status="kept",
    )


def _check_instruction(answer: str) -> tuple[str, list[Fault]]:
    text, faults = one_line(answer)
    if word := _ABOUT_PICTURES.search(text):
        told = f'it holds the word "{word[0].lower()}"'
        faults.append(Fault("about_pictures", told))
    return text, faults


def _words(way: PairId, results: Mapping[Id, Written[str]]) -> Words:
    """The texts of one direction, or the reasons why they are missing."""
    nothing = Written[str]()
    _, end = way.panels
    caption, instruction = results.get(end, nothing), results.get(way, nothing)
    return Words(
        caption=caption.value,
        no_caption=caption.reason,
        caption_model=caption.model,
        instruction=instruction.value,
        no_instruction=instruction.reason,
        instruction_model=instruction.model,
        detail=instruction.detail or caption.detail,
    )
