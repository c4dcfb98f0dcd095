"""The stages that ask, part by part: rows of the stage before, questions, rows of this one."""

import contextlib
import functools
from collections.abc import Awaitable, Callable, Iterator, Sequence
from itertools import groupby
from typing import Any

from dsd_jax.data.make.captions import CaptionFilter, sampled
from dsd_jax.data.make.config import MakeConfig, begin_stage
from dsd_jax.data.make.crops import Box, Pictures, boxes_of, grid_file
from dsd_jax.data.make.describe import Describer
from dsd_jax.data.make.judge import Judge
from dsd_jax.data.make.pairs import panel_png
from dsd_jax.data.make.parts import Parts, Row, Shard
from dsd_jax.data.make.prompts import PromptWriter
from dsd_jax.llm.config import ProviderConfig
from dsd_jax.llm.messages import Ask
from dsd_jax.llm.session import Session
from dsd_jax.llm.transport import Elsewhere
from dsd_jax.progress import progress

__all__ = ["CountTokens", "panels_of", "run_asking"]

CountTokens = Callable[[str], int]
"""CLIP tokens of a text, start and end included."""

_Work = Callable[[Any, Ask], Awaitable[list[Row]]]
_Items = Callable[[int], tuple[list[Row], list[Any]]]
"""Of a part: rows that need no question, and what is asked about."""


def panels_of(parts: Parts) -> Pictures:
    """What crops panels from their grid: they are never stored."""

    def pictures(pairs: Sequence[Row]) -> list[tuple[bytes, bytes]]:
        cropped: dict[Box, bytes] = {}  # a panel is in up to three of a grid's pairs
        found = []
        for pair in pairs:
            boxes = boxes_of(pair)
            assert boxes is not None  # it was kept
            for box in boxes:
                if box not in cropped:
                    cropped[box] = panel_png(parts, pair["id"].rpartition("-")[0], box)
            found.append((cropped[boxes[0]], cropped[boxes[1]]))
        return found

    return pictures


def run_asking(
    config: MakeConfig, stage: str, shard: Shard, count_tokens: Callable[[], CountTokens]
) -> None:
    """Finishes this worker's parts of `captions`, `prompts`, `judge` or `caption`.

    Args:
        config: of all stages.
        stage: which of them.
        shard: this worker.
        count_tokens: loads the tokenizer, where it is needed.

    Raises:
        UserError: the stage before is not finished, or nothing can be asked any more; what was
            answered is kept.
        Elsewhere: another program has to answer the files of some parts; the others are done.
    """
    parts = begin_stage(config, stage)
    todo = [part for part in parts.mine(shard) if not parts.done(stage, part)]
    if not todo:
        return
    items, work = _stage(config, stage, parts, count_tokens)
    waiting: list[Elsewhere] = []
    with progress(stage, len(todo), "parts") as advance:
        for part in todo:
            # A part that waits for answers of another program does not keep the others waiting.
            with parts.writing(stage, part), _collected(waiting):
                ready, asked = items(part)
                rows = list(ready)
                if asked:
                    provider = config.provider(stage)
                    assert provider is not None  # without one nothing is asked
                    advance_item = functools.partial(advance, 1 / len(asked))
                    rows += _answered(parts, stage, part, provider, asked, work, advance_item)
                else:
                    advance()
                parts.write(stage, part, rows)
    if waiting:
        raise Elsewhere("\n".join(map(str, waiting)))


@contextlib.contextmanager
def _collected(waiting: list[Elsewhere]) -> Iterator[None]:
    try:
        yield
    except Elsewhere as error:
        waiting.append(error)


def _answered(
    parts: Parts,
    stage: str,
    part: int,
    provider: ProviderConfig,
    items: Sequence[Any],
    work: _Work,
    advance: Callable[[], None],
) -> list[Row]:
    session = Session(provider, parts.root / "ledgers" / f"{stage}-{part:05d}.sqlite")
    rows: list[Row] = []
    for _, made in session.run(items, work):
        for row in made:
            session.note(row["status"] == "undecided")
        rows += made
        advance()
    return rows


def _stage(
    config: MakeConfig, stage: str, parts: Parts, count_tokens: Callable[[], CountTokens]
) -> tuple[_Items, _Work]:
    wording = config.wording(stage)
    match stage:
        case "captions":
            by_part, _ = sampled(parts, config.captions)
            asks = config.provider(stage) is not None
            return lambda part: _some(by_part[part], asked=asks), _single(CaptionFilter(wording))
        case "prompts":
            writer = PromptWriter(config.prompts, wording, count_tokens())
            return lambda part: ([], _kept(parts, "captions", part)), _single(writer)
        case "judge":
            judge = Judge(
                config.judge,
                wording,
                panels_of(parts),
                lambda grid: grid_file(parts, grid).read_bytes(),
            )
            return lambda part: ([], _by_grid(_kept(parts, "pairs", part))), judge
        case _:
            describer = Describer(config.caption, wording, count_tokens(), panels_of(parts))
            return lambda part: ([], _judged(parts, part)), describer


def _some(rows: list[Row], *, asked: bool) -> tuple[list[Row], list[Row]]:
    """Rows that are settled already, and those that a filter is asked about."""
    if not asked:
        return rows, []
    return (
        [row for row in rows if row["status"] != "kept"],
        [row for row in rows if row["status"] == "kept"],
    )


def _single(work: Callable[[Row, Ask], Awaitable[Row]]) -> _Work:
    async def listed(item: Row, ask: Ask) -> list[Row]:
        return [await work(item, ask)]

    return listed


def _kept(parts: Parts, stage: str, part: int) -> list[Row]:
    return [row for row in parts.read(stage, part) if row["status"] == "kept"]


def _by_grid(pairs: list[Row]) -> list[list[Row]]:
    """Pairs of the same grid together; they follow each other in the order of their ids."""
    return [list(each) for _, each in groupby(pairs, key=lambda row: row["id"].rpartition("-")[0])]


def _judged(parts: Parts, part: int) -> list[list[Row]]:
    """The rows of pairs whose judgement is yes."""
    yes = {row["id"] for row in _kept(parts, "judge", part)}
    return _by_grid([row for row in parts.read("pairs", part) if row["id"] in yes])
