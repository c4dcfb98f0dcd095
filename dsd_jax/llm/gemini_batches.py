"""Gemini's batch interface: half the price, an answer within a day."""

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from google import genai

from dsd_jax.llm.config import ProviderConfig
from dsd_jax.llm.dialect import Dialect, adapted
from dsd_jax.llm.gemini import API_VERSION, content_body, read_content
from dsd_jax.llm.http import MOST_RESULTS, TRANSFER_S, awaited, http_client
from dsd_jax.llm.lines import complete, read_results
from dsd_jax.llm.messages import Answer, Request
from dsd_jax.llm.transport import Access, Failed, Raw, failure_of

__all__ = ["GeminiBatches"]

_TAG = "dsd"  # the display name of a batch is this and its tag
_ENDS = {
    "JOB_STATE_SUCCEEDED": "completed",
    "JOB_STATE_PARTIALLY_SUCCEEDED": "completed",
    "JOB_STATE_EXPIRED": "expired",
    "JOB_STATE_CANCELLED": "cancelled",
    "JOB_STATE_FAILED": "failed",
}
# Lines fail with the codes of gRPC: INVALID_ARGUMENT, NOT_FOUND, PERMISSION_DENIED and others.
_GRPC = {3: 400, 5: 404, 7: 403, 8: 429, 9: 400, 11: 400, 16: 401}


class GeminiBatches:
    """Batches of files; the tag is part of the batch's display name."""

    most, most_bytes = 50_000, 500_000_000  # the provider takes 2 GB, but lines are in memory twice

    def __init__(self, provider: ProviderConfig, access: Access) -> None:
        self._provider, self._dialect = provider, Dialect.of(provider)
        # Given, since with aiohttp installed the library sends a question again after a broken
        # connection, unasked.
        self._http = http_client(provider, most=MOST_RESULTS)
        self._client = genai.Client(
            vertexai=False,
            api_key=access.secret or "none",
            http_options=genai.types.HttpOptions(
                base_url=provider.url,
                api_version=API_VERSION,
                timeout=int(provider.timeout * 1000),
                httpx_async_client=self._http,
            ),
        )

    def line(self, key: str, request: Request) -> bytes:
        """As `BatchTransport.line`."""
        line = {"key": key, "request": content_body(request, self._provider, self._dialect)}
        return json.dumps(line, ensure_ascii=False).encode()

    async def submit(self, tag: str, lines: Sequence[bytes]) -> str:
        """As `BatchTransport.submit`."""
        content = io.BytesIO(b"".join(line + b"\n" for line in lines))
        name = f"{_TAG}-{tag}"
        file = await awaited(
            self._client.aio.files.upload(
                file=content, config={"mime_type": "jsonl", "display_name": name}
            ),
            TRANSFER_S,
        )
        batch = await awaited(
            self._client.aio.batches.create(
                model=self._provider.model, src=file.name or "", config={"display_name": name}
            ),
            self._provider.timeout,
        )
        return str(batch.name)

    async def find(self, tag: str) -> str | None:
        """As `BatchTransport.find`."""
        pager = await awaited(
            self._client.aio.batches.list(config={"page_size": 100}), self._provider.timeout
        )
        while True:
            for batch in pager.page:
                if batch.display_name == f"{_TAG}-{tag}":
                    return str(batch.name)
            if not await awaited(_turn_page(pager), self._provider.timeout):
                return None

    async def state(self, remote: str) -> str | None:
        """As `BatchTransport.state`."""
        batch = await self._batch(remote)
        end = _ENDS.get(getattr(batch.state, "name", str(batch.state)))
        return f"failed: {batch.error}" if end == "failed" else end

    async def results(self, remote: str) -> Mapping[str, Raw | Failed]:
        """As `BatchTransport.results`."""
        batch = await self._batch(remote)
        if batch.dest is None or not batch.dest.file_name:
            return {}
        content = await awaited(
            self._client.aio.files.download(file=batch.dest.file_name), TRANSFER_S
        )
        found = read_results(complete(content), "key", _failure)
        found, self._dialect = adapted(found, self._dialect)
        return found

    async def _batch(self, remote: str) -> Any:
        return await awaited(self._client.aio.batches.get(name=remote), self._provider.timeout)

    def read(self, raw: Raw) -> Answer:
        """As `BatchTransport.read`."""
        return read_content(raw, self._provider.finish_words)

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.aio.aclose()
        await self._http.aclose()


async def _turn_page(pager: Any) -> bool:
    """Loads the next page of a list; returns whether there is one."""
    try:
        await pager.next_page()
    except IndexError:  # the library's word for the end
        return False
    return True


def _failure(line: dict[str, Any]) -> Failed | None:
    if line.get("response") is not None:
        return None
    error = line.get("error")
    code = error.get("code") if isinstance(error, dict) else None
    status = 500
    if isinstance(code, int):
        status = code if 100 <= code < 600 else _GRPC.get(code, 500)
    return failure_of(status, json.dumps({"error": error}), {})
