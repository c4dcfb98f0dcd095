"""What is asked of a language model and what it answered, in the same words for every provider."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal, Protocol, runtime_checkable

__all__ = ["Answer", "Ask", "Finish", "Message", "Picture", "Request", "Unanswered", "Usage"]

Finish = Literal["stop", "length", "blocked", "other"]
"""Why an answer ended. `blocked`: a filter or a refusal, of the question or of the answer."""


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image file that goes out byte for byte."""

    data: bytes
    mime: str = "image/png"

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


@dataclasses.dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    parts: tuple[str | Picture, ...]


@dataclasses.dataclass(frozen=True)
class Request:
    """One question, whole: nothing outside it decides about the answer.

    Attributes:
        stage: that asks.
        item: id of what it is asked about.
        messages: the conversation so far, in order; an optional system turn first.
        wording: name and version of the wording that the messages were filled from.
        sample: 0, or the number of the re-asking.
        max_tokens: of the answer, hidden reasoning included.
        temperature: None: the model's own.
        schema: JSON schema that the answer has to follow, or None for words.
    """

    stage: str
    item: str
    messages: tuple[Message, ...]
    wording: str = ""
    sample: int = 0
    max_tokens: int = 1024
    temperature: float | None = None
    schema: Mapping[str, Any] | None = None

    def key(self, model: str) -> str:
        """Hex digest of everything that is asked, and of whom; a picture counts by its bytes."""
        content = {
            "model": model,
            "stage": self.stage,
            "item": self.item,
            "wording": self.wording,
            "sample": self.sample,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "schema": self.schema,
            "messages": [[turn.role, [_stand_in(p) for p in turn.parts]] for turn in self.messages],
        }
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()


def _stand_in(part: str | Picture) -> str | dict[str, str]:
    return part if isinstance(part, str) else {"sha256": part.sha256, "mime": part.mime}


@dataclasses.dataclass(frozen=True)
class Usage:
    """Tokens as the provider counts them; `output` includes hidden reasoning."""

    input: int = 0
    cached: int = 0
    output: int = 0


@dataclasses.dataclass(frozen=True)
class Answer:
    """One answer.

    Attributes:
        text: as it came; empty if there was none.
        finish: why it ended; only `stop` is a whole answer.
        model: that answered, as the provider names it.
        request_id: the provider's.
        usage: None if it was not told.
        cost: in US dollars by the price table; None for a model that is not in it.
    """

    text: str
    finish: Finish
    model: str
    request_id: str = ""
    usage: Usage | None = None
    cost: float | None = None


class Unanswered(Exception):  # noqa: N818 - an outcome that a stage writes down, not a fault
    """This one question cannot be answered, whoever asks it again.

    It was refused as invalid, is too long, or the like. What concerns all questions (a bad key, a
    server that is down, a spent budget) is not this: it ends the run with a `UserError`, and the
    next run goes on.
    """


@runtime_checkable
class Ask(Protocol):
    """Puts one question; from the ledger if it has been answered before."""

    async def __call__(self, request: Request) -> Answer: ...
