"""The batch interfaces of OpenAI and of Gemini: half the price, an answer within a day."""

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from dsd_jax.llm import gemini, openai
from dsd_jax.llm.config import ProviderConfig
from dsd_jax.llm.messages import Answer, Request
from dsd_jax.llm.transport import Failed, Raw, refusal

__all__ = ["GeminiBatches", "OpenAIBatches", "chat_line", "read_chat_lines"]

_UPLOAD_S = 1800.0
_TAG = "dsd"  # name of the batch's metadata that holds the tag
_OPENAI_ENDS = ("completed", "expired", "cancelled", "failed")
_GEMINI_ENDS = {
    "JOB_STATE_SUCCEEDED": "completed",
    "JOB_STATE_PARTIALLY_SUCCEEDED": "completed",
    "JOB_STATE_EXPIRED": "expired",
    "JOB_STATE_CANCELLED": "cancelled",
    "JOB_STATE_FAILED": "failed",
}


def chat_line(key: str, request: Request, provider: ProviderConfig) -> bytes:
    """A question as a line of OpenAI's batch files, which `vllm run-batch` reads too."""
    line = {
        "custom_id": key,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": openai.chat_body(request, provider),
    }
    return json.dumps(line, ensure_ascii=False).encode()


def read_chat_lines(text: str) -> dict[str, Raw | Failed]:
    """Answers and errors of a file of such lines; a torn last line is passed over."""
    found: dict[str, Raw | Failed] = {}
    for line in text.split("\n"):
        try:
            content = json.loads(line)
            key, response = content["custom_id"], content.get("response") or {}
        except (ValueError, KeyError, AttributeError, TypeError):
            continue
        status, body = response.get("status_code"), json.dumps(response.get("body"))
        if status == 200:
            found[key] = Raw(body, response.get("request_id") or "")
        else:  # some say why beside the response and give it no status
            words = json.dumps({"error": content["error"]}) if content.get("error") else body
            found[key] = refusal(int(status or 500), words, {})
    return found


class OpenAIBatches:
    """OpenAI's batch interface; 50,000 questions and 200 MB in one."""

    most, most_bytes = 50_000, 190_000_000

    def __init__(self, provider: ProviderConfig, secret: str | None) -> None:
        self._provider, self._client = provider, openai.make_client(provider, secret)

    def line(self, key: str, request: Request) -> bytes:
        """As `BatchTransport.line`."""
        return chat_line(key, request, self._provider)

    async def submit(self, tag: str, lines: Sequence[bytes]) -> str:
        """As `BatchTransport.submit`."""
        content = b"".join(line + b"\n" for line in lines)
        file = await openai.call(
            self._client.files.create(
                file=(f"{_TAG}-{tag}.jsonl", content), purpose="batch", timeout=_UPLOAD_S
            )
        )
        batch = await openai.call(
            self._client.batches.create(
                input_file_id=file.id,
                endpoint="/v1/chat/completions",
                completion_window="24h",
                metadata={_TAG: tag},
            )
        )
        return str(batch.id)

    async def find(self, tag: str) -> str | None:
        """As `BatchTransport.find`."""
        page = await openai.call(self._client.batches.list(limit=100))
        while True:
            for batch in page.data:
                if (batch.metadata or {}).get(_TAG) == tag:
                    return str(batch.id)
            if not page.has_next_page():
                return None
            page = await openai.call(page.get_next_page())

    async def state(self, remote: str) -> str | None:
        """As `BatchTransport.state`."""
        batch = await openai.call(self._client.batches.retrieve(remote))
        if batch.status == "failed":
            errors = (batch.errors.data if batch.errors else None) or []
            return f"failed: {'; '.join(str(each.message) for each in errors[:3])}"
        return batch.status if batch.status in _OPENAI_ENDS else None

    async def results(self, remote: str) -> Mapping[str, Raw | Failed]:
        """As `BatchTransport.results`."""
        batch = await openai.call(self._client.batches.retrieve(remote))
        found: dict[str, Raw | Failed] = {}
        for name in filter(None, (batch.error_file_id, batch.output_file_id)):
            content = await openai.call(self._client.files.content(name, timeout=_UPLOAD_S))
            found |= read_chat_lines(content.text)
        return found

    def read(self, raw: Raw) -> Answer:
        """As `BatchTransport.read`."""
        return openai.read_chat(raw)

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.close()


