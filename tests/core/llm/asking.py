"""Helpers of the request layer's tests: a provider for the test's server, a conversation."""

from pathlib import Path
from typing import Any

from dsd_jax.llm.config import ProviderConfig
from dsd_jax.llm.messages import Ask, Message, Picture, Request, Unanswered
from dsd_jax.llm.session import Session
from dsd_jax.llm.totals import Totals, read_totals
from tests.core.llm.server import Server

__all__ = ["KINDS", "PICTURE", "ask_all", "converse", "ledger_agrees", "once", "provider_of"]

KINDS = ("openai", "gemini")
PICTURE = Picture(bytes(range(256)))


def provider_of(server: Server, kind: str = "openai", **settings: Any) -> ProviderConfig:
    """A provider that is this server."""
    return ProviderConfig(kind, "m", base_url=getattr(server, kind), **settings)


def question(item: object, **settings: Any) -> Request:
    turns = (Message("system", ("be brief",)), Message("user", (f"item {item}", PICTURE)))
    return Request("judge", str(item), turns, **settings)


async def once(item: object, ask: Ask) -> str:
    """One question; a refusal is an outcome."""
    try:
        answer = await ask(question(item))
    except Unanswered as error:
        return f"unanswered: {error}"
    return f"{answer.finish}: {answer.text}"


async def converse(item: object, ask: Ask) -> str:
    """Three turns, each with the answers so far."""
    turns = question(item).messages
    answer = await ask(Request("judge", str(item), turns))
    for step in (2, 3):
        said = Message("assistant", (answer.text,)), Message("user", (f"item {item} turn {step}",))
        turns += said
        answer = await ask(Request("judge", str(item), turns))
    return answer.text


def ask_all(
    provider: ProviderConfig, ledger: Path | None, items: Any, work: Any = once
) -> dict[Any, Any]:
    """Rows of all items, by item."""
    return dict(Session(provider, ledger).run(items, work))


def ledger_agrees(ledger: Path, server: Server) -> Totals:
    """The totals, after checking that they are what the server counted."""
    totals = read_totals(ledger)
    whole = totals.answered + totals.unreadable
    assert (whole, totals.maybe_charged) == (server.paid - server.dropped, server.dropped)
    assert totals.attempts == totals.failed + whole + totals.maybe_charged + totals.open
    return totals
