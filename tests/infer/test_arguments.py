"""Python arguments: names of other programs, misspelt names, values of another type."""

from typing import Any

import numpy as np
import pytest

from dsd_jax.errors import UserError
from dsd_jax.infer import shown
from dsd_jax.infer.options import LoadOptions
from dsd_jax.infer.pipeline import Pipeline
from dsd_jax.infer.settings import Settings
from tests.random_flux import TEXT, picture

pytestmark = pytest.mark.usefixtures("as_users_run_it")
SMALL: dict[str, Any] = {"height": 64, "width": 128, "steps": 2}


@pytest.fixture
def asked(pipe, monkeypatch):
    """Collects the requests that the pipeline would run; nothing is sampled."""
    seen = []
    monkeypatch.setattr(pipe, "run", lambda prepared, **rest: seen.append((prepared, rest)))
    return seen


def test_the_names_of_diffusers_and_of_the_released_pipeline(pipe, asked):
    pipe(
        prompt=[TEXT, "a dog"], image=picture(), num_images_per_prompt=2, num_inference_steps=2,
        guidance_scale=2, guidance_scale_real_i=1.5, guidance_scale_real_t=1.25, height=64,
    )  # fmt: skip
    ((prepared, _),) = asked
    assert prepared.texts == [TEXT, TEXT, "a dog", "a dog"]
    wanted = Settings(2.0, 1.5, 1.25, 2, 64, 128)
    assert prepared.settings == wanted


def test_numbers_of_numpy_are_numbers(pipe, asked):
    pipe(TEXT, steps=np.int64(2), guidance=np.float32(2), height=np.int32(64))
    ((prepared, _),) = asked
    assert (prepared.settings.steps, prepared.settings.guidance) == (2, 2.0)
    assert type(prepared.settings.steps) is int


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"guidence": 2}, r"takes no argument 'guidence'; did you mean 'guidance'\?"),
        ({"generator": object()}, r"no argument 'generator'; give seed, a number"),
        ({"output_type": "np"}, r"no argument 'output_type'; images are PIL images"),
        ({"max_sequence_length": 64}, r"'max_sequence_length'; give it to Pipeline.load"),
        ({"guidance": 1.0, "guidance_scale": 2.0}, r"'guidance' is given twice"),
        ({"prompt": "a dog"}, r"'text' is given twice"),
        ({"steps": "28"}, r"steps must be a whole number, got '28'"),
        ({"steps": 2.5}, r"steps must be a whole number, got 2.5"),
        ({"steps": True}, r"steps must be a whole number, got True"),
        ({"guidance": "high"}, r"guidance must be a number, got 'high'"),
        ({"height": "64"}, r"height must be a whole number, got '64'"),
        ({"negative_prompt": None}, r"negative_prompt must be text, got None"),
        ({"vae_sample": 1}, r"vae_sample must be True or False, got 1"),
        ({"seed": "7"}, r"a seed must be a whole number, got '7'"),
        ({"seed": 1.5}, r"a seed must be a whole number, got 1.5"),
        ({"num_images": "2"}, r"num_images must be at least 1, got '2'"),
        ({"batch_size": "1"}, r"batch_size must be at least 1, got '1'"),
        ({"batch_size": 1.5}, r"batch_size must be at least 1, got 1.5"),
        ({"image": 3}, r"image must be a path, a PIL image, or a list with one .*, got int"),
        ({"image": np.zeros((4, 4, 3))}, r"image must be a path, .*, got ndarray"),
        ({"latents": [[1.0]]}, r"latents must be float32 \[1, 16, 8, 16\], got list"),
    ],
)
def test_what_cannot_be_meant(pipe, options, complaint):
    with pytest.raises(UserError, match=complaint):
        pipe(TEXT, **SMALL | options)


def test_a_text_that_is_none(pipe):
    given: tuple[Any, ...]
    for given in (), (None,), ([],):
        with pytest.raises(UserError, match="there is no text; describe the image"):
            pipe(*given)
    for given in ([3],), (3,):
        with pytest.raises(UserError, match="text must be a text or a list of texts, got 3"):
            pipe(*given)
    with pytest.raises(UserError, match=r"text must be a text or a list of texts, got {'a': 1}"):
        pipe({"a": 1})


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"offload": "sequential"}, r"offload must be one of 'none', 'model', 'layers', got 'seq"),
        ({"offload": "sequential"}, r"did you mean 'layers'\?"),
        ({"offload": "modle"}, r"did you mean 'model'\?"),
        ({"weights": "int6"}, r"weights must be one of 'int8', 'int4', got 'int6'; did you mean"),
        ({"merge_lora": "yes"}, r"merge_lora must be True or False, got 'yes'"),
        ({"torch_dtype": "bfloat16"}, r"Pipeline.load takes no argument 'torch_dtype'; give prec"),
        ({"presicion": None}, r"did you mean 'precision'\?"),
        ({"precision": "bfloat16"}, r"precision must be Precision, got 'bfloat16'; give FLOAT32"),
        ({"mesh": "cpu"}, r"mesh must be Mesh or None, got 'cpu'"),
        ({"execution": "fast"}, r"execution must be Execution or None, got 'fast'"),
        ({"lora_path": 3}, r"lora_path must be a path or a list of paths, got 3"),
        ({"max_sequence_length": "8"}, r"max_sequence_length must be at least 2, got '8'"),
    ],
)
def test_options_that_cannot_be_meant(folder, options, complaint):
    with pytest.raises(UserError, match=complaint):
        Pipeline.from_pretrained(folder / "flux", **options)


def test_options_are_checked_where_they_are_made():
    with pytest.raises(UserError, match="offload must be one of"):
        LoadOptions(offload="all")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("shell", "progress", "show"),
    [
        ("ZMQInteractiveShell", None, "all"),
        ("TerminalInteractiveShell", None, "nothing"),
        ("ZMQInteractiveShell", False, "nothing"),
        ("TerminalInteractiveShell", True, "all"),
    ],
)
def test_a_notebook_shows_progress(pipe, asked, monkeypatch, shell, progress, show):
    console = type("IPython", (), {"get_ipython": staticmethod(type(shell, (), {}))})
    monkeypatch.setitem(shown.sys.modules, "IPython", console)
    pipe(TEXT, progress=progress, **SMALL)
    ((_, rest),) = asked
    assert rest["show"] == show
