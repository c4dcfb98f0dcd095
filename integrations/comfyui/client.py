"""Talks to `dsd serve` over HTTP, with the standard library alone.

    for event in Stream(Server(), {"prompt": "this cat on a beach"}, png).events():
        ...

Nothing that a workflow says opens a file or reaches a machine that the owner of ComfyUI did not
name: a server is on this machine, or is listed in the environment variable `DSD_SERVERS`; a key is
named by its environment variable; redirects are not followed.
"""

import base64
import binascii
import contextlib
import dataclasses
import http.client
import ipaddress
import json
import os
import re
import secrets
import socket
import threading
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = [
    "BusyError",
    "Event",
    "Made",
    "Preview",
    "Question",
    "Server",
    "ServerError",
    "Step",
    "Stream",
    "default_address",
]

_SERVERS = "DSD_SERVERS"
_ADDRESS = re.compile(r"(https?)://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(?::([0-9]{1,5}))?/?")
_KEY_NAME = re.compile(r"DSD_[A-Z0-9_]{1,100}")
_STEP = re.compile(rb": step (\d{1,9}) of (\d{1,9})\s*")
_SECONDS = 300.0  # until an answer begins: uploads may wait, and a vision model thinks
_CANCELLING = 5.0
_LONGEST = 64 << 20  # bytes of an event or an answer
_PREVIEWS = 3  # the most that the server makes of each image


class ServerError(Exception):
    """The server did not answer as hoped; the message says what to do."""


class BusyError(ServerError):
    """The server takes no requests now.

    Attributes:
        seconds: Time after which to ask again.
    """

    def __init__(self, message: str, seconds: float) -> None:
        super().__init__(message)
        self.seconds = seconds


def _listed() -> list[str]:
    given = os.environ.get(_SERVERS, "").split(",")
    return [address.strip().rstrip("/") for address in given if address.strip()]


def default_address() -> str:
    """The first server that the owner of ComfyUI lists, or else one on this machine."""
    return next(iter(_listed()), "http://127.0.0.1:8000")


@dataclasses.dataclass(frozen=True)
class Server:
    """Where `dsd serve` runs.

    Attributes:
        address: `http://` or `https://`, a host, and a port; no path.
        key_env: Name of the environment variable with the server's key, which begins with `DSD_`.
            Without such a variable, no key is sent.

    Raises:
        ServerError: The address or the name is malformed, or the address is another machine's and
            is not listed or not encrypted.
    """

    address: str = dataclasses.field(default_factory=default_address)
    key_env: str = "DSD_API_KEY"

    def __post_init__(self) -> None:
        found = _ADDRESS.fullmatch(self.address)
        if found is None or int(found[3] or 0) > 65535:
            given = "one with a password" if "@" in self.address else repr(self.address)
            raise ServerError(
                f"the address of a server looks like http://127.0.0.1:8000, got {given}; give no "
                "path and no password in it"
            )
        if not _is_loopback(found[2].strip("[]")):
            if self.address.rstrip("/") not in _listed():
                raise ServerError(
                    f"{self.address} is not on this machine; to allow it, write it into the "
                    f"environment variable {_SERVERS} before ComfyUI starts"
                )
            if found[1] != "https":
                raise ServerError(
                    f"{self.address} would get pictures and the key unencrypted; use https, or "
                    "reach the server through `ssh -L 8000:127.0.0.1:8000 HOST`"
                )
        if not _KEY_NAME.fullmatch(self.key_env):
            raise ServerError(
                "key_env must name the environment variable that holds the key, and the name "
                "begins with DSD_, such as DSD_API_KEY; never put the key itself into a workflow"
            )

    def connection(self, seconds: float) -> http.client.HTTPConnection:
        """A connection that is not open yet."""
        parts = urllib.parse.urlsplit(self.address)
        secure = parts.scheme == "https"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        return kind(parts.hostname or "", parts.port, timeout=seconds)

    def headers(self) -> dict[str, str]:
        """Headers of every request.

        Raises:
            ServerError: The variable holds no valid key. The message does not repeat it.
        """
        key = os.environ.get(self.key_env, "").strip()
        if not re.fullmatch(r"[\x21-\x7e]*", key):
            raise ServerError(
                f"the key in the environment variable {self.key_env} must have no spaces and no "
                "letters beyond ASCII"
            )
        return {"Authorization": f"Bearer {key}"} if key else {}

    def error(self, response: http.client.HTTPResponse) -> ServerError:
        """The error for an answer that is no success."""
        body = response.read(1 << 16)
        try:
            message = json.loads(body)["error"]["message"]
        except (ValueError, LookupError, TypeError):
            message = response.reason or "no reason given"
        text = f"the server at {self.address} answered {response.status}: {message}"
        if response.status == http.client.UNAUTHORIZED:
            text += f"; set the environment variable {self.key_env} before ComfyUI starts"
        after = response.headers.get("retry-after", "")
        if response.status in (429, 503) and after.isdecimal() and len(after) < 6:
            return BusyError(text, float(after))
        return ServerError(text)

    def away(self, error: Exception) -> ServerError:
        """The error for a server that does not answer."""
        return ServerError(
            f"no answer from {self.address} ({type(error).__name__}: {error}); is `dsd serve` "
            "running there?"
        )


