"""Asks until an answer obeys rules, or tells the reason why none does."""

import dataclasses
from collections.abc import Callable
from typing import Generic, Literal, TypeVar

from dsd_jax.llm.messages import Ask, Message, Picture, Request, Unanswered
from dsd_jax.llm.reading import problem_of

__all__ = [
    "CLIP_TOKENS",
    "UNANSWERED",
    "Check",
    "Fault",
    "Written",
    "clip_faults",
    "detail_of",
    "one_line",
    "user",
    "written",
]

T = TypeVar("T")

_WRAPPED = {'"': '"', "'": "'", "`": "`", "*": "*", "_": "_", "“": "”", "‘": "’", "«": "»"}
CLIP_TOKENS = 77
"""Tokens that CLIP reads of a prompt, start and end included."""
UNANSWERED = "unanswered"
"""Reason of a row whose question cannot be answered."""
_SHOWN = 2_000


@dataclasses.dataclass(frozen=True)
class Fault:
    """A fault of an answer.

    Attributes:
        reason: fixed words under which it is counted.
        told: words for the model.
    """

    reason: str
    told: str


Check = Callable[[str], tuple[T | None, list[Fault]]]
"""Finds the text, or another value, in a raw answer, and its faults. None needs a fault."""


@dataclasses.dataclass(frozen=True)
class Written(Generic[T]):
    """A text, or another value, that obeys the rules; or the reason why there is none.

    Attributes:
        value: The text or value, or None.
        reason: Reason why there is none.
        asked: Number of questions that were put.
        model: Model that answered last.
        detail: More about the reason.
        faults: Faults of the last answer.
    """

    value: T | None = None
    reason: str | None = None
    asked: int | None = None
    model: str | None = None
    detail: str | None = None
    faults: tuple[Fault, ...] = ()

    @property
    def status(self) -> Literal["kept", "rejected", "failed"]:
        """Status of a row with this text."""
        if self.value is not None:
            return "kept"
        return "failed" if self.reason == UNANSWERED else "rejected"


def user(*parts: str | Picture) -> Message:
    """A turn of the user."""
    return Message("user", parts)


def detail_of(error: Unanswered) -> str:
    """The detail that a row gives about a question without an answer."""
    return str(error)[:500]


def one_line(text: str) -> tuple[str, list[Fault]]:
    """Strips quotation marks from a text, and lists the faults that keep it from being one line."""
    text = text.strip()
    while len(text) > 1 and _WRAPPED.get(text[0]) == text[-1]:
        text = text[1:-1].strip()
    faults = []
    if len(text.splitlines()) > 1:
        faults.append(Fault("several_lines", "it has more than one line"))
        text = " ".join(text.split())
    if not text:
        faults.append(Fault("empty", "there is nothing in it"))
    elif not text.isprintable():
        faults.append(Fault("control_characters", "it holds control characters"))
    return text, faults


def clip_faults(tokens: int) -> list[Fault]:
    """Lists the fault of a text that has more tokens than CLIP reads."""
    if tokens <= CLIP_TOKENS:
        return []
    return [Fault("too_long", f"it has {tokens} CLIP tokens where {CLIP_TOKENS} are allowed")]


async def written(
    ask: Ask,
    request: Request,
    check: Check[T],
    again: Callable[[str], str],
    retries: int,
    *,
    shown: int = _SHOWN,
) -> Written[T]:
    """Asks for a text until it obeys the rules, in one conversation.

    Args:
        ask: Puts a question.
        request: The first question.
        check: Finds the text in an answer, with its faults.
        again: Makes the next question from the faults of the last answer.
        retries: Number of further questions at most.
        shown: Characters of a faulty answer that go back into the conversation.
    """
    try:
        return await _written(ask, request, check, again, retries, shown)
    except Unanswered as error:
        return Written(reason=UNANSWERED, detail=detail_of(error))


async def _written(
    ask: Ask,
    request: Request,
    check: Check[T],
    again: Callable[[str], str],
    retries: int,
    shown: int,
) -> Written[T]:
    reason = model = None
    faults: list[Fault] = []
    for asked in range(1, retries + 2):
        answer = await ask(request)
        model = answer.model
        problem = problem_of(answer)
        if problem:
            reason, faults = problem, []  # it needs no reply: the same question is asked again
            request = dataclasses.replace(request, sample=request.sample + 1)
            continue
        value, faults = check(answer.text)
        if not faults:
            return Written(value, None, asked, model)
        reason = faults[0].reason
        turns = (
            Message("assistant", (answer.text[:shown],)),
            user(again("; ".join(fault.told for fault in faults))),
        )
        request = dataclasses.replace(request, messages=request.messages + turns)
    return Written(None, reason, retries + 1, model, faults=tuple(faults))
