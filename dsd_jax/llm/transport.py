"""The interface of all providers: raw answers, and the kinds of failures."""

import dataclasses
import datetime as dt
import email.utils
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from dsd_jax.errors import UserError
from dsd_jax.llm.messages import Answer, Request
from dsd_jax.structured import Limits, MalformedError, parse_json

__all__ = [
    "Access",
    "AnswersPending",
    "BatchTransport",
    "Failed",
    "Raw",
    "Transport",
    "failure_of",
]

_SAID = 300  # characters of a server's words in a message
_KEPT = 4_000  # characters of an error's body that are looked at
_ERROR = Limits(size=1 << 20, depth=32, lenient=True)


@dataclasses.dataclass(frozen=True)
class Raw:
    """An answer as it came.

    Attributes:
        body: All its bytes, JSON or what should have been.
        request_id: From the headers, if the provider names it there.
    """

    body: bytes
    request_id: str = ""


@dataclasses.dataclass(frozen=True)
class Access:
    """Everything that a transport needs besides the settings of its provider.

    Attributes:
        secret: The key, or None if none is sent.
        ledger: File of the ledger, or None if the ledger is in memory.
    """

    secret: str | None = dataclasses.field(default=None, repr=False)
    ledger: Path | None = None


class Failed(Exception):  # noqa: N818 - it is not always an error: a batch may only be late
    """A question that got no answer this time.

    Attributes:
        kind: "retry": it may work later; "invalid": this question will never be answered; "fatal":
            no question will, until the user has done something.
        retry_after: Seconds that the server asked to wait, or None.
        limited: The server is overloaded, whatever is asked.
        maybe_charged: It may have been charged: the connection broke, or time was up.
        unreadable: The server answered, and charged, but not in the provider's form.
        body: The beginning of the server's response; never stored or shown.
    """

    def __init__(
        self,
        kind: Literal["retry", "invalid", "fatal"],
        message: str,
        *,
        retry_after: float | None = None,
        limited: bool = False,
        maybe_charged: bool = False,
        unreadable: bool = False,
        body: str = "",
    ) -> None:
        super().__init__(message)
        self.kind, self.retry_after = kind, retry_after
        self.limited, self.maybe_charged, self.unreadable = limited, maybe_charged, unreadable
        self.body = body


@runtime_checkable
class Transport(Protocol):
    """Sends one question at a time to a model. It is made in the event loop that uses it."""

    async def send(self, request: Request) -> Raw:
        """Asks once, without trying again after a fault.

        Raises:
            Failed: There is no answer.
        """
        ...

    def read(self, raw: Raw) -> Answer:
        """Reads a raw answer; a pure function, so that old answers can be read again.

        Raises:
            ValueError: It is not in the provider's form.
        """
        ...

    async def close(self) -> None:
        """Closes the connections."""
        ...


class AnswersPending(UserError):  # noqa: N818 - nothing is wrong
    """Another program has to answer the questions before the run can go on."""


@runtime_checkable
class BatchTransport(Protocol):
    """Sends many questions at once to a model, each under its key.

    Attributes:
        most: Most questions in one batch.
        most_bytes: Most bytes of their lines.
    """

    most: int
    most_bytes: int

    def line(self, key: str, request: Request) -> bytes:
        """A question in the provider's form: a line without its end."""
        ...

    async def submit(self, tag: str, lines: Sequence[bytes]) -> str:
        """Hands a batch over under a tag and returns the provider's name of it.

        Raises:
            Failed: It was not accepted, or that is not known.
        """
        ...

    async def find(self, tag: str) -> str | None:
        """The provider's name of the batch that was handed over under a tag, if there is one."""
        ...

    async def state(self, remote: str) -> str | None:
        """The end of a batch in words, or None while it goes on.

        Raises:
            Failed: The provider cannot tell now.
            AnswersPending: Another program has to answer it first.
        """
        ...

    async def results(self, remote: str) -> Mapping[str, Raw | Failed]:
        """The outcome of each question of a batch that ended, by key; some may be missing."""
        ...

    def read(self, raw: Raw) -> Answer:
        """As `Transport.read`."""
        ...

    async def close(self) -> None:
        """As `Transport.close`."""
        ...


# Gemini names the limit that was met; a daily one does not pass while a run waits.
_SPENT = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "PerDay")
_BAD_KEY = ("API_KEY_INVALID", "API_KEY_SERVICE_BLOCKED", "API key not valid", "API key expired")


def failure_of(status: int, body: bytes | str, headers: Mapping[str, str]) -> Failed:
    """The failure that an answer with an error status means, the same for all providers."""
    text = body.decode(errors="replace") if isinstance(body, bytes) else body
    said = f"status {status}: {_message(text)}"
    if 300 <= status < 400:
        where = _printable(headers.get("location", "elsewhere"))
        return Failed("fatal", f"the server redirects to {where}; give that host as base_url")
    if status in {401, 403} or any(each in text for each in _BAD_KEY):
        return Failed(
            "fatal", f"the key was refused, {said}; check the variable or file that holds it"
        )
    if status == 404:
        return Failed("fatal", f"no such model or address, {said}; check model and base_url")
    if status in {402, 429} and (status == 402 or any(each in text for each in _SPENT)):
        return Failed("fatal", f"the account's quota is spent, {said}; start again with more")
    if status in {408, 409, 425, 429} or status >= 500:
        # A gateway that lost patience does not know what became of the question.
        return Failed(
            "retry",
            said,
            retry_after=_retry_after(headers, text[:_KEPT]),
            limited=status == 429,
            maybe_charged=status == 504,
        )
    return Failed("invalid", said, body=text[:_KEPT])


def _message(body: str) -> str:
    """The provider's own words in an error, or the beginning of whatever came."""
    words: object = body
    try:
        content = parse_json(body, "the error", object, _ERROR)
        if isinstance(content, list) and content:
            content = content[0]
        if isinstance(content, dict):
            error = content.get("error", content)
            words = error.get("message") if isinstance(error, dict) else error
    except MalformedError:
        pass
    return _printable(words if isinstance(words, str) and words else body)


def _printable(words: str) -> str:
    """The beginning of a foreign text on one line, without what moves a terminal's cursor."""
    line = " ".join(words[: 10 * _SAID].split())[:_SAID]
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in line)


def _retry_after(headers: Mapping[str, str], body: str) -> float | None:
    """Seconds to wait, by a header or by Google's error details; None if neither tells."""
    if re.fullmatch(r"[0-9]{1,12}(\.[0-9]*)?", given := headers.get("retry-after-ms", "").strip()):
        return float(given) / 1000
    given = headers.get("retry-after", "").strip()
    if re.fullmatch(r"[0-9]{1,12}(\.[0-9]*)?", given):
        return float(given)
    if given and (seconds := _until(given)) is not None:
        return seconds
    delay = re.search(r'"retryDelay"\s*:\s*"([0-9]{1,12}(?:\.[0-9]{1,12})?)s"', body)
    return float(delay[1]) if delay else None


def _until(date: str) -> float | None:
    """Seconds until the date in a header, in UTC if it names no zone; None if it is not a date."""
    try:
        then = email.utils.parsedate_to_datetime(date)
        if then.tzinfo is None:
            then = then.replace(tzinfo=dt.UTC)
        return max(0.0, (then - dt.datetime.now(dt.UTC)).total_seconds())
    except (ValueError, TypeError, IndexError, OverflowError, AttributeError):
        return None
