"""The HTTP client for all providers: bounded answers, no redirects, no retries."""

import abc
import asyncio
import contextlib
import json
import zlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import httpx2

from dsd_jax.llm.config import ProviderConfig
from dsd_jax.llm.dialect import Dialect
from dsd_jax.llm.messages import Answer, Request
from dsd_jax.llm.reading import MOST_BYTES
from dsd_jax.llm.transport import Access, Failed, Raw, failure_of

__all__ = [
    "MOST_RESULTS",
    "TRANSFER_S",
    "HttpTransport",
    "awaited",
    "http_client",
    "http_failure",
]

T = TypeVar("T")

MOST_RESULTS = 1 << 30
"""Most bytes of the results of a batch."""
TRANSFER_S = 1800.0
"""Most seconds for a file of questions or results."""

# Encoding -> window bits of zlib. Many servers send deflate without the header of zlib.
_PACKED = {"gzip": (31,), "x-gzip": (31,), "deflate": (15, -15)}
_GZIP = b"\x1f\x8b"  # the beginning of a member
_MOST_MEMBERS = 16  # of packed data; one is usual
_MOST_PACKINGS = 2  # inside each other; every one is a pass over the answer


class _TooLargeError(httpx2.RequestError):
    """A response with more bytes than an answer may have, before or after decompression."""


class _StatusError(httpx2.RequestError):
    """A response with an error status, or a redirect.

    Attributes:
        failure: Its meaning.
    """

    def __init__(self, failure: Failed) -> None:
        super().__init__(str(failure))
        self.failure = failure


class _BadPackingError(httpx2.RequestError):
    """A response whose compression is broken."""


class _UnknownPackingError(httpx2.RequestError):
    """A response that is compressed in a way that was not asked for, as all others will be."""


def _bounded(most: int) -> Callable[[httpx2.Response], Awaitable[None]]:
    """A hook that reads each response up to a size, and decompresses it up to the same size.

    The library itself would read without a limit, and decompress a small response to any size. A
    response that is not a success raises `_StatusError` here, before a client looks at it.
    """

    async def read(response: httpx2.Response) -> None:
        stream, portions, size = response.stream, [], 0
        assert isinstance(stream, httpx2.AsyncByteStream)
        try:
            async for portion in stream:
                size += len(portion)
                _check(size, most)
                portions.append(portion)
        finally:
            await stream.aclose()
        content = b"".join(portions)
        named = response.headers.pop("content-encoding", "").lower().split(",")
        packings = [each.strip() for each in named if each.strip() not in {"", "identity"}]
        if len(packings) > _MOST_PACKINGS or not _PACKED.keys() >= set(packings):
            raise _UnknownPackingError(repr(", ".join(packings)[:40]))
        for packing in reversed(packings if content else ()):
            content = _unpacked(content, packing, most)
        if not response.is_success:
            raise _StatusError(failure_of(response.status_code, content, response.headers))
        response.stream = httpx2.ByteStream(content)

    return read


def _unpacked(content: bytes, packing: str, most: int) -> bytes:
    for bits in _PACKED[packing]:
        with contextlib.suppress(zlib.error):
            return _inflated(content, bits, most)
    raise _BadPackingError("broken compression")


def _inflated(content: bytes, bits: int, most: int) -> bytes:
    """Packed data, whose members may be several in a row."""
    unpacked = b""
    for _ in range(_MOST_MEMBERS):
        unpacker = zlib.decompressobj(bits)
        unpacked += unpacker.decompress(content, most + 1 - len(unpacked))
        _check(len(unpacked), most)
        if not unpacker.eof:
            raise _BadPackingError("the compressed data is cut off")
        content = unpacker.unused_data
        if not content.startswith(_GZIP):
            break
    return unpacked


def _check(size: int, most: int) -> None:
    if size > most:
        raise _TooLargeError(f"the answer has more than {most >> 20} MiB")


