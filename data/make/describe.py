"""Stage 6 (`dsd data caption`): words for the kept pairs, the target's description and the edit."""

import asyncio
import dataclasses
import functools
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, ClassVar

from dsd_jax.data.make.answers import Check, Fault, Written, failed, one_line, user, written
from dsd_jax.data.make.crops import Pictures
from dsd_jax.data.make.parts import Row
from dsd_jax.data.make.prompts import CLIP_TOKENS
from dsd_jax.data.make.wording import Wording
from dsd_jax.errors import UserError
from dsd_jax.llm.messages import Ask, Picture, Request, Unanswered

__all__ = ["CaptionConfig", "Describer"]

STAGE = "caption"
_KINDS = ("caption", "instruction")
_ABOUT_PICTURES = re.compile(r"\b(images?|transform\w*)\b", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class CaptionConfig:
    """`[caption]`.

    Attributes:
        provider: that describes.
        description: whether the target is described.
        instruction: whether the edit from reference to target is put into words.
        both_ways: whether a pair is also described from target to reference.
        retries: how often a text that breaks a rule is asked for again.
        temperature: of the model; None: its own.
        max_tokens: of an answer, hidden reasoning included.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    provider: str
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


_Work = Callable[[], Awaitable[Written | Row]]


@dataclasses.dataclass(frozen=True)
class Describer:
    """Has the pairs of a grid described; a panel in several pairs is described once.

    Attributes:
        config: of the stage.
        wording: of the stage.
        count_tokens: CLIP tokens of a text, start and end included.
        pictures: the panels of pairs.
    """

    config: CaptionConfig
    wording: Wording
    count_tokens: Callable[[str], int]
    pictures: Pictures

    async def __call__(self, pairs: Sequence[Row], ask: Ask) -> list[Row]:
        """Rows of the stage for pairs of one grid.

        A row has `forward`, and with both ways `reverse`, each with a `caption`, an `instruction`
        or both; what could not be written is missing there, with its reason. It is `kept` if there
        is a way with words.
        """
        grid = pairs[0]["id"].rpartition("-")[0]
        wanted: dict[str, _Work] = {}
        panels = await asyncio.to_thread(self.pictures, pairs)
        for pair, shown in zip(pairs, panels, strict=True):
            reference, target = Picture(shown[0]), Picture(shown[1])
            first, second = pair["id"][-2], pair["id"][-1]
            ways = [(first, reference, second, target)]
            if self.config.both_ways:
                ways.append((second, target, first, reference))
            for start, before, end, after in ways:
                name = f"{grid}-{end}"
                if self.config.description and name not in wanted:
                    wanted[name] = self._description(name, after, ask)
                name = f"{grid}-{start}{end}"
                if self.config.instruction and name not in wanted:
                    wanted[name] = self._instruction(name, before, after, ask)
        texts = await asyncio.gather(*(work() for work in wanted.values()))
        results = dict(zip(wanted, texts, strict=True))
        return [self._row(pair["id"], results) for pair in pairs]

    def _row(self, pair: str, results: dict[str, Written | Row]) -> Row:
        grid, _, ends = pair.rpartition("-")
        row: Row = {"id": pair, "wording": self.wording.id}
        ways = {"forward": ends, "reverse": ends[::-1]}
        if not self.config.both_ways:
            del ways["reverse"]
        for way, path in ways.items():
            start, end = path[0], path[1]
            row[way] = {}
            for kind, name in (
                ("caption", f"{grid}-{end}"),
                ("instruction", f"{grid}-{start}{end}"),
            ):
                if name in results:
                    row[way] |= _told(kind, results[name])
        if any("caption" in row[way] or "instruction" in row[way] for way in ways):
            models = {row[way].get(f"{kind}_model", "") for way in ways for kind in _KINDS}
            return {**row, "status": "kept", "model": ", ".join(sorted(models - {""}))}
        told = row["forward"]
        reason = told.get("no_caption") or told.get("no_instruction")
        status = "failed" if reason == "unanswered" else "rejected"
        return {**row, "status": status, "reason": reason}

    def _request(self, item: str, *parts: str | Picture) -> Request:
        return Request(
            stage=STAGE,
            item=item,
            messages=(user(*parts),),
            wording=self.wording.id,
            max_tokens=self.config.max_tokens,
            temperature=self.config.temperature,
        )

    def _description(self, item: str, panel: Picture, ask: Ask) -> _Work:
        request = self._request(item, panel, self.wording("target"))
        return functools.partial(self._written, request, self._check_description, ask)

    def _instruction(self, item: str, before: Picture, after: Picture, ask: Ask) -> _Work:
        first, second = self.wording("first"), self.wording("second")
        parts = (first, before, second, after, self.wording("instruction"))
        request = self._request(item, *parts)
        return functools.partial(self._written, request, _check_instruction, ask)

    async def _written(self, request: Request, check: Check, ask: Ask) -> Written | Row:
        def again(faults: str) -> str:
            return self.wording("again", faults=faults)

        try:
            return await written(ask, request, check, again, self.config.retries)
        except Unanswered as error:
            return failed(error)

    def _check_description(self, answer: str) -> tuple[str, list[Fault]]:
        text, faults = one_line(answer)
        tokens = self.count_tokens(text)
        if tokens > CLIP_TOKENS:
            told = f"it has {tokens} CLIP tokens where {CLIP_TOKENS} are allowed"
            faults.append(Fault("too_long", told))
        return text, faults


def _check_instruction(answer: str) -> tuple[str, list[Fault]]:
    text, faults = one_line(answer)
    if word := _ABOUT_PICTURES.search(text):
        told = f'it holds the word "{word[0].lower()}"'
        faults.append(Fault("about_pictures", told))
    return text, faults


def _told(kind: str, result: Written | Row) -> Row:
    if not isinstance(result, Written):
        return {f"no_{kind}": result["reason"], "detail": result["detail"]}
    if result.text is None:
        return {f"no_{kind}": result.reason, f"{kind}_model": result.model}
    return {kind: result.text, f"{kind}_model": result.model}
