"""The offline stand-in, asked by the stages' own code and wordings."""

import asyncio
import dataclasses
import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dsd_jax.errors import UserError
from dsd_jax.infer.story.layout import load_layout
from dsd_jax.infer.story.write import Plot, Writer, tell
from dsd_jax.llm.config import ProviderConfig
from dsd_jax.llm.messages import Message, Picture, Request
from dsd_jax.llm.transport import Failed, Raw, Transport
from dsd_jax.toy.provider import ToyTransport, answer
from dsd_jax.toy.words import (
    PANELS,
    describe,
    describe_subject,
    parse_grid,
    parse_scene,
    parse_subject,
)
from dsd_jax.toy.world import Scene, Subject, render

CAT = Subject("cat", "red", "white", "dots")
STAR = Subject("star", "red", "white", "dots")
SNOW, SEA = Scene("snow", "northwest"), Scene("sea", "northeast", "small", light="night")


def picture(pixels: np.ndarray) -> Picture:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return Picture(file.getvalue())


def request(stage: str, *turns: tuple[str | Picture, ...], **options: object) -> Request:
    """Turns of the user, each but the last one answered."""
    messages = []
    for number, parts in enumerate(turns):
        messages.append(Message("user", parts))
        if number < len(turns) - 1:
            messages.append(Message("assistant", ("an answer",)))
    return Request(stage, "item", tuple(messages), **options)  # type: ignore[arg-type]


def verdict(first: np.ndarray, second: np.ndarray) -> str:
    pictures = ("one", picture(first), "other", picture(second), "what is in both?")
    return answer(request("judge", pictures, ("describe it",), ("is it the same?",)))


def test_it_is_used_by_its_own_name_alone():
    assert isinstance(ToyTransport(ProviderConfig(kind="toy", model="toy")), Transport)
    with pytest.raises(UserError) as error:
        ToyTransport(ProviderConfig(kind="toy", model="gpt-5"))
    assert 'kind "toy" has one model, "toy", got \'gpt-5\'' in str(error.value)


def test_answers_are_read_back_as_they_came():
    transport = ToyTransport(ProviderConfig(kind="toy", model="toy"))
    asked = request("caption", (picture(render(CAT, SNOW)), "describe it"))
    read = transport.read(asyncio.run(transport.send(asked)))
    assert (read.text, read.finish, read.model) == (answer(asked), "stop", "toy")
    with pytest.raises(ValueError, match="no text"):
        transport.read(Raw(b"{}"))


def test_captions_with_a_toy_in_them_are_clear():
    found = json.loads(answer(request("captions", (f"Caption: {describe(CAT, SNOW)}",))))
    assert (found["clear"], found["subject"]) == (True, describe_subject(CAT))
    assert not json.loads(answer(request("captions", ("Caption: a cat on a mat",))))["clear"]


def test_a_grid_in_several_lights_is_one_scene_with_the_lights_that_the_world_has():
    asked = f"one locked-off camera. Caption: {describe(CAT, SNOW)}"
    lights = ("lit at night", "lit by a warm lamp", "day", "lit from behind, at night")
    told = "; ".join(f"{panel} {light}" for panel, light in zip(PANELS, lights, strict=True))
    read = parse_grid(answer(request("prompts", (f"{asked}\n\nKeep to these: {told}. Go on.",))))
    assert read is not None
    subject, scenes = read
    assert subject == CAT
    assert [scene.light for scene in scenes] == ["night", "day", "day", "night"]
    assert len({dataclasses.replace(scene, light="day") for scene in scenes}) == 1
    alone = answer(request("prompts", (asked,)))
    assert parse_grid(alone) is None
    assert parse_scene(alone) is not None


def test_prompts_name_the_subject_in_four_scenes():
    asked = request("prompts", (f"Take the subject from this caption: {describe(CAT, SNOW)}",))
    text = answer(asked)
    read = parse_grid(text)
    assert read is not None
    subject, scenes = read
    assert subject == CAT
    assert len({scene.background for scene in scenes}) == len(PANELS)
    assert answer(asked) == text
    again = request("prompts", asked.messages[0].parts, ("That cannot be used",))
    assert answer(again) != text


def test_a_caption_without_toy_gives_no_prompt():
    assert not answer(request("prompts", ("Caption: a cat on a mat",))).startswith("a grid of")


def test_the_judge_keeps_one_subject_in_two_scenes():
    assert verdict(render(CAT, SNOW), render(CAT, SEA)).endswith("Yes")