def http_client(
    provider: ProviderConfig,
    *,
    headers: Mapping[str, str] | None = None,
    most: int = MOST_BYTES,
) -> httpx2.AsyncClient:
    """Makes a client that follows no redirects, which would send the key to another host.

    Args:
        provider: Settings with the host, the timeout and the number of connections.
        headers: Sent with every request.
        most: Most bytes of a response.
    """
    in_flight = provider.max_in_flight
    limits = httpx2.Limits(max_connections=in_flight, max_keepalive_connections=in_flight)
    return httpx2.AsyncClient(
        base_url=provider.url,
        headers={"Accept-Encoding": "gzip, deflate", **(headers or {})},
        timeout=provider.timeout,
        follow_redirects=False,
        limits=limits,
        event_hooks={"response": [_bounded(most)]},
    )


def http_failure(error: Exception) -> Failed:
    """The failure that an exception of the HTTP library, or of a client above it, means.

    Only the exception's type is repeated, since its text may hold headers.
    """
    if not isinstance(error, httpx2.HTTPError) and isinstance(error.__cause__, httpx2.HTTPError):
        error = error.__cause__  # OpenAI's client wraps it
    if isinstance(error, _StatusError):
        return error.failure
    if isinstance(error, _TooLargeError):
        return Failed("invalid", str(error), maybe_charged=True)
    if isinstance(error, _UnknownPackingError):
        words = f"the server compresses answers as {error}, which was not asked for"
        return Failed("fatal", f"{words}; ask another one", maybe_charged=True)
    if isinstance(error, _BadPackingError):
        return Failed("retry", f"the answer cannot be unpacked: {error}", maybe_charged=True)
    if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.PoolTimeout):
        return Failed("retry", f"no connection: {type(error).__name__}")
    if isinstance(error, httpx2.TimeoutException | TimeoutError):
        return Failed("retry", "the server took too long", maybe_charged=True)
    what = "connection" if isinstance(error, httpx2.HTTPError | OSError) else "client"
    words = f"the {what} failed: {type(error).__name__}"
    return Failed("retry", words, maybe_charged=True)


async def awaited(awaitable: Awaitable[T], seconds: float) -> T:
    """Awaits a call of a client that is built on this HTTP client, for so many seconds in all.

    A client's own limit holds for each portion of an answer: with a byte a minute it never ends.

    Raises:
        Failed: For every exception; those of the client hold the request with its headers.
    """
    try:
        async with asyncio.timeout(seconds):
            return await awaitable
    except Exception as error:  # noqa: BLE001 - whatever the client makes of the server's words
        raise http_failure(error) from None


class HttpTransport(abc.ABC):
    """Questions one by one, as JSON over HTTP; a subclass knows the form of one provider.

    The bodies of answers reach the ledger as the bytes that came.
    """

    id_header = ""
    """Header that names the exchange."""

    def __init__(self, provider: ProviderConfig, access: Access) -> None:
        self._provider, self._dialect = provider, Dialect.of(provider)
        self._client = http_client(provider, headers=self.headers(provider, access))

    @abc.abstractmethod
    def headers(self, provider: ProviderConfig, access: Access) -> Mapping[str, str]:
        """The headers that hold the key."""

    @abc.abstractmethod
    def path(self) -> str:
        """The path that questions go to, relative to the provider's address."""

    @abc.abstractmethod
    def body(self, request: Request, dialect: Dialect) -> Mapping[str, object]:
        """A question as JSON."""

    @abc.abstractmethod
    def read(self, raw: Raw) -> Answer:
        """As `Transport.read`."""

    async def send(self, request: Request) -> Raw:
        """As `Transport.send`; if the server refuses a spelling, the next one is tried.

        A refused spelling costs nothing. The one that the server takes is used from then on.
        """
        dialect = self._dialect
        tried = {dialect}
        try:
            return await self._post(self.body(request, dialect))
        except Failed as error:
            failure = error
        while (refused := dialect.refused(failure)) and (other := dialect.after(refused)):
            if other in tried:
                break
            tried.add(other)
            try:
                raw = await self._post(self.body(request, other))
            except Failed as again:
                dialect = other
                if other.refused(again) != refused:  # otherwise the first refusal tells more
                    failure = again
            else:
                self._dialect = other
                return raw
        raise failure

    async def _post(self, body: Mapping[str, Any]) -> Raw:
        try:
            response = await self._client.post(
                self.path(),
                content=json.dumps(body, ensure_ascii=False).encode(),
                headers={"Content-Type": "application/json"},
            )
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
            raise http_failure(error) from None
        return Raw(response.content, response.headers.get(self.id_header, ""))

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.aclose()