def _is_loopback(host: str) -> bool:
    # The same as `dsd_jax.keys.is_loopback`, since ComfyUI has no dsd_jax.
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclasses.dataclass(frozen=True)
class Step:
    """Steps taken, of all images of a request together."""

    done: int
    steps: int


@dataclasses.dataclass(frozen=True)
class Preview:
    """A preview of an image of a request, as PNG."""

    image: int
    png: bytes


@dataclasses.dataclass(frozen=True)
class Made:
    """A finished image of a request, as PNG."""

    image: int
    png: bytes
    seed: int


Event = Step | Preview | Made


class Exchange:
    """One request over HTTP, which any thread may cancel.

    Args:
        server: The server.
        method: Method of HTTP.
        path: Path of the address.
        body: Body and its type.
    """

    def __init__(
        self, server: Server, method: str, path: str, body: tuple[bytes, str] | None = None
    ) -> None:
        self.server = server
        self._method, self._path, self._body = method, path, body
        self._connection = server.connection(_SECONDS)
        self._lock = threading.Lock()
        self._sock: socket.socket | None = None
        self._cancelled = False

    @contextlib.contextmanager
    def response(self) -> Iterator[http.client.HTTPResponse]:
        """Sends the request and gives the answer, if it is a success. Blocks; for one thread.

        Raises:
            BusyError: The server takes no requests now.
            ServerError: It refused the request or left, or the request was cancelled.
        """
        body, kind = self._body or (None, "")
        headers = self.server.headers() | ({"Content-Type": kind} if kind else {})
        try:
            self._connection.connect()
            with self._lock:
                self._sock = self._connection.sock
            self.check()
            self._connection.request(self._method, self._path, body, headers)
            with self._connection.getresponse() as response:
                if response.status != http.client.OK:
                    raise self.server.error(response)
                yield response
                self.check()
        except (OSError, http.client.HTTPException) as error:
            self.check()
            raise self.server.away(error) from None
        finally:
            self._connection.close()

    def check(self) -> None:
        """Raises a `ServerError` if the request was cancelled."""
        if self._cancelled:
            raise ServerError("the request was cancelled")

    def wait_long(self) -> None:
        """Waits for the rest of the answer as long as it takes."""
        if self._sock is not None:
            self._sock.settimeout(None)

    def cancel(self) -> None:
        """Gives up the request, at any time."""
        with self._lock:
            self._cancelled, sock = True, self._sock
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


