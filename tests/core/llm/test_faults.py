"""Every fault of a server, over the real clients: a right result or a named outcome, and the books
agree with the server's.
"""

import datetime as dt
import email.utils
import json
import time

import pytest

from dsd_jax.errors import UserError
from dsd_jax.llm import online
from dsd_jax.llm.limits import Pace
from dsd_jax.llm.messages import Message, Request
from dsd_jax.llm.totals import read_totals
from tests.core.llm.asking import KINDS, PICTURE, ask_all, converse, ledger_agrees, provider_of
from tests.core.llm.server import Server
from tests.core.llm.wire import BadJson, Delayed, Drop, Question, Reply, Result, Status


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(online, "FIRST_WAIT_S", 0.01)


@pytest.fixture
def ledger(tmp_path):
    return tmp_path / "judge-00000.sqlite"


def name_of(question: Question) -> str:
    return question.text.removeprefix("item ")


def first(fault: Result, then: Result = "yes"):
    """A server that has a fault when it is first asked a question, and then none."""
    return lambda question: fault if question.seen == 0 else then


PASSING: dict[str, Result] = {
    "429": Status(429),
    "429 with Retry-After": Status(429, headers={"Retry-After": "0"}),
    "500": Status(500),
    "503 without JSON": Status(503, "<html>busy</html>"),
    "504": Status(504),
    "dropped before": Drop(),
    "dropped within": Drop(40),
    "truncated JSON": BadJson(),
    "not an answer": Status(200, "[]"),
}
ANSWERS: dict[str, tuple[Result, str]] = {
    "plain": (Reply("yes"), "stop: yes"),
    "markdown": (Reply("**Yes.**\n"), "stop: **Yes.**\n"),
    "empty": (Reply(""), "stop: "),
    "cut": (Reply("the same cat", "length"), "length: the same cat"),
    "blocked": (Reply("", "blocked"), "blocked: "),
    "slow": (Delayed(0.2, "yes"), "stop: yes"),
    "3 MB": (Reply("y" * 3_000_000), "stop: " + "y" * 3_000_000),
}


