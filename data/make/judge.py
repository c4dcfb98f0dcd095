"""Stage 5: whether both panels of a pair show the identical subject, by the words of a VLM.

The paper's way is three turns of one conversation about one pair (`mode = "steps"`). `scores` asks
once for marks per aspect; `grid` asks once per grid which of its panels belong together, and the
three turns judge a sample of its pairs as an audit.
"""

import asyncio
import dataclasses
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

from dsd_jax.data.make.answers import LONGEST, failed, json_of, problem_of, user
from dsd_jax.data.make.crops import Pictures
from dsd_jax.data.make.parts import Row
from dsd_jax.data.make.wording import Wording
from dsd_jax.errors import UserError
from dsd_jax.llm.messages import Answer, Ask, Message, Picture, Request, Unanswered

__all__ = ["ASPECTS", "Judge", "JudgeConfig", "verdict_of"]

STAGE = "judge"
ASPECTS = ("form", "colour", "material", "details", "identity")
MOST = 10  # of the scale of an aspect
_STEPS = ("step_1", "step_2", "step_3")
_WORD = re.compile(r"[^\W_]+")
_ECHO = re.compile(r"\byes\W+(?:or|nor|and)\W+no\W*$", re.IGNORECASE)  # the question, not an answer

_SCORES_SCHEMA = {
    "type": "object",
    "properties": {
        # Not all servers know limits of numbers; they are checked here.
        **{aspect: {"type": "integer"} for aspect in ASPECTS},
        "subject": {"type": "string"},
    },
    "required": [*ASPECTS, "subject"],
    "additionalProperties": False,
}
_GRID_SCHEMA = {
    "type": "object",
    "properties": {
        "subject": {"type": "string"},
        "groups": {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}},
    },
    "required": ["subject", "groups"],
    "additionalProperties": False,
}


