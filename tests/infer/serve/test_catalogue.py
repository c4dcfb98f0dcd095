"""What people choose from, and better words for what they wrote."""

import asyncio
import base64
import io

import httpx2
import numpy as np
import pytest
from PIL import Image

from dsd_jax.errors import UserError
from dsd_jax.infer.enhance import Enhancement
from dsd_jax.infer.serve.app import create_app
from dsd_jax.infer.serve.catalogue import Catalogue
from dsd_jax.infer.serve.examples import PHOTOGRAPHIC, TOY_LIGHTS, LightMenu, toy_examples
from dsd_jax.tasks import TASKS
from dsd_jax.toy.judge import judge
from dsd_jax.toy.words import describe, parse_light, parse_scene, parse_subject
from dsd_jax.toy.world import Scene
from tests.core.llm.server import Server
from tests.core.llm.wire import Question, Result, Status

MERGED = "this green square on a chair"


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch):
    for name in ("GEMINI_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def send(runner, catalogue: Catalogue, method: str, path: str, **more) -> httpx2.Response:
    async def ask() -> httpx2.Response:
        transport = httpx2.ASGITransport(create_app(runner, routes=catalogue.routes()))
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.request(method, path, **more)

    return asyncio.run(ask())


def flags(server: Server) -> Enhancement:
    return Enhancement(
        enhance_provider="openai", enhance_model="seer", enhance_base_url=server.openai,
        enhance_prompt="on",
    )  # fmt: skip


def answer(question: Question) -> Result:
    return "a green square" if question.pictures else MERGED


def test_tasks_and_lights(runner):
    shown = send(runner, Catalogue(toy_examples()), "GET", "/v1/catalogue").json()
    assert [task["name"] for task in shown["tasks"]] == list(TASKS)
    assert all(task["about"] for task in shown["tasks"])
    assert [task["name"] for task in shown["tasks"] if task["lights"]] == ["relight"]
    assert shown["lights"]["source"]["lamp"] == "a lamp"
    assert [light["names"] for light in shown["light_presets"]] == list(PHOTOGRAPHIC.presets)
    assert shown["enhanced_by"] is None


def test_the_lights_of_the_toy_are_in_its_words(runner):
    catalogue = Catalogue(lights=TOY_LIGHTS)
    shown = send(runner, catalogue, "GET", "/v1/catalogue").json()
    assert "source" not in shown["lights"]
    assert len(shown["light_presets"]) == len(TOY_LIGHTS.presets)
    for light in shown["light_presets"]:
        assert parse_light(light["description"]) == parse_light(light["instruction"])
        assert parse_light(light["description"]) is not None
        answered = send(runner, catalogue, "GET", "/v1/light", params=light["names"]).json()
        assert answered == light
    refused = send(runner, catalogue, "GET", "/v1/light?source=lamp")
    assert refused.json()["error"]["message"].startswith("there is no source 'lamp'")


@pytest.mark.parametrize("menu", [PHOTOGRAPHIC, TOY_LIGHTS])
def test_presets_of_light_fit_together(menu: LightMenu):
    lights = menu.vocabulary
    for names in menu.presets:
        for aspect, name in names.items():
            only = lights.entries[aspect][name].only
            assert all(names[other] in only.get(other, (names[other],)) for other in names)


def test_examples_of_the_toy_are_in_its_words_and_have_pictures(runner):
    catalogue = Catalogue(toy_examples(), lights=TOY_LIGHTS)
    examples = send(runner, catalogue, "GET", "/v1/catalogue").json()["examples"]
    assert {example["task"] for example in examples} == {"identity", "relight", "depth", None}
    for example in examples:
        text = example["prompt"]
        assert parse_light(text) is None  # the person may choose another
        assert bool(example["light"]) == (example["task"] == "relight")
        if example["light"]:
            light = send(runner, catalogue, "GET", "/v1/light", params=example["light"]).json()
            text += light["addition"]
        scene = parse_scene(text)
        assert scene is not None
        if not example["edit"] or example["task"] == "depth":
            assert parse_subject(example["prompt"]) is not None
        if not example["edit"]:
            continue
        picture = Image.open(io.BytesIO(base64.b64decode(example["b64_json"])))
        assert picture.size == (32, 32)
        seen = judge(np.asarray(picture))
        if example["task"] == "depth":
            assert picture.convert("L").convert("RGB").tobytes() == picture.tobytes()
            assert seen.subject is None
        else:
            assert seen.subject is not None
            assert seen.shows(scene) == (example["task"] == "relight")
            assert seen.light != scene.light or example["task"] == "identity"


def test_a_light_in_words_and_numbers(runner):
    shown = send(runner, Catalogue(), "GET", "/v1/light?direction=left&source=lamp").json()
    assert shown["instruction"] == "light it from the left with a lamp"
    assert shown["description"] == "lit from the left by a lamp"
    assert shown["look"]["towards"][0] < -0.9


@pytest.mark.parametrize(
    ("lights", "description", "addition"),
    [
        (PHOTOGRAPHIC, "lit from the left by warm light", ", lit from the left by warm light"),
        (TOY_LIGHTS, "warm left soft", " warm left soft"),
    ],
)
def test_a_light_is_read_from_words_of_the_vocabulary_that_is_served(
    runner, lights, description, addition
):
    asked = {"words": "warm light from the left"}
    shown = send(runner, Catalogue(lights=lights), "GET", "/v1/light", params=asked).json()
    assert (shown["description"], shown["addition"]) == (description, addition)


def test_a_text_and_a_light_of_the_toy_are_what_its_student_is_trained_on(runner):
    for names in TOY_LIGHTS.presets:
        light = send(runner, Catalogue(lights=TOY_LIGHTS), "GET", "/v1/light", params=names).json()
        scene = Scene("snow", "northwest", light=parse_light(light["description"]) or Scene.light)
        assert "this thing on snow at northwest" + light["addition"] == describe(None, scene)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("words=from+the+leff", "there is no light 'leff' in the lights 'v1'; did you mean 'left'"),
        ("words=+", "' ' names no light; try one such as"),
        ("words=left&source=lamp", "say a light by words or by the names of its aspects, not by"),
        (f"words={'left+' * 200}", "words of a light have at most 500 characters"),
        ("direction=up", "there is no direction 'up'"),
        ("mood=dark", "a light has no 'mood'"),
        ("", "a light needs a word"),
    ],
)
def test_a_light_that_there_is_not(runner, query, message):
    refused = send(runner, Catalogue(), "GET", f"/v1/light?{query}")
    assert refused.status_code == 400
    assert refused.json()["error"]["message"].startswith(message)