@pytest.mark.parametrize("kind", KINDS)
class TestOneByOne:
    def test_faults_that_pass(self, kind, ledger):
        """Every question has its own fault, the first time it is asked."""
        with Server(lambda q: "yes" if q.seen else PASSING[name_of(q)]) as server:
            rows = ask_all(provider_of(server, kind), ledger, list(PASSING))
            assert server.received == 2 * len(PASSING)
            totals = read_totals(ledger)
        assert rows == dict.fromkeys(PASSING, "stop: yes")
        assert totals.answered == server.paid - server.dropped - 1 == len(PASSING)
        assert totals.maybe_charged == server.dropped + 1  # the gateway's 504 too
        assert totals.unreadable == 2  # half an answer, and something else

    def test_answers_come_through_as_they_are(self, kind, ledger):
        with Server(lambda question: ANSWERS[name_of(question)][0]) as server:
            rows = ask_all(provider_of(server, kind), ledger, list(ANSWERS))
            assert server.received == ledger_agrees(ledger, server).answered == len(ANSWERS)
        assert rows == {name: expected for name, (_, expected) in ANSWERS.items()}

    def test_a_refusal_is_blocked(self, kind, ledger):
        with Server(lambda question: Reply("", refusal="I can not")) as server:
            (row,) = ask_all(provider_of(server, kind), ledger, [1]).values()
        assert row.startswith("blocked: ")

    def test_an_invalid_question_is_asked_once_for_good(self, kind, ledger):
        invalid = Status(400, '{"error": {"message": "too many pixels"}}')
        with Server(lambda q: invalid if "item 1" in q.turns[1][1] else "yes") as server:
            for _ in range(2):
                rows = ask_all(provider_of(server, kind, max_in_flight=1), ledger, [0, 1, 2])
                assert rows[1] == "unanswered: status 400: too many pixels"
                assert rows[0] == rows[2] == "stop: yes"
            assert server.received == 3
            assert ledger_agrees(ledger, server).refused == 1

    def test_a_question_the_server_always_fails_at(self, kind, ledger):
        with Server(lambda q: Status(500) if "item 3" in q.turns[1][1] else "yes") as server:
            rows = ask_all(provider_of(server, kind, retries=2, max_in_flight=2), ledger, range(9))
            assert rows.pop(3) == "unanswered: no answer in 3 attempts: status 500: made up"
            assert set(rows.values()) == {"stop: yes"}
            assert ledger_agrees(ledger, server).failed == 3

    @pytest.mark.parametrize(
        ("fault", "message"),
        [
            (
                Status(401),
                "the key was refused, status 401: made up; check the variable or file that",
            ),
            (Status(403), "the key was refused, status 403"),
            (Status(404), "no such model or address, status 404: made up; check model"),
            (
                Status(429, '{"error": {"code": "insufficient_quota", "message": "spent"}}'),
                "the account's quota is spent, status 429: spent",
            ),
            (Status(402), "the account's quota is spent, status 402"),
            (
                Status(429, '{"error": {"details": [{"quotaId": "RequestsPerDayPerModel"}]}}'),
                "the account's quota is spent, status 429",
            ),
            (
                Status(400, '{"error": {"message": "API key not valid. Pass a valid one."}}'),
                "the key was refused, status 400: API key not valid",
            ),
            (Status(429, headers={"Retry-After": "3600"}), "start again in 3600 s"),
            (Status(302, headers={"Location": "http://evil.test/x"}), "redirects to http://evil"),
            (Status(500), r"gave no answer in 2 attempts.*status 500: made up; start again"),
            (
                Reply("yes", model="m-mini"),
                "`m` was asked, but `m-mini` answered; .* accept_models",
            ),
        ],
    )
    def test_what_ends_the_run(self, kind, fault, message, ledger):
        with Server(lambda question: fault) as server:
            with pytest.raises(UserError, match=message):
                ask_all(provider_of(server, kind, retries=1, max_in_flight=2), ledger, range(40))
            assert server.received <= 8
            ledger_agrees(ledger, server)

    def test_a_storm_of_faults(self, kind, ledger):
        """Three-turn conversations; every question has one of the faults first."""
        faults: list[Result] = [
            Status(429),
            Status(500),
            Drop(),
            Drop(60),
            BadJson(),
            Delayed(0.02, "yes"),
        ]

        def answer(question: Question) -> Result:
            number = sum(len(texts[0]) for _, texts in question.turns) + int(
                question.text.split()[1]
            )
            return faults[number % 6] if question.seen == 0 else f"yes {len(question.turns)}"

        with Server(answer) as server:
            rows = ask_all(provider_of(server, kind), ledger, range(24), converse)
            totals = ledger_agrees(ledger, server)
        assert set(rows) == set(range(24))
        assert set(rows.values()) <= {"yes 6", "yes"}
        assert totals.answered == totals.questions == 72


def test_pictures_turns_and_settings_reach_the_server(ledger):
    seen = []

    def answer(question: Question) -> Result:
        seen.append(question)
        return json.dumps({"same": True})

    schema = {"type": "object", "properties": {"same": {"type": "boolean"}}}
    turns = (
        Message("system", ("be brief",)),
        Message("user", ("first", PICTURE, "second", PICTURE)),
        Message("assistant", ("a cat",)),
        Message("user", ("the same?",)),
    )

    async def work(item, ask):
        request = Request("s", "1", turns, max_tokens=77, temperature=0.25, schema=schema)
        return (await ask(request)).text

    with Server(answer) as server:
        for kind in KINDS:
            for mode in ("online", "batch"):
                provider = provider_of(server, kind, mode=mode, reasoning="low", poll_seconds=0.01)
                ask_all(provider, ledger.with_name(f"{kind}_{mode}-0.sqlite"), [1], work)
    assert seen[0].body == seen[1].body  # one by one and in a batch
    assert _same_case(seen[2].body) == _same_case(seen[3].body)
    for question in seen:
        assert [role for role, _ in question.turns] == ["system", "user", "assistant", "user"]
        assert question.turns[1][1] == ("first", "second")
        assert question.pictures == (PICTURE.data, PICTURE.data)
    chat, content = seen[0].body, seen[3].body
    assert chat["reasoning_effort"] == "low"
    assert content["generationConfig"]["thinkingConfig"] == {"thinkingLevel": "LOW"}
    assert (chat["max_tokens"], chat["temperature"]) == (77, 0.25)
    assert chat["response_format"]["json_schema"]["schema"] == schema
    settings = content["generationConfig"]
    assert (settings["maxOutputTokens"], settings["temperature"]) == (77, 0.25)
    assert settings["responseJsonSchema"] == schema


