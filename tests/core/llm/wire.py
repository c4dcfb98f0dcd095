"""The wire forms of OpenAI and Gemini: questions as a server reads them, and answers to send."""

import base64
import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

__all__ = [
    "Answerer",
    "BadJson",
    "Body",
    "Delayed",
    "Drop",
    "Question",
    "Reply",
    "Result",
    "Status",
    "answer_bytes",
    "gemini_turns",
    "openai_turns",
]


@dataclasses.dataclass(frozen=True)
class Question:
    """A question, the same for both forms.

    Attributes:
        form: "openai" or "gemini".
        model: model that was asked.
        turns: role ("system", "user", "assistant") and texts of every turn.
        pictures: pictures of all turns, in order.
        seen: how often the same question came before.
        body: JSON as it came.
    """

    form: str
    model: str
    turns: tuple[tuple[str, tuple[str, ...]], ...]
    pictures: tuple[bytes, ...]
    seen: int
    body: Mapping[str, Any]

    @property
    def text(self) -> str:
        """Texts of the last turn."""
        return "\n".join(self.turns[-1][1])


@dataclasses.dataclass(frozen=True)
class Reply:
    """An answer.

    Attributes:
        text: Its text; a list is sent as the list of parts, anything else as it is.
        finish: "stop", "length" or "blocked" (then, by Gemini, the question is).
        word: The provider's word for the end, in place of that of `finish`; "" sends null.
        count: JSON in place of every count of tokens.
        headers: More headers.
    """

    text: Any = ""
    finish: str = "stop"
    model: str | None = None
    refusal: str | None = None
    input: int = 100
    output: int = 10
    word: str | None = None
    count: str | None = None
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Body:
    """An answer that is these bytes, and paid for."""

    data: bytes
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Status:
    """An error, or a redirect."""

    code: int
    body: str = '{"error": {"message": "made up"}}'
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Drop:
    """A connection that is closed after so many bytes of the answer."""

    after: int = 0


@dataclasses.dataclass(frozen=True)
class BadJson:
    """A complete answer that holds half of its JSON."""


@dataclasses.dataclass(frozen=True)
class Delayed:
    """Another result, later."""

    seconds: float
    then: "str | Reply | Body | Status | Drop | BadJson"


Result = str | Reply | Body | Status | Drop | BadJson | Delayed
Answerer = Callable[[Question], Result]


def answer_bytes(question: Question, result: str | Reply | Body) -> bytes:
    """The JSON of an answer, in the form of the question."""
    if isinstance(result, Body):
        return result.data
    reply = Reply(result) if isinstance(result, str) else result
    model = question.model if reply.model is None else reply.model
    text = json.dumps((_chat if question.form == "openai" else _content)(reply, model))
    if reply.count is not None:
        text = re.sub(r'("\w*(?:_tokens|TokenCount)": )\d+', rf"\g<1>{reply.count}", text)
    return text.encode()


def _chat(reply: Reply, model: str) -> dict[str, Any]:
    finish: str | None = {"blocked": "content_filter"}.get(reply.finish, reply.finish)
    if reply.word is not None:
        finish = reply.word or None
    message = {"role": "assistant", "content": reply.text or None, "refusal": reply.refusal}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 0,
        "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": {
            "prompt_tokens": reply.input,
            "completion_tokens": reply.output,
            "total_tokens": reply.input + reply.output,
        },
    }


def _content(reply: Reply, model: str) -> dict[str, Any]:
    usage = {
        "promptTokenCount": reply.input,
        "candidatesTokenCount": reply.output,
        "totalTokenCount": reply.input + reply.output,
    }
    made: dict[str, Any] = {"modelVersion": model, "responseId": "r1", "usageMetadata": usage}
    if reply.finish == "blocked":
        return {**made, "promptFeedback": {"blockReason": "SAFETY"}}
    if reply.refusal is not None:
        return {**made, "candidates": [{"index": 0, "finishReason": "SAFETY"}]}
    finish: str | None = {"stop": "STOP", "length": "MAX_TOKENS"}[reply.finish]
    if reply.word is not None:
        finish = reply.word or None
    parts = reply.text if isinstance(reply.text, list) else [{"text": reply.text}]
    content = {"role": "model", "parts": parts if reply.text else []}
    return {**made, "candidates": [{"index": 0, "content": content, "finishReason": finish}]}


Turns = tuple[tuple[str, tuple[str, ...]], ...]


def openai_turns(body: Mapping[str, Any]) -> tuple[Turns, tuple[bytes, ...]]:
    turns, pictures = [], []
    for message in body["messages"]:
        content = message["content"]
        parts: list[Any] = (
            [{"type": "text", "text": content}] if isinstance(content, str) else content
        )
        turns.append((message["role"], tuple(p["text"] for p in parts if p["type"] == "text")))
        for part in parts:
            if part["type"] == "image_url":
                head, _, data = part["image_url"]["url"].partition(";base64,")
                assert head.startswith("data:image/")
                pictures.append(base64.b64decode(data))
    return tuple(turns), tuple(pictures)


def gemini_turns(body: Mapping[str, Any]) -> tuple[Turns, tuple[bytes, ...]]:
    system = body.get("systemInstruction")
    messages: list[Any] = [{**system, "role": "system"}] if system else []
    turns, pictures = [], []
    for message in messages + body["contents"]:
        role = {"model": "assistant"}.get(message["role"], message["role"])
        turns.append((role, tuple(p["text"] for p in message["parts"] if "text" in p)))
        sent = [part["inlineData"]["data"] for part in message["parts"] if "inlineData" in part]
        # The library writes the data in the alphabet for addresses.
        pictures += [base64.urlsafe_b64decode(_urlsafe(data)) for data in sent]
    return tuple(turns), tuple(pictures)


def _urlsafe(data: str) -> str:
    return data.replace("+", "-").replace("/", "_")
