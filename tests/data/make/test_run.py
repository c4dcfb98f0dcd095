"""All stages together, with real clients, a server on this machine and drawn grids."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.kill.make import contents, pack_dataset, run_stage, said, write_world
from dsd_jax.data.make.config import load_config
from dsd_jax.data.make.folder import open_parts
from dsd_jax.data.make.stages import CAPTIONS, PAIRS, PROMPTS, STAGES
from dsd_jax.data.pairs.report import verify_folder
from dsd_jax.data.pairs.store import PairStore
from dsd_jax.errors import UserError
from dsd_jax.shares import WorkerShare
from tests.core.llm.server import Server
from tests.core.llm.wire import Question

COUNT, PARTS = 4, 7
TEXT = """
root = "{root}"
base_path = "flux"
parts = {parts}

[providers.writer]
kind = "openai"
model = "gpt-4o-2024-11-20"
base_url = "{url}"

[captions]
source = ["captions.csv"]
count = {captions}
provider = "writer"

[prompts]
provider = "writer"

[grids]
height = 96
width = 96

[judge]
provider = "writer"
mode = "scores"

[caption]
provider = "writer"
instruction = false
"""


def answer(question: Question) -> str:
    """Yes to seven pairs of ten; the rest as the killed run has it."""
    if question.body.get("response_format") and question.pictures:
        mark = 10 if hash_of(question) % 10 < 7 else 3
        aspects = ("form", "colour", "material", "details", "identity")
        return "{" + ", ".join(f'"{a}": {mark}' for a in aspects) + ', "subject": "a cat"}'
    if question.pictures:
        return f"a small cat in the forest {hash_of(question) % 100}"
    return said(question, 0.5)


def hash_of(question: Question) -> int:
    return sum(picture[-20:][number % 20] for number, picture in enumerate(question.pictures * 3))


def write(world: Path, root: str, server: Server) -> Path:
    path = world / f"{root}.toml"
    path.write_text(
        TEXT.format(root=root, url=server.openai, parts=PARTS, captions=COUNT), encoding="utf-8"
    )
    return path


def run(config: Path, workers: int) -> None:
    for stage in STAGES:
        for worker in reversed(range(workers)):
            run_stage(config, stage, WorkerShare(worker, workers))
        if stage is PAIRS:  # its second half needs the first of all workers
            for worker in range(workers):
                run_stage(config, stage, WorkerShare(worker, workers))
    pack_dataset(config)


def test_any_number_of_workers_makes_the_same_files_and_nothing_is_asked_twice(tmp_path: Path):
    world = tmp_path / "world"
    write_world(world, COUNT)
    with Server(answer) as server:
        found, paid = {}, {}
        for workers in (1, 2, 7):
            before = server.paid
            config = write(world, f"made-{workers}", server)
            run(config, workers)
            found[workers] = contents(world / f"made-{workers}")
            paid[workers] = server.paid - before
        before = server.paid
        run(config, 3)
        assert server.paid == before
    assert found[1] == found[2] == found[7]
    assert paid[1] == paid[2] == paid[7] > 20
    assert any(name.endswith(".array_record") for name in found[1])
    dataset = world / "made-7" / "dataset"
    assert verify_folder(dataset, workers=1) == []
    store = PairStore.open(dataset)
    assert len(store) > 8
    assert store.manifest.origin["costs"]["judge"]["questions"] > 10


@pytest.mark.slow
def test_batches_make_the_same_rows(tmp_path: Path):
    world = tmp_path / "world"
    write_world(world, COUNT)
    with Server(answer) as server:
        server.polls = 0
        run(write(world, "online", server), 1)
        config = write(world, "batch", server)
        text = config.read_text()
        batched = 'kind = "openai"\nmode = "batch"\npoll_seconds = 0.01'
        config.write_text(text.replace('kind = "openai"', batched))
        run(config, 1)
        assert server.batches
    rows = [
        {name: digest for name, digest in contents(world / made).items() if "part-" in name}
        for made in ("online", "batch")
    ]
    assert rows[0] == rows[1]


def test_without_a_provider_captions_are_taken_as_they_are(tmp_path: Path):
    write_world(tmp_path / "world", COUNT)
    with Server(answer) as server:
        config = write(tmp_path / "world", "made", server)
    config.write_text(config.read_text().replace('4\nprovider = "writer"', "4", 1))
    run_stage(config, CAPTIONS)
    rows = list(open_parts(load_config(config)).rows(CAPTIONS))
    assert [row.status for row in rows] == ["kept"] * COUNT
    assert not (tmp_path / "world" / "made" / "ledgers").exists()


def test_a_stage_out_of_order_says_what_is_missing(tmp_path: Path):
    write_world(tmp_path / "world", COUNT)
    with Server(answer) as server:
        config = write(tmp_path / "world", "made", server)
        with pytest.raises(UserError, match="`captions` has not been begun"):
            run_stage(config, PROMPTS)
        run_stage(config, CAPTIONS, WorkerShare(0, 2))
        with pytest.raises(UserError, match=r"part-00001.jsonl is not there; run `dsd data captio"):
            run_stage(config, PROMPTS, WorkerShare(1, 2))


def test_a_stage_that_keeps_nothing_stops_and_shows_an_answer(tmp_path: Path):
    write_world(tmp_path / "world", COUNT)
    with Server(lambda question: "I would rather not say.") as server:
        config = write(tmp_path / "world", "made", server)
        run_stage(config, CAPTIONS)
        asked = server.paid
        for _ in range(2):
            with pytest.raises(UserError) as refused:
                run_stage(config, PROMPTS)
            message = str(refused.value)
            assert f"`captions` kept none of {COUNT} rows ({COUNT} not_as_asked)" in message
            assert "I would rather not say." in message
            assert f"the others are in {tmp_path / 'world' / 'made' / 'ledgers'}" in message
        assert server.paid == asked


def test_parts_of_others_are_left_to_them(tmp_path: Path):
    write_world(tmp_path / "world", COUNT)
    with Server(answer) as server:
        config = write(tmp_path / "world", "made", server)
        run_stage(config, CAPTIONS, WorkerShare(1, 3))
        parts = open_parts(load_config(config))
        done = [part for part in range(parts.count) if parts.done(CAPTIONS, part)]
        assert done == [1, 4]


def test_a_server_that_answers_nothing_leaves_no_part(tmp_path: Path):
    write_world(tmp_path / "world", COUNT)
    with Server(answer) as server:
        config = write(tmp_path / "world", "made", server)
    config.write_text(config.read_text().replace('kind = "openai"', 'kind = "openai"\nretries = 0'))
    with pytest.raises(UserError, match="gave no answer"):
        run_stage(config, CAPTIONS)
    assert not list((tmp_path / "world" / "made" / "captions").glob("part-*"))


def test_files_for_another_program_are_written_for_all_parts_at_once(tmp_path: Path):
    write_world(tmp_path / "world", COUNT)
    with Server(answer) as server:
        config = write(tmp_path / "world", "made", server)
    text = config.read_text()
    config.write_text(text.replace('kind = "openai"', 'kind = "openai"\nmode = "file"'))
    with pytest.raises(UserError) as raised:
        run_stage(config, CAPTIONS)
    commands = re.findall(r"vllm run-batch -i (\S+) -o (\S+) --model", str(raised.value))
    parts = open_parts(load_config(config))
    waiting = [part for part in range(PARTS) if not parts.done(CAPTIONS, part)]
    assert len(commands) == len(waiting) > 1

    verdict = '{"clear": true, "subject": "a cat", "reason": "it is one"}'
    for questions, answers in commands:
        lines = [json.loads(line) for line in Path(questions).read_text().splitlines()]
        Path(answers).write_text("".join(json.dumps(reply(line, verdict)) + "\n" for line in lines))
    run_stage(config, CAPTIONS)
    assert [row.status for row in parts.rows(CAPTIONS)] == ["kept"] * COUNT


def reply(line: dict[str, Any], text: str) -> dict[str, Any]:
    """A line of answers as `vllm run-batch` writes them."""
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    body = {"id": "x", "model": line["body"]["model"], "choices": [choice | {"index": 0}]}
    response = {"status_code": 200, "request_id": "r", "body": body}
    return {"custom_id": line["custom_id"], "response": response, "error": None}
