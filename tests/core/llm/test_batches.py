"""Batches of both providers and files for vLLM: the same coroutines, nothing paid for twice."""

import json

import pytest

from dsd_jax.errors import UserError
from dsd_jax.llm import batched, online
from dsd_jax.llm.config import ProviderConfig
from dsd_jax.llm.dialect import Dialect
from dsd_jax.llm.gemini_batches import GeminiBatches
from dsd_jax.llm.ledger import Ledger
from dsd_jax.llm.openai_batches import OpenAIBatches
from dsd_jax.llm.session import Session
from dsd_jax.llm.totals import read_totals
from dsd_jax.llm.transport import AnswersPending
from tests.core.llm.asking import (
    KINDS,
    PICTURE,
    ask_all,
    converse,
    ledger_agrees,
    once,
    provider_of,
    question,
)
from tests.core.llm.server import Server
from tests.core.llm.wire import Question, Reply, Status


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(batched, "SETTLE_S", 0.05)
    monkeypatch.setattr(online, "FIRST_WAIT_S", 0.01)


@pytest.fixture
def ledger(tmp_path):
    return tmp_path / "judge-00000.sqlite"


def by_batch(server: Server, kind: str, **settings) -> ProviderConfig:
    return provider_of(server, kind, mode="batch", **{"poll_seconds": 0.01, **settings})


def turns(question: Question) -> str:
    assert question.pictures == (PICTURE.data,)
    assert question.turns[0] == ("system", ("be brief",))
    return f"yes {len(question.turns)}"