def test_a_text_gets_the_details_of_the_reference(runner, reference):
    with Server(answer) as server:
        catalogue = Catalogue(enhancement=flags(server))
        assert send(runner, catalogue, "GET", "/v1/catalogue").json()["enhanced_by"] == "seer"
        form = {"data": {"prompt": "this square on a chair"}, "files": {"image": reference}}
        made = send(runner, catalogue, "POST", "/v1/prompts/enhance", **form).json()
    assert made["prompt"].endswith(MERGED)
    assert made["notice"].startswith("the text was enhanced by seer")


def test_a_vision_model_that_fails_leaves_the_text_and_says_why(runner, reference):
    with Server(lambda question: Status(401)) as server:
        catalogue = Catalogue(enhancement=flags(server))
        form = {"data": {"prompt": "this cat"}, "files": {"image": reference}}
        made = send(runner, catalogue, "POST", "/v1/prompts/enhance", **form).json()
    assert made["prompt"] == "this cat"
    assert "seer did not enhance it" in made["notice"]


def test_what_cannot_be_enhanced_is_refused_in_words(runner, reference):
    form = {"data": {"prompt": "this cat"}, "files": {"image": reference}}
    off = send(runner, Catalogue(), "POST", "/v1/prompts/enhance", **form)
    assert off.status_code == 404
    assert "--enhance_prompt on" in off.json()["error"]["message"]
    with Server(answer) as server:
        catalogue = Catalogue(enhancement=flags(server))
        for change, param in (({"data": {}}, "prompt"), ({"files": {"image": b"no"}}, "image")):
            wrong = send(runner, catalogue, "POST", "/v1/prompts/enhance", **(form | change))
            assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, param)
        assert server.received == 0


def test_enhancement_without_a_key_is_told_at_the_start():
    with pytest.raises(UserError, match="GEMINI_API_KEY is not set"):
        Catalogue(enhancement=Enhancement(enhance_prompt="on"))