class Stream:
    """A request for images, and what the server says about it.

    Args:
        server: The server.
        fields: Fields of `POST /v1/images/edits`.
        reference: The reference as PNG.
    """

    def __init__(self, server: Server, fields: Mapping[str, str], reference: bytes) -> None:
        own = {"stream": "true", "partial_images": str(_PREVIEWS), "output_format": "png"}
        body = _form({**fields, **own}, reference)
        self._exchange = Exchange(server, "POST", "/v1/images/edits", body)
        self._job = ""

    def events(self) -> Iterator[Event]:
        """Steps, previews, and each finished image. Blocks; for one thread.

        Raises:
            BusyError: The queue of the server is full, or it is starting.
            ServerError: It refused the request, failed, or left.
        """
        with self._exchange.response() as response:
            self._job = response.headers.get("x-job-id", "")
            self._exchange.check()
            self._exchange.wait_long()  # for its place in the queue
            yield from _events(self._exchange.server, response)

    def cancel(self) -> None:
        """Gives up the request and its place on the server; for any thread, at any time."""
        server = self._exchange.server
        if re.fullmatch(r"[0-9a-f]{1,64}", self._job):
            connection = server.connection(_CANCELLING)
            # Without an answer, the server notices the closed stream.
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection.request("DELETE", f"/v1/jobs/{self._job}", headers=server.headers())
                connection.getresponse().read()
            connection.close()
        self._exchange.cancel()


class Question:
    """A request that is answered by a few texts."""

    def __init__(self, exchange: Exchange, *names: str) -> None:
        self._exchange, self._names = exchange, names
        self.cancel = exchange.cancel

    @classmethod
    def enhancement(cls, server: Server, prompt: str, reference: bytes) -> "Question":
        """Asks for a text with the details of a reference, by the server's vision model."""
        body = _form({"prompt": prompt}, reference)
        return cls(Exchange(server, "POST", "/v1/prompts/enhance", body), "prompt")

    @classmethod
    def light(cls, server: Server, words: str) -> "Question":
        """Asks for the order to light a picture so, and for the light as an addition to a text.

        Args:
            server: The server.
            words: Words of the light that the server's vocabulary has: `from the left with a lamp`.
        """
        path = f"/v1/light?{urllib.parse.urlencode({'words': words})}"
        return cls(Exchange(server, "GET", path), "instruction", "addition")

    def answer(self) -> list[str]:
        """The texts. Blocks.

        Raises:
            ServerError: The server refused, did not answer, or answered something else.
        """
        with self._exchange.response() as response:
            body = response.read(_LONGEST)
        try:
            answer = json.loads(body)
            return [str(answer[name]) for name in self._names]
        except (ValueError, LookupError, TypeError):
            address = self._exchange.server.address
            raise ServerError(
                f"the server at {address} answered something else; is it `dsd serve`?"
            ) from None


def _events(server: Server, response: http.client.HTTPResponse) -> Iterator[Event]:
    """Takes server-sent events apart."""
    while line := response.readline(_LONGEST + 1):
        if len(line) > _LONGEST:
            raise ServerError(f"the server at {server.address} sent too long an event")
        if step := _STEP.fullmatch(line):
            yield Step(int(step[1]), int(step[2]))
        elif line.startswith(b"data: "):
            try:
                yield _event(json.loads(line[len(b"data: ") :]))
            except (ValueError, LookupError, TypeError, binascii.Error):
                raise ServerError(
                    f"the server at {server.address} sent a damaged event; is it `dsd serve`?"
                ) from None


def _event(data: Any) -> Event:
    if "error" in data:
        raise ServerError(str(data["error"]["message"]))
    image, png = int(data["image"]), base64.b64decode(data["b64_json"], validate=True)
    if data["type"].endswith(".partial_image"):
        return Preview(image, png)
    return Made(image, png, int(data["seed"]))


def _form(fields: Mapping[str, str], image: bytes) -> tuple[bytes, str]:
    """A multipart form with one file, and its type."""
    boundary = secrets.token_hex(16)
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{_quoted(name)}"\r\n\r\n{value}\r\n'
        for name, value in fields.items()
    ]
    file = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="reference.png"'
        "\r\nContent-Type: image/png\r\n\r\n"
    )
    body = "".join(parts).encode() + file.encode() + image + f"\r\n--{boundary}--\r\n".encode()
    return body, f"multipart/form-data; boundary={boundary}"


def _quoted(name: str) -> str:
    return name.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")
