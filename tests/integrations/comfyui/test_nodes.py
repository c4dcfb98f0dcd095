"""The nodes, with what they need of ComfyUI, over the real application without a model."""

import asyncio
import json
import threading

import pytest
import torch
from starlette.responses import JSONResponse
from starlette.routing import Route

from dsd_jax.infer.serve.catalogue import Catalogue
from integrations.comfyui.client import Server, ServerError
from integrations.comfyui.pictures import picture, reference_png, stacked
from tests.integrations.comfyui.conftest import InterruptedByUserError
from tests.integrations.comfyui.headless import PACK

IMAGE = torch.full((1, 40, 40, 3), 0.5)
SETTINGS = {
    "negative_prompt": "", "seed": 7, "guidance_scale": 3.5, "image_guidance_scale": 1.0,
    "text_guidance_scale": 1.0, "num_inference_steps": 4, "size": "auto", "loras": "",
}  # fmt: skip


def make(comfy, node, address, **inputs):
    return asyncio.run(
        comfy.nodes[node].execute(image=IMAGE, dsd_model=Server(address), **(SETTINGS | inputs))
    ).args


def shades(batch: torch.Tensor) -> list[int]:
    return [round(float(image[0, 0, 0]) * 255) for image in batch]


def test_customise_gives_images_the_reference_and_the_seed(comfy, serve, engine):
    with serve() as address:
        images, reference, seed = make(
            comfy, "DSDCustomise", address, prompt="a", images=2, size="64x32",
            loras="style:0.25, light",
        )  # fmt: skip
    assert (images.shape, images.dtype) == ((2, 32, 64, 3), torch.float32)
    assert (shades(images), seed) == ([7, 8], 7)
    assert reference is IMAGE
    assert dict(engine.requests[0].lora) == {"style": 0.25, "light": 1.0}
    assert engine.frames[0].image.getpixel((0, 0)) == (128, 128, 128)


def test_progress_and_previews_reach_comfyui(comfy, serve):
    with serve() as address:
        make(comfy, "DSDCustomise", address, prompt="a", images=1)
    assert sorted(set(comfy.progress)) == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert comfy.progress == sorted(comfy.progress)
    assert [image.size for image in comfy.previews] == [(32, 32)] * 4


def test_an_interrupt_cancels_on_the_server(comfy, serve, engine):
    engine.gate = threading.Semaphore(0)

    def interrupt():
        engine.begun.acquire()
        comfy.interrupted.set()

    with serve() as address:
        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(InterruptedByUserError):
            make(comfy, "DSDStory", address, panels="a\nb\nc", style="")
        thread.join()
        engine.gate.release(1)
        comfy.interrupted.clear()
        engine.gate.release(1_000)
        images, *_ = make(comfy, "DSDCustomise", address, prompt="a", images=1)
    assert len(images) == 1
    assert len(engine.batches) <= 2 + 4  # a step under way, and the four of the second request


def test_a_loop_that_ends_early_cancels_on_the_server(comfy, serve, engine):
    engine.gate = threading.Semaphore(0)
    node = comfy.nodes["DSDCustomise"]

    async def another_node_fails(address):
        inputs = SETTINGS | {"num_inference_steps": 50, "prompt": "a", "images": 1}
        making = node.execute(image=IMAGE, dsd_model=Server(address), **inputs)
        under_way = asyncio.ensure_future(making)
        await asyncio.to_thread(engine.begun.acquire)
        engine.gate.release(1)
        assert not under_way.done()

    with serve() as address:
        asyncio.run(another_node_fails(address))
        engine.gate.release(100)
    assert len(engine.batches) <= 2


def test_a_story_has_a_panel_for_each_line(comfy, serve, engine):
    with serve() as address:
        images, _, seed = make(
            comfy, "DSDStory", address, panels="a cat\n\n  a dog \na fox", style="in ink"
        )
    assert (shades(images), seed) == ([7, 8, 9], 7)
    assert sorted(request.prompt for request in engine.requests) == [
        "a cat, in ink", "a dog, in ink", "a fox, in ink",
    ]  # fmt: skip
    assert comfy.progress[-1] == (12, 12)


@pytest.mark.parametrize("panels", ["", " \n ", "a\n" * 25])
def test_a_story_without_panels_or_with_too_many_is_refused(comfy, panels):
    with pytest.raises(ValueError, match="a story has 1 to 24 panels"):
        make(comfy, "DSDStory", "http://127.0.0.1:9", panels=panels, style="")


def test_requests_wait_for_a_full_queue(comfy, serve, engine):
    with serve(queue=1) as address:
        images, *_ = make(
            comfy, "DSDStory", address, panels="a\nb\nc\nd\ne\nf", style="", num_inference_steps=1
        )
    assert shades(images) == [7, 8, 9, 10, 11, 12]


def test_one_refused_panel_ends_the_story(comfy, serve, engine):
    with serve() as address, pytest.raises(ServerError, match="size must be one of"):
        make(comfy, "DSDStory", address, panels="a\nb", style="", size="1x1")


def test_tasks_go_along_and_the_server_reads_the_light(comfy, serve, engine):
    words = " from the left with a Lamp "
    with serve(*Catalogue().routes()) as address:
        make(comfy, "DSDRelight", address, light=words, scene="", images=1)
        make(comfy, "DSDRelight", address, light=words, scene=" a room ", images=1)
        make(comfy, "DSDDepth", address, prompt="a hall", images=1)
    assert [(request.task, request.prompt) for request in engine.requests] == [
        ("relight", "light it from the left with a lamp"),
        ("relight", "a room, lit from the left by a lamp"),
        ("depth", "a hall"),
    ]


