"""The offline stand-in, asked by the stages' own code and wordings."""

import asyncio
import dataclasses
import io
import json
from collections import Counter
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
    describe_scene,
    describe_subject,
    parse_grid,
    parse_scene,
    parse_subject,
)
from dsd_jax.toy.world import Scene, Subject, render

CAT = Subject("cat", "red", "white", "dots")
STAR = Subject("star", "red", "white", "dots")
SNOW, SEA = Scene("snow", "northwest"), Scene("sea", "northeast", "small", light="night")
LIT = dataclasses.replace(SNOW, tilt="tilted", light="warm left hard")


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


def still(caption: str, *lights: str) -> Request:
    """The question for a prompt of one scene, in four lights if they are given."""
    asked = f"one locked-off camera. Caption: {caption}"
    if lights:
        told = "; ".join(f"{panel} {light}" for panel, light in zip(PANELS, lights, strict=True))
        asked += f"\n\nKeep to these: {told}. Go on."
    return request("prompts", (asked,))


@pytest.mark.parametrize(
    ("told", "meant"),
    [
        (
            ("warm left hard", "day from here", "above", "night from here"),
            ("warm left hard", "day", "day above soft", "night"),
        ),
        (
            (
                "lit from the right by a warm lamp",
                "by a hard flash",
                "at dawn",
                "backlit, at night",
            ),
            ("warm right soft", "day", "day", "night"),
        ),
    ],
)
def test_a_grid_in_several_lights_is_one_scene_with_the_lights_that_the_world_has(
    told: tuple[str, ...], meant: tuple[str, ...]
):
    read = parse_grid(answer(still(describe(CAT, SNOW), *told)))
    assert read is not None
    subject, scenes = read
    assert subject == CAT
    assert tuple(scene.light for scene in scenes) == meant
    assert len({dataclasses.replace(scene, light="day") for scene in scenes}) == 1


def test_a_scene_for_several_lights_says_none_and_is_as_often_small_as_big():
    captions = (f"{describe_subject(CAT)}, number {number}" for number in range(200))
    texts = [answer(still(caption)) for caption in captions]
    assert not any(map(parse_grid, texts))
    scenes = [scene for text in texts if (scene := parse_scene(text))]
    assert len(scenes) == len(texts)
    assert {scene.light for scene in scenes} == {Scene.light}
    assert 70 < sum(scene.size == "small" for scene in scenes) < 130


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

    def marks(*shown: tuple[Scene, str]) -> list[int]:
        pictures = tuple(picture(render(CAT, scene)) for scene, _ in shown)
        (_, first), (_, second) = shown
        question = f'the first was to be "{first}", the second "{second}"; "first_light"?'
        return list(
            json.loads(answer(request("judge", (*pictures, question), schema=schema))).values()
        )

    assert marks((SNOW, "lit by the sun at noon"), (SEA, "at night by a lamp")) == [10, 10]
    assert marks((SNOW, "at night"), (SEA, "lit by the sun at noon")) == [0, 0]
    assert marks((LIT, "warm left hard"), (SEA, "night from here")) == [10, 10]
    assert marks((LIT, "warm left soft"), (SEA, "night above hard")) == [0, 0]


def test_a_panel_of_another_size_is_read_all_the_same():
    pixels = Image.fromarray(render(CAT, SNOW)).resize((64, 64), Image.Resampling.BICUBIC)
    assert answer(request("caption", (picture(np.asarray(pixels)), "describe it"))) == (
        "a red cat with white dots on snow at northwest"
    )


@pytest.mark.parametrize("scene", [SNOW, SEA, LIT])
def test_descriptions_and_instructions_say_all_that_is_unusual(scene: Scene):
    shown = picture(render(CAT, scene))
    assert answer(request("caption", (shown, "describe it"))) == describe(CAT, scene)
    one = picture(render(CAT, dataclasses.replace(SNOW, light="cool above soft")))
    instruction = answer(request("caption", ("first", one, "second", shown, "what to change?")))
    assert instruction == describe(None, scene)


def test_an_edit_of_the_light_is_ordered_as_often_as_described():
    """A student that never saw an order would paint anything when it gets one."""
    one, other = picture(render(CAT, LIT)), picture(render(CAT, SNOW))
    asked = ("first", one, "second", other, "They show one scene in two lights. What to order?")
    told = Counter(
        answer(dataclasses.replace(request("caption", asked), item=str(number)))
        for number in range(200)
    )
    assert set(told) == {"make the light day from here", describe(None, SNOW)}
    assert min(told.values()) > 60
    both = ("first", one, "second", one, "They show one scene in two lights. What to order?")
    assert answer(request("caption", both)) == describe(None, LIT)


def test_one_scene_in_two_lights_is_the_same_but_not_another_size_of_it():
    def told(second: Scene) -> str:
        pictures = (picture(render(CAT, SNOW)), picture(render(CAT, second)))
        turns = ((*pictures, "?"), ("describe it",), ("could one camera have taken both?",))
        return answer(request("judge", *turns))

    assert told(dataclasses.replace(SNOW, light="cool right hard")).endswith("Yes")
    small = dataclasses.replace(SNOW, size="small", light="cool right hard")
    assert told(small) == "They differ: the size is big in the first and small in the second. No"


def test_prompts_of_a_story_keep_the_light_of_its_panels():
    shows = "\n".join(f"{n}. {describe_scene(scene)}" for n, scene in enumerate((LIT, SEA), 1))
    schema: dict[str, Any] = {"properties": {"prompts": {}}}
    asked = request("story", (f"The hero: a {describe_subject(CAT)}\n{shows}",), schema=schema)
    assert json.loads(answer(asked))["prompts"] == [describe(CAT, LIT), describe(CAT, SEA)]


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
