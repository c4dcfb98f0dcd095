"""Compares the rate of the request layer with the rate that a server and a limit allow.

    python -m benchmarks.speed.requests_throughput [--seconds 30] [--rounds 2]

A server in a process of its own answers each question after 300 ms. 64 questions are in flight,
with the ledger on disk. The ideal rate is 64 / 0.3 s; the measured rate is the number of answers
over the time from the first question to the last answer. The same runs with the ledger in memory,
and with the client alone behind a semaphore, show the cost of each part, and a loop over the ledger
alone shows its limit. The best of some rounds counts, since other work on the machine only slows
it; the CPU time of a question shows what an idle machine could do.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.results import save
from dsd_jax.llm.config import ProviderConfig
from dsd_jax.llm.ledger import Ledger
from dsd_jax.llm.messages import Answer, Ask, Message, Request, Usage
from dsd_jax.llm.openai import OpenAITransport
from dsd_jax.llm.session import Session
from dsd_jax.llm.totals import read_totals
from dsd_jax.llm.transport import Access, Raw

SECTIONS = {
    "": (
        "The request layer",
        """Questions to a local server that answers after 300 ms, 64 at once; the ideal rate is 64
/ 0.3 s. Client and server share the machine's cores with whatever else runs there.""",
    ),
}

DELAY_S, IN_FLIGHT, GOAL = 0.3, 64, 0.95
IDEAL = IN_FLIGHT / DELAY_S
ROOT = Path(__file__).parents[2]


def question(number: int) -> Request:
    turns = (Message("user", (f"Are the subjects of pair {number} identical?",)),)
    return Request("judge", str(number), turns, max_tokens=16)


def through_the_session(provider: ProviderConfig, count: int, ledger: Path | None) -> float:
    """Rate through the complete layer."""
    began = []

    async def work(number: int, ask: Ask) -> str:
        began.append(time.perf_counter())
        return (await ask(question(number))).text

    rows = dict(Session(provider, ledger).run(range(count), work))
    ended = time.perf_counter()
    assert set(rows) == set(range(count))
    if ledger is not None:
        totals = read_totals(ledger)
        assert (totals.answered, totals.attempts) == (count, count)
    return count / (ended - began[0])


def through_the_client(provider: ProviderConfig, count: int) -> float:
    """Rate through the HTTP client alone, without limits and ledger."""

    async def run() -> float:
        transport = OpenAITransport(provider, Access())
        slots = asyncio.Semaphore(IN_FLIGHT)

        async def one(number: int) -> None:
            async with slots:
                await transport.send(question(number))

        began = time.perf_counter()
        await asyncio.gather(*(one(number) for number in range(count)))
        ended = time.perf_counter()
        await transport.close()
        return count / (ended - began)

    return asyncio.run(run())


def ledger_alone(folder: Path, count: int = 4000) -> tuple[float, float]:
    """Microseconds per question (intent and answer, IN_FLIGHT at once), and per commit alone."""
    raw = Raw(b"x" * 600)
    answer = Answer("yes", "stop", "m", "id", Usage(100, 0, 10))

    async def run(ledger: Ledger, in_flight: int, count: int) -> float:
        numbers = iter(range(count))

        async def worker() -> None:
            for number in numbers:
                request = question(number)
                asked = [(request.key("m"), request, 100, 0.0)]
                (attempt,) = await ledger.intend(asked, "m")
                await ledger.received(attempt, raw)
                ledger.noted(attempt, answer)

        start = time.perf_counter()
        await asyncio.gather(*(worker() for _ in range(in_flight)))
        return (time.perf_counter() - start) / count * 1e6

    shared, single = Ledger(folder / "shared-0.sqlite"), Ledger(folder / "single-0.sqlite")
    together = asyncio.run(run(shared, IN_FLIGHT, count))
    alone = asyncio.run(run(single, 1, count // 8)) / 2
    shared.close()
    single.close()
    return together, alone


def serving() -> subprocess.Popen[str]:
    """Starts the server of the tests; its first line is its port."""
    command = [sys.executable, "-m", "tests.core.llm.server", "--delay", str(DELAY_S)]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def best(rounds: int, count: int, run: Callable[[], float]) -> tuple[float, float]:
    """The highest rate, and the least CPU time of this process per question, in milliseconds."""
    rates, costs = [], []
    for _ in range(rounds):
        before = time.process_time()
        rates.append(run())
        costs.append((time.process_time() - before) / count * 1e3)
    return max(rates), min(costs)


def measured(seconds: float, rounds: int) -> Iterator[dict[str, Any]]:
    """A row per way of asking, then rows about the ledger."""
    count = IN_FLIGHT * round(seconds / DELAY_S)
    process = serving()
    assert process.stdin is not None
    assert process.stdout is not None
    port = int(process.stdout.readline())
    provider = ProviderConfig(
        "openai", "m", base_url=f"http://127.0.0.1:{port}/v1", max_in_flight=IN_FLIGHT
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ledgers = (folder / f"judge-{number}.sqlite" for number in range(rounds))
        ways: dict[str, Callable[[], float]] = {
            "session, ledger on disk": lambda: through_the_session(provider, count, next(ledgers)),
            "session, ledger in memory": lambda: through_the_session(provider, count, None),
            "HTTP client alone": lambda: through_the_client(provider, count),
        }
        for way, run in ways.items():
            reached, cost = best(rounds, count, run)
            yield {
                "asked by": way,
                "answers/s": round(reached, 1),
                "of the ideal": f"{reached / IDEAL:.1%}",
                "CPU ms/question": round(cost, 2),
            }
        together, alone = ledger_alone(folder)
        yield {
            "asked by": f"ledger alone, {IN_FLIGHT} questions at once, two rows each",
            "answers/s": round(1e6 / together),
            "of the ideal": "",
            "CPU ms/question": "",
        }
        yield {
            "asked by": "ledger alone, one at a time, two synced commits each",
            "answers/s": round(1e6 / (2 * alone)),
            "of the ideal": "",
            "CPU ms/question": "",
        }
    process.stdin.close()
    process.wait()


def main() -> None:
    """Runs it, saves the table, and fails below the goal."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    rows = list(measured(arguments.seconds, arguments.rounds))
    save(__file__, rows, ideal=round(IDEAL, 1), **vars(arguments))
    if rows[0]["answers/s"] < GOAL * IDEAL:
        raise SystemExit(f"less than {GOAL:.0%} of {IDEAL:.1f} answers/s")


if __name__ == "__main__":
    main()
