"""What every way to a model has in common: raw answers, and the kinds of failures."""

import dataclasses
import datetime as dt
import email.utils
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

from dsd_jax.errors import UserError
from dsd_jax.llm.messages import Answer, Request

__all__ = ["BatchTransport", "Elsewhere", "Failed", "Raw", "Transport", "json_object", "refusal"]


@dataclasses.dataclass(frozen=True)
class Raw:
    """An answer as it came.

    Attributes:
        body: the whole text, JSON or what should have been.
        request_id: from the headers, if the provider names one there.
    """

    body: str
    request_id: str = ""


class Failed(Exception):  # noqa: N818 - it is not always an error: a batch may only be late
    """A question that got no answer this time. Its text holds no key and no question.

    Attributes:
        kind: "retry": it may work later; "invalid": this question will never be answered; "fatal":
            no question will, until the user has done something.
        retry_after: seconds that the server asked to wait, if it did.
        limited: the server has too much to do, whatever is asked.
        maybe_charged: nothing is known of what became of it: the connection broke, or time was up.
    """

    def __init__(
        self,
        kind: Literal["retry", "invalid", "fatal"],
        message: str,
        *,
        retry_after: float | None = None,
        limited: bool = False,
        maybe_charged: bool = False,
    ) -> None:
        super().__init__(message)
        self.kind, self.retry_after = kind, retry_after
        self.limited, self.maybe_charged = limited, maybe_charged


@runtime_checkable
class Transport(Protocol):
    """One way to a model. Made inside the event loop in which it is used."""

    async def send(self, request: Request) -> Raw:
        """Asks once, without trying again.

        Raises:
            Failed: no answer.
        """
        ...

    def read(self, raw: Raw) -> Answer:
        """The answer in a raw one; a pure function, so that old answers can be read again.

        Raises:
            ValueError: it is not in the provider's form.
        """
        ...

    async def close(self) -> None: ...


class Elsewhere(UserError):  # noqa: N818 - nothing is wrong
    """The answers have to come from another program before the run can go on."""


@runtime_checkable
class BatchTransport(Protocol):
    """A way to a model for many questions at once. Each has its key as its name there.

    Attributes:
        most, most_bytes: questions in one batch, and bytes of their lines.
    """

    most: int
    most_bytes: int

    def line(self, key: str, request: Request) -> bytes:
        """A question in the provider's form, a line without its end."""
        ...

    async def submit(self, tag: str, lines: Sequence[bytes]) -> str:
        """Hands a batch over under a tag; the provider's name of it.

        Raises:
            Failed: it was not accepted, or nobody knows.
        """
        ...

    async def find(self, tag: str) -> str | None:
        """The provider's name of the batch that was handed over under a tag, if it was."""
        ...

    async def state(self, remote: str) -> str | None:
        """How a batch ended, or None while it goes on.

        Raises:
            Failed: it cannot be told now.
            Elsewhere: another program has to answer it first.
        """
        ...

    async def results(self, remote: str) -> Mapping[str, Raw | Failed]:
        """What became of the questions of a batch that ended, by key; some may be missing."""
        ...

    def read(self, raw: Raw) -> Answer:
        """As `Transport.read`."""
        ...

    async def close(self) -> None: ...


# Gemini names the limit that was met; one per day does not pass while a run waits.
_SPENT = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "PerDay")
_BAD_KEY = ("API_KEY_INVALID", "API_KEY_SERVICE_BLOCKED", "API key not valid", "API key expired")


def refusal(status: int, body: str, headers: Mapping[str, str]) -> Failed:
    """What an answer with an error status means, the same for all providers."""
    said = f"status {status}: {_message(body)}"
    if 300 <= status < 400:
        where = headers.get("location", "elsewhere")
        return Failed("fatal", f"the server redirects to {where}; give that host as base_url")
    if status in {401, 403} or any(each in body for each in _BAD_KEY):
        return Failed("fatal", f"the key was refused, {said}; check api_key_env or api_key_file")
    if status == 404:
        return Failed("fatal", f"no such model or address, {said}; check model and base_url")
    if status in {402, 429} and (status == 402 or any(each in body for each in _SPENT)):
        return Failed("fatal", f"the account's quota is spent, {said}; start again with more")
    if status in {408, 409, 425, 429} or status >= 500:
        # A gateway that lost patience does not know what became of the question.
        return Failed(
            "retry",
            said,
            retry_after=_retry_after(headers, body),
            limited=status == 429,
            maybe_charged=status == 504,
        )
    return Failed("invalid", said)


def _message(body: str) -> str:
    """The provider's own words in an error, or the beginning of whatever came."""
    try:
        content = json.loads(body)
        if isinstance(content, list):
            content = content[0]
        error = content.get("error", content)
        words = error.get("message") if isinstance(error, dict) else error
    except (ValueError, AttributeError, IndexError, TypeError):
        words = body
    return " ".join(str(words or body).split())[:300]


def _retry_after(headers: Mapping[str, str], body: str) -> float | None:
    """Seconds to wait: of the header (seconds or a date) or of Google's error details."""
    given = headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d+(\.\d*)?", given):
        return float(given)
    if given:
        try:
            then = email.utils.parsedate_to_datetime(given)
        except ValueError:
            return None
        return max(0.0, (then - dt.datetime.now(dt.UTC)).total_seconds())
    delay = re.search(r'"retryDelay"\s*:\s*"(\d+(?:\.\d+)?)s"', body)
    return float(delay[1]) if delay else None


def json_object(raw: Raw) -> dict[str, Any]:
    """The body of an answer.

    Raises:
        ValueError: it is not a JSON object.
    """
    content = json.loads(raw.body)
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")  # noqa: TRY004 - of the answer, not of the caller
    return content
