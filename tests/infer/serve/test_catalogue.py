"""What people choose from, and better words for what they wrote."""

import asyncio
import base64
import io

import httpx2
import pytest
from PIL import Image

from dsd_jax.errors import UserError
from dsd_jax.infer.enhance import Enhancement
from dsd_jax.infer.serve.app import create_app
from dsd_jax.infer.serve.catalogue import PRESETS, Catalogue
from dsd_jax.infer.serve.examples import toy_examples
from dsd_jax.lights import load_lights
from dsd_jax.tasks import TASKS
from dsd_jax.toy.words import parse_scene, parse_subject
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


def test_tasks_lights_and_examples(runner):
    shown = send(runner, Catalogue(toy_examples()), "GET", "/v1/catalogue").json()
    assert [task["name"] for task in shown["tasks"]] == list(TASKS)
    assert all(task["about"] for task in shown["tasks"])
    assert [task["name"] for task in shown["tasks"] if task["lights"]] == ["relight"]
    assert shown["lights"]["source"]["lamp"] == "a lamp"
    assert [light["names"] for light in shown["light_presets"]] == list(PRESETS)
    assert shown["enhanced_by"] is None


def test_presets_of_light_fit_together():
    lights = load_lights()
    for names in PRESETS:
        for aspect, name in names.items():
            only = lights.entries[aspect][name].only
            assert all(names[other] in only.get(other, (names[other],)) for other in names)


def test_examples_of_the_toy_are_in_its_words_and_have_pictures(runner):
    examples = send(runner, Catalogue(toy_examples()), "GET", "/v1/catalogue").json()["examples"]
    assert len(examples) >= 4
    for example in examples:
        assert parse_scene(example["prompt"]) is not None
        if example["edit"]:
            picture = Image.open(io.BytesIO(base64.b64decode(example["b64_json"])))
            assert picture.size == (32, 32)
        else:
            assert parse_subject(example["prompt"]) is not None


def test_a_light_in_words_and_numbers(runner):
    shown = send(runner, Catalogue(), "GET", "/v1/light?direction=left&source=lamp").json()
    assert shown["instruction"] == "light it from the left with a lamp"
    assert shown["description"] == "lit from the left by a lamp"
    assert shown["look"]["towards"][0] < -0.9


@pytest.mark.parametrize(
    ("query", "message"),
    [
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
