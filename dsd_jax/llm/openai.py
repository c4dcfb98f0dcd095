"""Chat completions of OpenAI and of every server that speaks their form."""

import base64
import urllib.parse
from typing import Any

from dsd_jax.llm.config import ProviderConfig
from dsd_jax.llm.messages import Answer, Finish, Message, Picture, Request, Usage
from dsd_jax.llm.transport import Failed, Raw, json_object, refusal

__all__ = ["OpenAITransport", "call", "chat_body", "make_client", "read_chat"]

_FINISHES: dict[str, Finish] = {"stop": "stop", "length": "length", "content_filter": "blocked"}


def make_client(provider: ProviderConfig, secret: str | None) -> Any:
    """The asynchronous client: no retries of its own, no redirects, no host of the environment.

    Its retries would send, and pay, without the ledger; a redirect may go to another host.
    """
    import openai  # noqa: PLC0415 - it is slow to load

    client = openai.DefaultAsyncHttpxClient(
        base_url=provider.url,
        timeout=provider.timeout,
        follow_redirects=False,
        limits=_limits(provider.max_in_flight),
    )
    return openai.AsyncOpenAI(
        api_key=secret or "none",  # the client needs one, even where the server does not
        base_url=provider.url,
        max_retries=0,
        timeout=provider.timeout,
        http_client=client,
    )


def _limits(in_flight: int) -> Any:
    import httpx2  # noqa: PLC0415

    return httpx2.Limits(max_connections=in_flight, max_keepalive_connections=in_flight)


def chat_body(request: Request, provider: ProviderConfig) -> dict[str, Any]:
    """A question as the JSON of a chat completion."""
    body: dict[str, Any] = {
        "model": provider.model,
        "messages": [_message(each) for each in request.messages],
        _limit_name(provider): request.max_tokens,
    }
    if request.temperature is not None:
        body["temperature"] = request.temperature
    if provider.reasoning is not None:
        body["reasoning_effort"] = provider.reasoning
    if request.schema is not None:
        schema = {"name": "answer", "strict": True, "schema": dict(request.schema)}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return body


def _limit_name(provider: ProviderConfig) -> str:
    # OpenAI's newer models refuse the old name; some other servers do not know the new one.
    if provider.mode == "file":
        return "max_tokens"
    host = urllib.parse.urlsplit(provider.url).hostname or ""
    return "max_completion_tokens" if host.endswith("openai.com") else "max_tokens"


def _message(message: Message) -> dict[str, Any]:
    texts = [part for part in message.parts if isinstance(part, str)]
    if len(texts) == len(message.parts):
        return {"role": message.role, "content": "\n".join(texts)}
    return {"role": message.role, "content": [_part(part) for part in message.parts]}


def _part(part: str | Picture) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    data = base64.b64encode(part.data).decode()
    return {"type": "image_url", "image_url": {"url": f"data:{part.mime};base64,{data}"}}


def read_chat(raw: Raw) -> Answer:
    """The answer in a chat completion.

    Raises:
        ValueError: it is none.
    """
    body = json_object(raw)
    try:
        choice = body["choices"][0] if body["choices"] else {}
        message = choice.get("message") or {}
        text = message.get("content") or ""
        finish = _FINISHES.get(choice.get("finish_reason") or "", "other")
        if message.get("refusal"):
            text, finish = text or str(message["refusal"]), "blocked"
        return Answer(
            text=str(text),
            finish=finish,
            model=str(body.get("model") or ""),
            request_id=raw.request_id or str(body.get("id") or ""),
            usage=_usage(body.get("usage")),
        )
    except (KeyError, AttributeError, TypeError, IndexError) as error:
        raise ValueError(f"not a chat completion: {error!r}") from None


def _usage(told: dict[str, Any] | None) -> Usage | None:
    if not told:
        return None
    details = told.get("prompt_tokens_details") or {}
    return Usage(
        input=int(told.get("prompt_tokens") or 0),
        cached=int(details.get("cached_tokens") or 0),
        output=int(told.get("completion_tokens") or 0),
    )


async def call(awaitable: Any) -> Any:
    """Awaits a call of the client; its exceptions become `Failed`.

    Those of the client are not kept: they hold the request with its headers.

    Raises:
        Failed: no answer.
    """
    import httpx2  # noqa: PLC0415
    import openai  # noqa: PLC0415

    try:
        return await awaitable
    except openai.APITimeoutError as error:
        sent = not isinstance(error.__cause__, (httpx2.ConnectTimeout, httpx2.PoolTimeout))
        raise Failed("retry", "the server took too long", maybe_charged=sent) from None
    except openai.APIStatusError as error:
        raise refusal(error.status_code, error.response.text, error.response.headers) from None
    except openai.APIConnectionError as error:
        sent = not isinstance(error.__cause__, httpx2.ConnectError)
        words = f"the connection failed: {error.__cause__ or error}"
        raise Failed("retry", words, maybe_charged=sent) from None
    except (httpx2.HTTPError, OSError) as error:
        words = f"the connection failed: {type(error).__name__}"
        raise Failed("retry", words, maybe_charged=True) from None


class OpenAITransport:
    """Questions one by one over the openai client."""

    def __init__(self, provider: ProviderConfig, secret: str | None) -> None:
        self._provider, self._client = provider, make_client(provider, secret)

    async def send(self, request: Request) -> Raw:
        """As `Transport.send`."""
        import httpx2  # noqa: PLC0415

        body = chat_body(request, self._provider)  # sent as it is, as a batch's line would be
        answer = await call(
            self._client.post("/chat/completions", body=body, cast_to=httpx2.Response)
        )
        return Raw(answer.text, answer.headers.get("x-request-id", ""))

    def read(self, raw: Raw) -> Answer:
        """As `Transport.read`."""
        return read_chat(raw)

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.close()
