"""Runs that our own models make: the tree of their images, their resumption and their shares."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dsd_jax import cli
from dsd_jax.errors import UserError
from dsd_jax.files import PARTIAL, file_sha256
from dsd_jax.infer.enhance import Enhancer
from dsd_jax.infer.evaluate.adopt import adopt
from dsd_jax.infer.evaluate.cases import Case, Picture, write_cases
from dsd_jax.infer.evaluate.enhancing import Enriched, enriched_prompts
from dsd_jax.infer.evaluate.generate import Making, generate
from dsd_jax.infer.evaluate.runs import open_run
from dsd_jax.infer.generated import Generated
from dsd_jax.infer.pipeline import Pipeline
from dsd_jax.shares import WorkerShare
from tests.core.llm.server import Server
from tests.core.llm.wire import Question, Result, Status
from tests.infer.manifests import DEFAULTS
from tests.random_flux import picture

OURS = Making("ours", DEFAULTS)


@pytest.fixture
def pipe(pipe, monkeypatch):
    """The pipeline, whose images are drawn by text and seed instead of being sampled.

    `pipe.made` lists the texts and seeds, and whether there was a reference.
    """
    made: list[tuple[str, int, bool]] = []

    def draw(self, prepared, **options):
        given = [
            (text, int(seed)) for text, seed in zip(prepared.texts, prepared.seeds, strict=True)
        ]
        made.extend((*each, prepared.frames is not None) for each in given)
        digests = [hashlib.sha256(repr(each).encode()).digest() for each in given]
        images = [
            Image.fromarray(np.frombuffer(d[:27], np.uint8).reshape(3, 3, 3)) for d in digests
        ]
        images = [image.resize((64, 64)) for image in images]
        empty = np.zeros((len(images), 1, 1, 1), np.float32)
        parameters = [{"text": text, "seed": seed} for text, seed in given]
        return Generated(images, [], empty, parameters, [])

    monkeypatch.setattr(Pipeline, "run", draw)
    monkeypatch.setattr(pipe, "made", made, raising=False)
    return pipe


@pytest.fixture
def cases(tmp_path):
    """Two subjects with two prompts each; the first case asks for two images."""
    made = []
    for number, subject in enumerate(("cat", "rubik's_cube")):
        path = tmp_path / f"{subject}.png"
        picture(number).save(path)
        reference = Picture(path, file_sha256(path))
        made += [
            Case(
                f"{subject}-{i}", "mine", subject, f"a {subject} {i}", (reference,), prompt_index=i
            )
            for i in range(2)
        ]
    made[0] = dataclasses.replace(made[0], samples=2)
    write_cases(tmp_path / "cases.jsonl", made)
    return made


def test_images_texts_and_references_lie_as_in_dreambench_plus(pipe, cases, tmp_path):
    out = tmp_path / "run"
    summary = generate(pipe, cases, out, OURS)
    assert (summary.made, summary.failed) == (5, 0)
    names = ["cat/0_0", "cat/0_1", "cat/1_0", "rubik's_cube/0_0", "rubik's_cube/1_0"]
    for folder, ending in (("tgt_image", "png"), ("src_image", "png"), ("text", "txt")):
        found = sorted(path.relative_to(out / folder) for path in (out / folder).rglob("*.*"))
        assert [str(path) for path in found] == [f"{name}.{ending}" for name in names]
    assert (out / "text" / "cat" / "0_1.txt").read_text() == "a cat 0\n"
    source = out / "src_image" / "cat" / "1_0.png"
    assert source.read_bytes() == cases[0].reference.path.read_bytes()
    run = open_run(out)
    assert (run.method, run.missing) == ("ours", [])
    assert [(image.case, image.sample, image.seed) for image in run.images] == [
        ("cat-0", 0, 0), ("cat-0", 1, 1), ("cat-1", 0, 0), ("rubik's_cube-0", 0, 0),
        ("rubik's_cube-1", 0, 0),
    ]  # fmt: skip
    # What we make, everybody can import, and so can we.
    adopted = adopt("again", out, tmp_path / "cases.jsonl", tmp_path / "again")
    assert (adopted.layout, adopted.findings, len(adopted.images)) == ("dreambench++", [], 5)


def test_the_run_says_what_made_it(pipe, cases, tmp_path):
    generate(pipe, cases, tmp_path / "run", dataclasses.replace(OURS, seeds=(7, 9)))
    settings = open_run(tmp_path / "run").settings
    assert settings["model"] == pipe.identity
    assert settings["seeds"] == [7, 9]
    assert settings["sampling"] == pipe.check(DEFAULTS, two_frames=True).stated()
    assert settings["reference"] is True
    weights = settings["weights"]
    assert isinstance(weights, dict)
    assert sorted(weights) == ["clip", "t5", "transformer", "vae"]
    assert weights["vae"] == pipe.parts.autoencoder.sha256()


def test_a_restart_makes_what_is_missing_and_keeps_the_rest(pipe, cases, tmp_path):
    generate(pipe, cases, tmp_path / "run", OURS)
    (tmp_path / "run" / "tgt_image" / "cat" / "1_0.png").unlink()
    pipe.made.clear()
    summary = generate(pipe, cases, tmp_path / "run", OURS)
    assert (summary.made, summary.kept, pipe.made) == (1, 4, [("a cat 1", 0, True)])
    assert len(open_run(tmp_path / "run").images) == 5


def test_what_a_killed_run_left_behind_is_removed(pipe, cases, tmp_path):
    left = tmp_path / "run" / "tgt_image" / "cat" / f".0_1.png.abcd{PARTIAL}"
    other = left.with_name(f".9_0.png.abcd{PARTIAL}")
    left.parent.mkdir(parents=True)
    for path in (left, other):
        path.write_bytes(b"half")
    generate(pipe, cases, tmp_path / "run", OURS)
    assert (left.exists(), other.exists()) == (False, True)


def test_other_settings_make_all_images_again(pipe, cases, tmp_path):
    generate(pipe, cases, tmp_path / "run", OURS)
    other = dataclasses.replace(OURS, settings=dataclasses.replace(DEFAULTS, steps=3))
    assert generate(pipe, cases, tmp_path / "run", other).made == 5
    expected = pipe.check(other.settings, two_frames=True).stated()
    assert open_run(tmp_path / "run").settings["sampling"] == expected


def test_every_seed_makes_an_image_of_every_case(pipe, cases, tmp_path):
    generate(pipe, cases, tmp_path / "run", dataclasses.replace(OURS, seeds=(5, 3, 8)))
    seeds = [(image.sample, image.seed) for image in open_run(tmp_path / "run").images]
    assert seeds == [(0, 5), (1, 3), (2, 8)] * 4


def test_a_method_may_get_the_text_alone_or_another_text(pipe, cases, tmp_path):
    texts = {case.id: case.prompt for case in cases} | {"cat-0": "a very fine cat"}
    enriched = Enriched(texts, "m", "w", {"cat-1": "it refused"})
    making = Making("teacher", DEFAULTS, reference=False, enriched=enriched)
    generate(pipe, cases, tmp_path / "run", making)
    assert min(pipe.made) == ("a cat 1", 0, False)
    assert ("a very fine cat", 1, False) in pipe.made
    assert not (tmp_path / "run" / "src_image").exists()
    assert (tmp_path / "run" / "text" / "cat" / "0_0.txt").read_text() == "a very fine cat\n"
    assert open_run(tmp_path / "run").settings["prompts"] == {
        "kind": "enhanced", "model": "m", "wording": "w", "failed": {"cat-1": "it refused"}
    }  # fmt: skip


def test_workers_share_a_run(pipe, cases, tmp_path):
    made = [
        generate(pipe, cases, tmp_path / "run", OURS, share=WorkerShare(number, 2)).made
        for number in range(2)
    ]
    assert sum(made) == 5
    assert min(made) > 0
    assert len(open_run(tmp_path / "run").images) == 5


def test_an_image_that_fails_is_told_and_missing(pipe, cases, tmp_path):
    said: list[dict[str, Any]] = []
    cases[2] = dataclasses.replace(cases[2], prompt=" ")
    summary = generate(pipe, cases, tmp_path / "run", OURS, on_result=said.append)
    assert (summary.made, summary.failed) == (4, 1)
    assert [line["id"] for line in said if line["status"] == "error"] == ["rubik's_cube-0_0"]
    assert open_run(tmp_path / "run").missing == ["rubik's_cube-0"]


class TestRefused:
    def test_a_reference_that_changed_or_is_gone(self, pipe, cases, tmp_path):
        picture(5).save(cases[0].reference.path)
        with pytest.raises(UserError, match=r"cat.png has changed since it was recorded"):
            generate(pipe, cases, tmp_path / "run", OURS)
        cases[0].reference.path.unlink()
        with pytest.raises(UserError, match=r"there is no image at .*cat.png; restore it, or prep"):
            generate(pipe, cases, tmp_path / "run", OURS)
        assert not (tmp_path / "run").exists()

    def test_a_folder_of_another_run(self, pipe, cases, tmp_path):
        generate(pipe, cases, tmp_path / "run", OURS)
        pipe.made.clear()
        with pytest.raises(UserError, match="holds a run of `ours` on other cases"):
            generate(pipe, cases[:2], tmp_path / "run", OURS)
        with pytest.raises(UserError, match="holds a run of `ours`; choose another folder"):
            generate(pipe, cases, tmp_path / "run", dataclasses.replace(OURS, method="theirs"))
        assert pipe.made == []

    def test_images_that_would_have_one_file(self, pipe, cases, tmp_path):
        cases[1] = dataclasses.replace(cases[1], prompt_index=0)
        with pytest.raises(UserError, match="cases cat-0 and cat-1 are both prompt 0 of cat"):
            generate(pipe, cases, tmp_path / "run", OURS)
        cases[0] = dataclasses.replace(cases[0], subject="../cat")
        with pytest.raises(
            UserError, match=r"the subject of case cat-0 must be a file name: '\.\."
        ):
            generate(pipe, cases, tmp_path / "run", OURS)

    @pytest.mark.parametrize(
        ("seeds", "message"),
        [((1, 1), "seeds must differ, got 1 1"), ((-1,), "a seed must be from 0"), ((), "differ")],
    )
    def test_seeds_that_cannot_be(self, pipe, cases, tmp_path, seeds, message):
        with pytest.raises(UserError, match=message):
            generate(pipe, cases, tmp_path / "run", dataclasses.replace(OURS, seeds=seeds))

    def test_a_model_without_a_condition_before_anything_is_made(self, plain, cases, tmp_path):
        with pytest.raises(UserError, match="this transformer has no condition embedding"):
            generate(plain, cases, tmp_path / "run", OURS)
        assert not (tmp_path / "run").exists()


def test_the_command_writes_a_run(pipe, folder, cases, tmp_path, capsys):
    words = [
        "evaluate", "generate", str(tmp_path / "cases.jsonl"), "--method", "ours", "--output_dir",
        str(tmp_path / "run"), "--base_path", str(folder / "flux"), "--model_path",
        str(folder / "dsd"), "--height", "64", "--width", "128", "--dtype", "float32", "--seeds",
        "1", "2", "--mesh.data", "1",
    ]  # fmt: skip
    assert cli.main(words) == 0
    assert "8 made, 0 kept from before, 0 failed" in capsys.readouterr().out
    assert len(open_run(tmp_path / "run").images) == 8


class TestEnriched:
    """Prompts that a vision model enriches: paid for once, whatever happens."""

    def ask(self, cases: list[Case], folder: Path, server: Server, **options: bool) -> Enriched:
        enhancer = Enhancer("openai", "m", server.openai)
        return enriched_prompts(cases, folder, enhancer, (64, 64), **options)

    @staticmethod
    def reply(question: Question) -> Result:
        if question.pictures:
            return "a fluffy thing"
        words = question.turns[1][1][0]
        return next(f"a {name} {i} with fur" for name in ("cat", "rubik's_cube") for i in (0, 1)
                    if f"a {name} {i}" in words)  # fmt: skip

    def test_a_restart_asks_only_for_what_is_missing(self, cases, tmp_path):
        with Server(self.reply) as server:
            enriched = self.ask(cases, tmp_path / "run", server)
            assert enriched.texts["cat-1"] == "a cat 1 with fur"
            assert server.received == 6  # each reference is described once
            path = tmp_path / "run" / "prompts.jsonl"
            whole = path.read_bytes()
            # Killed while it wrote: the answer is in the ledger, its line is not whole.
            path.write_bytes(whole[:-10])
            assert self.ask(cases, tmp_path / "run", server) == enriched
            assert server.received == 6
            assert sorted(path.read_bytes().splitlines()) == sorted(whole.splitlines())
            # Another prompt is another question.
            cases[0] = dataclasses.replace(cases[0], prompt="a cat 0 on ice")
            self.ask(cases, tmp_path / "run", server)
            assert server.received == 7

    def test_other_workers_wait_for_the_first(self, cases, tmp_path):
        with Server(self.reply) as server:
            with pytest.raises(
                UserError, match=r"prompts.jsonl lacks the enriched prompts of 4 case"
            ):
                self.ask(cases, tmp_path / "run", server, ask=False)
            expected = self.ask(cases, tmp_path / "run", server)
            assert self.ask(cases, tmp_path / "run", server, ask=False) == expected

    def test_a_failure_leaves_the_prompt_and_is_listed(self, cases, tmp_path):
        with Server(lambda question: Status(400, '{"error": {"message": "no"}}')) as server:
            enriched = self.ask(cases, tmp_path / "run", server)
            asked = server.received
            assert enriched.texts == {case.id: case.prompt for case in cases}
            assert set(enriched.failed) == {case.id for case in cases}
            assert "status 400: no" in enriched.failed["cat-0"]
            self.ask(cases, tmp_path / "run", server)
            assert server.received == asked
        with Server(self.reply) as server:
            again = self.ask(cases, tmp_path / "run", server, retry_failed=True)
            assert not again.failed

    def test_the_command_uses_them(self, pipe, folder, cases, tmp_path, monkeypatch):
        with Server(self.reply) as server:
            words = [
                *("evaluate", "generate", str(tmp_path / "cases.jsonl"), "--method", "ours"),
                *("--output_dir", str(tmp_path / "run"), "--prompt", "enhanced"),
                *("--enhance_provider", "openai", "--enhance_model", "m"),
                *("--enhance_base_url", server.openai, "--base_path", str(folder / "flux")),
                *("--model_path", str(folder / "dsd"), "--height", "64", "--width", "128"),
                *("--dtype", "float32", "--mesh.data", "1"),
            ]
            assert cli.main(words) == 0
            assert ("a cat 1 with fur", 0, True) in pipe.made
            assert cli.main([*words, "--no_reference"]) == 2
