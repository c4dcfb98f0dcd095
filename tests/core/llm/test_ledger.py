"""The contents of a ledger, through stops, caps and other workers."""

import asyncio
import os
import sqlite3
import subprocess
import sys
import time

import pytest

from dsd_jax.errors import UserError
from dsd_jax.llm.ledger import Caps, Kept, Ledger
from dsd_jax.llm.messages import Answer, Message, Request, Usage
from dsd_jax.llm.totals import Totals, read_totals
from dsd_jax.llm.transport import Raw

REQUEST = Request("judge", "p-1", (Message("user", ("same?",)),), "v1@0", max_tokens=10)
ANSWER = Answer("yes", "stop", "m-1", "id", Usage(70, 20, 5), cost=0.25)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledgers" / "judge-00003.sqlite"


async def intend(ledger: Ledger, key: str = "k", tokens: int = 100, cost: float = 1.0) -> int:
    (attempt,) = await ledger.intend([(key, REQUEST, tokens, cost)], "m")
    return attempt


async def answered(ledger: Ledger, raw: Raw, answer: Answer | None) -> None:
    attempt = await intend(ledger)
    await ledger.received(attempt, raw)
    ledger.noted(attempt, answer)


def test_answers_and_totals_survive(path):
    async def fill(ledger: Ledger) -> None:
        await ledger.ended(await intend(ledger), "failed", "status 500")
        await answered(ledger, Raw(b"{}", "r"), ANSWER)
        await answered(ledger, Raw(b"{half"), None)
        await ledger.ended(await intend(ledger, "k2"), "lost", "dropped")
        await ledger.refused("k2", "too long")
        ledger.parsed("k", '"no"')
        ledger.parsed("k", '"yes"')
        await intend(ledger, "k3")

    ledger = Ledger(path)
    asyncio.run(fill(ledger))
    seen = ledger.totals()
    ledger.close()
    assert sorted(each.name for each in path.parent.iterdir() if not each.name.startswith(".")) == [
        path.name  # the log is folded in
    ]
    assert seen == read_totals(path)
    assert seen == Totals(
        questions=3,
        attempts=5,
        answered=1,
        unreadable=1,
        maybe_charged=1,
        failed=1,
        open=1,
        refused=1,
        input=70,
        cached=20,
        output=5,
        cost=0.25,
        unpriced=1,
        models={"m-1": 1},
        finishes={"stop": 1},
    )
    again = Ledger(path)
    assert again.lost == 1
    assert again.answers("k") == [
        Kept(3, Raw(b"{half"), noted=False),
        Kept(2, Raw(b"{}", "r"), noted=True),
    ]
    assert (again.refusal("k"), again.refusal("k2")) == (None, "too long")
    assert (again.totals().open, again.totals().maybe_charged) == (0, 2)
    again.close()
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT * FROM parses").fetchall() == [("k", '"yes"')]
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    db.close()


def test_totals_add_up():
    one = Totals(attempts=2, cost=0.5, models={"a": 1})
    assert one + Totals(attempts=1, models={"a": 2, "b": 1}) == Totals(
        attempts=3, cost=0.5, models={"a": 3, "b": 1}
    )


