"""Kills `dsd data make` at random moments and starts it again until it is done.

    python -m benchmarks.kill.make [--captions 110] [--kills 20] [--seed 0]

All stages run, from a file of captions to the packed dataset, with drawn grids in place of the
teacher's. The questions go through the real clients, half of them OpenAI's and half Google's, to a
server of this machine that bills every answer and is unreliable: 429 with and without Retry-After,
500, connections cut before and within an answer, half an answer, blocked answers, refused
questions. Its answers depend on the question alone.

First it runs undisturbed, then with SIGKILL at random moments and once while packing. Every row of
every stage and every byte of the dataset must be the same, every question must have one answer in
the ledgers, and it may be sent again only after an attempt that brought no answer. The bill of the
undisturbed run must equal the ledgers' sum; whether a call that a kill cut off was billed cannot be
known.
"""

import argparse
import contextlib
import functools
import hashlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.grids.scenes import FAULTS, GOOD, STYLES, draw
from benchmarks.results import save
from dsd_jax.convert.open import open_tokenizers
from dsd_jax.data.make import run
from dsd_jax.data.make.config import load_config
from dsd_jax.data.make.crops import panels_of
from dsd_jax.data.make.folder import begun_settings, open_parts
from dsd_jax.data.make.grids import Teacher
from dsd_jax.data.make.pack import pack
from dsd_jax.data.make.parts import Parts
from dsd_jax.data.make.stages import STAGES, Stage, StageRow
from dsd_jax.shares import ALL, WorkerShare
from dsd_jax.text.tokenize import Tokenizers
from dsd_jax.toy.making.random_pipeline import write_random_pipeline
from tests.core.llm.server import Server
from tests.core.llm.wire import BadJson, Drop, Question, Reply, Status

__all__ = [
    "Answers",
    "contents",
    "kill_and_restart",
    "ledgers",
    "pack_dataset",
    "run_stage",
    "said",
    "write_world",
]

SECTIONS = {
    "": (
        "Killed and restarted dataset making",
        """Captions to packed dataset through both real clients and an unreliable local server,
with drawn grids. An attempt without an answer was cut off by the server after billing, or by the
kill; undisturbed, the bill is exactly what the ledgers say.""",
    ),
}

SIDE = 192  # pixels of a grid
IN_FLIGHT = 8
DELAY_S = 0.05  # of an answer
FAULTY = 0.04  # share of questions that meet a fault that passes
PATIENCE_S = 600.0
MARK = "ready"  # file that a child leaves when its imports are done
PARTS = 4
CONFIG = """
root = "made"
base_path = "flux"
parts = {parts}

[providers.writer]
kind = "openai"
model = "gpt-4o-2024-11-20"
base_url = "{openai}"
max_in_flight = {in_flight}
retries = 12

[providers.viewer]
kind = "gemini"
model = "gemini-2.5-flash"
base_url = "{gemini}"
max_in_flight = {in_flight}
retries = 12

[captions]
source = ["captions.csv"]
count = {captions}
provider = "writer"

[prompts]
provider = "writer"
tasks = {{ identity = 3, relight = 1 }}

[grids]
height = {side}
width = {side}

[judge]
provider = "viewer"

[caption]
provider = "viewer"

[pack]
shard_bytes = 1000000
"""


