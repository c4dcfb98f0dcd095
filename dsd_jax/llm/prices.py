"""Prices of answers by a dated table; only the providers' bills are exact."""

import dataclasses
import functools
from pathlib import Path
from typing import Any, ClassVar

from dsd_jax.errors import UserError
from dsd_jax.llm.messages import Request, Usage
from dsd_jax.structured import build, read_toml

__all__ = ["Price", "Prices", "expected_tokens", "load_prices", "usd"]

_MILLION = 1e6
_TOKENS_OF_PICTURE = 2000  # more than the providers count for a picture of a million pixels
_BYTES_OF_TOKEN = 2  # fewer than any language needs on average: the caps must not be passed


@dataclasses.dataclass(frozen=True)
class Price:
    """Dollars per million tokens.

    Attributes:
        input: For the question.
        output: For the answer, thoughts included.
        cached: For the part of the question that the provider had cached. None takes `input`.
        batch: Factor on these prices for the batch interface.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    input: float
    output: float
    cached: float | None = None
    batch: float = 0.5

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            given = getattr(self, field.name)
            if given is not None and not 0 <= given < float("inf"):
                raise UserError(f"{field.name} must be a price of 0 or more, got {given}")

    def of(self, usage: Usage, *, batch: bool = False) -> float:
        """Dollars for the tokens of one answer."""
        cached = self.input if self.cached is None else self.cached
        fresh = usage.input - usage.cached
        dollars = fresh * self.input + usage.cached * cached + usage.output * self.output
        return dollars / _MILLION * (self.batch if batch else 1.0)


@dataclasses.dataclass(frozen=True)
class Prices:
    """A table of prices.

    Attributes:
        date: Date of the table.
        models: Prices by the exact name of the model.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    date: str
    models: dict[str, Price]


@functools.cache
def load_prices(path: Path | None = None) -> Prices:
    """The table in a file; by default the one beside this module.

    Raises:
        UserError: It cannot be read.
    """
    path = path or Path(__file__).with_name("prices.toml")
    return build(Prices, read_toml(path), str(path))


def usd(cost: float | None) -> str:
    """Dollars in words; None means that there is no price."""
    return "no price" if cost is None else f"${cost:,.4f}" if cost < 1 else f"${cost:,.2f}"


def expected_tokens(request: Request) -> Usage:
    """The most tokens, within reason, that a question and its answer take."""
    parts = [part for message in request.messages for part in message.parts]
    words = sum(len(part.encode()) for part in parts if isinstance(part, str))
    pictures = sum(not isinstance(part, str) for part in parts)
    return Usage(
        input=words // _BYTES_OF_TOKEN + pictures * _TOKENS_OF_PICTURE + 16,
        output=request.max_tokens,
    )