@pytest.mark.parametrize("kind", KINDS)
class TestBatches:
    def test_conversations_go_out_turn_by_turn(self, kind, ledger):
        with Server(turns) as server:
            rows = ask_all(by_batch(server, kind), ledger, range(20), converse)
            assert rows == dict.fromkeys(range(20), "yes 6")
            assert len(server.batches) == 3  # one a turn
            assert server.received == 0
            assert ledger_agrees(ledger, server).answered == 60
            online_again = provider_of(server, kind)
            assert ask_all(online_again, ledger, range(20), converse) == rows
            assert server.paid == 60

    def test_split_by_number_and_by_size(self, kind, ledger, monkeypatch):
        transport = OpenAIBatches if kind == "openai" else GeminiBatches
        size = len(transport.line(_Stub(batched_stub(kind)), "k" * 64, question(1)))  # type: ignore[arg-type]
        monkeypatch.setattr(transport, "most", 4)
        with Server(turns) as server:
            ask_all(by_batch(server, kind), ledger, range(10), once)
            assert len(server.batches) == 3
        monkeypatch.setattr(transport, "most", 50)
        monkeypatch.setattr(transport, "most_bytes", 3 * size + 20)
        with Server(turns) as server:
            ask_all(by_batch(server, kind), ledger.with_stem("judge-00001"), range(10), once)
            assert len(server.batches) == 4
            assert max(map(len, server.files.values())) <= 3 * size + 20

    def test_expired_takes_what_came_and_sends_the_rest(self, kind, ledger):
        with Server(turns) as server:
            server.expire_at = 7
            rows = ask_all(by_batch(server, kind), ledger, range(20))
            assert len(server.batches) == 2
            totals = ledger_agrees(ledger, server)
        assert set(rows) == set(range(20))
        assert (totals.answered, totals.failed, server.paid) == (20, 13, 20)

    def test_a_submission_without_an_answer_is_found_not_repeated(self, kind, ledger):
        with Server(turns) as server:
            server.lose_submission = True
            rows = ask_all(by_batch(server, kind), ledger, range(20))
            assert len(server.batches) == 1
            assert server.paid == ledger_agrees(ledger, server).answered == len(rows) == 20

    @pytest.mark.parametrize("moment", ["before it is handed over", "before its name is kept"])
    def test_killed_around_the_submission(self, kind, moment, ledger, monkeypatch):
        transport = OpenAIBatches if kind == "openai" else GeminiBatches

        async def killed(self, *given):
            raise KeyError("killed")

        with Server(turns) as server:
            with monkeypatch.context() as kill:
                if moment.startswith("before it is"):
                    kill.setattr(transport, "submit", killed)
                else:
                    kill.setattr(Ledger, "handed_over", killed)
                with pytest.raises(KeyError, match="killed"):
                    ask_all(by_batch(server, kind), ledger, range(5))
            assert len(ask_all(by_batch(server, kind), ledger, range(5))) == 5
            assert len(server.batches) == 1
            assert server.paid == ledger_agrees(ledger, server).answered == 5

    def test_stopped_while_it_waits_is_taken_up_again(self, kind, ledger, monkeypatch):
        with Server(turns) as server:
            server.polls = 10**6
            provider = by_batch(server, kind, poll_seconds=0.05)

            async def no(self, remote):
                raise KeyError("stopped here")

            with monkeypatch.context() as stop:
                transport = OpenAIBatches if kind == "openai" else GeminiBatches
                stop.setattr(transport, "state", no)
                with pytest.raises(KeyError):
                    ask_all(provider, ledger, range(5))
            assert read_totals(ledger).open == 5
            server.polls = 1
            assert len(ask_all(provider, ledger, range(8))) == 8
            assert len(server.batches) == 2  # the first, and one with the three new ones
            assert server.paid == ledger_agrees(ledger, server).answered == 8

    def test_refused_failing_and_blocked_lines(self, kind, ledger):
        invalid, busy = Status(400), Status(500)

        def answer(question: Question):
            faults = {"item 1": invalid, "item 2": Reply("", "blocked"), "item 4": busy}
            if question.text == "item 3" and not question.seen:
                return busy
            return faults.get(question.text, "yes")

        with Server(answer) as server:
            rows = ask_all(by_batch(server, kind, retries=1), ledger, range(6))
            ledger_agrees(ledger, server)
            assert ask_all(by_batch(server, kind, retries=1), ledger, range(6)) == rows
        assert rows[0] == rows[3] == rows[5] == "stop: yes"
        assert rows[1].startswith("unanswered: status 400")
        assert rows[2] == "blocked: "
        assert rows[4].startswith("unanswered: no answer in 2 attempts: status 500")

    def test_lines_that_are_missing_every_time(self, kind, ledger, monkeypatch):
        with Server(turns) as server:
            lines = server._lines
            monkeypatch.setattr(server, "_lines", lambda name: (lines(name)[0][1:], False))
            rows = ask_all(by_batch(server, kind, retries=2), ledger, range(4))
        assert [row for row in rows.values() if row != "stop: yes 2"] == [
            "unanswered: no answer in 3 attempts: the batch ended without it: completed"
        ]
        assert len(server.batches) <= 6

    def test_a_provider_that_takes_no_batches(self, kind, ledger, monkeypatch):
        broken: tuple[int, dict[str, str], bytes] = 503, {}, b'{"error": {"message": "busy"}}'
        with Server(turns) as server:
            name = f"_{kind}_batches"
            serve = getattr(server, name)

            def busy(method, *given):
                return broken if method == "POST" else serve(method, *given)

            with monkeypatch.context() as fault:
                fault.setattr(server, name, busy)
                with pytest.raises(UserError, match=r"took no batch in 3 attempts, .*busy; start"):
                    ask_all(by_batch(server, kind, retries=2), ledger, range(4))
            assert len(ask_all(by_batch(server, kind), ledger, range(4))) == 4
            assert server.paid == ledger_agrees(ledger, server).answered == 4

    def test_another_model_ends_the_run(self, kind, ledger):
        with Server(lambda question: Reply("yes", model="mini")) as server:
            with pytest.raises(UserError, match="`m` was asked, but `mini` answered"):
                ask_all(by_batch(server, kind), ledger, range(3))
            assert ledger_agrees(ledger, server).answered == 3  # paid for, so kept

    def test_a_cap_is_checked_before_the_batch(self, kind, ledger):
        with Server(turns) as server:
            with pytest.raises(UserError, match="max_calls is 10 calls: 0 are spent"):
                ask_all(by_batch(server, kind, max_calls=10), ledger, range(11))
            assert not server.batches
            assert not server.files


