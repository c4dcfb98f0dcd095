"""Chat completions, the form of OpenAI and of every server that speaks like it."""

import base64
import os
from collections.abc import Mapping
from typing import Any

from dsd_jax.llm.config import ProviderConfig
from dsd_jax.llm.dialect import Dialect, thinking_budget
from dsd_jax.llm.http import HttpTransport
from dsd_jax.llm.messages import Answer, Finish, Message, Picture, Request, Usage
from dsd_jax.llm.reading import answer_of, finish_of, parsed_body, unwrapped, usage_of
from dsd_jax.llm.transport import Access, Raw

__all__ = ["OpenAITransport", "chat_body", "read_chat"]


def chat_body(request: Request, provider: ProviderConfig, dialect: Dialect) -> dict[str, Any]:
    """A question as the JSON of a chat completion."""
    body: dict[str, Any] = {
        "model": provider.model,
        "messages": [_message(each) for each in request.messages],
        dialect.max_tokens: request.max_tokens,
    }
    if request.temperature is not None:
        body["temperature"] = request.temperature
    if provider.reasoning is not None:
        body |= _reasoning(provider.reasoning, request, dialect)
    if request.schema is not None and dialect.schema != "none":
        form: dict[str, Any] = {"type": dialect.schema}
        if dialect.schema == "json_schema":
            form["json_schema"] = {"name": "answer", "strict": True, "schema": dict(request.schema)}
        body["response_format"] = form
    return body


def _reasoning(reasoning: str | int, request: Request, dialect: Dialect) -> dict[str, Any]:
    if dialect.reasoning == "level":
        return {"reasoning_effort": reasoning}
    if (tokens := thinking_budget(reasoning, request)) == 0:
        return {"thinking": {"type": "disabled"}}
    return {"thinking": {"type": "enabled", "budget_tokens": tokens}}


def _message(message: Message) -> dict[str, Any]:
    texts = [part for part in message.parts if isinstance(part, str)]
    if len(texts) == len(message.parts):
        return {"role": message.role, "content": "\n".join(texts)}
    return {"role": message.role, "content": [_part(part) for part in message.parts]}


def _part(part: str | Picture) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    image = {"url": f"data:{part.mime};base64,{base64.b64encode(part.data).decode()}"}
    if part.detail is not None:
        image["detail"] = part.detail
    return {"type": "image_url", "image_url": image}


def read_chat(raw: Raw, words: Mapping[str, Finish]) -> Answer:
    """The answer in a chat completion, or in a line of a batch's results that holds one.

    Args:
        raw: The bytes as they came.
        words: The server's own words for the end of an answer.

    Raises:
        ValueError: It is not a chat completion.
    """
    line = parsed_body(raw.body)
    body = unwrapped(line)
    request_id = raw.request_id if line is body else line["response"].get("request_id")
    try:
        choice = body["choices"][0] if body["choices"] else {}
        message = choice.get("message") or {}
        content = message.get("content")
        finish = finish_of(choice.get("finish_reason"), content, words)
        if refusal := message.get("refusal"):
            content, finish = content or refusal, "blocked"
        return answer_of(
            content,
            finish,
            model=body.get("model"),
            request_id=request_id or body.get("id"),
            usage=_usage(body.get("usage")),
        )
    except (KeyError, AttributeError, TypeError, IndexError):
        raise ValueError("not a chat completion") from None


def _usage(told: object) -> Usage | None:
    if not isinstance(told, dict):
        return None
    details = told.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    return usage_of(told.get("prompt_tokens"), cached, told.get("completion_tokens"))


class OpenAITransport(HttpTransport):
    """Chat completions one by one."""

    id_header = "x-request-id"

    def headers(self, provider: ProviderConfig, access: Access) -> Mapping[str, str]:
        """The key, if there is one, and for OpenAI itself the account that is to pay."""
        found = {"Authorization": f"Bearer {access.secret}"} if access.secret else {}
        if provider.base_url is None:
            accounts = {
                "OpenAI-Organization": "OPENAI_ORG_ID",
                "OpenAI-Project": "OPENAI_PROJECT_ID",
            }
            found |= {
                name: os.environ[each] for name, each in accounts.items() if each in os.environ
            }
        return found

    def path(self) -> str:
        """As `HttpTransport.path`."""
        return "chat/completions"

    def body(self, request: Request, dialect: Dialect) -> Mapping[str, Any]:
        """As `HttpTransport.body`."""
        return chat_body(request, self._provider, dialect)

    def read(self, raw: Raw) -> Answer:
        """As `Transport.read`."""
        return read_chat(raw, self._provider.finish_words)
