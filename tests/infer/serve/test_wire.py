"""The fields of a request: every one is checked, and a refusal names it."""

import dataclasses
import json
import random

import pytest

from dsd_jax.infer.serve.wire import ImageRequest, RefusedError, error_body, parse_request
from tests.infer.serve.fakes import OFFER

TEXT = {"prompt": "a star on sea"}


def parse(edit: bool = False, **fields: object) -> ImageRequest:
    return parse_request(TEXT | fields, OFFER, edit=edit)


def test_defaults():
    made = parse(edit=True)
    assert (made.size, made.settings.size) == ((32, 32), (32, 64))  # the canvas holds two frames
    assert made.lora == {"light": 1.0, "style": 0.5}
    assert (made.output_format, made.stream, made.wait) == ("png", False, True)
    assert 0 <= made.seeds[0] < 2**32


def test_numbers_of_forms_are_texts():
    assert parse(n="2", seed="7", steps="4", guidance="2.5", stream="true") == dataclasses.replace(
        parse(n=2, seed=7, steps=4, guidance=2.5, stream=True)
    )


def test_settings_have_the_names_of_other_servers_too():
    made = parse(
        edit=True, num_inference_steps=5, guidance_scale=1, image_guidance_scale=1.5,
        text_guidance_scale=2, negative_prompt="snow", vae_sample=False,
    ).settings  # fmt: skip
    assert (made.steps, made.guidance, made.i_guidance, made.t_guidance) == (5, 1.0, 1.5, 2.0)
    assert (made.negative_prompt, made.vae_sample) == ("snow", False)


@pytest.mark.parametrize(
    ("fields", "scales"),
    [
        ({"lora": "style"}, {"style": 0.5}),
        ({"lora": ["style", "light"]}, {"style": 0.5, "light": 1.0}),
        ({"lora": {"style": 0.25}}, {"style": 0.25}),
        ({"lora": {}}, {}),
        ({"lora[style]": "0.25"}, {"style": 0.25}),
        ({"lora[]": ["style"]}, {"style": 0.5}),
    ],
)
def test_loras_by_name_list_or_scale(fields, scales):
    assert parse(**fields).lora == scales


def test_a_task_chooses_the_lora_of_its_name():
    offer = dataclasses.replace(OFFER, loras={"relight": 0.8, "style": 1.0})
    assert parse_request(TEXT | {"task": "relight"}, offer, edit=True).lora == {"relight": 0.8}
    assert parse(task="identity").lora == OFFER.loras


def test_previews_lie_evenly_over_the_steps():
    made = parse(stream=True, partial_images=3, steps=28)
    assert made.preview_steps() == (7, 14, 21)
    assert parse(partial_images=3).preview_steps() == ()


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"prompt": " "}, "prompt", "is missing or empty; describe"),
        ({"prompt": "x" * 32_001}, "prompt", "32,001 characters; 32,000"),
        ({"prompt": "\ud800"}, "prompt", "UTF-8"),
        ({"prompt": 3}, "prompt", "must be text, got 3"),
        ({"n": 0}, "n", "from 1 to 10, got 0"),
        ({"n": True}, "n", "from 1 to 10"),
        ({"n": "9" * 30}, "n", "from 1 to 10"),
        ({"size": "1024x1024"}, "size", "must be one of auto, 32x32, 64x32, got '1024x1024'"),
        ({"seed": 2**32}, "seed", "from 0 to"),
        ({"steps": 101}, "steps", "from 1 to 100"),
        ({"guidance": "nan"}, "guidance", "from 0 to 100"),
        ({"guidance": 1, "guidance_scale": 2}, "guidance_scale", "and guidance are the same"),
        ({"i_guidance": 2}, "i_guidance", "needs a reference"),
        ({"output_format": "gif"}, "output_format", "png, jpeg, webp, got 'gif'"),
        ({"output_compression": 101}, "output_compression", "from 0 to 100"),
        ({"response_format": "url"}, "response_format", "must be b64_json"),
        ({"background": "transparent"}, "background", "opaque"),
        ({"stream": 2}, "stream", "must be true or false, got 2"),
        ({"stream": True, "wait": False}, "wait", "in a stream"),
        ({"partial_images": 4}, "partial_images", "from 0 to 3"),
        ({"save_frames": True}, "save_frames", "needs a reference"),
        ({"lora": "stile"}, "lora", "did you mean 'style'"),
        ({"lora": {"style": "much"}}, "lora[style]", "from -10 to 10"),
        ({"lora": [3]}, "lora", "must be text, got 3"),
        ({"task": "relit"}, "task", "did you mean 'relight'"),
        ({"mask": "x"}, "mask", "leave the mask out"),
        ({"image": "/etc/passwd"}, "image", "no path and no address is opened"),
        ({"image": "https://example.org/x.png"}, "image", "no path and no address is opened"),
        ({"promt": "x"}, "promt", "did you mean 'prompt'"),
    ],
)
def test_refusals(fields, param, words):
    with pytest.raises(RefusedError) as caught:
        parse(**fields)
    assert words in str(caught.value)
    assert (caught.value.param, caught.value.status) == (param, 400)


def test_an_unknown_model_is_not_found():
    with pytest.raises(RefusedError, match="this server has 'dsd'") as caught:
        parse(model="gpt-image-1")
    body = error_body(caught.value)["error"]
    assert caught.value.status == 404
    assert isinstance(body, dict)
    assert (body["type"], body["param"], body["code"]) == (
        "invalid_request_error", "model", "model_not_found",
    )  # fmt: skip


_NAMES = (
    "prompt n size seed steps guidance i_guidance output_format stream lora lora[] lora[style] "
    "lora[ task wait partial_images negative_prompt model user background"
).split()
_VALUES: tuple[object, ...] = (
    None, True, False, 0, 1, -1, 2**63, 1.5, float("inf"), float("nan"), "", "x", "32x32", "1",
    "-1", "nan", "1e999", "true", "style", "identity", "png", "\ud800",
    "\0", "9" * 5000, [], ["style"],
    [[]], [None], {}, {"style": 1}, {"style": []}, {"": {}}, [{"style": 1}],
)  # fmt: skip


def test_any_fields_are_parsed_or_refused():
    rng = random.Random(0)
    parsed = 0
    for _ in range(500):
        fields: dict[str, object] = {
            rng.choice(_NAMES): rng.choice(_VALUES) for _ in range(rng.randrange(5))
        }
        try:
            parse_request(TEXT | fields, OFFER, edit=True)
        except RefusedError as error:
            json.dumps(error_body(error)).encode()
        else:
            parsed += 1
    assert parsed > 20
