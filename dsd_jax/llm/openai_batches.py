"""OpenAI's batch interface: half the price, an answer within a day."""

from collections.abc import Mapping, Sequence

import openai
from openai.types import Batch

from dsd_jax.llm.config import ProviderConfig
from dsd_jax.llm.dialect import Dialect, adapted
from dsd_jax.llm.http import MOST_RESULTS, TRANSFER_S, awaited, http_client
from dsd_jax.llm.lines import Results, chat_line, chat_results, complete
from dsd_jax.llm.messages import Answer, Request
from dsd_jax.llm.openai import read_chat
from dsd_jax.llm.transport import Access, Failed, Raw

__all__ = ["OpenAIBatches", "make_client"]

_TAG = "dsd"  # name of the metadata that holds a batch's tag
_ENDS = ("completed", "expired", "cancelled", "failed")


def make_client(provider: ProviderConfig, access: Access) -> openai.AsyncOpenAI:
    """OpenAI's client without retries of its own, which would send, and pay, without the ledger."""
    return openai.AsyncOpenAI(
        api_key=access.secret or "none",  # the client needs one, even where the server does not
        base_url=provider.url,
        max_retries=0,
        timeout=provider.timeout,
        http_client=http_client(provider, most=MOST_RESULTS),
    )


class OpenAIBatches:
    """Batches of up to 50,000 questions and 200 MB."""

    most, most_bytes = 50_000, 190_000_000

    def __init__(self, provider: ProviderConfig, access: Access) -> None:
        self._provider, self._dialect = provider, Dialect.of(provider)
        self._client, self._timeout = make_client(provider, access), provider.timeout

    def line(self, key: str, request: Request) -> bytes:
        """As `BatchTransport.line`."""
        return chat_line(key, request, self._provider, self._dialect)

    async def submit(self, tag: str, lines: Sequence[bytes]) -> str:
        """As `BatchTransport.submit`."""
        content = b"".join(line + b"\n" for line in lines)
        file = await awaited(
            self._client.files.create(
                file=(f"{_TAG}-{tag}.jsonl", content), purpose="batch", timeout=TRANSFER_S
            ),
            TRANSFER_S,
        )
        batch = await awaited(
            self._client.batches.create(
                input_file_id=file.id,
                endpoint="/v1/chat/completions",
                completion_window="24h",
                metadata={_TAG: tag},
            ),
            self._timeout,
        )
        return str(batch.id)

    async def find(self, tag: str) -> str | None:
        """As `BatchTransport.find`."""
        page = await awaited(self._client.batches.list(limit=100), self._timeout)
        while True:
            for batch in page.data:
                if (batch.metadata or {}).get(_TAG) == tag:
                    return str(batch.id)
            if not page.has_next_page():
                return None
            page = await awaited(page.get_next_page(), self._timeout)

    async def state(self, remote: str) -> str | None:
        """As `BatchTransport.state`."""
        batch = await self._batch(remote)
        if batch.status == "failed":
            errors = (batch.errors.data if batch.errors else None) or []
            return f"failed: {'; '.join(str(each.message) for each in errors[:3])}"
        return batch.status if batch.status in _ENDS else None

    async def results(self, remote: str) -> Mapping[str, Raw | Failed]:
        """As `BatchTransport.results`."""
        batch = await self._batch(remote)
        found: Results = {}
        for name in filter(None, (batch.output_file_id, batch.error_file_id)):
            content = await awaited(
                self._client.files.content(name, timeout=TRANSFER_S), TRANSFER_S
            )
            found = {**chat_results(complete(content.content)), **found}  # answers come first
        found, self._dialect = adapted(found, self._dialect)
        return found

    async def _batch(self, remote: str) -> Batch:
        return await awaited(self._client.batches.retrieve(remote), self._timeout)

    def read(self, raw: Raw) -> Answer:
        """As `BatchTransport.read`."""
        return read_chat(raw, self._provider.finish_words)

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.close()
