"""Spellings in which servers of the same form differ; after a refusal the next one is tried."""

import dataclasses
import re
import urllib.parse
from collections.abc import Mapping
from typing import Literal

from dsd_jax.llm.config import ProviderConfig
from dsd_jax.llm.messages import Request
from dsd_jax.llm.transport import Failed, Raw

__all__ = ["Dialect", "Parameter", "adapted", "thinking_budget"]

Parameter = Literal["max_tokens", "reasoning", "schema"]

_BUDGETS = {"none": 0, "minimal": 512, "low": 1024, "medium": 8192, "high": 24576}
_OF_ANSWER = 3 / 4  # the share of an answer's tokens that a level may spend on thoughts

_NAMED: dict[Parameter, re.Pattern[str]] = {
    "max_tokens": re.compile(r"max_(completion_)?tokens"),
    "reasoning": re.compile(
        r"reasoning[_. ]?effort|thinking[_ ]?(level|budget|config)|budget_tokens"
        r"|['\"]thinking['\"]",
        re.IGNORECASE,
    ),
    "schema": re.compile(
        r"response_?format|json_schema|response_?(json_?)?schema|json mode|response_?mime_?type",
        re.IGNORECASE,
    ),
}
_UNSUPPORTED = re.compile(
    r"un-?supported|not (yet )?support|n't support|unknown|unrecogni[sz]ed|unexpected|unavailable"
    r"|not available|not (enabled|permitted|allowed|implemented)|extra (inputs|fields)|no such"
    r"|extra_forbidden|deprecated|instead|invalid parameter|cannot find field|input should be '",
    re.IGNORECASE,
)


@dataclasses.dataclass(frozen=True)
class Dialect:
    """The spellings of three parameters that one server accepts.

    Attributes:
        max_tokens: Name of the limit of the answer's tokens.
        reasoning: Whether thinking is set by a level or by a budget of tokens.
        schema: Way in which the form of an answer is asked for. With `json_object` and `none` the
            wording of the question alone describes it.
        chosen: Parameters that the user has set, which no refusal changes.
    """

    max_tokens: Literal["max_tokens", "max_completion_tokens"]
    reasoning: Literal["level", "budget"]
    schema: Literal["json_schema", "json_object", "none"]
    chosen: frozenset[Parameter] = frozenset()

    @classmethod
    def of(cls, provider: ProviderConfig) -> "Dialect":
        """The dialect to begin with, from the settings or else from the host and the model."""
        chosen: set[Parameter] = set()
        if provider.max_tokens_name is not None:
            chosen.add("max_tokens")
        if provider.reasoning_form is not None or isinstance(provider.reasoning, int):
            chosen.add("reasoning")
        if provider.schema_form is not None:
            chosen.add("schema")
        budget = isinstance(provider.reasoning, int) or _takes_budgets(provider)
        return cls(
            max_tokens=provider.max_tokens_name or _limit_name(provider),
            reasoning=provider.reasoning_form or ("budget" if budget else "level"),
            schema=provider.schema_form or "json_schema",
            chosen=frozenset(chosen),
        )

    def refused(self, error: Failed) -> Parameter | None:
        """The parameter whose spelling a server refused, if that was the reason."""
        if error.kind != "invalid" or not _UNSUPPORTED.search(error.body):
            return None
        return next((name for name, mark in _NAMED.items() if mark.search(error.body)), None)

    def after(self, refused: Parameter) -> "Dialect | None":
        """The dialect with the next spelling of a parameter; None if there is no other."""
        if refused in self.chosen:
            return None
        if refused == "max_tokens":
            other = {
                "max_tokens": "max_completion_tokens",
                "max_completion_tokens": "max_tokens",
            }
            return self._with(max_tokens=other[self.max_tokens])
        if refused == "reasoning":
            return self._with(reasoning="budget") if self.reasoning == "level" else None
        next_schema = {"json_schema": "json_object", "json_object": "none"}.get(self.schema)
        return None if next_schema is None else self._with(schema=next_schema)

    def _with(self, **changes: str) -> "Dialect":
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]


def adapted(
    results: Mapping[str, Raw | Failed], dialect: Dialect
) -> tuple[dict[str, Raw | Failed], Dialect]:
    """Results of a batch, and the dialect for the next one.

    A question whose spelling was refused is not refused itself: it goes out again.
    """
    found, following = dict(results), dialect
    for key, result in results.items():
        if not isinstance(result, Failed) or (refused := dialect.refused(result)) is None:
            continue
        if (other := dialect.after(refused)) is not None:
            found[key], following = Failed("retry", str(result)), other
    return found, following


def thinking_budget(reasoning: str | int, request: Request) -> int:
    """Budget of thinking tokens: as given, or what a level stands for.

    Thoughts count towards the answer's limit, so a level leaves a part of it to the words.
    """
    if isinstance(reasoning, int):
        return reasoning
    return min(_BUDGETS[reasoning], int(_OF_ANSWER * request.max_tokens))


def _limit_name(provider: ProviderConfig) -> Literal["max_tokens", "max_completion_tokens"]:
    # Newer models of OpenAI and Azure refuse the old name; some other servers do not know the new.
    host = urllib.parse.urlsplit(provider.url).hostname or ""
    new = provider.mode != "file" and host.endswith(("openai.com", ".azure.com"))
    return "max_completion_tokens" if new else "max_tokens"


def _takes_budgets(provider: ProviderConfig) -> bool:
    """Gemini's models before version 3 take a budget, later ones a level."""
    return provider.kind == "gemini" and bool(re.search(r"(^|/)gemini-[12]\.", provider.model))
