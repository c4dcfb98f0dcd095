"""Runs a stage part by part: turns the rows of the stage before into rows of this one."""

import contextlib
import dataclasses
import functools
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from itertools import groupby
from typing import Any, Generic, TypeVar

from dsd_jax.data.make.captions import CaptionFilter, sampled
from dsd_jax.data.make.config import MakeConfig
from dsd_jax.data.make.crops import panels_of
from dsd_jax.data.make.describe import Describer, told_by_prompts
from dsd_jax.data.make.folder import begin_stage
from dsd_jax.data.make.grids import Teachers, paint_grids
from dsd_jax.data.make.judge import Judge, unjudged
from dsd_jax.data.make.pairs import make_pairs
from dsd_jax.data.make.parts import Parts
from dsd_jax.data.make.prompts import PromptWriter
from dsd_jax.data.make.routes import Route, route_named
from dsd_jax.data.make.stages import (
    CAPTIONS,
    GRIDS,
    JUDGEMENTS,
    PAIRS,
    PROMPTS,
    STAGES,
    Caption,
    Description,
    Judgement,
    Pair,
    Stage,
    StageRow,
)
from dsd_jax.errors import UserError
from dsd_jax.llm.config import ProviderConfig
from dsd_jax.llm.messages import Ask
from dsd_jax.llm.session import Session
from dsd_jax.llm.totals import first_answer
from dsd_jax.llm.transport import AnswersPending
from dsd_jax.progress import progress
from dsd_jax.shares import WorkerShare

__all__ = ["CountTokens", "OthersFirst", "Tools", "check_kept", "run_stage"]

_SHOWN = 300  # characters of a raw answer

T = TypeVar("T")
CountTokens = Callable[[str], int]
"""CLIP tokens of a text, start and end included."""


class OthersFirst(Exception):  # noqa: N818 - nothing is wrong
    """This worker cannot go on until other workers are done."""


@dataclasses.dataclass(frozen=True)
class Tools:
    """The tools of stages other than language models. Each is opened when it is first needed.

    Attributes:
        teacher: Opens the text-to-image model for a route.
        count_tokens: Opens the tokenizer.
    """

    teacher: Teachers
    count_tokens: Callable[[], CountTokens]


def run_stage(
    config: MakeConfig, stage: Stage[StageRow], share: WorkerShare, tools: Tools
) -> Parts:
    """Finishes this worker's parts of a stage.

    Returns:
        The work folder.

    Raises:
        UserError: The stage before is not finished, or the stage cannot go on; what was made and
            answered is kept.
        OthersFirst: Pairs are compared across all grids, and other workers have not cut theirs.
        AnswersPending: Another program has to answer the files of some parts; the others are done.
    """
    parts = begin_stage(config, stage)
    for before in STAGES[: STAGES.index(stage)][-1:]:
        check_kept(parts, before)
    if stage is GRIDS:
        paint_grids(parts, config.grids, tools.teacher, share, config.relight.vocabulary())
    elif stage is PAIRS:
        if waiting := make_pairs(parts, config.pairs, share):
            raise OthersFirst(
                f"the grids of this worker are cut; {len(waiting)} of {parts.count} parts of other "
                "workers are not. Pairs are compared across all of them, so run the same command "
                "again when those are done"
            )
    else:
        todo = [part for part in share.of(parts.count) if not parts.done(stage, part)]
        if todo:
            _ask(parts, _asking(config, stage, parts, tools), todo)
    return parts


def check_kept(parts: Parts, stage: Stage[StageRow]) -> None:
    """Checks that a finished stage leaves something for the next one.

    Raises:
        UserError: All parts are finished, and no row was kept; it shows one raw answer.
    """
    if not all(parts.done(stage, part) for part in range(parts.count)):
        return
    reasons: Counter[str] = Counter()
    for row in parts.rows(stage):
        if row.kept:
            return
        reasons[row.reason or row.status] += 1
    if not reasons:
        return
    told = ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common(4))
    shown = ""
    for part in range(parts.count):
        if raw := first_answer(parts.ledger(stage, part)):
            shown = (
                f" One answer: {raw[:_SHOWN]!r}; the others are in {parts.ledger(stage, 0).parent}."
            )
            break
    raise UserError(
        f"`{stage}` kept none of {reasons.total():,} rows ({told}), so there is nothing to go on "
        f"with.{shown} The rows are in {parts.path(stage, 0).parent}; change [{stage}] or its "
        "model, and remove that folder"
    )


@dataclasses.dataclass(frozen=True)
class _Asking(Generic[T]):
    """A stage that asks a language model.

    Attributes:
        provider: Provider to ask. None asks nobody.
        items: Rows of a part that need no question, and the items that are asked about.
        work: Asks about an item and makes its rows.
    """

    stage: Stage[StageRow]
    provider: ProviderConfig | None
    items: Callable[[int], tuple[Sequence[StageRow], Sequence[T]]]
    work: Callable[[T, Ask], Awaitable[Sequence[StageRow]]]


