"""Stage 5 (`dsd data judge`): asks a vision-language model whether a pair fits its task.

Mode `steps` is the paper's: three turns of one conversation about one pair. `scores` asks once for
a mark per aspect. `grid` asks once per grid which of its panels belong together, and `steps` judges
a sample of its pairs as an audit. The task of a pair holds the questions. Pairs that a setting asks
it for are then asked about their lights: whether each picture shows the one that it was to have.
"""

import asyncio
import dataclasses
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

from dsd_jax.data.make.crops import Pictures
from dsd_jax.data.make.ids import PANELS, GridId, PairId
from dsd_jax.data.make.stages import JUDGEMENTS, UNJUDGED, Judgement, Pair, Turn
from dsd_jax.errors import UserError
from dsd_jax.lights import Lights, load_lights
from dsd_jax.llm.answers import UNANSWERED, detail_of, user
from dsd_jax.llm.messages import Answer, Ask, Message, Picture, Request, Unanswered
from dsd_jax.llm.reading import LONGEST, json_of, problem_of
from dsd_jax.llm.wording import Wording
from dsd_jax.tasks import TASKS, Question, task_named

__all__ = [
    "LIGHT",
    "OTHER_LIGHT",
    "Decision",
    "Judge",
    "JudgeConfig",
    "PairJudge",
    "unjudged",
    "verdict_of",
]

MOST = 10  # highest mark of an aspect
LIGHT = "light"
"""Table of the question about lights in the wordings."""
OTHER_LIGHT = "other_light"
"""Reason of a pair that shows another light than the one that was asked for."""
_LIT = ("first_light", "second_light")  # marks of the lights of a pair
_WORD = re.compile(r"[^\W_]+")
_ECHO = re.compile(r"\byes\W+(?:or|nor|and)\W+no\W*$", re.IGNORECASE)  # repeats the question

Verdict = Literal["yes", "no"]

_GRID_SCHEMA = {
    "type": "object",
    "properties": {
        "subject": {"type": "string"},
        "groups": {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}},
    },
    "required": ["subject", "groups"],
    "additionalProperties": False,
}


def _scores_schema(aspects: Sequence[str], *texts: str) -> dict[str, Any]:
    """Marks without limits, which not all servers know; they are checked here."""
    return {
        "type": "object",
        "properties": {
            **{aspect: {"type": "integer"} for aspect in aspects},
            **{text: {"type": "string"} for text in texts},
        },
        "required": [*aspects, *texts],
        "additionalProperties": False,
    }


