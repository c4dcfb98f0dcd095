"""Runs of many items: order, bounds, breakers, caps, stops; the same rows from the ledger again."""

import asyncio
import json
import os
import signal
import sqlite3
import threading
import time

import pytest

from dsd_jax.errors import UserError
from dsd_jax.interrupt import StopsAtOnce
from dsd_jax.llm import online, session
from dsd_jax.llm.config import ProviderConfig
from dsd_jax.llm.ledger import Ledger
from dsd_jax.llm.messages import Message, Request
from dsd_jax.llm.session import Session
from dsd_jax.llm.totals import read_totals
from tests.core.llm.asking import ask_all, converse, ledger_agrees, once, provider_of
from tests.core.llm.server import Server
from tests.core.llm.wire import Drop, Question, Reply


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(online, "FIRST_WAIT_S", 0.01)


@pytest.fixture
def ledger(tmp_path):
    return tmp_path / "judge-00000.sqlite"


def turns(question: Question) -> str:
    return f"yes {len(question.turns)}"


def test_a_second_run_pays_nothing(ledger):
    with Server(turns) as server:
        provider = provider_of(server)
        rows = ask_all(provider, ledger, range(30), converse)
        assert (
            ask_all(provider, ledger, range(30), converse)
            == rows
            == dict.fromkeys(range(30), "yes 6")
        )
        assert server.paid == 90
        assert ledger_agrees(ledger, server).answered == 90


def test_the_row_is_noted_with_the_answer_it_came_from(ledger):
    with Server(turns) as server:
        ask_all(provider_of(server), ledger, range(3), converse)
    with sqlite3.connect(ledger) as db:
        found = db.execute(
            "SELECT item, result, raw FROM parses JOIN answers USING (key) JOIN intents USING (key)"
        ).fetchall()
    db.close()
    assert {(item, result) for item, result, _ in found} == {(str(i), '"yes 6"') for i in range(3)}
    assert all("yes 6" in json.loads(raw)["choices"][0]["message"]["content"] for *_, raw in found)


def test_another_model_or_reasoning_is_another_question(ledger):
    with Server() as server:
        ask_all(provider_of(server), ledger, [1])
        ask_all(provider_of(server, reasoning="high"), ledger, [1])
        assert server.paid == 2
        other = ProviderConfig("openai", "m2", base_url=server.openai)
        ask_all(other, ledger, [1])
        assert server.paid == 3


def test_answers_of_a_model_that_is_not_accepted_are_kept_but_not_used(ledger):
    with Server(lambda question: Reply("no", model="alias")) as server:
        with pytest.raises(UserError, match="`alias` answered"):
            ask_all(provider_of(server), ledger, [1])
        accepting = provider_of(server, accept_models=("alias",))
        assert ask_all(accepting, ledger, [1]) == {1: "stop: no"}
        assert server.paid == 1
        server.answer = lambda question: "yes"
        assert ask_all(provider_of(server), ledger, [1]) == {1: "stop: yes"}
        assert server.paid == 2


def test_the_same_question_twice_at_once_is_paid_once(ledger):
    async def work(item, ask):
        request = Request("s", "same", (Message("user", ("hi",)),))
        return [answer.text for answer in await asyncio.gather(ask(request), ask(request))]

    with Server(delay=0.05) as server:
        assert ask_all(provider_of(server), ledger, range(5), work)[0] == ["yes", "yes"]
        assert server.paid == 1


def test_in_flight_live_and_taken_items_are_bounded(ledger):
    most, taken, finished = [0], [0], [0]

    def items():
        for number in range(60):
            taken[0] += 1
            assert taken[0] - finished[0] <= 3 * 8
            yield number

    def answer(question: Question) -> str:
        most[0] = max(most[0], server.received - server.paid)
        return "yes"

    with Server(answer, delay=0.02) as server:
        for _ in Session(provider_of(server, max_in_flight=8), ledger).run(items(), once):
            finished[0] += 1
    assert finished == [60]
    assert most == [8]


def test_rows_come_as_they_finish(ledger):
    with Server(delay=0.05) as server:
        run = Session(provider_of(server, max_in_flight=2), ledger).run(range(12), once)
        next(run)
        assert server.received < 12
        run.close()  # a consumer may stop: what is on its way is not asked again without notice
    totals = read_totals(ledger)
    assert totals.attempts < 12


def test_a_bug_in_a_stage_is_raised(ledger):
    async def work(item, ask):
        await ask(Request("s", str(item), (Message("user", ("hi",)),)))
        if item == 3:
            raise ZeroDivisionError("stage")
        return item

    with Server() as server, pytest.raises(ZeroDivisionError, match="stage"):
        ask_all(provider_of(server), ledger, range(10), work)


def test_a_stage_cannot_swallow_the_end_of_the_run(ledger):
    async def work(item, ask):
        try:
            return await once(item, ask)
        except Exception:  # noqa: BLE001 - as a careless stage may
            return "swallowed"

    with Server() as server, pytest.raises(UserError, match="max_calls is 3"):
        ask_all(provider_of(server, max_calls=3, max_in_flight=1), ledger, range(10), work)
    assert read_totals(ledger).answered == 3


