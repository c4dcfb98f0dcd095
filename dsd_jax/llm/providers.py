"""The kinds of providers: the address of each, and the class that asks it in each mode."""

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from typing import Any

from dsd_jax.errors import UserError, and_more, did_you_mean

__all__ = ["KINDS", "Kind", "kind_of", "way_to"]


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of provider.

    Attributes:
        url: Address, unless a `base_url` is given; empty if nothing leaves the process.
        key_env: Environment variable of its key; empty if it needs none.
        model: Model with vision that is asked where the user names none.
        modes: For each mode, "module:class" of its `Transport` or `BatchTransport`, which is called
            with the settings of the provider and its `Access`. It is imported when it is needed,
            since the clients of providers are slow to load.
    """

    url: str
    key_env: str
    model: str
    modes: Mapping[str, str]


KINDS: Mapping[str, Kind] = {
    "openai": Kind(
        "https://api.openai.com/v1",
        "OPENAI_API_KEY",
        "gpt-5.4-mini-2026-03-17",
        {
            "online": "dsd_jax.llm.openai:OpenAITransport",
            "batch": "dsd_jax.llm.openai_batches:OpenAIBatches",
            "file": "dsd_jax.llm.files:QuestionFiles",
        },
    ),
    "gemini": Kind(
        "https://generativelanguage.googleapis.com",
        "GEMINI_API_KEY",
        "gemini-3.8-flash",
        {
            "online": "dsd_jax.llm.gemini:GeminiTransport",
            "batch": "dsd_jax.llm.gemini_batches:GeminiBatches",
        },
    ),
    "toy": Kind("", "", "toy", {"online": "dsd_jax.toy.provider:ToyTransport"}),
}


def kind_of(name: str, mode: str) -> Kind:
    """The kind of that name.

    Raises:
        UserError: There is none, or it has no such mode.
    """
    if (kind := KINDS.get(name)) is None:
        raise UserError(
            f"there is no kind {name!r} of provider; expected {and_more(list(KINDS))}"
            f"{did_you_mean(name, KINDS)}"
        )
    if mode not in kind.modes:
        raise UserError(
            f'kind "{name}" has no mode {mode!r}; expected {and_more(list(kind.modes))}'
        )
    return kind


def way_to(name: str, mode: str) -> Callable[..., Any]:
    """The class that asks a kind of provider in a mode."""
    module, _, attribute = kind_of(name, mode).modes[mode].partition(":")
    made: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    return made
