"""Kills `dsd evaluate judge` at random moments and starts it again until it is done.

    python -m benchmarks.kill.judge [--cases 20] [--kills 20] [--seed 0]

Two runs are judged by two protocols in three rounds, through the real command and the real client,
by a server of this machine that bills every answer and is unreliable: 429 with and without
Retry-After, 500, connections cut before and within an answer, half an answer, blocked answers,
refused questions, answers with two scores and with 7 of 4. Answers depend on the question alone.

First it runs undisturbed, then with SIGKILL at random moments. Every rating must be the same, every
question must have one answer in the ledgers, and it may be sent again only after an attempt that
brought no answer. The bill of the undisturbed run must equal the ledgers' sum, and the dollars of
the ratings those of the ledgers.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.kill.make import Answers, ledgers
from benchmarks.results import save
from dsd_jax.infer.evaluate.judge import ledger_of
from dsd_jax.infer.evaluate.protocols import load_protocols
from dsd_jax.infer.evaluate.ratings import read_ratings
from dsd_jax.infer.evaluate.runs import Run
from dsd_jax.llm.totals import read_totals
from tests.core.llm.server import Server
from tests.core.llm.wire import Question
from tests.infer.evaluate.judged import MODEL, made_cases, made_run

__all__ = ["kill_and_restart"]

SECTIONS = {
    "": (
        "Killed and restarted judging",
        """`dsd evaluate judge` over two runs through the real client and an unreliable local
server. An attempt without an answer was cut off by the server after billing, or by the kill;
undisturbed, the bill is exactly what the ledgers say, and so are the dollars of the ratings.""",
    ),
}

METHODS = ("ours", "theirs")
PROTOCOLS = ("dreambench++", "split")
ROUNDS = 3
DELAY_S = 0.05  # of an answer
PATIENCE_S = 600.0
JUDGE = """
[provider]
kind = "openai"
model = "{model}"
base_url = "{url}"
max_in_flight = 8
retries = 12
"""


def said(question: Question, chance: float) -> str:
    """A judge's words."""
    score = int(chance * 1e6) % 5
    if any("JSON object" in text for _, texts in question.turns for text in texts):
        return json.dumps({"reason": f"as it seems {chance:.6f}", "score": score})
    if chance < 0.05:
        return "Score: 7"
    if chance < 0.1:
        return f"Score: {score}\nScore: {score}"
    return f"Analysis: {chance:.6f}\nScore: {score}"


class Judging:
    """The command, in a folder of runs, against a server."""

    def __init__(self, folder: Path, server: Server, cases: int) -> None:
        made = made_cases(folder / "bench", cases, ("animal", "style"))
        self.runs: list[Run] = [made_run(folder, method, made) for method in METHODS]
        self._folder, self._server = folder, server
        (folder / "judge.toml").write_text(JUDGE.format(model=MODEL, url=server.openai))

    @property
    def questions(self) -> int:
        """Number of questions about all runs."""
        aspects = sum(len(each.questions) for each in load_protocols(PROTOCOLS))
        return sum(len(run.images) for run in self.runs) * aspects * ROUNDS

    def start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "dsd_jax", "evaluate", "judge"]
        command += [str(run.folder) for run in self.runs]
        command += ["--judge", str(self._folder / "judge.toml"), "--rounds", str(ROUNDS)]
        with (self._folder / "log").open("ab") as log:
            return subprocess.Popen(
                [*command, "--protocol", *PROTOCOLS],
                env={"JAX_PLATFORMS": "cpu", **os.environ},
                stdout=log,
                stderr=log,
            )

    def finish(self, process: subprocess.Popen[bytes]) -> None:
        if process.wait(PATIENCE_S):
            raise SystemExit((self._folder / "log").read_text()[-4000:])

    def wait_for(self, process: subprocess.Popen[bytes], received: int) -> None:
        """Waits until the server has received so many questions, or the process ends."""
        deadline = time.monotonic() + PATIENCE_S
        while self._server.received < received and process.poll() is None:
            if time.monotonic() > deadline:
                raise SystemExit("the command asks nothing; see its log")
            time.sleep(0.001)

    def rated(self) -> list[int]:
        """Number of ratings of each run."""
        return [len(read_ratings(run.folder)) for run in self.runs]

    def kill(self, process: subprocess.Popen[bytes]) -> str:
        """Kills the process and returns the run that it was at."""
        process.send_signal(signal.SIGKILL)
        process.wait()
        rated = zip(METHODS, self.rated(), strict=True)
        return next((method for method, count in rated if not count), "done")