def _same_case(body):
    """google-genai writes names with underscores, pictures in the alphabet of addresses."""
    text = json.dumps(body, sort_keys=True).replace("mime_type", "mimeType")
    text = text.replace("thinking_level", "thinkingLevel")
    return json.loads(text.replace("-", "+").replace("_", "/"))


@pytest.mark.parametrize("form", ["seconds", "date", "google"])
def test_retry_after_holds_all_questions_back(form, ledger, monkeypatch):
    """One 429 that asks for a second: nothing is sent before it has passed; then all are."""
    pause = Pace.pause
    pauses: list[tuple[float, float]] = []

    def noted(pace: Pace, seconds: float) -> None:
        pauses.append((time.monotonic(), seconds))
        pause(pace, seconds)

    def limit() -> Status:
        if form == "google":
            body = '{"error": {"message": "slow", "details": [{"retryDelay": "1s"}]}}'
            return Status(429, body)
        until = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=3)
        date = email.utils.format_datetime(until, usegmt=True)
        return Status(429, headers={"Retry-After": "1" if form == "seconds" else date})

    times = []

    def answer(question: Question) -> Result:
        times.append(time.monotonic())
        return limit() if len(times) == 1 else "yes"

    monkeypatch.setattr(Pace, "pause", noted)
    with Server(answer) as server:
        ask_all(provider_of(server, max_in_flight=1), ledger, range(3))
    assert len(times) == 4
    ((since, seconds),) = pauses  # nothing holds the later questions back
    assert 0 < seconds <= 3 if form == "date" else seconds == 1
    assert times[1] >= since + seconds


def test_a_limit_of_the_server_is_no_fault_of_a_question(ledger, monkeypatch):
    """40 are in flight, and while many wait, one in five gets through: retries are for faults."""
    monkeypatch.setattr(online, "LONGEST_WAIT_S", 0.03)

    def answer(question: Question) -> Result:
        return "yes" if server.paid >= 45 or server.received % 5 == 0 else Status(429)

    with Server(answer) as server:
        rows = ask_all(provider_of(server, max_in_flight=40, retries=2), ledger, range(80))
        totals = ledger_agrees(ledger, server)
    assert rows == dict.fromkeys(range(80), "stop: yes")
    assert totals.refused == 0
    assert totals.failed > 160


def test_no_answer_in_time_is_maybe_charged(ledger):
    with Server(first(Delayed(5.0, "late"))) as server:
        rows = ask_all(provider_of(server, timeout=1.0), ledger, [1])
    assert rows == {1: "stop: yes"}


def test_a_server_that_is_not_there(ledger):
    with Server() as server:
        pass
    with pytest.raises(UserError, match=r"no answer in 2 attempts.*connection"):
        ask_all(provider_of(server, retries=1), ledger, [1])


def test_all_refused_is_not_the_questions_fault(ledger):
    invalid = Status(400, '{"error": {"message": "unknown parameter"}}')
    with Server(lambda question: invalid) as server:
        with pytest.raises(UserError, match=r"all of the first 10 questions.*unknown parameter"):
            ask_all(provider_of(server, max_in_flight=1), ledger, range(100))
        server.answer = lambda question: "yes"
        assert set(ask_all(provider_of(server), ledger, range(20)).values()) == {"stop: yes"}
