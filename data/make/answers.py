"""What can be made of an answer: words that keep to rules, JSON, or the name of what went wrong."""

import dataclasses
import json
import re
from collections.abc import Callable
from typing import Any

from dsd_jax.data.make.parts import Row
from dsd_jax.llm.messages import Answer, Ask, Message, Request, Unanswered

__all__ = [
    "Check",
    "Fault",
    "Written",
    "failed",
    "json_of",
    "one_line",
    "problem_of",
    "user",
    "written",
]

_WRAPPED = {'"': '"', "'": "'", "`": "`", "*": "*", "_": "_", "“": "”", "‘": "’", "«": "»"}
_FENCE = re.compile(r"^```[a-z]*\s*|\s*```$")
LONGEST = 50_000  # characters of an answer; none of ours needs a tenth of it
_MAX_SHOWN = 2_000  # characters of a faulty answer that go back into the conversation


@dataclasses.dataclass(frozen=True)
class Fault:
    """Why an answer cannot be used.

    Attributes:
        reason: as it is counted; always the same words.
        told: what the model is told.
    """

    reason: str
    told: str


Check = Callable[[str], tuple[str, list[Fault]]]
"""A raw answer to the text in it, and its faults."""


@dataclasses.dataclass(frozen=True)
class Written:
    """A text that keeps to the rules, or None and the reason.

    Attributes:
        text: the text.
        reason: why there is none.
        asked: how often it was asked for.
        model: that answered last.
    """

    text: str | None
    reason: str
    asked: int
    model: str


def user(*parts: Any) -> Message:
    """A turn of ours."""
    return Message("user", parts)


def problem_of(answer: Answer) -> str | None:
    """Why there is no whole answer: blocked, cut_off, too_long, empty, ended_oddly; or None."""
    if answer.finish != "stop":
        return {"blocked": "blocked", "length": "cut_off"}.get(answer.finish, "ended_oddly")
    if len(answer.text) > LONGEST:
        return "too_long"
    return None if answer.text.strip() else "empty"


def failed(error: Unanswered) -> Row:
    """What a row says of a question that cannot be answered."""
    return {"status": "failed", "reason": "unanswered", "detail": str(error)[:500]}


def one_line(text: str) -> tuple[str, list[Fault]]:
    """The text without what models wrap it in, and whether it is one printable line."""
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


async def written(
    ask: Ask,
    request: Request,
    check: Check,
    again: Callable[[str], str],
    retries: int,
) -> Written:
    """Asks for a text until it keeps to the rules, in one conversation.

    Args:
        ask: puts the questions.
        request: the first of them.
        check: finds the text in an answer.
        again: the next question, from the faults of the last answer.
        retries: how often it is asked again at most.

    Raises:
        Unanswered: a question cannot be answered.
    """
    reason = model = ""
    for asked in range(1, retries + 2):
        answer = await ask(request)
        model = answer.model
        problem = problem_of(answer)
        if problem:
            reason = problem  # there is nothing to talk about: the same question again
            request = dataclasses.replace(request, sample=request.sample + 1)
            continue
        text, faults = check(answer.text)
        if not faults:
            return Written(text, "", asked, model)
        reason = faults[0].reason
        turns = (
            Message("assistant", (answer.text[:_MAX_SHOWN],)),
            user(again("; ".join(fault.told for fault in faults))),
        )
        request = dataclasses.replace(request, messages=request.messages + turns)
    return Written(None, reason, retries + 1, model)


def json_of(text: str) -> dict[str, Any] | None:
    """The JSON object that an answer is, perhaps in a code block; None if it is not one."""
    try:
        content = json.loads(_FENCE.sub("", text.strip()))
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None