def batched_stub(kind: str) -> ProviderConfig:
    return ProviderConfig(kind, "m", mode="batch", base_url="http://localhost/v1")


class _Stub:
    """Enough of a transport to make a line."""

    def __init__(self, provider: ProviderConfig) -> None:
        self._provider, self._dialect = provider, Dialect.of(provider)


def test_a_batch_is_half_price(ledger, tmp_path):
    prices = tmp_path / "prices.toml"
    prices.write_text('date = "2026-01-01"\nmodels.m = { input = 100.0, output = 1000.0 }')
    with Server() as server:
        ask_all(by_batch(server, "openai", prices=prices), ledger, range(4))
    assert read_totals(ledger).cost == pytest.approx(4 * 0.02 / 2)


class TestFiles:
    """Questions to a file; the answers, made by another program, from a file."""

    def provider(self) -> ProviderConfig:
        return ProviderConfig("openai", "org/vlm", mode="file")

    def questions(self, ledger) -> list:
        return sorted(ledger.parent.glob("*.questions.jsonl"))

    def answer(self, path, *, lines: int | None = None, status: int = 200) -> None:
        """Answers a file as `vllm run-batch` does."""
        server = Server(turns)
        out = []
        for line in path.read_text().splitlines()[:lines]:
            asked = json.loads(line)
            assert (asked["method"], asked["url"]) == ("POST", "/v1/chat/completions")
            assert asked["body"]["max_tokens"] == 1024
            code, body = server._line(asked["url"], asked["body"])
            response = {"status_code": code, "request_id": "vllm-1", "body": json.loads(body)}
            if status != 200:
                response = {"status_code": status, "request_id": "x", "body": {"error": "bad"}}
            each = {"id": "vllm-2", "custom_id": asked["custom_id"], "response": response}
            out.append(json.dumps({**each, "error": None}) + "\n")
        target = path.with_name(path.name.replace(".questions.", ".answers."))
        target.write_text("".join(out))

    def test_three_turns_take_three_files(self, ledger):
        for number in range(3):
            with pytest.raises(AnswersPending) as waiting:
                ask_all(self.provider(), ledger, range(6), converse)
            path = self.questions(ledger)[-1]
            (path,) = (p for p in self.questions(ledger) if str(p) in str(waiting.value))
            words = str(waiting.value)
            assert words.startswith(
                f"6 questions wait in {path}; run\n  vllm run-batch -i {path} -o"
            )
            assert "--model org/vlm\nand then this command again" in words
            assert len(self.questions(ledger)) == number + 1
            with pytest.raises(
                AnswersPending, match="6 questions wait"
            ):  # asking again changes nothing
                ask_all(self.provider(), ledger, range(6), converse)
            assert len(self.questions(ledger)) == number + 1
            self.answer(path)
        rows = ask_all(self.provider(), ledger, range(6), converse)
        assert rows == dict.fromkeys(range(6), "yes 6")
        totals = read_totals(ledger)
        assert (totals.questions, totals.attempts, totals.answered) == (18, 18, 18)

    def test_answers_that_are_still_being_written(self, ledger):
        with pytest.raises(AnswersPending):
            ask_all(self.provider(), ledger, range(6))
        (path,) = self.questions(ledger)
        self.answer(path, lines=4)
        with pytest.raises(
            AnswersPending, match=r"has 4 of 6 answers; wait .*, or remove .*questions"
        ):
            ask_all(self.provider(), ledger, range(6))
        path.unlink()
        with pytest.raises(AnswersPending, match="2 questions wait"):
            ask_all(self.provider(), ledger, range(6))
        self.answer(*self.questions(ledger))
        assert len(ask_all(self.provider(), ledger, range(6))) == 6

    def test_errors_of_lines(self, ledger):
        with pytest.raises(AnswersPending):
            ask_all(self.provider(), ledger, range(12))
        self.answer(*self.questions(ledger), status=400)
        with pytest.raises(UserError, match=r"all of the first 10 questions .*: status 400: bad"):
            ask_all(self.provider(), ledger, range(12))

    def test_needs_a_place(self):
        with pytest.raises(UserError, match="needs a ledger on disk"):
            Session(self.provider(), None)