class TestCaps:
    @pytest.mark.parametrize(
        ("caps", "message"),
        [
            (Caps(calls=2), "max_calls is 2 calls: 2 are spent or under way, and the next request"),
            (Caps(tokens=250), "max_tokens is 250 tokens: 200 are spent .* can take 100; raise"),
            (Caps(cost=2.5), r"max_cost is 2.5 dollars: 2 are spent .* can take 1; raise the cap"),
        ],
    )
    def test_the_most_that_is_under_way_counts(self, path, caps, message):
        async def fill(ledger: Ledger) -> None:
            await intend(ledger, "a")
            await intend(ledger, "b")
            with pytest.raises(UserError, match=message):
                await intend(ledger, "c")

        ledger = Ledger(path, caps)
        asyncio.run(fill(ledger))
        assert ledger.totals().attempts == 2  # the refused one was not written
        ledger.close()

    def test_what_answers_took_replaces_what_they_could(self, path):
        async def fill(ledger: Ledger) -> None:
            await answered(ledger, Raw(b"{}"), ANSWER)  # 75 tokens, 0.25
            await ledger.ended(await intend(ledger), "failed", "free")
            await intend(ledger, tokens=125)
            with pytest.raises(UserError, match="200 are spent or under way"):
                await intend(ledger, tokens=1)

        ledger = Ledger(path, Caps(tokens=200))
        asyncio.run(fill(ledger))
        ledger.close()

    def test_lost_ones_stay_spent_after_a_restart(self, path):
        for number in range(3):
            ledger = Ledger(path, Caps(calls=2))
            if number < 2:
                asyncio.run(intend(ledger))
            else:
                with pytest.raises(UserError, match="max_calls is 2 calls: 2 are spent"):
                    asyncio.run(intend(ledger))
            ledger.close()

    def test_all_parts_of_the_stage_count(self, path):
        for name in ("judge-00001", "caption-00001"):
            other = Ledger(path.with_stem(name))
            asyncio.run(intend(other))
            other.close()
        ledger = Ledger(path, Caps(calls=2))
        asyncio.run(intend(ledger))
        with pytest.raises(UserError, match="max_calls is 2"):
            asyncio.run(intend(ledger))
        ledger.close()

    def test_a_batch_counts_as_a_whole(self, path):
        ledger = Ledger(path, Caps(calls=2))
        questions = [(key, REQUEST, 1, 0.0) for key in "abc"]
        with pytest.raises(UserError, match="the next request can take 3"):
            asyncio.run(ledger.begin_batch("t", questions, "m"))
        assert ledger.open_batches() == []
        assert ledger.totals() == Totals()
        ledger.close()


def test_batches_outlive_the_process(path):
    questions = [(key, REQUEST, 1, 0.0) for key in "abc"]

    async def begin(ledger: Ledger) -> None:
        batch = await ledger.begin_batch("tag", questions, "m")
        await ledger.handed_over(batch, "batch-7")

    ledger = Ledger(path)
    asyncio.run(begin(ledger))
    ledger.close()
    ledger = Ledger(path)
    assert ledger.lost == 0  # they wait at the provider
    (batch,) = ledger.open_batches()
    assert (batch.tag, batch.remote) == ("tag", "batch-7")
    asyncio.run(ledger.end_batch(batch, {"a": Raw(b"{}"), "b": "status 400"}, "expired"))
    totals = ledger.totals()
    assert (totals.answered, totals.failed, totals.open) == (1, 2, 0)
    assert ledger.open_batches() == []
    ledger.close()


def test_many_writes_share_a_commit(path):
    """All that waits in one turn of the loop is one transaction."""
    ledger = Ledger(path)
    commits = []
    ledger._db.set_trace_callback(lambda line: commits.append(line) if "COMMIT" in line else None)

    async def fill() -> None:
        await asyncio.gather(*(intend(ledger, str(number)) for number in range(100)))

    asyncio.run(fill())
    assert len(commits) == 1
    assert ledger.totals().attempts == 100
    ledger.close()


def test_one_process_at_a_time(path):
    script = f"""
import pathlib, time
from dsd_jax.llm.ledger import Ledger
ledger = Ledger(pathlib.Path({str(path)!r}))
print("open", flush=True)
time.sleep(60)
"""
    other = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=os.environ)
    assert other.stdout is not None
    assert other.stdout.readline() == b"open\n"
    with pytest.raises(UserError, match="another process uses the ledger"):
        Ledger(path)
    assert read_totals(path) == Totals()  # looking is allowed
    other.kill()
    other.wait()
    other.stdout.close()
    Ledger(path).close()


@pytest.mark.parametrize("content", [b"not a database at all, but long enough" * 40, b"\0" * 2000])
def test_a_file_that_is_no_ledger(path, content):
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"cannot open the ledger|was written by another"):
        Ledger(path)
    assert path.read_bytes() == content


def test_a_missing_ledger(path):
    with pytest.raises(UserError, match="there is no ledger"):
        read_totals(path)


def test_a_question_asked_before_is_found_quickly_in_a_large_ledger(path):
    ledger = Ledger(path)

    async def fill() -> None:
        await asyncio.gather(*(intend(ledger, str(number)) for number in range(5_000)))

    asyncio.run(fill())
    start = time.process_time()
    for number in range(1000):
        ledger.answers(str(number))
        ledger.refusal(str(number))
    assert time.process_time() - start < 1.0
    ledger.close()