def test_the_judge_says_what_differs():
    text = verdict(render(CAT, SNOW), render(STAR, SEA))
    assert text == "They differ: the shape is cat in the first and star in the second. No"


def test_the_judge_keeps_nothing_that_is_unclear():
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    assert verdict(noise, noise).endswith("unclear. No")


def test_the_judge_describes_what_it_sees():
    pictures = (picture(render(CAT, SNOW)), picture(render(CAT, SEA)))
    told = answer(request("judge", ("both?", *pictures), ("describe it",)))
    assert told.count(describe_subject(CAT)) == 2
    assert "on snow at northwest" in told
    assert "on sea at northeast small night" in told


def test_scores_and_groups_follow_their_schemas():
    fields = ("form", "colour", "material", "details", "identity")
    schema: dict[str, Any] = {"properties": {name: {} for name in (*fields, "subject")}}
    pictures = (picture(render(CAT, SNOW)), picture(render(STAR, SEA)))
    scores = json.loads(answer(request("judge", pictures, schema=schema)))
    assert [scores[name] for name in fields] == [0, 10, 10, 10, 7]

    top = np.concatenate([render(CAT, SNOW), render(CAT, SEA)], axis=1)
    bottom = np.concatenate([render(STAR, SNOW), render(CAT, SEA)], axis=1)
    pixels = np.concatenate([top, bottom])
    schema = {"properties": {"subject": {}, "groups": {}}}
    groups = json.loads(answer(request("judge", (picture(pixels),), schema=schema)))["groups"]
    assert groups == [[1, 2, 4], [3]]


def test_marks_of_lights_say_whether_the_light_is_the_one_that_was_named():
    schema: dict[str, Any] = {"properties": {"first_light": {}, "second_light": {}}}
    pictures = (picture(render(CAT, SNOW)), picture(render(CAT, SEA)))

    def marks(first: str, second: str) -> list[int]:
        question = f'the first was to be "{first}", the second "{second}"; "first_light"?'
        return list(
            json.loads(answer(request("judge", (*pictures, question), schema=schema))).values()
        )

    assert marks("lit by the sun at noon", "at night by a lamp") == [10, 10]
    assert marks("at night", "lit by the sun at noon") == [0, 0]


def test_a_panel_of_another_size_is_read_all_the_same():
    pixels = Image.fromarray(render(CAT, SNOW)).resize((64, 64), Image.Resampling.BICUBIC)
    assert answer(request("caption", (picture(np.asarray(pixels)), "describe it"))) == (
        "a red cat with white dots on snow at northwest"
    )


def test_descriptions_and_instructions():
    one, other = picture(render(CAT, SNOW)), picture(render(CAT, SEA))
    description = answer(request("caption", (one, "describe it")))
    assert description == describe(CAT, SNOW)
    instruction = answer(request("caption", ("first", one, "second", other, "what to change?")))
    assert parse_scene(instruction) == SEA
    assert instruction == "this thing on sea at northeast small night"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (request("painting", ("?",)), "knows nothing of the stage 'painting'"),
        (request("judge", ("?",)), "2 pictures are needed, there are 0"),
        (request("caption", ("?",)), "1 pictures are needed, there are 0"),
    ],
)
def test_other_questions_are_never_answered(asked: Request, message: str):
    with pytest.raises(Failed, match=message) as error:
        answer(asked)
    assert error.value.kind == "invalid"


def test_the_toy_tells_offline_of_a_hero_it_sees_in_other_scenes(tmp_path):
    Image.fromarray(render(CAT, SNOW)).save(tmp_path / "hero.png")
    toy, wanted = Writer("toy"), Plot("It leaves the snow for the sea.", panels=9)
    story = tell(tmp_path / "hero.png", tmp_path / "a", wanted, toy, load_layout("2x4"))
    scenes = [scene for panel in story.panels if (scene := parse_scene(panel.prompt))]
    assert len(scenes) == 9
    assert {parse_subject(panel.prompt) for panel in story.panels} == {CAT}
    assert scenes[0].background == SEA.background
    assert len({scene.background for scene in scenes}) == 7
    assert SNOW.background not in {scene.background for scene in scenes}
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "none.png")
    with pytest.raises(UserError, match="toy wrote no"):
        tell(tmp_path / "none.png", tmp_path / "b", Plot(), toy, load_layout("2x4"))