def _ask(parts: Parts, asking: _Asking[T], todo: Sequence[int]) -> None:
    waiting: list[AnswersPending] = []
    with progress(asking.stage.name, len(todo), "parts") as advance:
        for part in todo:
            # A part that waits for answers of another program does not keep the others waiting.
            with parts.writing(asking.stage, part), _collected(waiting):
                ready, asked = asking.items(part)
                rows = list(ready)
                if asked:
                    advance_item = functools.partial(advance, 1 / len(asked))
                    rows += _answered(parts, asking, part, asked, advance_item)
                else:
                    advance()
                parts.write(asking.stage, part, rows)
    if waiting:
        raise AnswersPending("\n".join(map(str, waiting)))


@contextlib.contextmanager
def _collected(waiting: list[AnswersPending]) -> Iterator[None]:
    try:
        yield
    except AnswersPending as error:
        waiting.append(error)


def _answered(
    parts: Parts, asking: _Asking[T], part: int, items: Sequence[T], advance: Callable[[], None]
) -> list[StageRow]:
    assert asking.provider is not None  # without one there are no questions
    session = Session(asking.provider, parts.ledger(asking.stage, part))
    rows: list[StageRow] = []
    for _, made in session.run(items, asking.work):
        for row in made:
            session.note(row.status == "undecided")
        rows += made
        advance()
    return rows


def _asking(config: MakeConfig, stage: Stage[StageRow], parts: Parts, tools: Tools) -> _Asking[Any]:
    wording, provider = config.wording(stage), config.provider(stage)
    if stage is CAPTIONS:
        by_part, _ = sampled(parts, config.captions)

        def sample(part: int) -> tuple[list[Caption], list[Caption]]:
            settled = [row for row in by_part[part] if not (row.kept and provider)]
            return settled, [row for row in by_part[part] if row.kept and provider]

        return _Asking(stage, provider, sample, _single(CaptionFilter(wording)))
    if stage is PROMPTS:
        writer = PromptWriter(config.prompts, wording, tools.count_tokens(), config.relight)
        return _Asking(
            stage, provider, lambda part: ((), parts.kept(CAPTIONS, part)), _single(writer)
        )
    if stage is JUDGEMENTS:
        judge = Judge(
            config.judge,
            wording,
            panels_of(parts),
            lambda grid: parts.picture(grid).read_bytes(),
            config.relight.vocabulary(),
        )

        def to_judge(part: int) -> tuple[list[Judgement], list[list[Pair]]]:
            settled, open_pairs = _divided(_pairs(parts, part), lambda route: route.exact)
            return [unjudged(pair, wording) for pair in settled], _by_grid(open_pairs)

        return _Asking(stage, provider, to_judge, judge)
    lights = config.relight.vocabulary()
    describer = Describer(config.caption, wording, tools.count_tokens(), panels_of(parts), lights)

    def to_describe(part: int) -> tuple[list[Description], list[list[Pair]]]:
        told, others = _divided(_judged(parts, part), lambda route: route.of_scene)
        prompts = {row.id: row for row in parts.kept(PROMPTS, part)} if told else {}
        rows = [
            told_by_prompts(pair, prompts[pair.prompt_id], config.caption, wording, lights)
            for pair in told
        ]
        return rows, _by_grid(others)

    return _Asking(stage, provider, to_describe, describer)


def _single(
    work: Callable[[T, Ask], Awaitable[StageRow]],
) -> Callable[[T, Ask], Awaitable[Sequence[StageRow]]]:
    async def listed(item: T, ask: Ask) -> Sequence[StageRow]:
        return [await work(item, ask)]

    return listed


def _divided(
    pairs: Sequence[Pair], settled: Callable[[Route], bool]
) -> tuple[list[Pair], list[Pair]]:
    """Pairs by whether their route settles a stage without a question: those that it does first."""
    found: tuple[list[Pair], list[Pair]] = [], []
    for pair in pairs:
        found[0 if settled(route_named(pair.route)) else 1].append(pair)
    return found


def _pairs(parts: Parts, part: int) -> list[Pair]:
    """Pairs that passed the filters."""
    return [row for row in parts.kept(PAIRS, part) if isinstance(row, Pair)]


def _judged(parts: Parts, part: int) -> list[Pair]:
    """Pairs whose judgement is yes."""
    yes = {row.id for row in parts.kept(JUDGEMENTS, part)}
    return [pair for pair in _pairs(parts, part) if pair.id in yes]


def _by_grid(pairs: Sequence[Pair]) -> list[list[Pair]]:
    """Groups pairs by grid; pairs of a grid follow each other in the order of their ids."""
    return [list(each) for _, each in groupby(pairs, key=lambda pair: pair.grid_id)]