def test_a_light_that_the_server_does_not_know_is_told_in_its_words(comfy, serve, engine):
    with serve(*Catalogue().routes()) as address:
        with pytest.raises(ServerError, match=r"no light 'lammp' .*; did you mean 'lamp'\?"):
            make(comfy, "DSDRelight", address, light="a lammp", scene="", images=1)
        with pytest.raises(ValueError, match="say something about the light, such as: warm"):
            make(comfy, "DSDRelight", address, light=" ", scene="", images=1)
    assert engine.requests == []


def enhance(comfy, address):
    node = comfy.nodes["DSDEnhance"]
    return asyncio.run(node.execute(image=IMAGE, prompt="a cat", dsd_model=Server(address))).args


def test_enhance_gives_the_words_of_the_server(comfy, serve):
    async def better(request):
        async with request.form() as form:
            return JSONResponse({"prompt": f"{form['prompt']} with {form['image'].content_type}"})

    with serve(Route("/v1/prompts/enhance", better, methods=["POST"])) as address:
        assert enhance(comfy, address) == ("a cat with image/png",)


def test_an_interrupt_does_not_wait_for_the_vision_model(comfy, serve):
    async def thinking(request):
        comfy.interrupted.set()
        while not await request.is_disconnected():
            await asyncio.sleep(0.01)
        return JSONResponse({})

    route = Route("/v1/prompts/enhance", thinking, methods=["POST"])
    with serve(route) as address, pytest.raises(InterruptedByUserError):
        enhance(comfy, address)


def test_a_server_is_checked_before_the_workflow_runs(comfy):
    node = comfy.nodes["DSDServer"]
    assert node.validate_inputs("http://127.0.0.1:8000", "DSD_API_KEY") is True
    assert "not on this machine" in node.validate_inputs("https://example.org", "DSD_API_KEY")
    assert "begins with DSD_" in node.validate_inputs("http://127.0.0.1:8000", "sk-123456")
    assert node.execute("http://127.0.0.1:8000 ", "DSD_API_KEY").args == (Server(),)


def test_pixels_come_back_as_they_went():
    values = torch.arange(256).reshape(1, 16, 16, 1).expand(-1, -1, -1, 3) / 255
    assert torch.equal(stacked([reference_png(values)]), values)


@pytest.mark.parametrize("count", [0, 2])
def test_a_reference_is_one_image(count):
    with pytest.raises(ValueError, match=f"is one image, and {count} were given"):
        reference_png(IMAGE[:1].expand(count, -1, -1, -1))


@pytest.mark.parametrize("png", [b"", b"GIF89a", reference_png(IMAGE)[:60]])
def test_a_damaged_image_is_told(png):
    with pytest.raises(ServerError, match="damaged image"):
        picture(png)


# ComfyUI-DSD


def test_each_old_node_has_a_new_one(comfy):
    found = {each["old_node_id"]: each["new_node_id"] for each in comfy.replacements}
    assert found == {
        "DSDImageGenerator": "DSDCustomise",
        "DSDGeminiPromptEnhancer": "DSDEnhance",
        "DSDModelLoader": "DSDServer",
        "DSDModelDownloader": "DSDServer",
        "DSDModelSelector": "PrimitiveStringMultiline",
        "DSDResizeSelector": "PrimitiveStringMultiline",
    }


def test_replacements_fill_every_input_and_keep_the_names_of_links(comfy):
    for each in comfy.replacements:
        if (node := comfy.nodes.get(each["new_node_id"])) is None:
            continue
        inputs = node.define_schema().inputs
        needed = {own.id for own in inputs if not getattr(own, "optional", False)}
        mapped = {one["new_id"] for one in each["input_mapping"]}
        assert needed <= mapped <= {own.id for own in inputs}
        # ComfyUI fails where the input that a link leads to has another name afterwards.
        for one in each["input_mapping"]:
            assert one.get("old_id", one["new_id"]) == one["new_id"]
        assert not {"api_key", "resize_params", "model_path"} & mapped


# Examples


@pytest.mark.parametrize(
    "path", sorted(PACK.glob("example_workflows/*.json")), ids=lambda p: p.stem
)
def test_an_example_has_the_widgets_of_its_nodes_and_a_thumbnail(comfy, path):
    assert path.with_suffix(".jpg").is_file()
    workflow = json.loads(path.read_text())
    for node in workflow["nodes"]:
        if node["type"] in comfy.nodes:
            inputs = comfy.nodes[node["type"]].define_schema().inputs
            names = [each["name"] for each in node["inputs"]]
            assert names == [each.id for each in inputs]
    links = {link[0]: link for link in workflow["links"]}
    nodes = {node["id"]: node for node in workflow["nodes"]}
    for number, source, place, target, slot, kind in links.values():
        assert number in nodes[source]["outputs"][place]["links"]
        assert nodes[target]["inputs"][slot]["link"] == number
        assert nodes[source]["outputs"][place]["type"] == kind


def test_no_example_holds_a_key_or_another_address():
    for path in PACK.glob("example_workflows/*.json"):
        text = path.read_text()
        assert "http://127.0.0.1:8000" in text
        assert text.count("http") == text.count("http://127.0.0.1:8000")
