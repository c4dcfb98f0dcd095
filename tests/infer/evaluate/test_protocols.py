"""Protocols: the texts and pictures that a judge gets, and their files."""

import dataclasses
import io
import itertools
from pathlib import Path

import pytest
from PIL import Image

from dsd_jax.errors import UserError
from dsd_jax.infer.evaluate import protocols
from dsd_jax.infer.evaluate.cases import Case, Picture
from dsd_jax.infer.evaluate.protocols import (
    PROTOCOLS,
    judge_picture,
    load_protocols,
    read_protocol,
)
from dsd_jax.llm import messages
from dsd_jax.llm.config import ProviderConfig
from dsd_jax.llm.dialect import Dialect
from dsd_jax.llm.openai import chat_body

REFERENCE, OUTPUT = messages.Picture(b"reference"), messages.Picture(b"output")
PICTURES = {"reference": REFERENCE, "output": OUTPUT}
OWN = """
protocol = "likeness"
version = "mine"
scale = 9
[questions.twin]
shows = ["output", "reference"]
subject = { task = "twins?" }
"""


def case(category="animal"):
    return Case(
        "a-0", "jsonl", "a", "a cat in snow", (Picture(Path("a.png"), "0" * 64),), (), category
    )


def asked(protocol, aspect, category="animal"):
    (found,) = load_protocols([protocol])
    return found.request(aspect, case(category), 0, PICTURES).messages


class TestConversations:
    @pytest.mark.parametrize("protocol", ["dreambench++", "dsd-debiased"])
    def test_concept_preservation_shows_reference_then_output_and_never_the_prompt(self, protocol):
        task, accepted, shown = asked(protocol, "cp")
        assert (task.role, accepted.role, shown.role) == ("user", "assistant", "user")
        assert shown.parts == (REFERENCE, OUTPUT)
        assert "Score: [a number from 0 to 4]" in task.parts[0]
        assert "cat" not in task.parts[0]

    @pytest.mark.parametrize("protocol", ["dreambench++", "dsd-debiased"])
    def test_prompt_following_shows_prompt_then_output_and_never_the_reference(self, protocol):
        task, _, shown = asked(protocol, "pf")
        assert shown.parts == ("a cat in snow", OUTPUT)
        analysed = "Analysis:" in task.parts[0]
        assert analysed == (protocol == "dreambench++")  # the debiased one asks for a score alone

    @pytest.mark.parametrize("protocol", ["dreambench++", "dsd-debiased"])
    def test_styles_have_a_rubric_of_their_own(self, protocol):
        subject, style = (asked(protocol, "cp", each)[0].parts[0] for each in ("human", "style"))
        assert "Face" in subject
        assert "Brushwork" in style
        assert asked(protocol, "pf", "style") == asked(protocol, "pf")

    def test_only_the_debiased_rubrics_speak_of_copies(self):
        for category in ("object", "style"):
            assert "direct copy" in asked("dsd-debiased", "cp", category)[0].parts[0]
            assert "copy" not in asked("dreambench++", "cp", category)[0].parts[0]

    def test_identity_novelty_and_prompt_are_three_conversations(self):
        (split,) = load_protocols(["split"])
        assert list(split.questions) == ["identity", "novelty", "prompt"]
        for aspect, shown in {
            "identity": (REFERENCE, OUTPUT),
            "novelty": (REFERENCE, OUTPUT),
            "prompt": ("a cat in snow", OUTPUT),
        }.items():
            (turn,) = asked("split", aspect)
            assert turn.parts[1:] == shown
            schema = split.questions[aspect].schema
            assert schema is not None
            assert list(schema["properties"]) == ["reason", "score"]

    def test_omnicontext_shows_everything_for_both_marks_of_ten(self):
        (omnicontext,) = load_protocols(["omnicontext"])
        assert omnicontext.scale == 10
        for aspect in ("pf", "sc"):
            (turn,) = asked("omnicontext", aspect)
            assert turn.parts[1:] == ("a cat in snow", REFERENCE, OUTPUT)

    def test_a_question_is_recognised_by_its_stage_and_its_rubric(self):
        (split,) = load_protocols(["split"])
        request = split.request("novelty", case(), 2, PICTURES, repetition=1)
        assert (request.stage, request.item) == ("evaluate/split/novelty", "a-0/2")
        assert (request.sample, request.wording) == (1, split.rubric)
        assert split.rubric.startswith("split-v1@")

    def test_no_two_questions_share_their_texts(self):
        texts = [
            question.rubric(category).task
            for protocol in load_protocols(PROTOCOLS)
            for question in protocol.questions.values()
            for category in ("animal", "style")
            if category == "animal" or question.style
        ]
        assert len(texts) == len(set(texts)) == 12
        assert all(line == line.strip() for text in texts for line in (text[0], text[-1]))


