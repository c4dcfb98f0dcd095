"""A run that is killed at random moments and started again: nothing lost, no blind payment."""

import json
import os
import random
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

from dsd_jax.llm.totals import read_totals
from tests.core.llm.server import Server
from tests.core.llm.wire import Question

ROOT = Path(__file__).parents[3]
ITEMS, KILLS = 60, 4
SCRIPT = f"""
import json, sys
from pathlib import Path
from tests.core.llm.asking import ask_all, converse
from dsd_jax.llm.config import ProviderConfig

url, folder = sys.argv[1], Path(sys.argv[2])
provider = ProviderConfig("openai", "m", base_url=url, max_in_flight=8)
rows = ask_all(provider, folder / "judge-00000.sqlite", range({ITEMS}), converse)
(folder / "rows.json").write_text(json.dumps(rows, sort_keys=True))
"""


def answer(question: Question) -> str:
    return f"{question.turns[1][1][0]}: {len(question.turns)}"


def start(server: Server, folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", SCRIPT, server.openai, str(folder)]
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})


def test_nothing_is_lost_and_only_open_questions_are_asked_again(tmp_path):
    rng = random.Random(5)
    ledger = tmp_path / "judge-00000.sqlite"
    with Server(answer, delay=0.05) as server:
        for _ in range(KILLS):
            process = start(server, tmp_path)
            wanted = server.received + rng.randrange(1, 3 * ITEMS // KILLS)
            deadline = time.monotonic() + 600
            while server.received < wanted and process.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.002)
            process.kill()
            process.wait()
        assert start(server, tmp_path).wait() == 0

    rows = json.loads((tmp_path / "rows.json").read_text())
    assert rows == {str(item): f"item {item}: 6" for item in range(ITEMS)}
    totals = read_totals(ledger)
    assert totals.questions == totals.answered == 3 * ITEMS
    assert totals.maybe_charged > 0  # or nothing was tried here
    with sqlite3.connect(ledger) as db:
        again = db.execute(
            "SELECT COUNT(*) - SUM(outcome = 'lost') FROM intents GROUP BY key"
        ).fetchall()
    db.close()
    assert set(again) == {(1,)}  # asked again only, and once, for an intent without an answer
    assert len(server.times) == 3 * ITEMS
    assert server.received <= totals.attempts
    assert sum(times - 1 for times in server.times.values()) <= totals.maybe_charged
