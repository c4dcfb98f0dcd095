"""Text and reference to latents and pixels, against PyTorch, with small random weights."""

import dataclasses
import json

import numpy as np
import pytest
from diffusers import FluxPipeline
from PIL import Image

from dsd_jax.config import FLOAT32
from dsd_jax.images import fit, to_array
from dsd_jax.infer.pipeline import Pipeline
from dsd_jax.quickstart.torch_reference import TorchConditional
from dsd_jax.toy.making.random_pipeline import (
    SMALL,
    random_tensors,
    write_model,
    write_random_pipeline,
)
from tests.parity.compare import assert_close, relative_error

TEXT = "a red cat sitting on the blue table in the snow"
STEPS = 7


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("flux")
    write_random_pipeline(path)
    return path


@pytest.fixture(scope="module")
def conditional_folder(folder):
    """A transformer with a condition embedding, beside the plain pipeline it was trained from."""
    path = folder / "dsd" / "transformer"
    config = dataclasses.replace(SMALL.transformer, condition_embed=True)
    tensors = random_tensors(config, seed=0)
    base = random_tensors(SMALL.transformer, seed=0)
    own = {path: t for path, t in tensors.items() if path.startswith("cond_in.")}
    write_model(path, config, base | own)
    return path, own


@pytest.fixture(scope="module")
def pipe(folder, conditional_folder):
    return Pipeline.load(folder, model_path=conditional_folder[0], precision=FLOAT32)


def noise(width: int) -> np.ndarray:
    rng = np.random.default_rng(7)
    return rng.standard_normal((1, 16, 8, width)).astype(np.float32)


def reference() -> Image.Image:
    rng = np.random.default_rng(3)
    return Image.fromarray(rng.integers(0, 256, (80, 100, 3), dtype=np.uint8)).resize((150, 120))


def test_text_to_image_equals_the_flux_pipeline(folder):
    torch_pipe = FluxPipeline.from_pretrained(folder)
    packed = FluxPipeline._pack_latents(_torch(noise(12)), 1, 16, 8, 12)
    options = dict(height=64, width=96, num_inference_steps=STEPS, latents=packed)
    theirs = torch_pipe(TEXT, output_type="latent", guidance_scale=2.5, **options).images
    theirs = FluxPipeline._unpack_latents(theirs, 64, 96, torch_pipe.vae_scale_factor)
    pixels = torch_pipe(TEXT, output_type="np", guidance_scale=2.5, **options).images[0]

    ours = Pipeline.load(folder, precision=FLOAT32)(
        TEXT, height=64, width=96, steps=STEPS, guidance=2.5, latents=noise(12)
    )
    assert_close(ours.latents, theirs.numpy(), 1e-3, "latents")
    assert np.abs(np.asarray(ours[0]) / 255.0 - pixels).max() < 1.01 / 255


@pytest.mark.parametrize(
    "scales",
    [
        {"guidance": 3.5},
        {"guidance": 3.5, "i_guidance": 1.6, "t_guidance": 2.5},
        {"guidance": 1.0, "i_guidance": 1.3, "t_guidance": 0.7, "negative_prompt": "a dog"},
    ],
    ids=["distilled", "true guidance", "negative prompt"],
)
def test_conditional_model_equals_its_rendering_in_torch(folder, conditional_folder, pipe, scales):
    _, own = conditional_folder
    torch_model = TorchConditional.load(folder, own["cond_in.kernel"], own["cond_in.bias"])
    frame = fit(reference(), 64, 64)
    latents, pixels = torch_model(TEXT, to_array(frame), noise(16), steps=STEPS, **scales)

    options = dict(height=64, width=128, steps=STEPS, latents=noise(16), vae_sample=False)
    ours = pipe(TEXT, reference(), **options, **scales)
    assert_close(ours.latents, latents, 1e-3, "latents")
    whole = np.concatenate([np.asarray(ours.references[0]), np.asarray(ours[0])], axis=1)
    expected = np.clip(pixels / 2 + 0.5, 0, 1)
    assert np.abs(whole / 255.0 - expected).max() < 1.01 / 255
    # The comparison can fail: another reference gives other latents.
    other = pipe(TEXT, reference().rotate(90), **options, **scales)
    assert relative_error(other.latents, latents) > 1e-2


def test_posterior_sample_follows_the_seed(pipe):
    options = dict(height=64, width=128, steps=1, latents=noise(16))
    first, again, other = (pipe(TEXT, reference(), seed=s, **options) for s in (1, 1, 2))
    np.testing.assert_array_equal(first.latents, again.latents)
    assert not np.array_equal(first.latents, other.latents)


def test_steps_watched_and_unwatched_agree(pipe):
    options = dict(height=64, width=128, steps=4, i_guidance=1.5, seed=5)
    seen = []
    watched = pipe(TEXT, reference(), callback=lambda i, n, img: seen.append((i, n)), **options)
    assert_close(watched.latents, pipe(TEXT, reference(), **options).latents, 1e-5, "latents")
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    stopped = pipe(TEXT, reference(), callback=lambda i, n, img: i == 2, **options)
    assert relative_error(stopped.latents, watched.latents) > 1e-2


def test_folder_is_what_diffusers_expects(folder):
    names = {path.name for path in folder.iterdir()} - {"dsd"}
    index = json.loads((folder / "model_index.json").read_text())
    assert names == {key for key in index if not key.startswith("_")} | {"model_index.json"}


def _torch(array):
    import torch

    return torch.tensor(array)
