"""Who is asked, how fast, for how much: the settings of one provider."""

import dataclasses
import ipaddress
import os
import re
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from dsd_jax.errors import UserError

__all__ = ["ProviderConfig"]

_PUBLIC = {
    "openai": "https://api.openai.com/v1",
    "gemini": "https://generativelanguage.googleapis.com",
    "toy": "",
}
_KEY_NAMES = {"openai": "OPENAI_API_KEY", "gemini": "GEMINI_API_KEY", "toy": ""}


@dataclasses.dataclass(frozen=True)
class ProviderConfig:
    """A model behind an interface, with the limits of its use.

    Attributes:
        kind: "openai" (and every server that speaks its form, by `base_url`), "gemini", or "toy":
            an answerer inside this process that needs no network.
        model: exact name; another answering model ends the run.
        mode: "online"; "batch": the provider's batch interface, at half the price within a day;
            "file": JSONL written for `vllm run-batch` and read back by the next run.
        base_url: of another server, https or of this machine; openai's includes `/v1`.
        api_key_env: name of the environment variable with the key. Without it, and without
            `base_url`, it is OPENAI_API_KEY or GEMINI_API_KEY; another server gets no key unless
            it is named.
        api_key_file: a file with the key, instead.
        reasoning: how much the model thinks before it answers; None: its own default. Thoughts are
            paid for as output and count towards a question's `max_tokens`.
        accept_models: other names under which the model may answer.
        max_in_flight: questions at once.
        requests_per_minute, tokens_per_minute: limits of the provider's account.
        max_calls, max_tokens, max_cost: caps over a stage: paid calls, tokens, dollars. Checked
            before sending, with the most that the answer can take.
        max_undecided: a larger share of undecided answers ends the run, counted from
            `undecided_after` answers on.
        timeout: seconds for one answer.
        retries: of one question after faults that pass.
        poll_seconds: between looks at a batch.
        items_at_once: items whose questions wait together for one batch or file.
        prices: a table like `prices.toml` beside this file, instead of it.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    kind: Literal["openai", "gemini", "toy"]
    model: str
    mode: Literal["online", "batch", "file"] = "online"
    base_url: str | None = None
    api_key_env: str | None = None
    api_key_file: Path | None = None
    reasoning: Literal["none", "minimal", "low", "medium", "high"] | None = None
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
        self._check_numbers()
        if self.base_url is not None:
            _check_url(self.base_url)
        if self.api_key_env is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", self.api_key_env):
            raise UserError(  # what was given may be the key itself: it is not repeated
                "api_key_env must be the name of an environment variable in capital letters, such "
                "as OPENAI_API_KEY, never the key itself"
            )
        if self.api_key_env is not None and self.api_key_file is not None:
            raise UserError("give api_key_env or api_key_file, not both")
        if self.kind == "toy" and self.mode != "online":
            raise UserError(f'kind "toy" answers at once; use mode "online" instead of {self.mode}')
        if self.kind == "gemini" and self.mode == "file":
            raise UserError(
                'mode "file" writes the form of OpenAI for `vllm run-batch`; use kind "openai", or '
                'mode "batch" for Gemini'
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
        if not 0 <= self.max_undecided <= 1:
            raise UserError(f"max_undecided is a share from 0 to 1, got {self.max_undecided}")

    @property
    def asked(self) -> str:
        """Who is asked, as far as it decides about answers; a part of every question's key."""
        return self.model if self.reasoning is None else f"{self.model} reasoning={self.reasoning}"

    @property
    def url(self) -> str:
        """Where requests go."""
        return self.base_url or _PUBLIC[self.kind]

    @property
    def key_env(self) -> str | None:
        """The variable that holds the key, or None if none is sent from the environment."""
        if self.api_key_env or self.api_key_file or self.mode == "file":
            return self.api_key_env
        return (_KEY_NAMES[self.kind] or None) if self.base_url is None else None

    def key(self, environment: Mapping[str, str] = os.environ) -> str | None:
        """The key, or None if none is to be sent.

        Raises:
            UserError: the variable is not set, or the file cannot be read.
        """
        if self.api_key_file is not None:
            try:
                found = self.api_key_file.read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                reason = getattr(error, "strerror", None) or "it is not text"
                raise UserError(f"cannot read api_key_file {self.api_key_file}: {reason}") from None
            if not found or "\n" in found:
                raise UserError(f"{self.api_key_file} must hold the key alone, on one line")
            return found
        if self.key_env is None:
            return None
        if not (found := environment.get(self.key_env, "").strip()):
            raise UserError(
                f"the environment variable {self.key_env} is not set; set it to the key of "
                f"{self.url or self.kind}, or give api_key_env or api_key_file"
            )
        return found


def _check_url(url: str) -> None:
    """Keys and pictures leave this machine encrypted or not at all."""
    parts = urllib.parse.urlsplit(url)
    if parts.username or parts.password:
        raise UserError("base_url must not hold a name or password; give the key by api_key_env")
    if not parts.hostname:
        raise UserError(f"base_url must look like https://host/v1, got {url}")
    if parts.scheme == "https" or (parts.scheme == "http" and _is_loopback(parts.hostname)):
        return
    raise UserError(
        f"base_url {url} is neither https nor of this machine, so the key could be read on the "
        "way; use https, or a tunnel to http://127.0.0.1"
    )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
