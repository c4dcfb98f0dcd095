"""Gemini's own interface, by google-genai."""

import base64
from typing import Any

from dsd_jax.llm.config import ProviderConfig
from dsd_jax.llm.messages import Answer, Finish, Message, Request, Usage
from dsd_jax.llm.transport import Failed, Raw, json_object, refusal

__all__ = ["GeminiTransport", "call", "content_body", "make_client", "read_content"]

_FINISHES: dict[str, Finish] = {"STOP": "stop", "MAX_TOKENS": "length"}
_BLOCKED = (
    "SAFETY",
    "RECITATION",
    "BLOCKLIST",
    "PROHIBITED_CONTENT",
    "SPII",
    "LANGUAGE",
    "IMAGE_SAFETY",
    "IMAGE_PROHIBITED_CONTENT",
    "MODEL_ARMOR",
)


def make_client(provider: ProviderConfig, secret: str | None) -> tuple[Any, Any]:
    """The client and its HTTP client, which has to be closed too: no retries, no redirects.

    Redirects would carry the key. The HTTP client is given, since with aiohttp installed the
    library sends a question again after a broken connection, unasked.
    """
    import httpx2  # noqa: PLC0415
    from google import genai  # noqa: PLC0415 - it is slow to load

    many = provider.max_in_flight
    limits = httpx2.Limits(max_connections=many, max_keepalive_connections=many)
    http = httpx2.AsyncClient(follow_redirects=False, timeout=provider.timeout, limits=limits)
    client = genai.Client(
        vertexai=False,
        api_key=secret or "none",
        http_options=genai.types.HttpOptions(
            base_url=provider.url,
            api_version="v1beta",  # the one that has system turns, schemas and batches
            timeout=int(provider.timeout * 1000),
            httpx_async_client=http,
        ),
    )
    return client, http


def _turns(request: Request) -> tuple[Message | None, list[Message]]:
    system = [each for each in request.messages if each.role == "system"]
    return (system[0] if system else None), [m for m in request.messages if m.role != "system"]


def content_body(request: Request, provider: ProviderConfig) -> dict[str, Any]:
    """A question as the JSON of `generateContent`, as batches take it."""
    system, turns = _turns(request)
    settings: dict[str, Any] = {"maxOutputTokens": request.max_tokens}
    if request.temperature is not None:
        settings["temperature"] = request.temperature
    if provider.reasoning is not None:
        settings["thinkingConfig"] = _thinking(provider.reasoning)
    if request.schema is not None:
        settings["responseMimeType"] = "application/json"
        settings["responseJsonSchema"] = dict(request.schema)
    body: dict[str, Any] = {
        "contents": [{"role": _role(turn), "parts": _json_parts(turn)} for turn in turns],
        "generationConfig": settings,
    }
    if system is not None:
        body["systemInstruction"] = {"role": "user", "parts": _json_parts(system)}
    return body


def _thinking(reasoning: str) -> dict[str, Any]:
    return {"thinkingBudget": 0} if reasoning == "none" else {"thinkingLevel": reasoning.upper()}


def _role(turn: Message) -> str:
    return "model" if turn.role == "assistant" else "user"


def _json_parts(turn: Message) -> list[dict[str, Any]]:
    return [
        {"text": part}
        if isinstance(part, str)
        else {"inlineData": {"mimeType": part.mime, "data": base64.b64encode(part.data).decode()}}
        for part in turn.parts
    ]


def read_content(raw: Raw) -> Answer:
    """The answer in a response of `generateContent`.

    A blocked question has no candidates; a blocked answer has one without text. Thoughts are not
    part of the text, but are paid for as output.

    Raises:
        ValueError: it is none.
    """
    body = json_object(raw)
    try:
        if not {"candidates", "promptFeedback", "usageMetadata"} & body.keys():
            raise KeyError("candidates")
        candidate = (body.get("candidates") or [{}])[0]
        parts = (candidate.get("content") or {}).get("parts") or []
        text = "".join(part.get("text") or "" for part in parts if not part.get("thought"))
        return Answer(
            text=text,
            finish=_finish(body, candidate),
            model=str(body.get("modelVersion") or "").removeprefix("models/"),
            request_id=str(body.get("responseId") or ""),
            usage=_usage(body.get("usageMetadata")),
        )
    except (KeyError, AttributeError, TypeError, IndexError) as error:
        raise ValueError(f"not a response of generateContent: {error!r}") from None


def _finish(body: dict[str, Any], candidate: dict[str, Any]) -> Finish:
    reason = candidate.get("finishReason") or ""
    if (body.get("promptFeedback") or {}).get("blockReason") or reason in _BLOCKED:
        return "blocked"
    return _FINISHES.get(reason, "other")


def _usage(told: dict[str, Any] | None) -> Usage | None:
    if not told:
        return None
    spoken, thought = told.get("candidatesTokenCount") or 0, told.get("thoughtsTokenCount") or 0
    return Usage(
        input=int(told.get("promptTokenCount") or 0),
        cached=int(told.get("cachedContentTokenCount") or 0),
        output=int(spoken) + int(thought),
    )


async def call(awaitable: Any) -> Any:
    """Awaits a call of the client; its exceptions become `Failed`.

    Those of the client are not kept: they hold the request with its headers, and so the key.

    Raises:
        Failed: no answer.
    """
    import httpx2  # noqa: PLC0415
    from google.genai import errors  # noqa: PLC0415

    try:
        return await awaitable
    except errors.APIError as error:
        response: Any = error.response
        raise refusal(error.code, response.text, response.headers) from None
    except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout) as error:
        raise Failed("retry", f"no connection: {type(error).__name__}") from None
    except (httpx2.HTTPError, OSError) as error:
        words = f"the connection failed: {type(error).__name__}"
        raise Failed("retry", words, maybe_charged=True) from None


class GeminiTransport:
    """Questions one by one over google-genai."""

    def __init__(self, provider: ProviderConfig, secret: str | None) -> None:
        self._provider = provider
        self._client, self._http = make_client(provider, secret)

    async def send(self, request: Request) -> Raw:
        """As `Transport.send`."""
        from google.genai import types  # noqa: PLC0415

        system, turns = _turns(request)
        config = types.GenerateContentConfig(
            system_instruction=_parts(system) if system else None,
            max_output_tokens=request.max_tokens,
            temperature=request.temperature,
            thinking_config=(
                types.ThinkingConfig.model_validate(_thinking(self._provider.reasoning))
                if self._provider.reasoning
                else None
            ),
            response_mime_type="application/json" if request.schema else None,
            response_json_schema=dict(request.schema) if request.schema else None,
            automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
            automatic_continuation=False,  # one question is one paid call
            should_return_http_response=True,  # the body as it came
        )
        answer = await call(
            self._client.aio.models.generate_content(
                model=self._provider.model,
                contents=[types.Content(role=_role(turn), parts=_parts(turn)) for turn in turns],
                config=config,
            )
        )
        return Raw(answer.sdk_http_response.body or "")

    def read(self, raw: Raw) -> Answer:
        """As `Transport.read`."""
        return read_content(raw)

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.aio.aclose()
        await self._http.aclose()


def _parts(turn: Message) -> list[Any]:
    from google.genai import types  # noqa: PLC0415

    return [
        types.Part.from_text(text=part)
        if isinstance(part, str)
        else types.Part.from_bytes(data=part.data, mime_type=part.mime)
        for part in turn.parts
    ]
