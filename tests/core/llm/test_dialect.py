"""Servers that spell parameters differently: settings, and one step after a refusal."""

import json
import re

import pytest

from dsd_jax.llm import batched, online
from dsd_jax.llm.config import ProviderConfig
from dsd_jax.llm.dialect import Dialect
from dsd_jax.llm.messages import Message, Request
from dsd_jax.llm.totals import read_totals
from tests.core.llm.asking import KINDS, ask_all, provider_of
from tests.core.llm.server import Server
from tests.core.llm.wire import Question, Result, Status

SCHEMA = {"type": "object", "properties": {"same": {"type": "boolean"}}}
MESSAGES = {
    "max_tokens": "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
    "'max_completion_tokens' instead.",
    "max_completion_tokens": '{"loc": ["body", "max_completion_tokens"], "msg": "Extra inputs are '
    'not permitted"}',
    "reasoning_effort": "Unrecognized request argument supplied: reasoning_effort",
    "thinkingLevel": "Thinking level is not supported for this model.",
    "json_schema": "This response_format type is unavailable now",
    "json_object": "'response_format.type' must be 'text': json_object is not supported",
    "responseJsonSchema": "Unknown name \"responseJsonSchema\" at 'generation_config': Cannot find "
    "field.",
    "responseMimeType": "JSON mode is not enabled for this model",
}


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(online, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(batched, "SETTLE_S", 0.01)


@pytest.fixture
def ledger(tmp_path):
    return tmp_path / "judge-00000.sqlite"


async def work(item, ask):
    turns = (Message("user", (f"item {item}",)),)
    return (await ask(Request("judge", str(item), turns, max_tokens=4000, schema=SCHEMA))).text


def refusing(*names: str):
    """A server that refuses these spellings, and notes the bodies that it took."""
    taken: list[dict] = []

    def answer(question: Question) -> Result:
        text = json.dumps(question.body)
        for name in names:
            if re.search(rf'"{name}"', text):
                return Status(400, json.dumps({"error": {"message": MESSAGES[name]}}))
        taken.append(dict(question.body))
        return "yes"

    return answer, taken


@pytest.mark.parametrize("mode", ["online", "batch"])
@pytest.mark.parametrize(
    ("kind", "refused", "body"),
    [
        ("openai", ("max_tokens",), {"max_completion_tokens": 4000}),
        (
            "openai",
            ("reasoning_effort",),
            {"thinking": {"type": "enabled", "budget_tokens": 1024}},
        ),
        ("openai", ("json_schema",), {"response_format": {"type": "json_object"}}),
        (
            "openai",
            ("max_tokens", "json_schema", "json_object", "reasoning_effort"),
            {"max_completion_tokens": 4000, "thinking": {"type": "enabled", "budget_tokens": 1024}},
        ),
        (
            "gemini",
            ("thinkingLevel", "responseJsonSchema"),
            {
                "generationConfig": {
                    "maxOutputTokens": 4000,
                    "thinkingConfig": {"thinkingBudget": 1024},
                    "responseMimeType": "application/json",
                }
            },
        ),
        (
            "gemini",
            ("responseMimeType",),
            {
                "generationConfig": {
                    "maxOutputTokens": 4000,
                    "thinkingConfig": {"thinkingLevel": "LOW"},
                }
            },
        ),
    ],
)
def test_a_refused_spelling_is_replaced(mode, kind, refused, body, ledger):
    answer, taken = refusing(*refused)
    with Server(answer) as server:
        settings = provider_of(
            server, kind, mode=mode, reasoning="low", max_in_flight=1, poll_seconds=0.01
        )
        rows = ask_all(settings, ledger, range(5), work)
        assert rows == dict.fromkeys(range(5), "yes")
        assert server.paid == 5
        if mode == "online":  # the first question learns for all
            assert server.received <= 5 + 5
            assert read_totals(ledger).attempts == 5
    for each in taken:
        assert body.items() <= each.items()
    if "json_object" in refused:
        assert "response_format" not in taken[0]


def test_an_old_server_gets_the_old_name_back(ledger):
    answer, taken = refusing("max_completion_tokens")
    with Server(answer) as server:
        settings = provider_of(server)
        host = ProviderConfig("openai", "m", base_url="https://x.openai.azure.com/openai/v1")
        assert Dialect.of(host).max_tokens == "max_completion_tokens"
        assert Dialect.of(settings).max_tokens == "max_tokens"
        newer = Dialect.of(host).after("max_tokens")
        assert newer is not None
        assert newer.max_tokens == "max_tokens"
        ask_all(settings, ledger, [1], work)
    assert taken[0]["max_tokens"] == 4000


@pytest.mark.parametrize(
    ("settings", "refused"),
    [
        ({"max_tokens_name": "max_tokens"}, "max_tokens"),
        ({"reasoning": "low", "reasoning_form": "level"}, "reasoning_effort"),
        ({"schema_form": "json_schema"}, "json_schema"),
    ],
)
def test_what_is_set_is_not_replaced(settings, refused, ledger):
    answer, taken = refusing(refused)
    with Server(answer) as server:
        rows = ask_all(provider_of(server, **settings), ledger, [1], _once)
        assert server.received == 1
    assert taken == []
    assert rows[1].startswith("status 400: ")


async def _once(item, ask):
    try:
        return await work(item, ask)
    except Exception as error:  # noqa: BLE001
        return str(error)


def test_a_refusal_of_both_spellings_gives_the_first_reason(ledger):
    answer, _ = refusing("max_tokens", "max_completion_tokens")
    with Server(answer) as server:
        rows = ask_all(provider_of(server), ledger, [1], _once)
        assert server.received == 2
    assert "'max_tokens' is not supported" in rows[1]


@pytest.mark.parametrize(
    "message",
    [
        "max_tokens is too large: 4000. This model supports at most 1000 completion tokens",
        "max_tokens must be at least 5000",
        "the picture's format is not supported",
        "too many pixels",
    ],
)
def test_other_refusals_change_nothing(message, ledger):
    refusal = Status(400, json.dumps({"error": {"message": message}}))
    with Server(lambda question: refusal) as server:
        rows = ask_all(provider_of(server), ledger, [1], _once)
        assert server.received == 1
    assert rows[1] == f"status 400: {message}"


@pytest.mark.parametrize("kind", KINDS)
def test_a_budget_is_sent_as_it_is_given(kind, ledger):
    answer, taken = refusing()
    with Server(answer) as server:
        for number, reasoning in enumerate((5000, 0)):
            path = ledger.with_stem(f"judge-{number:05}")
            ask_all(provider_of(server, kind, reasoning=reasoning), path, [1], work)
    if kind == "openai":
        assert taken[0]["thinking"] == {"type": "enabled", "budget_tokens": 5000}
        assert taken[1]["thinking"] == {"type": "disabled"}
    else:
        budgets = [each["generationConfig"]["thinkingConfig"] for each in taken]
        assert budgets == [{"thinkingBudget": 5000}, {"thinkingBudget": 0}]


def test_gemini_before_3_takes_budgets(ledger):
    old = ProviderConfig("gemini", "gemini-2.5-flash", reasoning="high")
    new = ProviderConfig("gemini", "gemini-3.8-flash", reasoning="high")
    assert (Dialect.of(old).reasoning, Dialect.of(new).reasoning) == ("budget", "level")
