"""Answers of a broken or hostile server: kept first, each with a fate of its own, paid once."""

import asyncio
import gzip
import json
import logging
import re
import sqlite3
import zlib
from typing import Any

import pytest

from dsd_jax.errors import UserError
from dsd_jax.llm import batched, http, online
from dsd_jax.llm.config import ProviderConfig
from dsd_jax.llm.lines import chat_results, complete
from dsd_jax.llm.messages import Answer, Message, Request
from dsd_jax.llm.reading import MOST_BYTES, problem_of
from dsd_jax.llm.scrub import Scrubber
from dsd_jax.llm.session import Session
from dsd_jax.llm.totals import read_totals
from dsd_jax.llm.transport import Failed, Raw, failure_of
from tests.core.llm.asking import KINDS, ask_all, ledger_agrees, once, provider_of, question
from tests.core.llm.server import Server
from tests.core.llm.test_scrub import KEY, SPELLINGS
from tests.core.llm.wire import Body, Question, Reply, Result, Status

MODES = ("online", "batch")
ANSWER = json.dumps({"choices": [{"message": {"content": "yes"}}], "model": "m"}).encode()
DEEP = b"[" * 100_000 + b"]" * 100_000
HALF = "\ud83d"


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(online, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(batched, "SETTLE_S", 0.01)


@pytest.fixture
def ledger(tmp_path):
    return tmp_path / "judge-00000.sqlite"


def provider(server: Server, kind: str, mode: str, **settings):
    return provider_of(server, kind, mode=mode, **{"poll_seconds": 0.01, **settings})


def only(result: Result, bad: str = "item 3"):
    """A server with one bad answer among good ones."""
    return lambda question: result if question.text == bad else "yes"


def read(path, query: str) -> list:
    db = sqlite3.connect(path)
    try:
        return db.execute(query).fetchall()
    finally:
        db.close()


UNREADABLE = {
    "deep": Body(b'{"choices": ' + DEEP + b"}"),
    "deep objects": Body(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "not UTF-8": Body(b'{"choices": "\xff\xfe"}'),
    "another form": Body(b'{"choices": 3, "candidates": 3}'),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES)
class TestEachAnswerHasItsOwnFate:
    @pytest.mark.parametrize("name", UNREADABLE)
    def test_what_cannot_be_read_is_kept_and_paid_twice_at_most(self, kind, mode, name, ledger):
        with Server(only(UNREADABLE[name])) as server:
            rows = ask_all(provider(server, kind, mode), ledger, range(6))
            assert rows.pop(3).startswith(
                "unanswered: no answer in 2 attempts: the answer is not in the provider's form: "
            )
            assert set(rows.values()) == {"stop: yes"}
            assert server.paid == 7
            totals = ledger_agrees(ledger, server)
            assert (totals.answered, totals.unreadable) == (5, 2)
            assert len(ask_all(provider(server, kind, mode), ledger, range(6))) == 6
            assert server.paid == 7
        kept = read(ledger, "SELECT raw FROM answers JOIN intents ON id = intent WHERE item = '3'")
        raw = [each.encode() if isinstance(each, str) else each for (each,) in kept]
        assert all(UNREADABLE[name].data in each for each in raw)

    def test_all_unreadable_is_not_paid_again_at_every_start(self, kind, mode, ledger):
        with Server(lambda question: UNREADABLE["deep"]) as server:
            with pytest.raises(UserError, match="all of the first 10 questions were refused"):
                ask_all(provider(server, kind, mode, max_in_flight=1), ledger, range(10))
            assert server.paid == 20
            rows = ask_all(provider(server, kind, mode), ledger, range(10))
            assert all(row.startswith("unanswered: no answer in 2") for row in rows.values())
            assert server.paid == 20
            ledger_agrees(ledger, server)

    def test_an_error_with_the_status_of_an_answer_passes(self, kind, mode, ledger):
        error = Body(b'{"error": {"message": "upstream is busy", "code": 502}}')
        with Server(lambda q: error if q.text == "item 3" and q.seen < 4 else "yes") as server:
            rows = ask_all(provider(server, kind, mode), ledger, range(6))
        assert rows == dict.fromkeys(range(6), "stop: yes")

    @pytest.mark.parametrize(
        "count", ["0", "1e999", "9223372036854775808", "-5", '"7"', "1.5", "null"]
    )
    def test_absurd_usage_is_unknown_and_the_budget_counts_the_estimate(
        self, kind, mode, count, ledger, tmp_path
    ):
        prices = tmp_path / "prices.toml"
        prices.write_text('date = "2026-01-01"\nmodels.m = { input = 100.0, output = 1000.0 }')
        with Server(only(Reply("yes", count=count))) as server:
            settings = provider(server, kind, mode, max_cost=100.0, prices=prices)
            rows = ask_all(settings, ledger, range(6))
            assert rows == dict.fromkeys(range(6), "stop: yes")
            totals = ledger_agrees(ledger, server)
        assert (totals.answered, totals.unpriced) == (6, 1)
        assert (totals.input, totals.output) == (500, 50)
        ((calls, tokens, cost),) = read(ledger, "SELECT calls, tokens, cost FROM spent")
        ((estimate, dollars),) = read(ledger, "SELECT tokens, cost FROM intents WHERE item = '3'")
        assert (calls, tokens) == (6, 5 * 110 + estimate)
        share = 0.5 if mode == "batch" else 1.0
        assert cost == pytest.approx(5 * 0.02 * share + dollars)

    @pytest.mark.parametrize(
        "text",
        [f"a {HALF} cat", [{"type": "text", "text": HALF}], [{"type": "image_url"}], [{"text": 3}]],
    )
    def test_what_is_not_text_is_a_row_with_a_reason_paid_once(self, kind, mode, text, ledger):
        async def work(item, ask):
            answer: Answer = await ask(question(item))
            return problem_of(answer) or answer.text

        with Server(only(Reply(text))) as server:
            for _ in range(2):
                rows = ask_all(provider(server, kind, mode), ledger, range(6), work)
                assert rows.pop(3) == "not_text"
                assert set(rows.values()) == {"yes"}
                assert server.paid == 6
            assert ledger_agrees(ledger, server).finishes == {"stop": 5, "not_text": 1}

    @pytest.mark.parametrize("word", ["eos", "", "EOS_TOKEN"])
    def test_other_words_for_the_end(self, kind, mode, word, ledger):
        with Server(lambda question: Reply("yes", word=word)) as server:
            assert ask_all(provider(server, kind, mode), ledger, [1]) == {1: "stop: yes"}

    def test_words_of_this_server_for_the_end(self, kind, mode, ledger):
        with Server(lambda question: Reply("yes", word="fertig")) as server:
            settings = provider(server, kind, mode, finish_words={"fertig": "stop"})
            assert ask_all(settings, ledger, [1]) == {1: "stop: yes"}


def test_a_question_that_cannot_be_sent_is_not_sent(ledger):
    async def work(item, ask):
        return await once(f"{item}{HALF if item == 1 else ''}", ask)

    with Server() as server:
        rows = ask_all(provider_of(server), ledger, range(3), work)
        assert server.received == 2
    assert rows[1].startswith("unanswered: the question cannot be sent: ")
    assert "the half character \\ud83d, which UTF-8 cannot hold" in rows[1]


def test_an_item_name_that_utf8_cannot_hold_is_a_row(ledger):
    async def work(item, ask):
        request = Request("judge", item, (Message("user", ("hi",)),))
        try:
            return (await ask(request)).text
        except Exception as error:  # noqa: BLE001
            return str(error)

    with Server() as server:
        rows = ask_all(provider_of(server), ledger, [HALF, "b"], work)
    assert rows["b"] == "yes"
    assert "half character" in rows[HALF]


def test_an_answer_that_was_kept_but_not_read_is_read_by_the_next_run(ledger, monkeypatch):
    """The process ends between the two: nothing is paid again, and the budget is put right."""

    def killed(self, attempt, raw):
        raise KeyError("killed")

    with Server() as server:
        with monkeypatch.context() as kill:
            kill.setattr(online.Online, "_taken", killed)
            with pytest.raises(KeyError):
                ask_all(provider_of(server, max_in_flight=1), ledger, [1])
        assert read_totals(ledger).unpriced == 1
        assert ask_all(provider_of(server), ledger, [1]) == {1: "stop: yes"}
        assert server.paid == 1
        assert ledger_agrees(ledger, server).input == 100
    assert read(ledger, "SELECT tokens FROM spent") == [(110,)]


class TestSizes:
    @pytest.fixture(autouse=True)
    def _small(self, monkeypatch):
        http_client = http.http_client
        monkeypatch.setattr(
            http, "http_client", lambda *given, **named: http_client(*given, most=1 << 20, **named)
        )

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize(
        "body",
        [
            Body(b" " * (2 << 20)),
            Body(gzip.compress(b" " * (50 << 20)), {"Content-Encoding": "gzip"}),
            Body(zlib.compress(b" " * (50 << 20)), {"Content-Encoding": "deflate"}),
            Body(
                gzip.compress(gzip.compress(b" " * (50 << 20))),
                {"Content-Encoding": "gzip, gzip"},
            ),
        ],
    )
    def test_a_large_answer_is_refused_before_and_after_decompression(self, kind, body, ledger):
        with Server(only(body)) as server:
            for _ in range(2):
                rows = ask_all(provider_of(server, kind, max_in_flight=1), ledger, range(5))
                assert rows[3] == "unanswered: the answer has more than 1 MiB"
                assert server.paid == 5
            totals = read_totals(ledger)
        assert (totals.answered, totals.maybe_charged) == (4, 1)

    @pytest.mark.parametrize(
        ("encoding", "packed"),
        [
            ("gzip", gzip.compress(ANSWER)),
            ("deflate", zlib.compress(ANSWER)),
            ("gzip, deflate", zlib.compress(gzip.compress(ANSWER))),
            ("deflate", zlib.compress(ANSWER, wbits=-15)),
            ("gzip", gzip.compress(ANSWER[:9]) + gzip.compress(ANSWER[9:])),
            ("gzip", gzip.compress(ANSWER) + b"\0\0"),
        ],
        ids=["gzip", "zlib", "gzip in zlib", "raw deflate", "two gzip members", "padded gzip"],
    )
    def test_a_compressed_answer_is_read(self, encoding, packed, ledger):
        with Server(lambda question: Body(packed, {"Content-Encoding": encoding})) as server:
            assert ask_all(provider_of(server), ledger, [1]) == {1: "stop: yes"}

    @pytest.mark.parametrize("encoding", ["br", "zstd", "compress", "x", ",".join(["gzip"] * 999)])
    def test_an_unknown_packing_ends_the_run(self, encoding, ledger):
        """All other answers would be packed so, too, and be paid for."""
        with Server(lambda question: Body(b"{}", {"Content-Encoding": encoding})) as server:
            with pytest.raises(UserError, match=r"compresses answers as .*; ask another one"):
                ask_all(provider_of(server, max_in_flight=1), ledger, range(5))
            assert server.paid <= 2  # the next one was on its way
            assert read_totals(ledger).maybe_charged == server.paid

    def test_members_without_end_are_refused(self, ledger):
        packed = gzip.compress(b"") * 10_000 + gzip.compress(ANSWER)
        body = Body(packed, {"Content-Encoding": "gzip"})
        with Server(lambda question: "yes" if question.seen else body) as server:
            assert ask_all(provider_of(server), ledger, [1]) == {1: "stop: yes"}

    @pytest.mark.parametrize(
        ("body", "reason"),
        [
            (Body(b"{}", {"Content-Encoding": "gzip"}), "broken compression"),
            (Body(gzip.compress(b"{}")[:-9], {"Content-Encoding": "gzip"}), "is cut off"),
        ],
    )
    def test_broken_compression_passes(self, body, reason, ledger):
        with Server(lambda question: "yes" if question.seen else body) as server:
            assert ask_all(provider_of(server), ledger, [1]) == {1: "stop: yes"}
        ((detail,),) = read(ledger, "SELECT detail FROM intents WHERE outcome = 'lost'")
        assert reason in detail


class TestHeaders:
    @pytest.mark.parametrize(
        "given",
        [
            "Mon, 01 Jan 2001 00:00:00",
            "Mon, 01 Jan 2001 00:00:00 -0000",
            "Mon Jan  1 00:00:00 2001",
            "Monday, 01-Jan-01 00:00:00 GMT",
            "1 Jan 99999 00:00:00",
            "Mon, 99 Foo 2001 99:99:99 +9999999999",
            "-5",
            "1e9",
            "9" * 5000,
            "\u0663",
            "soon",
            ", ,",
            "",
        ],
    )
    def test_retry_after_never_raises(self, given):
        wait = failure_of(429, b"{}", {"retry-after": given}).retry_after
        assert wait in {None, 0.0}

    def test_retry_after_in_milliseconds(self):
        assert failure_of(429, b"{}", {"retry-after-ms": "1500"}).retry_after == 1.5

    def test_a_date_without_a_zone_is_waited_for(self, ledger):
        headers = {"Retry-After": "Mon, 01 Jan 2001 00:00:00"}
        with Server(lambda q: "yes" if q.seen else Status(429, headers=headers)) as server:
            assert ask_all(provider_of(server), ledger, [1]) == {1: "stop: yes"}

    @pytest.mark.parametrize("status", [302, 400, 401, 404, 429, 500])
    @pytest.mark.parametrize("body", [b"", b"\xff", DEEP, b'{"error": ' + DEEP, b"9" * 5000])
    def test_errors_of_any_form_have_a_message(self, status, body):
        failure = failure_of(status, body, {"location": "\x1b[2J" + "x" * 10_000})
        assert str(failure).isprintable()
        assert len(str(failure)) < 500

    @pytest.mark.parametrize("kind", KINDS)
    def test_deep_errors_are_errors(self, kind, ledger):
        deep = Status(400, '{"error": ' + DEEP.decode() + "}")
        with Server(only(deep)) as server:
            rows = ask_all(provider_of(server, kind, max_in_flight=1), ledger, range(5))
        assert rows[3].startswith("unanswered: status 400: ")
        assert rows[4] == "stop: yes"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES)
def test_no_artefact_holds_the_key_in_any_spelling(kind, mode, tmp_path, monkeypatch, caplog):
    """Looks into answers, headers, errors, models' names, and what the clients log of them."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("MY_KEY", KEY)

    def answer(question: Question) -> Result:
        _, way, spelling = question.text.split(" ", 2)
        spelled = SPELLINGS[spelling]
        header = {"x-request-id": re.sub(r"[\s\0]", "", spelled)}
        ways: dict[str, Result] = {
            "fine": "yes",
            "answer": Reply(f"you sent {spelled}", headers=header),
            "error": Status(400, json.dumps({"error": {"message": f"no key {spelled}"}}), header),
            "model": Reply("yes", model=spelled),
        }
        return ways[way]

    def ask(number: int, items: list[str]) -> str:
        path = tmp_path / f"judge-{number:05}.sqlite"
        try:
            return str(ask_all(settings, path, items))
        except UserError as error:
            return str(error)

    with Server(answer) as server:
        settings = provider(server, kind, mode, api_key_env="MY_KEY", retries=1)
        ways = ("answer", "error")
        said = ask(0, ["fine plain", *(f"{way} {each}" for way in ways for each in SPELLINGS)])
        assert said.count("stop: you sent") == said.count("unanswered: ") == len(SPELLINGS)
        for number, each in enumerate(("plain", "base64", "address", "first half"), start=1):
            said += ask(number, [f"model {each}"])
        sent = server.headers.get("authorization", "") + server.headers.get("x-goog-api-key", "")
        assert mode == "batch" or KEY in sent
    scrub = Scrubber(KEY)
    assert not scrub.holds(said)
    assert not scrub.holds(caplog.text)
    for path in tmp_path.rglob("*"):
        assert not scrub.holds(path.read_bytes().decode("latin-1"))


def test_an_answer_in_another_encoding_holds_no_key(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    wide = Body(json.dumps({"choices": [], "note": KEY}).encode("utf-16"))
    path = tmp_path / "judge-00000.sqlite"
    with Server(only(wide, "item 1")) as server:
        rows = ask_all(provider_of(server, api_key_env="MY_KEY", retries=1), path, range(3))
    assert rows[0] == rows[2] == "stop: yes"
    assert rows[1].startswith("unanswered: no answer in 2 attempts: ")
    scrub = Scrubber(KEY)
    for file in tmp_path.rglob("*"):
        assert not scrub.holds(file.read_bytes().decode("latin-1"))


class TestFilesOfResults:
    @pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 1, 0), (1, 2, 0)])
    def test_an_answer_is_never_replaced_by_a_failure(self, order):
        rows = [
            b'{"custom_id": "a", "response": {"status_code": 200, "body": {"choices": []}}}',
            b'{"custom_id": "a", "response": {"status_code": 500, "body": {"error": "late"}}}',
            b'{"custom_id": "a", "response": {"status_code": 200, ',
        ]
        found = chat_results(b"".join(rows[i] + b"\n" for i in order))
        assert found == {"a": Raw(rows[0])}

    def test_of_two_answers_the_first_counts(self):
        row = '{"custom_id": "a", "response": {"status_code": 200, "body": %d}}'
        content = "".join(f"{row % i}\n" for i in range(3)).encode()
        assert chat_results(content) == {"a": Raw((row % 0).encode())}

    def test_a_large_line_is_no_answer(self):
        long = b'{"custom_id": "a", "response": ' + b" " * MOST_BYTES + b"}\n"
        found = chat_results(long + b'{"custom_id": "b", "response": {"status_code": 200}}\n')
        assert isinstance(found["b"], Raw)
        assert str(found["a"]) == "the answer has more than 4 MiB"

    @pytest.mark.parametrize("content", [b"", b"{}\n", b"{}\n{}", b"{}\n\n", b"x\n"])
    def test_a_whole_file_is_taken(self, content):
        assert complete(content) is content

    @pytest.mark.parametrize("content", [b"{", b'{}\n{"custom_id": "a", "resp'])
    def test_a_file_that_is_cut_off_is_fetched_again(self, content):
        with pytest.raises(Failed, match="cut off") as caught:
            complete(content)
        assert caught.value.kind == "retry"


def test_a_call_that_drips_ends():
    with pytest.raises(Failed, match="took too long") as caught:
        asyncio.run(http.awaited(asyncio.sleep(10), 0.01))
    assert (caught.value.kind, caught.value.maybe_charged) == ("retry", True)


def test_a_ledger_that_vanishes_ends_the_run(ledger):
    """SQLite would go on to write a file that has no name any more."""

    def answer(question: Question) -> Result:
        if question.text == "item 2":
            ledger.rename(ledger.with_name("moved"))
        return "yes"

    with Server(answer) as server:
        with pytest.raises(UserError, match=r"the ledger .* has vanished .*; run the same command"):
            ask_all(provider_of(server, max_in_flight=1), ledger, range(30))
        assert server.paid < 6


@pytest.mark.parametrize(("field", "value"), [("model", KEY), ("accept_models", (f"a {KEY}",))])
def test_a_key_in_the_settings_is_refused(field, value, monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    settings: dict[str, Any] = {"model": "m", field: value}
    provider = ProviderConfig("openai", **settings, api_key_env="MY_KEY")
    with pytest.raises(UserError, match=f"{field} holds the key; take it out") as caught:
        Session(provider, None)
    assert KEY not in str(caught.value)
