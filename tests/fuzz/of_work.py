"""Readers of settings, of work folders, of paid answers and of what runs leave behind."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dsd_jax.data.make import wording
from dsd_jax.data.make.captions import sampled
from dsd_jax.data.make.config import load_config
from dsd_jax.data.make.folder import begin_stage
from dsd_jax.data.make.overview import tables
from dsd_jax.data.make.parts import Parts
from dsd_jax.data.make.stages import CAPTIONS, PROMPTS
from dsd_jax.data.make.view import write_page as write_view
from dsd_jax.errors import UserError
from dsd_jax.images import save_image
from dsd_jax.infer.batch import Results
from dsd_jax.llm.gemini import read_content
from dsd_jax.llm.ledger import Ledger
from dsd_jax.llm.lines import chat_results
from dsd_jax.llm.messages import Answer, Message, Request, Usage
from dsd_jax.llm.openai import read_chat
from dsd_jax.llm.prices import load_prices
from dsd_jax.llm.reading import json_of, problem_of
from dsd_jax.llm.totals import first_answer, read_totals, spent_of
from dsd_jax.llm.transport import Raw, failure_of
from dsd_jax.structured import read_json, read_toml
from dsd_jax.train import ownership
from dsd_jax.train.config import BaseConfig, DataConfig, RunConfig
from dsd_jax.train.page import write_page
from dsd_jax.train.presets import tiny
from dsd_jax.train.runfile import flags_of, preset_of, write_run_file
from dsd_jax.train.sheet import draw_sheet
from tests.data.make.made import write_folder
from tests.fuzz.reader import Reader, written

__all__ = ["WORK"]

_MAKE = """
root = "made"
parts = 2
[captions]
source = ["captions.csv"]
count = 3
[providers.writer]
kind = "openai"
model = "m"
base_url = "http://localhost:1/v1"
[prompts]
provider = "writer"
tasks = { identity = 1 }
[judge]
provider = "writer"
[caption]
provider = "writer"
"""
_CAPTIONS = "caption\r\n" + "".join(f"a photo of {own}\r\n" for own in ("a cat", "a tin robot"))


def _making(name: str) -> Callable[[Path], Path]:
    """A configuration, and its work folder with two stages begun."""

    def make(folder: Path) -> Path:
        (folder / "make.toml").write_text(_MAKE)
        (folder / "captions.csv").write_text(_CAPTIONS)
        config = load_config(folder / "make.toml")
        sampled(begin_stage(config, CAPTIONS), config.captions)
        begin_stage(config, PROMPTS)
        return folder / name

    return make


def _begun(path: Path) -> object:
    """Goes on with that work folder, given any file in it."""
    config = load_config(
        next(own for own in (path, *path.parents) if (own / "make.toml").exists()) / "make.toml"
    )
    parts = begin_stage(config, PROMPTS)
    return [parts.count, sampled(parts, config.captions)]


def _finished(folder: Path) -> Path:
    write_folder(folder / "made", grids=2)
    return folder / "made"


def _shown(path: Path) -> object:
    shown = tables(path)
    write_view(Parts(path, 2), path / "page.html", 10, "a page")
    return [shown, (path / "page.html").read_bytes()]


# Runs


def _run_toml(folder: Path) -> Path:
    groups = (BaseConfig("FLUX"), DataConfig(("pairs",)), RunConfig(Path("runs")), tiny())
    write_run_file(folder / "run.toml", "tiny", groups)
    return folder / "run.toml"


def _flags(path: Path) -> object:
    groups = (BaseConfig, DataConfig, RunConfig, tiny())
    return [preset_of(path), flags_of(path, "tiny", groups)]


def _run(folder: Path) -> Path:
    run = folder / "run"
    run.mkdir()
    _run_toml(run)
    rows = [{"step": step, "loss": 1 / step, "grad_norm": 2.0} for step in range(1, 9)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pixels = np.random.default_rng(0).integers(0, 255, (1, 32, 64, 3)).astype(np.uint8)
    sheet = draw_sheet(pixels, ["reference", "target"], ["a"])
    save_image(sheet.image, run / "samples" / "00000004.png", sheet.layout)
    return run


def _page(path: Path) -> object:
    write_page(path, path / "run.html")
    return (path / "run.html").read_bytes()


def _owner(folder: Path) -> Path:
    ownership.WAIT = 0.01  # a stranger's run shows no sign of life
    path = folder / "run" / ownership.OWNER
    path.parent.mkdir()
    own = ownership.Owner("token", "elsewhere", "boot", 1, "2", "2026-01-01 00:00:00")
    path.write_text(json.dumps(vars(own)))
    return path


def _owned(path: Path) -> object:
    with ownership.owned(path.parent):
        return [own.name for own in path.parent.iterdir()]


_RESULTS = b"".join(
    json.dumps({"id": f"{i:06d}", "digest": "0" * 16, "status": "done"}).encode() + b"\n"
    for i in range(3)
)


def _results(path: Path) -> object:
    results = Results(path)
    results.close()
    return results.lines


# Answers

_CHAT = {
    "id": "chatcmpl-1",
    "model": "m-1",
    "choices": [{"message": {"content": 'So: {"same": "yes", "n": [1, 2.5]}'}}],
    "usage": {"prompt_tokens": 7, "completion_tokens": 5, "prompt_tokens_details": {"cached": 2}},
}
_CONTENT = {
    "candidates": [
        {"content": {"parts": [{"text": '{"same": "yes"}'}]}, "finishReason": "STOP"},
    ],
    "usageMetadata": {"promptTokenCount": 7, "candidatesTokenCount": 5, "thoughtsTokenCount": 1},
    "modelVersion": "m-1",
    "responseId": "r-1",
}
_BATCH = b"".join(
    json.dumps(
        {"custom_id": f"k{i}", "response": {"status_code": 200, "request_id": "r", "body": _CHAT}}
    ).encode()
    + b"\n"
    for i in range(3)
)
_REFUSED = {"error": {"message": "slow down", "code": 429, "details": [{"retryDelay": "3s"}]}}


def _answer(read: Callable[[Raw], Answer]) -> Callable[[Path], object]:
    """Reads an answer as `dsd_jax.llm.asking` does: a `ValueError` says that it cannot be read."""

    def from_file(path: Path) -> object:
        try:
            answer = read(Raw(path.read_bytes(), "r-1"))
        except ValueError as error:
            raise UserError(str(error)) from None
        return [answer, problem_of(answer), json_of(answer.text)]

    return from_file


def _batch(path: Path) -> object:
    return chat_results(path.read_bytes())


def _refusal(path: Path) -> object:
    failed = failure_of(429, path.read_bytes(), {})
    return [str(failed), vars(failed)]


def _ledger(folder: Path) -> Path:
    request = Request("judge", "p-1", (Message("user", ("same?",)),), "v1@0", max_tokens=10)
    path = folder / "judge-00000.sqlite"

    async def fill(ledger: Ledger) -> None:
        for key in ("k1", "k2"):
            (attempt,) = await ledger.intend([(key, request, 100, 1.0)], "m")
            await ledger.received(attempt, Raw(json.dumps(_CHAT).encode(), "r"))
            ledger.noted(attempt, Answer("yes", "stop", "m-1", "id", Usage(70, 20, 5), cost=0.25))
        await ledger.refused("k3", "too long")

    ledger = Ledger(path)
    asyncio.run(fill(ledger))
    ledger.close()
    return path


def _accounts(path: Path) -> object:
    seen = [read_totals(path), spent_of(path), first_answer(path)]
    ledger = Ledger(path)
    try:
        return [seen, ledger.answers("k1"), ledger.refusal("k3"), ledger.totals()]
    finally:
        ledger.close()


_WORDING = (Path(wording.__file__).parent / "wordings" / "v1.toml").read_bytes()
WORK: dict[str, Reader] = {
    "json": Reader(written("a.json", b'{"a": [1, 2.5, {"b": "c"}]}'), lambda p: read_json(p, dict)),
    "toml": Reader(written("a.toml", b'a.b = [1, "x"]\n[c]\nd = 2026-01-01\n'), read_toml),
    "make.toml": Reader(written("make.toml", _MAKE), load_config),
    "wording": Reader(
        written("w.toml", _WORDING), lambda path: wording.load_wording(path, "caption")
    ),
    "prices": Reader(
        written("p.toml", 'date = "2026-01-01"\n[models."m-1"]\ninput = 1.0\noutput = 2.5\n'),
        load_prices.__wrapped__,  # each file anew
    ),
    "make settings": Reader(_making("made"), _begun),
    "made": Reader(_finished, _shown, 0.5),
    "run.toml": Reader(_run_toml, _flags),
    "run page": Reader(_run, _page, 0.5),
    "owner.json": Reader(_owner, _owned, 0.5),
    "results": Reader(written("results.jsonl", _RESULTS), _results),
    "chat answer": Reader(
        written("a.json", json.dumps(_CHAT)), _answer(lambda raw: read_chat(raw, {}))
    ),
    "content answer": Reader(
        written("a.json", json.dumps(_CONTENT)), _answer(lambda raw: read_content(raw, {}))
    ),
    "batch answers": Reader(written("a.jsonl", _BATCH), _batch),
    "refusal": Reader(written("a.json", json.dumps(_REFUSED)), _refusal),
    "ledger": Reader(_ledger, _accounts, 0.5),
}
