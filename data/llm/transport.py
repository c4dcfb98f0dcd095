"""What every way to a model has in common: raw answers, and the kinds of failures."""

import dataclasses
from typing import Literal, Protocol, runtime_checkable

from dsd_jax.data.llm.messages import Answer, Request

__all__ = ["Failed", "Raw", "Transport"]


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
    """A question that got no answer this time.

    Attributes:
        kind: "retry": it may work later; "invalid": this question will never be answered; "fatal":
            no question will, until the user has done something.
        retry_after: seconds that the server asked to wait, if it did.
        maybe_charged: nothing is known of what became of it: the connection broke, or time was up.
    """

    def __init__(
        self,
        kind: Literal["retry", "invalid", "fatal"],
        message: str,
        *,
        retry_after: float | None = None,
        maybe_charged: bool = False,
    ) -> None:
        super().__init__(message)
        self.kind, self.retry_after, self.maybe_charged = kind, retry_after, maybe_charged


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