@dataclasses.dataclass(frozen=True)
class JudgeConfig:
    """`[judge]`.

    Attributes:
        provider: Model that judges. Empty if no pair needs a judge.
        mode: `steps` (the paper's), `scores`, or `grid`.
        least: Mark, of 10, that a pair needs in every aspect to be kept (mode `scores`).
        audit: Share of pairs that are judged by steps as well (mode `grid`).
        temperature: Temperature of the model. None uses the model's default.
        max_tokens: Largest number of tokens of an answer, hidden reasoning included.
        light: Smallest mark, of 10, for how well each picture shows the light that was asked for,
            by task. Tasks that are not named are not asked about it.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    provider: str = ""
    mode: Literal["steps", "scores", "grid"] = "steps"
    least: int = 8
    audit: float = 0.1
    temperature: float | None = None
    max_tokens: int = 2048
    light: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.least <= MOST:
            raise UserError(f"least is a mark from 0 to {MOST}, got {self.least}")
        if not 0 <= self.audit <= 1:
            raise UserError(f"audit is a share from 0 to 1, got {self.audit}")
        for name, least in self.light.items():
            if not task_named(name).lit:
                lit = ", ".join(task.name for task in TASKS.values() if task.lit)
                raise UserError(
                    f"light of {name}: no light is asked for in the pairs of this task, only in "
                    f"those of {lit}; leave it out"
                )
            if not 0 <= least <= MOST:
                raise UserError(f"light of {name} is a mark from 0 to {MOST}, got {least}")


def verdict_of(text: str) -> Verdict | None:
    """Returns `yes` or `no` if the last line that holds words ends in it, else None."""
    lines = [line for line in text.splitlines() if _WORD.search(line)]
    if not lines or _ECHO.search(lines[-1]):
        return None
    last = _WORD.findall(lines[-1])[-1].lower()
    if last == "yes":
        return "yes"
    return "no" if last == "no" else None


@dataclasses.dataclass
class _Talk:
    """One conversation, in which one question may be asked twice.

    Attributes:
        ask: Puts a question.
        request: The last question, with the turns before it.
        turns: Answers so far, for the row.
        spare: Number of questions that may still be repeated.
    """

    ask: Ask
    request: Request
    turns: list[Turn] = dataclasses.field(default_factory=list)
    spare: int = 1

    async def turn(self, name: str, question: str, *shown: str | Picture) -> Answer:
        """Asks the next question; if the answer is broken, asks again."""
        messages = (*self.request.messages, user(*shown, question))
        self.request = dataclasses.replace(self.request, messages=messages)
        answer = await self._put(name, 0)
        if problem_of(answer):
            answer = await self.once_more(name) or answer
        return answer

    async def once_more(self, name: str) -> Answer | None:
        """Asks the same question again; None if no repetition is left."""
        if not self.spare:
            return None
        self.spare -= 1
        return await self._put(name, 1)

    async def _put(self, name: str, sample: int) -> Answer:
        answer = await self.ask(dataclasses.replace(self.request, sample=sample))
        self.turns.append(
            Turn(
                step=name,
                sample=sample,
                finish=answer.finish,
                model=answer.model,
                answer=answer.text[:LONGEST],
            )
        )
        return answer

    def answered(self, answer: Answer) -> None:
        """Keeps an answer as a turn of the conversation."""
        messages = (*self.request.messages, Message("assistant", (answer.text,)))
        self.request = dataclasses.replace(self.request, messages=messages)


@dataclasses.dataclass(frozen=True)
class Decision:
    """The verdict of an answer, or the reason why there is none."""

    verdict: Verdict | None = None
    reason: str | None = None
    detail: str | None = None
    model: str | None = None
    scores: Mapping[str, int] | None = None


@dataclasses.dataclass(frozen=True)
class PairJudge:
    """Decides whether two pictures fit.

    Attributes:
        config: Settings of the stage.
        wording: Texts of the stage.
    """

    config: JudgeConfig
    wording: Wording

    async def decide(
        self,
        item: str,
        question: Question,
        mode: Literal["steps", "scores"],
        panels: tuple[bytes, bytes],
        ask: Ask,
    ) -> tuple[Decision, list[Turn]]:
        """Asks whether two pictures fit, and gives the decision and all answers.

        Args:
            item: Id of what is asked about, for the ledger.
            question: Question of the task.
            mode: Way to ask.
            panels: Reference and target, PNG files.
            ask: Puts a question.
        """
        schema = _scores_schema(question.aspects, "subject") if mode == "scores" else None
        talk = self._talk(item, ask, schema)
        try:
            if mode == "scores":
                return await self._scores(talk, question, panels), talk.turns
            return await self._steps(talk, question.steps, panels), talk.turns
        except Unanswered as error:
            return Decision(reason=UNANSWERED, detail=detail_of(error)), talk.turns

    def _talk(self, item: object, ask: Ask, schema: Mapping[str, Any] | None = None) -> _Talk:
        request = Request(
            stage=JUDGEMENTS.name,
            item=str(item),
            messages=(),
            wording=self.wording.id,
            max_tokens=self.config.max_tokens,
            temperature=self.config.temperature,
            schema=schema,
        )
        return _Talk(ask, request)

    def _shown(self, panels: tuple[bytes, bytes]) -> tuple[str | Picture, ...]:
        reference, target = panels
        first, second = self.wording("first"), self.wording("second")
        return first, Picture(reference), second, Picture(target)

    async def _steps(
        self, talk: _Talk, steps: Sequence[str], panels: tuple[bytes, bytes]
    ) -> Decision:
        *before, last = steps
        shown = self._shown(panels)
        for step in before:
            answer = await talk.turn(step, self.wording(step), *shown)
            if problem := problem_of(answer):
                return Decision(reason=problem, model=answer.model)
            talk.answered(answer)
            shown = ()
        answer = await talk.turn(last, self.wording(last), *shown)
        verdict = None if problem_of(answer) else verdict_of(answer.text)
        if verdict is None:
            answer = await talk.once_more(last) or answer
            verdict = None if problem_of(answer) else verdict_of(answer.text)
        if verdict is None:
            reason = problem_of(answer) or "neither_yes_nor_no"
            return Decision(reason=reason, model=answer.model)
        return Decision(verdict, model=answer.model)

    async def _scores(
        self, talk: _Talk, question: Question, panels: tuple[bytes, bytes]
    ) -> Decision:
        text = question.scores
        decision = await self._marks(talk, text, self.wording(text), question.aspects, panels)
        if decision.scores is None:
            return decision
        enough = min(decision.scores.values()) >= self.config.least
        return dataclasses.replace(decision, verdict="yes" if enough else "no")

    async def _marks(
        self,
        talk: _Talk,
        name: str,
        question: str,
        aspects: Sequence[str],
        panels: tuple[bytes, bytes],
    ) -> Decision:
        """Marks without a verdict, or the reason why there are none."""
        answer = await talk.turn(name, question, *self._shown(panels))
        scores = _scores_of(answer, aspects)
        if scores is None:
            answer = await talk.once_more(name) or answer
            scores = _scores_of(answer, aspects)
        if scores is None:
            return Decision(reason=problem_of(answer) or "no_valid_scores", model=answer.model)
        return Decision(model=answer.model, scores=scores)


def unjudged(pair: Pair, wording: Wording) -> Judgement:
    """The row of a pair that nobody needs to be asked about."""
    return Judgement(id=pair.id, mode=UNJUDGED, wording=wording.id, turns=(), status="kept")


@dataclasses.dataclass(frozen=True)
class Judge(PairJudge):
    """Judges the pairs of a grid.

    Attributes:
        pictures: Crops the panels of pairs.
        grid: Reads the whole picture of a grid, a PNG file.
        lights: Vocabulary of the lights that pairs were asked for with.
    """

    pictures: Pictures
    grid: Callable[[GridId], bytes]
    lights: Lights = dataclasses.field(default_factory=load_lights)

    async def __call__(self, pairs: Sequence[Pair], ask: Ask) -> list[Judgement]:
        """Rows for the pairs of one grid.

        A row is `kept` (yes), `rejected` (no, or another light), `undecided` (no plain answer,
        twice) or `failed`.
        """
        if self.config.mode == "grid":
            rows = await self._by_grid(pairs, ask)
        else:
            rows = await self._by_pair(pairs, self.config.mode, ask)
        work = (self._lit(pair, row, ask) for pair, row in zip(pairs, rows, strict=True))
        return list(await asyncio.gather(*work))

    async def _lit(self, pair: Pair, row: Judgement, ask: Ask) -> Judgement:
        """The row after the question about lights; the verdict stays that about the scene."""
        least = self.config.light.get(pair.task)
        before, after = pair.reference_light, pair.target_light
        if least is None or not row.kept or before is None or after is None:
            return row
        first, second = (self.lights.light(each).description for each in (before, after))
        name = f"{LIGHT}.marks"
        question = self.wording(name, first=first, second=second)
        talk = self._talk(pair.id, ask, _scores_schema(_LIT))
        try:
            (panels,) = await asyncio.to_thread(self.pictures, [pair])
            found = await self._marks(talk, name, question, _LIT, panels)
        except Unanswered as error:
            found = Decision(reason=UNANSWERED, detail=detail_of(error))
        row = dataclasses.replace(
            row,
            turns=(*row.turns, *talk.turns),
            reason=found.reason,
            detail=found.detail,
            model=found.model or row.model,
            scores={**(row.scores or {}), **found.scores} if found.scores else row.scores,
        )
        if found.reason == UNANSWERED:
            return dataclasses.replace(row, status="failed")
        if found.scores is None:
            return dataclasses.replace(row, status="undecided")
        if min(found.scores.values()) < least:
            return dataclasses.replace(row, status="rejected", reason=OTHER_LIGHT)
        return row

    def _row(self, pair: Pair, mode: str, decision: Decision, turns: Sequence[Turn]) -> Judgement:
        row = Judgement(
            id=pair.id,
            mode=mode,
            wording=self.wording.id,
            turns=tuple(turns),
            verdict=decision.verdict,
            reason=decision.reason,
            detail=decision.detail,
            model=decision.model,
            scores=decision.scores,
            status="failed" if decision.reason == UNANSWERED else "undecided",
        )
        if decision.verdict == "yes":
            return dataclasses.replace(row, status="kept")
        if decision.verdict == "no":
            return dataclasses.replace(row, status="rejected", reason="no")
        return row

    async def _by_pair(
        self, pairs: Sequence[Pair], mode: Literal["steps", "scores"], ask: Ask
    ) -> list[Judgement]:
        panels = await asyncio.to_thread(self.pictures, pairs)

        async def row(pair: Pair, shown: tuple[bytes, bytes]) -> Judgement:
            question = task_named(pair.task).asked()
            return self._row(
                pair, mode, *await self.decide(str(pair.id), question, mode, shown, ask)
            )

        work = (row(pair, shown) for pair, shown in zip(pairs, panels, strict=True))
        return list(await asyncio.gather(*work))

    async def _by_grid(self, pairs: Sequence[Pair], ask: Ask) -> list[Judgement]:
        grid = pairs[0].grid_id
        text = task_named(pairs[0].task).asked().grid
        talk = self._talk(grid, ask, _GRID_SCHEMA)
        groups: dict[int, int] | None = None
        try:
            picture = Picture(await asyncio.to_thread(self.grid, grid))
            answer = await talk.turn(text, self.wording(text), picture)
            groups = _groups_of(answer)
            if groups is None:
                answer = await talk.once_more(text) or answer
                groups = _groups_of(answer)
        except Unanswered as error:
            broken = Decision(reason=UNANSWERED, detail=detail_of(error))
        else:
            reason = problem_of(answer) or "no_valid_groups"
            broken = Decision(reason=reason, model=answer.model)
        if groups is None:
            return [self._row(pair, "grid", broken, talk.turns) for pair in pairs]
        rows = []
        for pair in pairs:
            same = groups[pair.id.reference] == groups[pair.id.target]
            decision = Decision("yes" if same else "no", model=answer.model)
            rows.append(self._row(pair, "grid", decision, talk.turns))
        return await self._with_audit(pairs, rows, ask)

    async def _with_audit(
        self, pairs: Sequence[Pair], rows: Sequence[Judgement], ask: Ask
    ) -> list[Judgement]:
        """The rows of a grid; a sample is judged by steps too, whose verdict then counts."""
        audited = [pair for pair in pairs if self._audited(pair.id)]
        found = {row.id: row for row in await self._by_pair(audited, "steps", ask)}
        return [_audited(row, found[row.id]) if row.id in found else row for row in rows]

    def _audited(self, pair: PairId) -> bool:
        place = int(hashlib.sha256(f"audit {pair}".encode()).hexdigest()[:8], 16)
        return place < self.config.audit * 16**8


def _audited(by_grid: Judgement, by_steps: Judgement) -> Judgement:
    turns = by_grid.turns + by_steps.turns
    return dataclasses.replace(
        by_steps, mode=by_grid.mode, grid_verdict=by_grid.verdict, turns=turns
    )


def _scores_of(answer: Answer, aspects: Sequence[str]) -> dict[str, int] | None:
    """A mark within its range for every aspect, or None."""
    content = None if problem_of(answer) else json_of(answer.text)
    if content is None:
        return None
    marks = {aspect: content.get(aspect) for aspect in aspects}
    whole = all(type(mark) is int and 0 <= mark <= MOST for mark in marks.values())
    return {name: int(mark) for name, mark in marks.items() if mark is not None} if whole else None


def _groups_of(answer: Answer) -> dict[int, int] | None:
    """The group number of each panel, if every panel is in exactly one group; else None."""
    content = None if problem_of(answer) else json_of(answer.text)
    groups = (content or {}).get("groups")
    if not isinstance(groups, list) or not all(isinstance(group, list) for group in groups):
        return None
    panels = [panel for group in groups for panel in group]
    if any(type(panel) is not int for panel in panels) or sorted(panels) != list(PANELS):
        return None
    return {panel: number for number, group in enumerate(groups) for panel in group}
