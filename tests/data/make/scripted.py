"""A model that answers by a script, for stages without a session."""

import asyncio
import dataclasses
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from dsd_jax.llm.messages import Answer, Request

__all__ = ["MODEL", "Scripted", "blocked", "do", "in_turn", "question_of"]

T = TypeVar("T")
MODEL = "scripted-1"


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


def do(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)