class GeminiBatches:
    """Gemini's batch interface, by files; the tag is the batch's display name."""

    most, most_bytes = 50_000, 500_000_000  # it takes 2 GB, but they lie in memory twice

    def __init__(self, provider: ProviderConfig, secret: str | None) -> None:
        self._provider = provider
        self._client, self._http = gemini.make_client(provider, secret)

    def line(self, key: str, request: Request) -> bytes:
        """As `BatchTransport.line`."""
        line = {"key": key, "request": gemini.content_body(request, self._provider)}
        return json.dumps(line, ensure_ascii=False).encode()

    async def submit(self, tag: str, lines: Sequence[bytes]) -> str:
        """As `BatchTransport.submit`."""
        content = io.BytesIO(b"".join(line + b"\n" for line in lines))
        name = f"{_TAG}-{tag}"
        try:
            file = await gemini.call(
                self._client.aio.files.upload(
                    file=content, config={"mime_type": "jsonl", "display_name": name}
                )
            )
        except (KeyError, ValueError) as error:  # of the library, when an upload is cut short
            raise Failed("retry", f"the upload failed: {error}") from None
        batch = await gemini.call(
            self._client.aio.batches.create(
                model=self._provider.model, src=file.name, config={"display_name": name}
            )
        )
        return str(batch.name)

    async def find(self, tag: str) -> str | None:
        """As `BatchTransport.find`."""
        pager = await gemini.call(self._client.aio.batches.list(config={"page_size": 100}))
        while True:
            for batch in pager.page:
                if batch.display_name == f"{_TAG}-{tag}":
                    return str(batch.name)
            try:
                await gemini.call(pager.next_page())
            except IndexError:  # the library's end
                return None

    async def state(self, remote: str) -> str | None:
        """As `BatchTransport.state`."""
        batch = await self._batch(remote)
        end = _GEMINI_ENDS.get(getattr(batch.state, "name", str(batch.state)))
        return f"failed: {batch.error}" if end == "failed" else end

    async def results(self, remote: str) -> Mapping[str, Raw | Failed]:
        """As `BatchTransport.results`."""
        batch = await self._batch(remote)
        if batch.dest is None or not batch.dest.file_name:
            return {}
        content = await gemini.call(self._client.aio.files.download(file=batch.dest.file_name))
        found: dict[str, Raw | Failed] = {}
        for line in content.decode().split("\n"):
            try:
                each = json.loads(line)
                key, response, error = each["key"], each.get("response"), each.get("error")
            except (ValueError, KeyError, TypeError):
                continue
            if response is not None:
                found[key] = Raw(json.dumps(response))
            else:
                found[key] = refusal(_http_status(error), json.dumps({"error": error}), {})
        return found

    async def _batch(self, remote: str) -> Any:
        return await gemini.call(self._client.aio.batches.get(name=remote))

    def read(self, raw: Raw) -> Answer:
        """As `BatchTransport.read`."""
        return gemini.read_content(raw)

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.aio.aclose()
        await self._http.aclose()


# Lines fail with the codes of gRPC: INVALID_ARGUMENT, NOT_FOUND, PERMISSION_DENIED, ...
_GRPC = {3: 400, 5: 404, 7: 403, 8: 429, 9: 400, 11: 400, 16: 401}


def _http_status(error: Any) -> int:
    code = error.get("code") if isinstance(error, dict) else None
    if not isinstance(code, int):
        return 500
    return code if code >= 100 else _GRPC.get(code, 500)
