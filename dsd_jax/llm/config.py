"""The settings of one provider: the model, its pace and its budget."""

import dataclasses
import os
import re
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from dsd_jax.errors import UserError
from dsd_jax.keys import checked_key, is_loopback, key_of_file
from dsd_jax.llm.messages import Finish
from dsd_jax.llm.providers import kind_of

__all__ = ["ProviderConfig"]


@dataclasses.dataclass(frozen=True)
class ProviderConfig:
    """A model behind an interface, with the limits of its use.

    Attributes:
        kind: Interface of the provider: a name in `dsd_jax.llm.providers.KINDS`, such as "openai"
            (also for every server that speaks its form, by `base_url`) or "gemini".
        model: Exact name of the model. If another one answers, the run ends.
        mode: "online" asks one by one. "batch" uses the provider's batch interface, at half the
            price within a day. "file" writes JSONL for `vllm run-batch`, whose answers the next run
            reads.
        base_url: Address of another server, https or on this machine; openai's includes `/v1`.
        api_key_env: Name of the environment variable with the key. Without it, and without
            `base_url`, it is OPENAI_API_KEY or GEMINI_API_KEY; another server gets no key unless
            it is named.
        api_key_file: File with the key, in place of a variable.
        reasoning: Amount of thinking before the answer: a level, or a budget of tokens. None
            uses the model's default. Thoughts are paid for as output and count towards a question's
            `max_tokens`.
        reasoning_form: Form in which `reasoning` is sent: a level or a budget. None decides by the
            model, and tries a budget if the server refuses a level.
        max_tokens_name: Name of the limit of an answer. None decides by the host, and tries the
            other name if the server refuses one.
        schema_form: Way in which the form of an answer is asked for. None sends the JSON schema; if
            the server refuses that, it asks for a JSON object, or leaves it to the question's
            words.
        finish_words: The server's own words for the end of an answer, with their meaning: stop,
            length, blocked or other. Common words are known.
        accept_models: Other names under which the model may answer.
        max_in_flight: Questions under way at a time.
        requests_per_minute: Limit of the provider's account.
        tokens_per_minute: Limit of the provider's account.
        max_calls: Most paid calls of a stage. All caps are checked before sending, with the most
            that the answer can take.
        max_tokens: Most tokens of a stage.
        max_cost: Most dollars of a stage.
        max_undecided: A larger share of undecided answers ends the run.
        undecided_after: Number of answers after which `max_undecided` is checked.
        timeout: Seconds for one answer.
        retries: Repetitions of one question after faults that pass.
        poll_seconds: Seconds between looks at a batch.
        items_at_once: Items whose questions wait together for one batch or file.
        prices: A table like `prices.toml` beside this file, in place of it.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    kind: str
    model: str
    mode: Literal["online", "batch", "file"] = "online"
    base_url: str | None = None
    api_key_env: str | None = None
    api_key_file: Path | None = None
    reasoning: Literal["none", "minimal", "low", "medium", "high"] | int | None = None
    reasoning_form: Literal["level", "budget"] | None = None
    max_tokens_name: Literal["max_tokens", "max_completion_tokens"] | None = None
    schema_form: Literal["json_schema", "json_object", "none"] | None = None
    finish_words: Mapping[str, Finish] = dataclasses.field(default_factory=dict)
    accept_models: tuple[str, ...] = ()
    max_in_flight: int = 32
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    max_calls: int | None = None
    max_tokens: int | None = None
    max_cost: float | None = None
    max_undecided: float = 0.5
    undecided_after: int = 50
    timeout: float = 120.0
    retries: int = 6
    poll_seconds: float = 30.0
    items_at_once: int = 10_000
    prices: Path | None = None

    def __post_init__(self) -> None:
        if not self.model:
            raise UserError("model must be the exact name of a model")
        kind_of(self.kind, self.mode)
        self._check_numbers()
        if self.base_url is not None:
            _check_url(self.base_url)
        if self.api_key_env is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", self.api_key_env):
            raise UserError(  # the value may be the key itself, so it is not repeated
                "give the name of the environment variable that holds the key, in capitals, such "
                "as OPENAI_API_KEY, never the key itself"
            )
        if self.api_key_env is not None and self.api_key_file is not None:
            raise UserError("give api_key_env or api_key_file, not both")
        if isinstance(self.reasoning, int) and self.reasoning_form == "level":
            raise UserError(
                f"reasoning = {self.reasoning} is a budget of tokens; with reasoning_form = "
                '"level", give a level such as "low"'
            )

    def _check_numbers(self) -> None:
        least = {"max_in_flight": 1, "items_at_once": 1, "retries": 0, "undecided_after": 1}
        for name, smallest in least.items():
            if (given := getattr(self, name)) < smallest:
                raise UserError(f"{name} must be at least {smallest}, got {given}")
        for name in ("requests_per_minute", "tokens_per_minute", "timeout", "poll_seconds"):
            if (given := getattr(self, name)) is not None and not 0 < given < float("inf"):
                raise UserError(f"{name} must be positive, got {given}")
        for name in ("max_calls", "max_tokens", "max_cost"):
            if (given := getattr(self, name)) is not None and not given >= 0:
                raise UserError(f"{name} must not be negative, got {given}")
        if isinstance(self.reasoning, int) and self.reasoning < 0:
            raise UserError(f"reasoning must not be negative, got {self.reasoning}")
        if not 0 <= self.max_undecided <= 1:
            raise UserError(f"max_undecided is a share from 0 to 1, got {self.max_undecided}")

    @property
    def asked(self) -> str:
        """The model and its reasoning, on which answers depend; part of every key."""
        return self.model if self.reasoning is None else f"{self.model} reasoning={self.reasoning}"

    @property
    def url(self) -> str:
        """The address that requests go to."""
        return self.base_url or kind_of(self.kind, self.mode).url

    @property
    def key_env(self) -> str | None:
        """The variable that holds the key, or None if none is sent from the environment."""
        if self.api_key_env or self.api_key_file or self.mode == "file":
            return self.api_key_env
        return (kind_of(self.kind, self.mode).key_env or None) if self.base_url is None else None

    def key(self, environment: Mapping[str, str] = os.environ) -> str | None:
        """The key, or None if none is to be sent.

        Raises:
            UserError: The variable is not set, the file cannot be read, or what is there is no key.
        """
        if self.api_key_file is not None:
            return key_of_file(self.api_key_file)
        if self.key_env is None:
            return None
        if not (found := environment.get(self.key_env, "").strip()):
            raise UserError(
                f"the environment variable {self.key_env} is not set; set it to the key of "
                f"{self.url or self.kind}, or name the variable that holds it"
            )
        return checked_key(found, f"the environment variable {self.key_env}")


def _check_url(url: str) -> None:
    """Refuses addresses to which keys and pictures would go unencrypted."""
    try:
        parts = urllib.parse.urlsplit(url)
        host = parts.hostname
        _ = parts.port
    except ValueError:
        raise UserError(f"base_url must look like https://host/v1, got {url}") from None
    if parts.username or parts.password:
        raise UserError(
            "base_url must not hold a name or password; put the key into an environment variable"
        )
    if parts.query or parts.fragment:  # it may be the key: it is not repeated
        raise UserError(
            "base_url must end with its path, without `?` or `#`; put the key into an environment "
            "variable"
        )
    if not host:
        raise UserError(f"base_url must look like https://host/v1, got {url}")
    if parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host)):
        return
    raise UserError(
        f"base_url {url} is neither https nor of this machine, so the key could be read on the "
        "way; use https, or a tunnel to http://127.0.0.1"
    )
