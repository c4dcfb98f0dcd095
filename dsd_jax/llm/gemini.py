"""`generateContent`, Gemini's own form."""

import base64
import urllib.parse
from collections.abc import Mapping
from typing import Any

from dsd_jax.llm.config import ProviderConfig
from dsd_jax.llm.dialect import Dialect, thinking_budget
from dsd_jax.llm.http import HttpTransport
from dsd_jax.llm.messages import Answer, Finish, Message, Request, Usage
from dsd_jax.llm.reading import answer_of, finish_of, parsed_body, unwrapped, usage_of
from dsd_jax.llm.transport import Access, Raw

__all__ = ["API_VERSION", "GeminiTransport", "content_body", "read_content"]

API_VERSION = "v1beta"
"""The version of the interface that has system turns, schemas and batches."""


def content_body(request: Request, provider: ProviderConfig, dialect: Dialect) -> dict[str, Any]:
    """A question as the JSON of `generateContent`, which batches take too."""
    system = [turn for turn in request.messages if turn.role == "system"]
    turns = [turn for turn in request.messages if turn.role != "system"]
    settings: dict[str, Any] = {"maxOutputTokens": request.max_tokens}
    if request.temperature is not None:
        settings["temperature"] = request.temperature
    if provider.reasoning is not None:
        settings["thinkingConfig"] = _thinking(provider.reasoning, request, dialect)
    if request.schema is not None and dialect.schema != "none":
        settings["responseMimeType"] = "application/json"
        if dialect.schema == "json_schema":
            settings["responseJsonSchema"] = dict(request.schema)
    body: dict[str, Any] = {
        "contents": [{"role": _role(turn), "parts": _parts(turn)} for turn in turns],
        "generationConfig": settings,
    }
    if system:
        body["systemInstruction"] = {"role": "user", "parts": _parts(system[0])}
    return body


def _thinking(reasoning: str | int, request: Request, dialect: Dialect) -> dict[str, Any]:
    if dialect.reasoning == "budget" or reasoning == "none":  # there is no such level
        return {"thinkingBudget": thinking_budget(reasoning, request)}
    return {"thinkingLevel": str(reasoning).upper()}


def _role(turn: Message) -> str:
    return "model" if turn.role == "assistant" else "user"


def _parts(turn: Message) -> list[dict[str, Any]]:
    return [
        {"text": part}
        if isinstance(part, str)
        else {"inlineData": {"mimeType": part.mime, "data": base64.b64encode(part.data).decode()}}
        for part in turn.parts
    ]


def read_content(raw: Raw, words: Mapping[str, Finish]) -> Answer:
    """The answer in a response of `generateContent`, or in a line of a batch that holds one.

    A blocked question has no candidates; a blocked answer has a candidate without text. Thoughts
    are not part of the text, but are paid for as output.

    Args:
        raw: The bytes as they came.
        words: The server's own words for the end of an answer.

    Raises:
        ValueError: It is not a response of `generateContent`.
    """
    body = unwrapped(parsed_body(raw.body))
    try:
        if not {"candidates", "promptFeedback", "usageMetadata"} & body.keys():
            raise KeyError("candidates")
        candidate = (body.get("candidates") or [{}])[0]
        content = (candidate.get("content") or {}).get("parts")
        finish = finish_of(candidate.get("finishReason"), content, words)
        if (body.get("promptFeedback") or {}).get("blockReason"):
            finish = "blocked"
        model = body.get("modelVersion")
        return answer_of(
            [] if content is None else content,
            finish,
            model=model.removeprefix("models/") if isinstance(model, str) else None,
            request_id=body.get("responseId"),
            usage=_usage(body.get("usageMetadata")),
        )
    except (KeyError, AttributeError, TypeError, IndexError):
        raise ValueError("not a response of generateContent") from None


def _usage(told: object) -> Usage | None:
    """Tokens; counts of zero are left out by the provider."""
    if not isinstance(told, dict) or not told:
        return None
    thoughts = usage_of(told.get("thoughtsTokenCount", 0), None, 0)
    usage = usage_of(
        told.get("promptTokenCount", 0),
        told.get("cachedContentTokenCount"),
        told.get("candidatesTokenCount", 0),
    )
    if usage is None or thoughts is None:
        return None
    return Usage(usage.input, usage.cached, usage.output + thoughts.input)


class GeminiTransport(HttpTransport):
    """Contents generated one by one."""

    def headers(self, provider: ProviderConfig, access: Access) -> Mapping[str, str]:  # noqa: ARG002
        """The key, if there is one."""
        return {"x-goog-api-key": access.secret} if access.secret else {}

    def path(self) -> str:
        """As `HttpTransport.path`; a name with a slash, such as a tuned model's, is a full path."""
        model = self._provider.model
        name = urllib.parse.quote(model if "/" in model else f"models/{model}")
        return f"{API_VERSION}/{name}:generateContent"

    def body(self, request: Request, dialect: Dialect) -> Mapping[str, Any]:
        """As `HttpTransport.body`."""
        return content_body(request, self._provider, dialect)

    def read(self, raw: Raw) -> Answer:
        """As `Transport.read`."""
        return read_content(raw, self._provider.finish_words)
