"""Eight devices give what one gives: every kind of sharding, specs of parameters and latents."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from dsd_jax import encoders, models
from dsd_jax.config import FLOAT32, AutoencoderConfig, Execution
from dsd_jax.errors import UserError
from dsd_jax.flow import Schedule
from dsd_jax.infer import denoiser
from dsd_jax.infer.pipeline import Pipeline
from dsd_jax.infer.sampler import Sampler, SamplerInputs
from dsd_jax.sharding import MeshConfig, make_mesh
from dsd_jax.toy.making.random_pipeline import SMALL
from dsd_jax.weights import TensorSource
from tests.random_flux import TEXT, picture, write_flux, write_random_lora
from tests.tiny_flux import CANVAS, TINY, flux_inputs, random_tensors

# Four heads everywhere, so that a tensor axis of 4 divides them; a small autoencoder.
SHARDED = dataclasses.replace(
    SMALL,
    vae=AutoencoderConfig(block_channels=(4, 8), layers_per_block=1, norm_groups=2),
    text_encoder_2=dataclasses.replace(SMALL.text_encoder_2, num_heads=4),
)
TEXTS = [TEXT, "a dog", "a blue robot"]
PLAIN: dict[str, Any] = {"height": 16, "width": 32, "steps": 3, "seed": 4}
GUIDED = {**PLAIN, "i_guidance": 1.5, "t_guidance": 2.0, "negative_prompt": "a dog"}

Loaded = dict[str, dict[str, jax.Array]]


@pytest.fixture(scope="module")
def lora(tmp_path_factory):
    folder = write_flux(tmp_path_factory.mktemp("sharded"), SHARDED)
    return write_random_lora(folder / "lora.safetensors", SHARDED.transformer)


def load(lora, **options) -> Pipeline:
    folder = lora.parent
    paths = {"model_path": folder / "dsd", "lora_path": lora}
    return Pipeline.load(folder / "flux", **paths, precision=FLOAT32, **options)


@pytest.fixture(scope="module")
def on_one_device(lora):
    pipe = load(lora)
    return {
        guided: pipe(TEXTS, picture(), **(GUIDED if guided else PLAIN)) for guided in (False, True)
    }


@pytest.fixture
def loaded(monkeypatch) -> Loaded:
    """Parameters of every model by path, as they are loaded."""
    found: Loaded = {}

    def load_and_show(model, *args, **kwargs):
        filled = models.load(model, *args, **kwargs)
        flat = nnx.to_flat_state(nnx.state(filled))
        found[type(filled).__name__] = {".".join(map(str, p)): v[...] for p, v in flat}
        return filled

    for module in (encoders, denoiser):
        monkeypatch.setattr(module, "load", load_and_show)
    return found


@pytest.mark.parametrize(
    ("sizes", "guided"),
    [
        # The slow ones are parts of the mixed one, which CI has time for.
        pytest.param(MeshConfig(data=8), False, marks=pytest.mark.slow),
        pytest.param(MeshConfig(data=1, fsdp=8), False, marks=pytest.mark.slow),
        pytest.param(MeshConfig(data=2, tensor=4), False, marks=pytest.mark.slow),
        (MeshConfig(data=1, fsdp=2, context=4), False),
        (MeshConfig(data=2, fsdp=2, tensor=2), True),
    ],
    ids=["data", "fsdp", "tensor", "context", "mixed and guided"],
)
def test_eight_devices_equal_one(lora, on_one_device, sizes, guided):
    pipe = load(lora, mesh=make_mesh(sizes))
    made = pipe(TEXTS, picture(), **(GUIDED if guided else PLAIN))
    one = on_one_device[guided]
    assert made.latents.shape == one.latents.shape
    error = np.linalg.norm(made.latents - one.latents) / np.linalg.norm(one.latents)
    assert error < 1e-4, f"latents differ by {error:.1e}"
    for ours, theirs in zip(made, one, strict=True):
        assert np.abs(np.asarray(ours, int) - np.asarray(theirs, int)).max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("callback", [None, lambda *_: None], ids=["loop", "steps"])
def test_a_step_mask_on_eight_devices_equals_one(lora, callback):
    settings = {**GUIDED, "steps": 5, "guidance_every": 2, "step_mask": "10101"}
    one = load(lora)(TEXTS, picture(), **settings).latents
    pipe = load(lora, mesh=make_mesh(MeshConfig(data=2, fsdp=2, context=2)))
    made = pipe(TEXTS, picture(), callback=callback, **settings).latents
    assert np.linalg.norm(made - one) / np.linalg.norm(one) < 1e-4


def test_parameters_and_latents_lie_where_the_rules_say(lora, loaded):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    latents = []
    pipe = load(lora, mesh=mesh)
    pipe(TEXTS, picture(), callback=lambda i, n, img: latents.append(img.sharding), **PLAIN)

    flux = loaded["Flux"]
    for path, spec in {
        "double_blocks.img_attn.qkv.kernel": P(None, "fsdp", None, "tensor"),
        "double_blocks.txt_attn.proj.kernel": P(None, "tensor", None, "fsdp"),
        "double_blocks.img_mlp.in_layer.kernel": P(None, "fsdp", "tensor"),
        "double_blocks.img_attn.qkv.lora_a": P(None, "fsdp"),
        "double_blocks.img_attn.qkv.lora_b": P(None, None, "fsdp", "tensor"),
        "single_blocks.linear2.mlp_kernel": P(None, "tensor", "fsdp"),
        "cond_in.kernel": P(None, "fsdp"),
        "img_in.bias": P(),
    }.items():
        kernel = flux[path]
        assert kernel.sharding.is_equivalent_to(NamedSharding(mesh, spec), kernel.ndim), path
    kernel = flux["double_blocks.img_attn.qkv.kernel"]
    assert kernel.shape == (2, 64, 3, 4, 16)
    assert {s.data.shape for s in kernel.addressable_shards} == {(2, 32, 3, 2, 16)}
    t5 = loaded["T5Encoder"]["blocks.attn.q.kernel"]
    assert {s.data.shape for s in t5.addressable_shards} == {(2, 16, 2, 16)}
    assert all(x.is_fully_replicated for x in loaded["Autoencoder"].values())

    batch = NamedSharding(mesh, P(("fsdp", "data")))
    assert len(latents) == PLAIN["steps"]
    assert all(sharding.is_equivalent_to(batch, 3) for sharding in latents)


def test_a_step_leaves_latents_where_they_were():
    # Left to XLA they came back cut along their length, and the second step was compiled anew.
    config = dataclasses.replace(TINY, double_depth=1, single_depth=1)
    arrays = flux_inputs(config)
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, context=4))
    model = models.abstract(config, precision=FLOAT32, execution=Execution(scan_layers=True))
    sampler = Sampler(models.load(model, TensorSource(random_tensors(config)), mesh=mesh), CANVAS)
    own = SamplerInputs(arrays["inputs"]._replace(img_cond=None))
    times = Schedule().timesteps(2, arrays["img"].shape[1])
    batch = NamedSharding(mesh, P(("fsdp", "data")))
    seen = []
    with jax.set_mesh(mesh):
        img, own = jax.device_put((arrays["img"], own), batch)
        sampler.run(img, own, times, lambda i, n, img: seen.append(img.sharding))
    assert len(seen) == 2
    assert all(sharding.is_equivalent_to(batch, 3) for sharding in seen)


def test_layers_streamed_over_a_mesh(lora, on_one_device, loaded, monkeypatch):
    monkeypatch.setattr(models, "LARGE", 256)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    made = load(lora, mesh=mesh, offload="layers")(TEXTS, picture(), **PLAIN)
    np.testing.assert_allclose(made.latents, on_one_device[False].latents, atol=1e-4)
    kernel = loaded["Flux"]["single_blocks.mlp_in.kernel"]
    assert kernel.sharding.memory_kind == "pinned_host"
    assert {s.data.shape for s in kernel.addressable_shards} == {(3, 32, 128)}


def test_batches_of_any_size(lora, on_one_device):
    pipe = load(lora)
    for batch_size in (2, 3):
        made = pipe(TEXTS, picture(), batch_size=batch_size, **PLAIN)
        np.testing.assert_allclose(made.latents, on_one_device[False].latents, atol=1e-4)
    order = [2, 0, 1]
    options = {**PLAIN, "seed": 4, "batch_size": 3}
    made = pipe([TEXTS[i] for i in order], picture(), **options)
    np.testing.assert_allclose(made.latents, on_one_device[False].latents[order], atol=1e-4)


def test_mesh_that_does_not_divide_the_model(lora):
    pipe = load(lora, mesh=make_mesh(MeshConfig(data=1, tensor=8)))
    with pytest.raises(UserError, match=r"cannot shard the parameters over mesh .*'tensor': 8"):
        pipe(TEXT, picture(), **PLAIN)