class TestRubricFiles:
    def test_another_file_replaces_a_protocol_or_adds_one(self, tmp_path):
        (tmp_path / "mine.toml").write_text(OWN)
        likeness, split = load_protocols(["likeness", "split"], tmp_path / "mine.toml")
        (turn,) = likeness.request("twin", case(), 0, PICTURES).messages
        assert turn.parts == ("twins?", OUTPUT, REFERENCE)
        assert split.version == "v1"
        renamed = OWN.replace("likeness", "split")
        (tmp_path / "mine.toml").write_text(renamed)
        (split,) = load_protocols(["split"], tmp_path / "mine.toml")
        assert list(split.questions) == ["twin"]

    def test_the_digest_changes_with_every_text_and_setting(self, tmp_path):
        changes = {
            "twins": "same",
            "mine": "yours",
            "9": "4",
            '["output", ': '["prompt", "output", ',
        }
        changes |= {"likeness": "x", "none": "of these"}
        digests = set()
        for change, new in changes.items():
            (tmp_path / "mine.toml").write_text(OWN.replace(change, new))
            digests.add(read_protocol(tmp_path / "mine.toml").rubric.partition("@")[2])
        assert len(digests) == len(changes)

    def test_the_official_texts_are_read_from_a_clone(self, tmp_path):
        folder = tmp_path / "clone" / "dreambench_plus" / "prompts"
        folder.mkdir(parents=True)
        for who, kind in itertools.product(("user", "gpt"), ("subject", "style", "text")):
            (folder / f"{who}_prompt_{kind}_full.txt").write_text(f"{who} {kind}\n")
        (official,) = load_protocols(["dreambench++"], tmp_path / "clone")
        task, accepted, shown = official.request("cp", case("style"), 0, PICTURES).messages
        assert (task.parts, accepted.parts) == (("user style",), ("gpt style",))
        assert shown.parts == (REFERENCE, OUTPUT)
        task, accepted, shown = official.request("pf", case("style"), 0, PICTURES).messages
        assert (task.parts, accepted.parts) == (("user text",), ("gpt text",))
        assert shown.parts == ("a cat in snow", OUTPUT)
        assert official.rubric.startswith("dreambench++-official@")
        (folder / "gpt_prompt_text_full.txt").unlink()
        with pytest.raises(UserError, match=r"gpt_prompt_text_full\.txt"):
            read_protocol(tmp_path / "clone")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (('task = "twins?"', 'task = " "'), "task is empty"),
            (('["output", "reference"]', '["reference"]'), 'shows lists "output"'),
            (('["output", "reference"]', '["output", "output"]'), "each of its words once"),
            (('["output", "reference"]', '["target"]'), "'reference', 'output' or 'prompt'"),
            (("scale = 9", "scale = 0"), "at least 1, got 0"),
            (("version", "verison"), "verison"),
            (("subject = {", 'fields = ["reason"]\nsubject = {'), 'fields needs "score"'),
        ],
    )
    def test_a_wrong_file_is_refused(self, tmp_path, change, message):
        (tmp_path / "mine.toml").write_text(OWN.replace(*change))
        with pytest.raises(UserError, match=message):
            read_protocol(tmp_path / "mine.toml")

    def test_wrong_names_are_refused(self, tmp_path):
        with pytest.raises(UserError, match="no protocol 'spilt'; did you mean 'split'"):
            load_protocols(["spilt"])
        with pytest.raises(UserError, match="names split twice"):
            load_protocols(["split", "split"])
        (tmp_path / "mine.toml").write_text(OWN)
        with pytest.raises(UserError, match="holds the protocol likeness, which --protocol"):
            load_protocols(["split"], tmp_path / "mine.toml")
        with pytest.raises(UserError, match=r"has no dreambench_plus/prompts; give a clone"):
            load_protocols(["split"], tmp_path)


def test_a_picture_is_prepared_as_dreambench_plus_prepares_it(tmp_path):
    drawn = Image.new("RGBA", (64, 32))
    drawn.paste((255, 0, 0, 255), (0, 0, 32, 16))  # the rest is transparent
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    drawn.save(tmp_path / "a.png", exif=exif)

    made = judge_picture(tmp_path / "a.png")

    upright = Image.new("RGB", (32, 64), "white")
    upright.paste((255, 0, 0), (16, 0, 32, 32))
    expected = io.BytesIO()
    upright.resize((512, 512)).save(expected, "JPEG")  # Pillow's defaults: bicubic, quality 75
    assert made.data == expected.getvalue()
    assert (made.mime, made.detail) == ("image/jpeg", "high")
    (tmp_path / "b.png").write_text("no")
    with pytest.raises(UserError, match="is not a picture"):
        judge_picture(tmp_path / "b.png")


def test_a_judge_is_asked_to_look_closely(tmp_path):
    provider = ProviderConfig("openai", "m")
    picture = messages.Picture(b"x", "image/jpeg", "high")
    turns = (messages.Message("user", ("look", picture, REFERENCE)),)
    request = messages.Request("evaluate/split/prompt", "a", turns)
    body = chat_body(request, provider, Dialect.of(provider))
    _, close, plain = body["messages"][0]["content"]
    assert close["image_url"]["detail"] == "high"
    assert "detail" not in plain["image_url"]
    keys = [
        dataclasses.replace(request, messages=(messages.Message("user", (each,)),)).key("m")
        for each in (picture, messages.Picture(b"x", "image/jpeg"))
    ]
    assert keys[0] != keys[1]
    assert keys[1].startswith("a7353ecb9aa7")  # as before there was detail: paid answers stay known


def test_all_protocols_ship_with_the_package():
    files = {path.name for path in protocols._FOLDER.glob("*.toml")}
    assert files == set(PROTOCOLS.values())