def drawn(prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
    """A grid for each seed: most are drawn well, some with a fault; the prompts do not matter."""
    return [_drawn(seed) for _, seed in zip(prompts, seeds, strict=True)]


def _drawn(seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    kinds = list(GOOD) if rng.random() < 0.85 else list(FAULTS)
    return draw(kinds[rng.integers(len(kinds))], STYLES[seed % len(STYLES)], SIDE, rng).image


@functools.cache
def tokenizers(base_path: str) -> Tokenizers:
    """Loads them once for all stages."""
    return open_tokenizers(base_path)


def run_stage(config: Path, stage: Stage[StageRow], share: WorkerShare = ALL) -> None:
    """Runs a stage, with drawings in place of the teacher's grids."""
    chosen = load_config(config)
    tools = run.Tools(
        lambda _: Teacher(4, {"teacher": "drawn"}, drawn),
        lambda: tokenizers(chosen.base_path).count_clip_tokens,
    )
    with contextlib.suppress(run.OthersFirst):
        run.run_stage(chosen, stage, share, tools)


def pack_dataset(config: Path) -> None:
    """Packs, as `dsd data pack` does."""
    chosen = load_config(config)
    parts = open_parts(chosen)
    pack(parts, chosen.pack, panels_of(parts), begun_settings(parts))


def make(config: Path) -> None:
    """Runs all stages, as `dsd data make` does."""
    (config.parent / MARK).touch()
    for stage in STAGES:
        run_stage(config, stage)
    pack_dataset(config)


class Answers:
    """The server's answers, which depend on the question, and its faults, which do not.

    Args:
        seed: Seed of the faults.
        said: The words of the model, from a question and the number from 0 to 1 that belongs to it.
    """

    def __init__(self, seed: int, said: Callable[[Question, float], str]) -> None:
        self._rng, self._said = random.Random(seed), said
        self.faults: Counter[str] = Counter()

    def __call__(self, question: Question) -> str | Reply | Status | Drop | BadJson:
        if self._rng.random() < FAULTY:
            faults: list[Status | Drop | BadJson] = [
                Status(429, headers={"Retry-After": "0.2"}),
                Status(429),
                Status(500),
                Status(503),
                Drop(),
                Drop(60),
                BadJson(),
            ]
            fault = self._rng.choice(faults)
            self.faults[f"{type(fault).__name__} {getattr(fault, 'code', '')}".strip()] += 1
            return fault
        chance = chance_of(question)
        if chance < 0.004:
            return Status(400, '{"error": {"message": "this one is not for us", "code": 400}}')
        if chance < 0.012:
            return Reply("", finish="blocked")
        return self._said(question, chance)


def chance_of(question: Question) -> float:
    """A number from 0 to 1 that belongs to a question."""
    canonical = json.dumps(question.body, sort_keys=True).encode()
    return int(hashlib.sha256(canonical).hexdigest()[:8], 16) / 16**8


def said(question: Question, chance: float) -> str:
    """A model's words."""
    turns = [role for role, _ in question.turns].count("user")
    if question.form == "openai":
        caption = question.turns[1][1][0]
        if '"clear"' in caption:
            clear = chance < 0.9
            subject = "a small cat" if clear else ""
            return json.dumps({"clear": clear, "subject": subject, "reason": "as it seems"})
        if turns == 1 and chance > 0.9:
            return "a grid of four: top-left only"
        return (
            "a grid of four small cats: top-left in snow, top-right on table, bottom-left at "
            "night, bottom-right in forest"
        )
    if "yes or no" in question.text:
        if chance < 0.05:
            return "That is hard to say."
        return f"They look alike {chance:.6f}.\n\n**{'Yes' if chance < 0.6 else 'No'}**"
    if "editor" in question.text:
        return "put this cat in snow" if chance < 0.9 or turns > 1 else "transform the image"
    return f"a small cat in the forest {chance:.2f}"


def write_world(folder: Path, captions: int) -> None:
    """Captions and a tokenizer."""
    folder.mkdir(parents=True)
    write_random_pipeline(folder / "flux")
    rng = random.Random(1)
    places = "snow forest city beach attic desert harbour cellar meadow".split()
    lines = ["URL,TEXT"]
    for i in range(captions * 2):
        words = " ".join(str(rng.randrange(10**6)) for _ in range(4))
        lines.append(f"https://example.org/{i},a cat {words} in the {rng.choice(places)}")
    (folder / "captions.csv").write_text("\n".join(lines) + "\n")


def write_config(folder: Path, server: Server, captions: int) -> Path:
    path = folder / "make.toml"
    addresses = {"openai": server.openai, "gemini": server.gemini}
    sizes = {"in_flight": IN_FLIGHT, "captions": captions, "side": SIDE, "parts": PARTS}
    path.write_text(CONFIG.format(**addresses, **sizes))
    return path


def start(config: Path) -> subprocess.Popen[bytes]:
    (config.parent / MARK).unlink(missing_ok=True)
    with (config.parent / "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "benchmarks.kill.make", "--child", str(config)],
            env={"JAX_PLATFORMS": "cpu", **os.environ},
            stdout=log,
            stderr=log,
        )


def finish(process: subprocess.Popen[bytes], config: Path) -> None:
    if process.wait(PATIENCE_S):
        raise SystemExit((config.parent / "log").read_text()[-4000:])


def wait_ready(process: subprocess.Popen[bytes], config: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not (config.parent / MARK).exists() and process.poll() is None:
        if time.monotonic() > deadline:
            raise SystemExit("the child does not begin; see its log")
        time.sleep(0.005)


def contents(root: Path) -> dict[str, str]:
    """Digests of every row file, grid and file of the dataset.

    A kill may leave a hidden file that was being written; it is not part of the dataset.
    """
    files = [path for stage in STAGES for path in (root / stage.name).rglob("[!.]*")]
    files = [path for path in files if path.is_file()]
    files += [path for path in (root / "dataset").iterdir() if path.is_file()]
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


def ledgers(root: Path) -> dict[str, int]:
    """Attempts by outcome over all ledgers, and the attempts that must not exist."""
    found: Counter[str] = Counter(answered=0, unreadable=0, lost=0, failed=0, invalid=0)
    for path in sorted((root / "ledgers").glob("*.sqlite")):
        with contextlib.closing(sqlite3.connect(path)) as db:
            by_key: dict[str, list[str]] = {}
            for key, outcome in db.execute("SELECT key, outcome FROM intents ORDER BY id"):
                found[str(outcome)] += 1
                by_key.setdefault(key, []).append(str(outcome))
        for outcomes in by_key.values():
            found["answered twice"] += outcomes.count("answered") > 1
            after = outcomes[outcomes.index("answered") + 1 :] if "answered" in outcomes else []
            found["asked again after an answer"] += len(after)
            losses = outcomes.count("lost")
            found["sent again after a loss"] += losses if outcomes[-1] != "lost" else losses - 1
    return dict(found)


def stage_of(root: Path) -> str:
    """Name of the first stage that is not finished."""
    parts = Parts(root, PARTS)
    unfinished = (s.name for s in STAGES if not all(parts.done(s, n) for n in range(PARTS)))
    return next(unfinished, "pack")


def kill(process: subprocess.Popen[bytes], config: Path) -> str:
    """Kills the process and returns the stage that it was at."""
    process.send_signal(signal.SIGKILL)
    process.wait()
    return stage_of(config.parent / "made")


def kill_and_restart(
    folder: Path, captions: int, kills: int, seed: int = 0
) -> list[dict[str, Any]]:
    """Rows of the table: the undisturbed run, and the killed one; `folder` is empty."""
    rng = random.Random(seed)
    rows = []
    seconds = 0.0
    for name in ("undisturbed", "killed"):
        write_world(folder / name, captions)
        killed: Counter[str] = Counter()
        answers = Answers(seed + len(rows), said)
        with Server(answers, delay=DELAY_S) as server:
            config = write_config(folder / name, server, captions)
            process = start(config)
            if name == "undisturbed":
                wait_ready(process, config)
                began = time.monotonic()
                finish(process, config)
                seconds = time.monotonic() - began
            else:
                while killed.total() < kills:
                    if rng.random() < 0.1:
                        time.sleep(rng.uniform(0, 1))  # while it is starting
                    else:
                        wait_ready(process, config)
                        time.sleep(rng.uniform(0, 2 * seconds / kills))
                    if process.poll() is not None:
                        break
                    killed[kill(process, config)] += 1
                    process = start(config)
                # It is over too soon to be met by chance.
                while not (config.parent / "made/dataset/writing.json").exists():
                    time.sleep(0.001)
                    if process.poll() is not None:
                        raise SystemExit((config.parent / "log").read_text()[-4000:])
                killed[kill(process, config)] += 1
                process = start(config)
                finish(process, config)
            paid = server.paid
            finish(start(config), config)  # nothing is left to do
        seen = ledgers(folder / name / "made")
        origin = json.loads((folder / name / "made/dataset/dataset.json").read_text())
        first, own = (contents(folder / x / "made") for x in ("undisturbed", name))
        rows.append(
            {
                "run": name,
                "kills": killed.total(),
                "while at": ", ".join(f"{stage} {n}" for stage, n in killed.items()),
                "faults": answers.faults.total(),
                "pairs judged": origin["origin"]["yields"]["judge"]["rows"],
                "records": origin["count"],
                "billed": paid,
                "answers in the ledgers": seen["answered"] + seen["unreadable"],
                "attempts without an answer": seen["lost"],
                "sent again for these": seen["sent again after a loss"],
                "answered twice": seen["answered twice"] + seen["asked again after an answer"],
                "billed by another run": server.paid - paid,
                "files": len(own),
                "files that differ": sum(first.get(x) != own.get(x) for x in {*first, *own}),
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
            "kills": row["kills"] == (kills + 1 if row["run"] == "killed" else 0),
            "bytes": row["files that differ"] == 0,
            "the bill": least <= row["billed"] <= known + lost,
            "sent again": row["sent again for these"] <= lost,
            "answered twice": row["answered twice"] == 0,
            "billed by another run": row["billed by another run"] == 0,
        }
        wrong += [f"{row['run']}: {rule}" for rule, kept in rules.items() if not kept]
    return wrong


def main() -> None:
    """Runs it, prints and saves the table, and fails if a rule is broken."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--captions", type=int, default=110)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", type=Path)
    arguments = parser.parse_args()
    if arguments.child:
        make(arguments.child)
        return
    with tempfile.TemporaryDirectory() as folder:
        rows = kill_and_restart(Path(folder), arguments.captions, arguments.kills, arguments.seed)
    save(__file__, rows, captions=arguments.captions, seed=arguments.seed)
    if wrong := check(rows, arguments.kills):
        raise SystemExit(f"not as it should be: {'; '.join(wrong)}")


if __name__ == "__main__":
    main()
