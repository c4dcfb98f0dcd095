"""Questions to language models and their answers, in the same words for every provider."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal, Protocol, runtime_checkable

from dsd_jax.text.plain import text_fault

__all__ = ["Answer", "Ask", "Finish", "Message", "Picture", "Request", "Unanswered", "Usage"]

Finish = Literal["stop", "length", "blocked", "not_text", "other"]
"""Reason for the end of an answer.

`stop`: it is complete. `length`: it reached the limit of tokens. `blocked`: a filter or the model
refused the question or the answer. `not_text`: the provider sent something that is not text, or
text that UTF-8 cannot hold. `other`: any other reason.
"""


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image file, sent byte for byte.

    Attributes:
        data: The file.
        mime: Its type.
        detail: Amount of detail that the model looks at, for providers that let the question choose
            it. None leaves it to them.
    """

    data: bytes
    mime: str = "image/png"
    detail: Literal["low", "high"] | None = None

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
    """One question, complete: nothing outside it decides about the answer.

    Attributes:
        stage: Name of the stage that asks.
        item: Id of the item that the question is about.
        messages: The conversation so far, in order; an optional system turn comes first.
        wording: Name and version of the texts that the messages were filled from.
        sample: 0, or the number of the repetition when the same question is asked again.
        max_tokens: Most tokens of the answer, hidden reasoning included.
        temperature: Temperature of the model. None uses the model's default.
        schema: JSON schema that the answer has to follow. None asks for plain text.
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
        """Hex digest of the complete question and the model; a picture counts by its bytes.

        Raises:
            Unanswered: A text holds what UTF-8 cannot hold, so that it cannot be sent.
        """
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
        try:
            return hashlib.sha256(canonical.encode()).hexdigest()
        except UnicodeEncodeError:
            raise Unanswered(f"the question cannot be sent: {text_fault(content)}") from None


def _stand_in(part: str | Picture) -> str | dict[str, str]:
    if isinstance(part, str):
        return part
    detail = {} if part.detail is None else {"detail": part.detail}
    return {"sha256": part.sha256, "mime": part.mime, **detail}


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
        text: The words of the answer without thoughts; empty if there are none.
        finish: Reason for its end; only `stop` is a complete answer.
        model: Name of the model that answered, as the provider gives it.
        request_id: The provider's name of the exchange.
        usage: Tokens that it took. None if the provider did not say, or said something absurd.
        cost: US dollars by the price table. None if the model or the usage is not known.
    """

    text: str
    finish: Finish
    model: str
    request_id: str = ""
    usage: Usage | None = None
    cost: float | None = None


class Unanswered(Exception):  # noqa: N818 - an outcome that a stage writes down, not a fault
    """This one question cannot be answered, whoever asks it again.

    The server refused it as invalid, it is too long, or the like. A fault that concerns all
    questions (a bad key, a server that is down, a spent budget) ends the run with a `UserError`
    instead, and the next run goes on.
    """


@runtime_checkable
class Ask(Protocol):
    """Puts one question; the answer comes from the ledger if there is one already."""

    async def __call__(self, request: Request) -> Answer: ...
