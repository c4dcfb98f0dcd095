"""The stand-in for a vision-language model that rates images of an evaluation."""

import dataclasses
import io
import json

import numpy as np
import pytest
from PIL import Image

from dsd_jax.llm.messages import Message, Picture, Request
from dsd_jax.llm.transport import Failed
from dsd_jax.toy.provider import answer
from dsd_jax.toy.rater import SLIPS
from dsd_jax.toy.score import make_cases
from dsd_jax.toy.words import describe
from dsd_jax.toy.world import Scene, Subject, render

TASK = "Judge the picture on a scale from 0 to 4."
SCORES = {"type": "object", "properties": {"reason": {}, "score": {}}}
CASE, OTHER = make_cases(2)
COPY, IDEAL = CASE.reference(), CASE.ideal()
SCENE_ONLY = render(OTHER.subject, CASE.after)


def picture(pixels: np.ndarray) -> Picture:
    """A picture as a protocol sends it."""
    file = io.BytesIO()
    large = Image.fromarray(pixels).resize((512, 512), Image.Resampling.BICUBIC)
    large.save(file, "JPEG", quality=75)
    return Picture(file.getvalue(), "image/jpeg")


def scores(
    stage: str, image: np.ndarray, prompt: str = CASE.text, *, rounds: int = 40, task: str = TASK
) -> list[int]:
    """Scores of many rounds of a question that shows the prompt or the reference."""
    reads = stage.rpartition("/")[2] in ("pf", "prompt")
    shown = (prompt if reads else picture(COPY), picture(image))
    turns = (Message("user", (task,)), Message("assistant", ("Yes.",)), Message("user", shown))
    asked = [Request(f"evaluate/{stage}", "case/0", turns, sample=n) for n in range(rounds)]
    return [int(answer(request).removeprefix("Score: ")) for request in asked]


def usual(stage: str, image: np.ndarray, prompt: str = CASE.text, task: str = TASK) -> int:
    """The score that most rounds agree on."""
    return int(np.bincount(scores(stage, image, prompt, task=task)).argmax())


@pytest.mark.parametrize(
    ("stage", "copy", "ideal", "scene_only"),
    [
        ("dreambench++/cp", 4, 4, 0),
        ("dreambench++/pf", 1, 4, 4),
        ("dsd-debiased/cp", 0, 4, 0),
        ("split/identity", 4, 4, 0),
        ("split/novelty", 0, 4, 4),
        ("split/prompt", 1, 4, 4),
    ],
)
def test_copies_and_pictures_without_the_subject_lose_what_the_question_is_about(
    stage: str, copy: int, ideal: int, scene_only: int
):
    assert [usual(stage, image) for image in (COPY, IDEAL, SCENE_ONLY)] == [copy, ideal, scene_only]


def test_every_wrong_attribute_costs_a_point():
    subject = Subject("cat", "red", "white", "dots")
    close = [Subject("cat", "red", "white", "cap"), Subject("cat", "blue", "white", "cap")]
    scene = Scene("snow", "northwest")
    shown = (picture(render(subject, scene)),)
    for wrong, other in enumerate(close, 1):
        parts = (TASK, *shown, picture(render(other, Scene("sea", "southeast"))))
        asked = [
            Request("evaluate/split/identity", "a/0", (Message("user", parts),), sample=n)
            for n in range(20)
        ]
        found = [int(answer(each).removeprefix("Score: ")) for each in asked]
        assert np.bincount(found).argmax() == 4 - wrong


def test_words_that_the_prompt_adds_are_asked_for_too():
    assert usual("split/prompt", IDEAL, prompt=f"{CASE.text} small night") == 2  # 3 of 5
    assert usual("dreambench++/pf", IDEAL, task="Give 0 to 10 points.") == 10


def test_a_light_that_the_prompt_names_is_right_or_wrong_as_a_whole():
    scene = dataclasses.replace(CASE.after, size="big", tilt="upright", light="warm left hard")
    shown = render(CASE.subject, scene)
    right, wrong = describe(None, scene), describe(None, scene).replace("hard", "soft")
    assert right.endswith(" warm left hard")
    assert usual("split/prompt", shown, prompt=right) == 4
    assert usual("split/prompt", shown, prompt=wrong) == 3  # 3 of 4


def test_rounds_differ_by_slips_and_every_round_can_be_repeated():
    found = scores("split/identity", IDEAL, rounds=400)
    assert set(found) == {3, 4}
    assert abs(found.count(3) / 400 - SLIPS) < 0.05
    assert found == scores("split/identity", IDEAL, rounds=400)


def test_an_answer_has_the_form_that_is_asked_for():
    parts = (TASK, picture(COPY), picture(SCENE_ONLY))
    asked = Request("evaluate/split/identity", "a/0", (Message("user", parts),), schema=SCORES)
    read = json.loads(answer(asked))
    assert list(read) == ["reason", "score"]
    assert read["reason"].startswith("different: ")


def test_a_question_without_a_picture_is_refused():
    asked = Request("evaluate/split/prompt", "a/0", (Message("user", (TASK,)),))
    with pytest.raises(Failed, match="1 pictures are needed, there are 0"):
        answer(asked)
