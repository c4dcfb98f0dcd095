"""A model that answers by a script, and pairs to ask it about, for stages without a session."""

import asyncio
import dataclasses
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from dsd_jax.data.make.ids import CaptionId, GridId, PairId, PromptId
from dsd_jax.data.make.stages import Pair
from dsd_jax.llm.messages import Answer, Request

__all__ = ["GRID", "MODEL", "Scripted", "blocked", "do", "in_turn", "pair", "panels", "question_of"]

T = TypeVar("T")
MODEL = "scripted-1"
GRID = GridId(PromptId(CaptionId("0123456789abcdef"), "identity"), 0)


@dataclasses.dataclass
class Scripted:
    """Answers by a function of the request, and keeps what was asked."""

    answer: Callable[[Request], str | Answer]
    asked: list[Request] = dataclasses.field(default_factory=list)

    async def __call__(self, request: Request) -> Answer:
        self.asked.append(request)
        answer = self.answer(request)
        return answer if isinstance(answer, Answer) else Answer(answer, "stop", MODEL)


def in_turn(*answers: str | Answer) -> Scripted:
    """Answers one after the other."""
    left = list(answers)
    return Scripted(lambda request: left.pop(0))


def blocked(text: str = "") -> Answer:
    return Answer(text, "blocked", MODEL)


def question_of(request: Request) -> str:
    """The words of the last turn."""
    return " ".join(part for part in request.messages[-1].parts if isinstance(part, str))


def pair(ends: str, grid: GridId = GRID) -> Pair:
    """A kept pair of a grid, by the numbers of its panels."""
    first, second = map(int, ends)
    return Pair(
        id=PairId(grid, first, second),
        grid_id=grid,
        prompt_id=grid.prompt,
        task=grid.prompt.task,
        reference_box=(0, 0, 1, 1),
        target_box=(0, 0, 1, 1),
        similarity=0.5,
        status="kept",
    )


def panels(pairs: Sequence[Pair]) -> list[tuple[bytes, bytes]]:
    """Files that say which panel they are."""
    return [(f"png {one.id.reference}".encode(), f"png {one.id.target}".encode()) for one in pairs]


def do(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)