@dataclasses.dataclass(frozen=True)
class JudgeConfig:
    """`[judge]`.

    Attributes:
        provider: that judges.
        mode: `steps` (the paper's), `scores`, or `grid`.
        least: every aspect's mark that a pair needs to be kept, of 10; with `scores`.
        audit: share of pairs that are judged by steps as well; with `grid`.
        temperature: of the model; None: its own.
        max_tokens: of an answer, hidden reasoning included.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    provider: str
    mode: Literal["steps", "scores", "grid"] = "steps"
    least: int = 8
    audit: float = 0.1
    temperature: float | None = None
    max_tokens: int = 2048

    def __post_init__(self) -> None:
        if not 0 <= self.least <= MOST:
            raise UserError(f"least is a mark from 0 to {MOST}, got {self.least}")
        if not 0 <= self.audit <= 1:
            raise UserError(f"audit is a share from 0 to 1, got {self.audit}")


def verdict_of(text: str) -> str | None:
    """`yes` or `no`, if that is the last word of the last line with a word in it; else None."""
    lines = [line for line in text.splitlines() if _WORD.search(line)]
    if not lines or _ECHO.search(lines[-1]):
        return None
    last = _WORD.findall(lines[-1])[-1].lower()
    return last if last in {"yes", "no"} else None


@dataclasses.dataclass
class _Talk:
    """One conversation: what was said, and the one question that may be put twice."""

    ask: Ask
    request: Request
    turns: list[Row]
    spare: int = 1

    async def turn(self, name: str, question: str, *pictures: Any) -> Answer:
        """The answer to the next question; a broken one is asked for again, once in all."""
        messages = (*self.request.messages, user(*pictures, question))
        self.request = dataclasses.replace(self.request, messages=messages)
        answer = await self._put(name, 0)
        if problem_of(answer):
            answer = await self.once_more(name) or answer
        return answer

    async def once_more(self, name: str) -> Answer | None:
        """The same question again; None if that has been done before."""
        if not self.spare:
            return None
        self.spare -= 1
        return await self._put(name, 1)

    async def _put(self, name: str, sample: int) -> Answer:
        answer = await self.ask(dataclasses.replace(self.request, sample=sample))
        said = {"step": name, "sample": sample, "finish": answer.finish, "model": answer.model}
        self.turns.append({**said, "answer": answer.text[:LONGEST]})
        return answer

    def answered(self, answer: Answer) -> None:
        """Keeps an answer as a turn of the conversation."""
        messages = (*self.request.messages, Message("assistant", (answer.text,)))
        self.request = dataclasses.replace(self.request, messages=messages)


@dataclasses.dataclass(frozen=True)
class Judge:
    """Judges the pairs of a grid.

    Attributes:
        config: of the stage.
        wording: of the stage.
        pictures: the panels of pairs.
        grid: the whole picture of a grid, by its id, as a PNG file.
    """

    config: JudgeConfig
    wording: Wording
    pictures: Pictures
    grid: Callable[[str], bytes]

    async def __call__(self, pairs: Sequence[Row], ask: Ask) -> list[Row]:
        """Rows of the stage for the pairs of one grid.

        A row has the `verdict` (yes or no) and every turn of the conversation; it is `kept`,
        `rejected` (no), `undecided` (anything but a plain yes or no, twice) or `failed`.
        """
        if self.config.mode == "grid":
            return await self._by_grid(pairs, ask)
        judge = self._steps if self.config.mode == "steps" else self._scores
        panels = await asyncio.to_thread(self.pictures, pairs)
        work = (judge(pair, shown, ask) for pair, shown in zip(pairs, panels, strict=True))
        return list(await asyncio.gather(*work))

    def _talk(self, item: str, ask: Ask, schema: Mapping[str, Any] | None = None) -> _Talk:
        request = Request(
            stage=STAGE,
            item=item,
            messages=(),
            wording=self.wording.id,
            max_tokens=self.config.max_tokens,
            temperature=self.config.temperature,
            schema=schema,
        )
        return _Talk(ask, request, [])

    def _shown(self, panels: tuple[bytes, bytes]) -> tuple[str | Picture, ...]:
        reference, target = panels
        first, second = self.wording("first"), self.wording("second")
        return first, Picture(reference), second, Picture(target)

    async def _steps(self, pair: Row, panels: tuple[bytes, bytes], ask: Ask) -> Row:
        talk = self._talk(pair["id"], ask)
        row: Row = {"id": pair["id"], "mode": "steps", "wording": self.wording.id}
        try:
            outcome = await self._three_turns(talk, panels)
        except Unanswered as error:
            outcome = failed(error)
        return {**row, **outcome, "turns": talk.turns}

    async def _three_turns(self, talk: _Talk, panels: tuple[bytes, bytes]) -> Row:
        pictures = self._shown(panels)
        for step in _STEPS[:-1]:
            answer = await talk.turn(step, self.wording(step), *pictures)
            if problem := problem_of(answer):
                return _undecided(problem, answer)
            talk.answered(answer)
            pictures = ()
        answer = await talk.turn(_STEPS[-1], self.wording(_STEPS[-1]))
        verdict = None if problem_of(answer) else verdict_of(answer.text)
        if verdict is None:
            again = await talk.once_more(_STEPS[-1])
            answer = again or answer
            verdict = None if problem_of(answer) else verdict_of(answer.text)
        if verdict is None:
            return _undecided(problem_of(answer) or "neither_yes_nor_no", answer)
        return _decided(verdict, answer)

    async def _scores(self, pair: Row, panels: tuple[bytes, bytes], ask: Ask) -> Row:
        talk = self._talk(pair["id"], ask, _SCORES_SCHEMA)
        row: Row = {"id": pair["id"], "mode": "scores", "wording": self.wording.id}
        try:
            answer = await talk.turn("scores", self.wording("scores"), *self._shown(panels))
            scores = _scores_of(answer)
            if scores is None:
                answer = await talk.once_more("scores") or answer
                scores = _scores_of(answer)
        except Unanswered as error:
            return {**row, **failed(error), "turns": talk.turns}
        if scores is None:
            outcome = _undecided(problem_of(answer) or "no_valid_scores", answer)
        else:
            enough = min(scores[aspect] for aspect in ASPECTS) >= self.config.least
            outcome = {**_decided("yes" if enough else "no", answer), "scores": scores}
        return {**row, **outcome, "turns": talk.turns}

    async def _by_grid(self, pairs: Sequence[Row], ask: Ask) -> list[Row]:
        grid = pairs[0]["id"].rpartition("-")[0]
        talk = self._talk(grid, ask, _GRID_SCHEMA)
        try:
            picture = Picture(await asyncio.to_thread(self.grid, grid))
            answer = await talk.turn("grid", self.wording("grid"), picture)
            groups = _groups_of(answer)
            if groups is None:
                answer = await talk.once_more("grid") or answer
                groups = _groups_of(answer)
        except Unanswered as error:
            groups, broken = None, failed(error)
        else:
            broken = _undecided(problem_of(answer) or "no_valid_groups", answer)
        rows: list[Row] = []
        for pair in pairs:
            row: Row = {"id": pair["id"], "mode": "grid", "wording": self.wording.id}
            if groups is None:
                row |= broken
            else:
                first, second = int(pair["id"][-2]), int(pair["id"][-1])
                verdict = "yes" if groups[first] == groups[second] else "no"
                row |= _decided(verdict, answer)
            rows.append({**row, "turns": list(talk.turns)})
        audited = [n for n, row in enumerate(rows) if groups is not None and self._audited(row)]
        panels = await asyncio.to_thread(self.pictures, [pairs[n] for n in audited])
        closer = await asyncio.gather(
            *(self._steps(pairs[n], shown, ask) for n, shown in zip(audited, panels, strict=True))
        )
        for n, row in zip(audited, closer, strict=True):  # the closer look decides
            turns = rows[n]["turns"] + row["turns"]
            rows[n] = {**row, "mode": "grid", "grid_verdict": rows[n]["verdict"], "turns": turns}
        return rows

    def _audited(self, pair: Row) -> bool:
        place = int(hashlib.sha256(f"audit {pair['id']}".encode()).hexdigest()[:8], 16)
        return place < self.config.audit * 16**8


def _decided(verdict: str, answer: Answer) -> Row:
    outcome: Row = {"verdict": verdict, "model": answer.model}
    return outcome | (
        {"status": "kept"} if verdict == "yes" else {"status": "rejected", "reason": "no"}
    )


def _undecided(reason: str, answer: Answer) -> Row:
    return {"status": "undecided", "reason": reason, "model": answer.model}


def _scores_of(answer: Answer) -> dict[str, int] | None:
    """Marks within their range, every aspect's, or None."""
    content = None if problem_of(answer) else json_of(answer.text)
    if content is None:
        return None
    marks = {aspect: content.get(aspect) for aspect in ASPECTS}
    whole = all(type(mark) is int and 0 <= mark <= MOST for mark in marks.values())
    return {name: int(mark) for name, mark in marks.items() if mark is not None} if whole else None


def _groups_of(answer: Answer) -> dict[int, int] | None:
    """Panel number to number of its group, each of the four panels in just one; or None."""
    content = None if problem_of(answer) else json_of(answer.text)
    groups = (content or {}).get("groups")
    if not isinstance(groups, list) or not all(isinstance(group, list) for group in groups):
        return None
    panels = [panel for group in groups for panel in group]
    if any(type(panel) is not int for panel in panels) or sorted(panels) != [1, 2, 3, 4]:
        return None
    return {panel: number for number, group in enumerate(groups) for panel in group}
