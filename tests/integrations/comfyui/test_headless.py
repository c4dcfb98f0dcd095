"""The nodes in a real ComfyUI on the CPU, over a real server with the toy weights.

DSD_COMFYUI=ComfyUI/ DSD_COMFYUI_PYTHON=ComfyUI/venv/bin/python pytest -m slow tests/integrations
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import numpy as np
import pytest
from PIL import Image

from dsd_jax.toy.world import Scene, Subject, render
from tests.integrations.comfyui.headless import PACK, ComfyUI, Run, comfyui, toy_server

CHECKOUT = os.environ.get("DSD_COMFYUI")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHECKOUT is None, reason="DSD_COMFYUI names no checkout of ComfyUI"),
]
TEXT = "this thing on sea at northeast"
STEPS = 6


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[str]:
    flags = ("--max_batch", "1", "--no_true_guidance")
    with toy_server(tmp_path_factory.mktemp("serve"), *flags) as address:
        yield address


@pytest.fixture(scope="module")
def comfy(tmp_path_factory, server) -> Iterator[ComfyUI]:
    python = os.environ.get("DSD_COMFYUI_PYTHON", sys.executable)
    folder = tmp_path_factory.mktemp("comfyui")
    assert CHECKOUT is not None
    with comfyui(Path(CHECKOUT), python, folder, DSD_SERVERS=server) as running:
        yield running


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("reference") / "star.png"
    subject, scene = Subject("star", "red", "yellow", "dots"), Scene("beach", "northwest")
    Image.fromarray(np.asarray(render(subject, scene))).resize((48, 40)).save(path)
    return path


SETTINGS = {
    "negative_prompt": "", "seed": 5, "guidance_scale": 3.5, "image_guidance_scale": 1.0,
    "text_guidance_scale": 1.0, "num_inference_steps": STEPS, "size": "auto", "loras": "",
    "dsd_model": ["server", 0],
}  # fmt: skip


def workflow(address: str, image: str, node: str, **inputs: object) -> dict:
    return {
        "server": node_of("DSDServer", address=address, key_env="DSD_API_KEY"),
        "load": node_of("LoadImage", image=image),
        "make": node_of(node, image=["load", 0], **{**SETTINGS, **inputs}),
        "save": node_of("SaveImage", images=["make", 0], filename_prefix="made"),
    }


def node_of(kind: str, **inputs: object) -> dict:
    return {"class_type": kind, "inputs": inputs, "_meta": {"title": kind}}


def failure(run: Run) -> str | None:
    """What ComfyUI shows if a workflow fails."""
    kind, told = run.events[-1]
    return None if kind == "execution_success" else told.get("exception_message", kind)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"))


def test_pixels_are_those_of_dsd_generate_and_previews_arrive(comfy, server, reference, tmp_path):
    made = tmp_path / "made.png"
    command = (
        f"{sys.executable} -m dsd_jax generate --base_path toy --lora_path toy --height 32 "
        f"--width 64 --seed 5 --steps {STEPS} --enhance_prompt off"
    )
    paths = ["--image_path", str(reference), "--output_path", str(made), "--text", TEXT]
    subprocess.run([*command.split(), *paths], check=True)
    asked = workflow(server, comfy.upload(reference), "DSDCustomise", prompt=TEXT, images=1)
    run = comfy.run(asked)
    [saved] = comfy.saved(run, "save")
    np.testing.assert_array_equal(pixels(saved), pixels(Image.open(made)))
    values = [value for value, _ in run.steps("make")]
    assert values == sorted(values)
    assert {*range(1, STEPS + 1)} <= {*values}
    assert run.steps("make")[-1] == (STEPS, STEPS)
    shown = [np.asarray(image.convert("RGB"), int) for image in run.previews]
    assert len(shown) == 4  # three, and the image itself
    enlarged = np.asarray(saved.convert("RGB").resize((512, 512), Image.Resampling.BILINEAR), int)
    far = [float(abs(each - enlarged).mean()) for each in shown]
    assert far[-1] == 0
    assert far[0] > max(far[1:])  # they approach the image


def test_an_interrupt_cancels_the_job_on_the_server(comfy, server, reference):
    name = comfy.upload(reference)
    asked = workflow(
        server, name, "DSDCustomise", prompt=TEXT, images=8,
        num_inference_steps=100, seed=77,
    )  # fmt: skip
    interrupted: list[float] = []

    def watch(run: Run) -> None:
        if run.steps("make") and not interrupted:
            interrupted.append(time.monotonic())
            comfy.interrupt()

    before = cancelled(server)
    run = comfy.run(asked, watch)
    assert run.events[-1][0] == "execution_interrupted"
    while "dsd_running_images 0.0" not in metrics(server):  # a busy server answers late
        time.sleep(0.1)
    assert cancelled(server) == before + 1
    assert run.steps("make")[-1][0] < 800
    again = comfy.run(workflow(server, name, "DSDCustomise", prompt=TEXT, images=1, seed=6))
    assert failure(again) is None


def metrics(server: str) -> str:
    return httpx2.get(f"{server}/metrics").text


def cancelled(server: str) -> float:
    lines = [line for line in metrics(server).splitlines() if 'status="cancelled"' in line]
    return float(lines[0].split()[-1]) if lines else 0.0


def test_a_story_is_one_image_for_each_line(comfy, server, reference):
    panels = "this thing on sea\n\nthis thing on sand\nthis thing on snow"
    asked = workflow(server, comfy.upload(reference), "DSDStory", panels=panels, style="at night")
    run = comfy.run(asked)
    images = comfy.saved(run, "save")
    assert len({pixels(image).tobytes() for image in images}) == 3
    assert run.steps("make")[-1] == (3 * STEPS, 3 * STEPS)


def test_depth_and_relight_make_images(comfy, server, reference):
    name = comfy.upload(reference)
    light = {"light": "warm light from the left", "scene": "", "images": 1}
    depth = workflow(server, name, "DSDDepth", prompt=TEXT, images=2)
    for asked, count in ((workflow(server, name, "DSDRelight", **light), 1), (depth, 2)):
        run = comfy.run(asked)
        assert failure(run) is None
        assert len(comfy.saved(run, "save")) == count


def test_an_old_workflow_runs(comfy, server, reference):
    """A workflow of ComfyUI-DSD with every node that it had for making images."""
    asked = {
        "1": node_of("LoadImage", image=comfy.upload(reference)),
        "2": node_of("DSDModelSelector", check_model_exists=True),
        "3": node_of(
            "DSDModelLoader", model_path=["2", 0], lora_path=["2", 1], device="cuda",
            dtype="bfloat16", low_cpu_mem_usage=True, model_cpu_offload=False,
            sequential_cpu_offload=False,
        ),
        "4": node_of("DSDResizeSelector", resize_method="pad", interpolation="LANCZOS"),
        "5": node_of(
            "DSDImageGenerator", dsd_model=["3", 0], image=["1", 0], prompt=TEXT,
            negative_prompt="", seed=5, guidance_scale=3.5, image_guidance_scale=1.0,
            text_guidance_scale=1.0, num_inference_steps=STEPS, width=1024, height=512,
            use_gemini_prompt=False, resize_params=["4", 0],
        ),
        "6": node_of("SaveImage", images=["5", 0], filename_prefix="old"),
        "7": node_of("SaveImage", images=["5", 1], filename_prefix="reference"),
        "8": node_of("PreviewAny", source=["5", 2]),
    }  # fmt: skip
    assert {*comfy.get("/node_replacements")} >= {
        "DSDModelSelector", "DSDModelLoader", "DSDResizeSelector", "DSDImageGenerator",
        "DSDModelDownloader", "DSDGeminiPromptEnhancer",
    }  # fmt: skip
    run = comfy.run(asked)
    assert failure(run) is None
    [saved], [seen] = comfy.saved(run, "6"), comfy.saved(run, "7")
    assert saved.size == (32, 32)
    np.testing.assert_array_equal(pixels(seen), pixels(Image.open(reference)))


def test_an_address_that_nobody_listed_is_refused_before_anything_runs(comfy, reference):
    asked = workflow("https://example.org", comfy.upload(reference), "DSDCustomise", prompt=TEXT)
    assert "is not on this machine" in json.dumps(comfy.refused(asked))


def test_an_error_of_the_server_is_shown(comfy, server, reference):
    asked = workflow(
        server, comfy.upload(reference), "DSDCustomise", prompt=TEXT, images=1, size="7x7"
    )
    run = comfy.run(asked)
    kind, told = run.events[-1]
    assert kind == "execution_error"
    assert "answered 400: size must be one of auto, 32x32" in told["exception_message"]


@pytest.mark.parametrize(
    "path", sorted(PACK.glob("example_workflows/*.json")), ids=lambda p: p.stem
)
def test_the_examples_use_nodes_and_widgets_that_exist(comfy, path):
    known = comfy.get("/object_info")
    for node in json.loads(path.read_text())["nodes"]:
        if node["type"] != "MarkdownNote":
            assert node["type"] in known