def test_a_full_disk_ends_the_run(ledger):
    """The run ends even if the stage catches exceptions."""

    async def work(item, ask):
        try:
            return await once(item, ask)
        except Exception:  # noqa: BLE001
            return "swallowed"

    async def full(self, attempt, raw):
        def change() -> None:
            self._db.execute("PRAGMA max_page_count = 1")
            self._db.execute("CREATE TABLE more AS SELECT * FROM intents")
            self._received(attempt, raw)

        await self.write(change)

    with Server(lambda question: "y" * 100_000) as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ledger, "received", full)
        with pytest.raises(UserError, match=r"cannot write the ledger .*full"):
            ask_all(provider_of(server), ledger, range(3), work)
    totals = read_totals(ledger)
    assert totals.open == totals.attempts  # maybe charged, when it is started again


class TestBudget:
    def test_calls(self, ledger):
        with Server() as server:
            with pytest.raises(UserError, match="max_calls is 7 calls: 7 are spent"):
                ask_all(provider_of(server, max_calls=7), ledger, range(50))
            assert server.received == ledger_agrees(ledger, server).attempts == 7
            assert len(ask_all(provider_of(server, max_calls=50), ledger, range(50))) == 50
            assert server.received == 50

    def test_money(self, ledger, tmp_path):
        prices = tmp_path / "prices.toml"
        prices.write_text('date = "2026-01-01"\nmodels.m = { input = 100.0, output = 1000.0 }')
        with Server() as server:
            provider = provider_of(server, max_cost=2.0, prices=prices, max_in_flight=1)
            with pytest.raises(UserError, match="max_cost is 2 dollars"):
                ask_all(provider, ledger, range(1000))
            totals = ledger_agrees(ledger, server)
        assert totals.cost == pytest.approx(totals.answered * 0.02)  # 100 and 10 tokens each
        # The next could have taken 1.25, so it was not sent, though it would have taken 0.02.
        assert 0.7 < totals.cost < 0.8

    def test_money_needs_a_price(self):
        with pytest.raises(UserError, match="max_cost needs the price of `m`"):
            Session(ProviderConfig("openai", "m", base_url="http://localhost/v1", max_cost=1), None)


class TestUndecided:
    def run(self, ledger, share: float, **settings) -> int:
        def answer(question: Question) -> str:
            number = int(question.text.split()[1])
            return "perhaps" if number % 10 < share * 10 else "yes"

        with Server(answer) as server:
            judge = Session(provider_of(server, max_in_flight=2, **settings), ledger)

            async def work(item, ask):
                row = await once(item, ask)
                judge.note("perhaps" in row)
                return row

            return len(list(judge.run(range(100), work)))

    def test_too_many_end_the_run(self, ledger):
        with pytest.raises(UserError, match=r"\d of 10 answers of `m` were undecided, more than"):
            self.run(ledger, 0.5, max_undecided=0.3, undecided_after=10)
        assert read_totals(ledger).answered < 20

    def test_a_few_do_not(self, ledger):
        assert self.run(ledger, 0.1, max_undecided=0.5, undecided_after=10) == 100


class TestStops:
    def interrupted(self, number: signal.Signals, ledger, *, in_time: bool = True) -> Server:
        """Interrupted when the eighth question has arrived.

        Not in time are answers from the fifth question on: they come when the run has ended.
        """
        ended = threading.Event()

        def answer(question: Question) -> str:
            if not in_time and server.received == 5:
                server.held = ended
            if server.received == 8:
                os.kill(os.getpid(), number)
            return "yes"

        with Server(answer, delay=0.3) as server:
            with pytest.raises(KeyboardInterrupt):
                ask_all(provider_of(server, max_in_flight=4), ledger, range(1000))
            ended.set()
            deadline = time.monotonic() + 60  # the server, for its part, answers and bills
            while server.paid < server.received and time.monotonic() < deadline:
                time.sleep(0.01)
        assert server.received < 20
        return server

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_what_is_on_its_way_is_kept(self, number, ledger):
        before = signal.getsignal(number)
        server = self.interrupted(number, ledger)
        totals = ledger_agrees(ledger, server)
        assert totals.answered == server.received >= 4
        assert (totals.maybe_charged, totals.open) == (0, 0)
        assert signal.getsignal(number) is before

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_the_command_line_hears_of_it_afterwards(self, number, ledger):
        """And not before: it would end the process two seconds later."""
        signals = StopsAtOnce()
        with signals:
            server = self.interrupted(number, ledger)
            assert signals.status == 128 + number
            assert signal.set_wakeup_fd(-1) == signals._write
            signal.set_wakeup_fd(signals._write)
        assert ledger_agrees(ledger, server).maybe_charged == 0

    def test_what_does_not_come_in_time_is_maybe_charged(self, ledger, monkeypatch):
        monkeypatch.setattr(session, "GRACE_S", 0.01)
        server = self.interrupted(signal.SIGINT, ledger, in_time=False)
        asked = server.received
        open_ = read_totals(ledger).open
        assert 0 < open_ <= 4
        assert asked == server.paid
        with Server() as server:
            ask_all(provider_of(server), ledger, range(asked))
            totals = read_totals(ledger)
            assert server.received == totals.maybe_charged == open_
            assert max(server.times.values()) == 1


def test_no_question_is_paid_for_without_a_trace(ledger):
    """Half the connections break: answers and maybe charged ones are what the server made."""

    def answer(question: Question):
        return Drop() if "1" in question.text and not question.seen else "yes"

    with Server(answer) as server:
        ask_all(provider_of(server), ledger, range(20))
        totals = ledger_agrees(ledger, server)
    assert totals.maybe_charged == 11
    assert totals.answered == 20