def kill_and_restart(folder: Path, cases: int, kills: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of the table: the undisturbed run, and the killed one; `folder` is empty."""
    rng = random.Random(seed)
    rows: list[dict[str, Any]] = []
    first: list[bytes] = []
    for name in ("undisturbed", "killed"):
        answers = Answers(seed + len(rows), said)
        killed: Counter[str] = Counter()
        with Server(answers, delay=DELAY_S) as server:
            judging = Judging(folder / name, server, cases)
            process = judging.start()
            while name == "killed" and killed.total() < kills:
                if rng.random() < 0.1:
                    time.sleep(rng.uniform(0, 1))  # while it is starting
                else:
                    step = rng.randrange(1, max(2, 2 * judging.questions // (kills + 1)))
                    judging.wait_for(process, server.received + step)
                if process.poll() is not None:
                    break
                killed[judging.kill(process)] += 1
                process = judging.start()
            judging.finish(process)
            paid = server.paid
            judging.finish(judging.start())  # nothing is left to do
        seen: Counter[str] = Counter()
        for run in judging.runs:
            seen.update(ledgers(run.folder))
        files = [(run.folder / "ratings.jsonl").read_bytes() for run in judging.runs]
        first = first or files
        ratings = [rating for run in judging.runs for rating in read_ratings(run.folder)]
        rows.append(
            {
                "run": name,
                "kills": killed.total(),
                "while at": ", ".join(f"{stage} {n}" for stage, n in killed.items()),
                "faults": answers.faults.total(),
                "questions": judging.questions,
                "ratings": len(ratings),
                "without a score": sum(rating.state != "ok" for rating in ratings),
                "billed": paid,
                "answers in the ledgers": seen["answered"] + seen["unreadable"],
                "attempts without an answer": seen["lost"],
                "sent again for these": seen["sent again after a loss"],
                "answered twice": seen["answered twice"] + seen["asked again after an answer"],
                "billed by another run": server.paid - paid,
                "dollars in the ledgers": round(
                    sum(read_totals(ledger_of(run)).cost for run in judging.runs), 9
                ),
                "dollars in the ratings": round(sum(each.cost or 0.0 for each in ratings), 9),
                "files that differ": sum(a != b for a, b in zip(first, files, strict=True)),
            }
        )
    return rows


def check(rows: list[dict[str, Any]], kills: int) -> list[str]:
    """Lists the rules that the rows break."""
    wrong = []
    for row in rows:
        known, lost = row["answers in the ledgers"], row["attempts without an answer"]
        # Undisturbed, all that was lost was cut off by the server, which had billed it.
        least = known + lost if row["run"] == "undisturbed" else known
        rules = {
            "kills": row["kills"] == (kills if row["run"] == "killed" else 0),
            "ratings": row["ratings"] == row["questions"],
            "bytes": row["files that differ"] == 0,
            "the bill": least <= row["billed"] <= known + lost,
            "dollars": row["dollars in the ledgers"] == row["dollars in the ratings"],
            "sent again": row["sent again for these"] <= lost,
            "answered twice": row["answered twice"] == 0,
            "billed by another run": row["billed by another run"] == 0,
        }
        wrong += [f"{row['run']}: {rule}" for rule, kept in rules.items() if not kept]
    return wrong


def main() -> None:
    """Runs it, prints and saves the table, and fails if a rule is broken."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", type=int, default=20)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = kill_and_restart(Path(folder), arguments.cases, arguments.kills, arguments.seed)
    save(__file__, rows, cases=arguments.cases, seed=arguments.seed)
    if wrong := check(rows, arguments.kills):
        raise SystemExit(f"not as it should be: {'; '.join(wrong)}")


if __name__ == "__main__":
    main()
