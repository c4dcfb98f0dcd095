"""The tables against PyTorch: every name and shape at full size, and files of small models.

The oracle for names is the module itself, built without memory on torch's meta device with the
published configuration; for the original layout it is diffusers' own single-file converter.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from diffusers.loaders import single_file_utils

from dsd_jax.config import (
    AutoencoderConfig,
    ClipConfig,
    FluxConfig,
    T5Config,
    flux_dev,
    flux_schnell,
)
from dsd_jax.convert.flux.bfl import flux_bfl
from dsd_jax.convert.flux.config import flux_from_json, flux_from_tensors
from dsd_jax.convert.flux.diffusers import flux_diffusers
from dsd_jax.convert.io import open_weights
from dsd_jax.convert.open import open_transformer
from dsd_jax.convert.packaging import unpack
from dsd_jax.convert.table.engine import Table
from dsd_jax.convert.text import clip_from_json, clip_table, t5_from_json, t5_table
from dsd_jax.convert.vae import (
    autoencoder_bfl,
    autoencoder_diffusers,
    autoencoder_from_json,
    autoencoder_from_tensors,
)
from dsd_jax.convert.writer import write_weights
from dsd_jax.errors import UserError
from dsd_jax.parts import with_condition
from tests.convert.published import CLIP, DEV, SCHNELL, SMALL, T5, VAE, build, parts_for, shapes_of


def t5_names(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Drops the second name of the embedding, which transformers does not save either."""
    return {name: shape for name, shape in shapes.items() if name != "encoder.embed_tokens.weight"}


def clip_names(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Adds the prefix of published files, which transformers 5 dropped in the module only."""
    return {f"text_model.{name}": shape for name, shape in shapes.items()}


FULL_SIZE: dict[str, tuple[dict[str, Any], Table, int, int]] = {
    # published config, our table, tensors, parameters
    "FLUX.1-dev": (DEV, flux_diffusers(flux_dev(condition_embed=False)), 1160, 11_901_408_320),
    "FLUX.1-schnell": (SCHNELL, flux_diffusers(flux_schnell()), 1156, 11_891_178_560),
    "DSD release": (
        DEV | {"_class_name": "FluxTransformer2DConditionalModel"},
        flux_diffusers(flux_dev()),
        1162,
        11_901_608_000,
    ),
    "VAE": (VAE, autoencoder_diffusers(AutoencoderConfig()), 244, 83_819_683),
    "T5-XXL": (T5, t5_table(T5Config()), 219, 4_762_310_656),
    "CLIP-L": (CLIP, clip_table(ClipConfig()), 196, 123_060_480),
}


@pytest.mark.parametrize("model", FULL_SIZE)
def test_every_name_and_shape_at_full_size(model: str) -> None:
    data, table, tensors, parameters = FULL_SIZE[model]
    with torch.device("meta"):
        shapes = shapes_of(build(data))
    if model == "T5-XXL":
        shapes = t5_names(shapes)
    if model == "CLIP-L":
        shapes = clip_names(shapes)
    assert table.their_shapes == shapes
    assert len(shapes) == tensors
    assert sum(map(math.prod, shapes.values())) == parameters
    assert sum(map(math.prod, table.our_shapes.values())) == parameters


def bfl_flux_shapes(
    *, double: int, single: int, guidance: bool
) -> dict[str, tuple[int, ...]]:  # written from the published model code, not from our table
    d, mlp, head = 3072, 12288, 128

    def dense(name: str, out: int, into: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}

    shapes = dense("img_in", d, 64) | dense("txt_in", d, 4096)
    embedders = {"time_in": 256, "vector_in": 768} | ({"guidance_in": 256} if guidance else {})
    for name, width in embedders.items():
        shapes |= dense(f"{name}.in_layer", d, width) | dense(f"{name}.out_layer", d, d)
    for i in range(double):
        for stream in ("img", "txt"):
            block = f"double_blocks.{i}.{stream}"
            shapes |= dense(f"{block}_mod.lin", 6 * d, d)
            shapes |= dense(f"{block}_attn.qkv", 3 * d, d) | dense(f"{block}_attn.proj", d, d)
            shapes |= dense(f"{block}_mlp.0", mlp, d) | dense(f"{block}_mlp.2", d, mlp)
            for norm in ("query_norm", "key_norm"):
                shapes[f"{block}_attn.norm.{norm}.scale"] = (head,)
    for i in range(single):
        block = f"single_blocks.{i}"
        shapes |= dense(f"{block}.modulation.lin", 3 * d, d)
        shapes |= dense(f"{block}.linear1", 3 * d + mlp, d) | dense(f"{block}.linear2", d, d + mlp)
        for norm in ("query_norm", "key_norm"):
            shapes[f"{block}.norm.{norm}.scale"] = (head,)
    shapes |= dense("final_layer.adaLN_modulation.1", 2 * d, d)
    return shapes | dense("final_layer.linear", 64, d)


@pytest.mark.parametrize(("guidance", "count"), [(True, 780), (False, 776)])
def test_every_name_and_shape_of_the_original_files(guidance: bool, count: int) -> None:
    config = flux_dev(condition_embed=False) if guidance else flux_schnell()
    original, split = flux_bfl(config), flux_diffusers(config)
    assert original.their_shapes == bfl_flux_shapes(double=19, single=38, guidance=guidance)
    assert len(original.their_shapes) == count
    assert original.our_shapes == split.our_shapes


def test_the_original_autoencoder_has_the_published_names() -> None:
    shapes = autoencoder_bfl(AutoencoderConfig()).their_shapes
    assert len(shapes) == 244
    assert shapes["encoder.down.0.block.0.norm1.weight"] == (128,)
    assert shapes["encoder.down.2.block.0.nin_shortcut.weight"] == (512, 256, 1, 1)
    assert shapes["encoder.down.2.downsample.conv.weight"] == (512, 512, 3, 3)
    assert shapes["encoder.mid.attn_1.proj_out.weight"] == (512, 512, 1, 1)
    assert shapes["encoder.conv_out.weight"] == (32, 512, 3, 3)
    assert shapes["decoder.conv_in.weight"] == (512, 16, 3, 3)
    assert shapes["decoder.up.3.block.2.conv1.weight"] == (512, 512, 3, 3)
    assert shapes["decoder.up.1.block.0.nin_shortcut.weight"] == (256, 512, 1, 1)
    assert shapes["decoder.up.0.block.0.nin_shortcut.weight"] == (128, 256, 1, 1)
    assert shapes["decoder.up.1.upsample.conv.weight"] == (256, 256, 3, 3)
    assert "decoder.up.0.upsample.conv.weight" not in shapes
    assert "encoder.down.3.downsample.conv.weight" not in shapes


# Files of small models, through PyTorch and back


def randomised(module: torch.nn.Module, dtype: torch.dtype, seed: int = 0) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return module.to(dtype)


def export(table: Table, folder: Path, ours: Mapping[str, np.ndarray], **options: Any) -> None:
    specs = table.their_specs({name: array.dtype for name, array in ours.items()})
    write_weights(folder, specs, table.iter_theirs(ours.__getitem__), **options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", SMALL)
def test_from_pytorch_and_back_into_pytorch(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    data = SMALL[name]
    module = randomised(build(data), dtype)
    module.save_pretrained(tmp_path / "theirs")
    read, make_table, write = parts_for(data)
    config = read(data)
    if name != "dsd":  # whose class diffusers does not have
        assert read(json.loads((tmp_path / "theirs" / "config.json").read_text())) == config
    table = make_table(config)
    with open_weights(tmp_path / "theirs") as weights:
        ours = dict(table.check(weights).iter_ours())
        original = {table.respell(name): weights.read(name) for name in weights.tensors}
    stem = "model" if name in ("t5", "clip") else "diffusion_pytorch_model"
    export(table, tmp_path / "back", ours, stem=stem, max_shard_bytes=5_000)
    (tmp_path / "back" / "config.json").write_text(json.dumps(write(config)))
    with open_weights(tmp_path / "back") as weights:
        assert len(weights.files) > 1
        assert weights.tensors.keys() == original.keys()
        for key, tensor in original.items():
            assert weights.tensors[key].dtype == tensor.dtype
            assert weights.read(key).tobytes() == tensor.tobytes()
    back = type(module).from_pretrained(tmp_path / "back", torch_dtype=dtype).state_dict()
    state = module.state_dict()
    assert state.keys() - back.keys() <= {"c_embedder.weight", "c_embedder.bias"}
    for key, tensor in back.items():
        assert tensor.dtype == state[key].dtype
        assert torch.equal(tensor, state[key]), key


@pytest.fixture
def flux_files(tmp_path: Path) -> tuple[FluxConfig, dict[str, np.ndarray]]:
    config = FluxConfig(
        in_channels=16,
        out_channels=16,
        double_depth=2,
        single_depth=2,
        txt_width=8,
        vec_width=6,
        num_heads=1,
        condition_embed=False,
    )
    rng = np.random.default_rng(0)
    ours = {
        name: rng.standard_normal(shape).astype(np.float32)
        for name, shape in flux_diffusers(config).our_shapes.items()
    }
    export(flux_diffusers(config), tmp_path / "diffusers", ours)
    export(flux_bfl(config), tmp_path / "bfl.safetensors", ours)
    return config, ours


def test_the_original_layout_agrees_with_diffusers_converter(
    tmp_path: Path, flux_files: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, _ = flux_files
    original = safetensors.torch.load_file(tmp_path / "bfl.safetensors")
    # The converter has the width of FLUX.1 in its text; let it split at the width at hand.
    split = torch.split

    def scaled_split(tensor: torch.Tensor, sizes: Any, dim: int = 0) -> Any:
        return split(tensor, [size * config.width // 3072 for size in sizes], dim)

    monkeypatch.setattr(single_file_utils.torch, "split", scaled_split)
    converted = single_file_utils.convert_flux_transformer_checkpoint_to_diffusers(dict(original))
    expected = safetensors.torch.load_file(
        tmp_path / "diffusers" / "diffusion_pytorch_model.safetensors"
    )
    assert converted.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(converted[name], tensor), name


def test_an_original_file_needs_no_config(tmp_path: Path, flux_files: Any) -> None:
    config, ours = flux_files
    with open_weights(tmp_path / "bfl.safetensors") as weights:
        assert unpack(weights, "x").layout == "bfl"
        assert flux_from_tensors(weights) == config
        source = flux_bfl(config).check(weights)
        assert all((source.read(name) == array).all() for name, array in ours.items())
    with open_weights(tmp_path / "diffusers") as weights:
        assert unpack(weights, "x").layout == "diffusers"
        with pytest.raises(UserError, match=r"not a FLUX .* in BFL layout: it has no img_in.weig"):
            flux_from_tensors(weights)


def test_the_original_autoencoder_agrees_with_diffusers_converter(tmp_path: Path) -> None:
    data = SMALL["vae"]
    module = randomised(build(data), torch.float32)
    module.save_pretrained(tmp_path / "vae")
    config = autoencoder_from_json(data)
    with open_weights(tmp_path / "vae") as weights:
        ours = dict(autoencoder_diffusers(config).check(weights).iter_ours())
    export(autoencoder_bfl(config), tmp_path / "ae.safetensors", ours)
    original = safetensors.torch.load_file(tmp_path / "ae.safetensors")
    converted = single_file_utils.convert_ldm_vae_checkpoint(original, data)
    assert converted.keys() == module.state_dict().keys()
    for name, tensor in module.state_dict().items():
        assert torch.equal(converted[name], tensor), name
    with open_weights(tmp_path / "ae.safetensors") as weights:
        assert unpack(weights, "x").layout == "bfl"
        inferred = autoencoder_from_tensors(weights)
        assert inferred.block_channels == config.block_channels
        assert inferred.layers_per_block == config.layers_per_block
        assert inferred.latent_channels == config.latent_channels
        source = autoencoder_bfl(config).check(weights)
        assert all((source.read(name) == array).all() for name, array in ours.items())


# The release of Diffusion Self-Distillation, and other spellings


def test_the_release_loads_as_it_is(tmp_path: Path) -> None:
    module = randomised(build(SMALL["dsd"]), torch.bfloat16)
    released = module.state_dict()
    for name in ("transformer_blocks.0.attn.to_q", "single_transformer_blocks.1.attn.to_v"):
        for kind in ("weight", "bias"):
            released[f"{name}.base_layer.{kind}"] = released.pop(f"{name}.{kind}")
        for factor in "AB":
            released[f"{name}.lora_{factor}.default.weight"] = torch.randn(4, 4)
    safetensors.torch.save_file(released, tmp_path / "diffusion_pytorch_model.safetensors")
    with open_weights(tmp_path) as weights:
        # Its config.json says nothing of the condition embedding; its tensors do.
        config = flux_from_json(SMALL["dev"], weights.tensors)
        assert config.condition_embed
        source = flux_diffusers(config).check(weights)
        assert source.notices == (
            "4 tensors left aside: LoRA tensors inside the model file; give the LoRA file too",
        )
        q = released["transformer_blocks.0.attn.to_q.base_layer.weight"].float().numpy()
        expected = q.reshape(3, 8, 24).transpose(2, 0, 1)
        assert (source.read("double_blocks.0.img_attn.qkv.kernel")[:, 0] == expected).all()
        c = released["c_embedder.weight"].float().numpy()
        assert (source.read("cond_in.kernel") == c.T).all()


def test_plain_flux_gets_a_condition_embedding_of_zeros(tmp_path: Path) -> None:
    randomised(build(SMALL["dev"]), torch.bfloat16).save_pretrained(tmp_path)
    opened = with_condition(open_transformer(tmp_path))
    assert opened.config.condition_embed
    assert opened.notices == ()
    assert not opened.source.read("cond_in.kernel", (slice(None), slice(None))).any()
    config = flux_from_json(SMALL["dsd"])
    with (
        open_weights(tmp_path) as weights,
        pytest.raises(UserError, match=r"2 missing: c_embedder.weight; c_embedder.bias"),
    ):
        flux_diffusers(config).check(weights)


def test_dev_weights_do_not_pass_for_schnell(tmp_path: Path) -> None:
    randomised(build(SMALL["dev"]), torch.float32).save_pretrained(tmp_path)
    config = flux_from_json(SMALL["schnell"])
    with (
        open_weights(tmp_path) as weights,
        pytest.raises(UserError, match=r"4 unexpected in a model of this size: time_text_embed.g"),
    ):
        flux_diffusers(config).check(weights)


def test_t5_may_carry_its_embedding_twice(tmp_path: Path) -> None:
    table = t5_table(t5_from_json(SMALL["t5"]))
    state = {
        name: tensor.clone()
        for name, tensor in randomised(build(SMALL["t5"]), torch.bfloat16).state_dict().items()
    }
    assert "encoder.embed_tokens.weight" in state
    safetensors.torch.save_file(state, tmp_path / "both.safetensors")
    with open_weights(tmp_path / "both.safetensors") as weights:
        table.check(weights)
    state["encoder.embed_tokens.weight"][3, 3] += 1
    safetensors.torch.save_file(state, tmp_path / "odd.safetensors")
    with (
        open_weights(tmp_path / "odd.safetensors") as weights,
        pytest.raises(UserError, match=r"should be equal but differ"),
    ):
        table.check(weights)


@pytest.mark.parametrize("prefix", ["", "text_model."])
def test_clip_with_and_without_prefix_and_extras(tmp_path: Path, prefix: str) -> None:
    state = randomised(build(SMALL["clip"]), torch.float32).state_dict()
    published = {f"{prefix}{name}": tensor for name, tensor in state.items()}
    published[f"{prefix}embeddings.position_ids"] = torch.arange(77)[None]
    published["text_projection.weight"] = torch.randn(24, 24)
    safetensors.torch.save_file(published, tmp_path / "model.safetensors")
    with open_weights(tmp_path) as weights:
        source = clip_table(clip_from_json(SMALL["clip"])).check(weights)
        assert len(source.notices) == 2
        scale = state["encoder.layers.1.layer_norm2.weight"].numpy()
        assert (source.read("blocks.1.norm2.scale") == scale).all()


def test_rope_axes_of_an_unusual_original_file_must_be_given(tmp_path: Path) -> None:
    config = flux_from_json(SMALL["dev"])
    rng = np.random.default_rng(0)
    table = flux_bfl(config)
    ours = {
        name: rng.standard_normal(shape).astype(np.float32)
        for name, shape in table.our_shapes.items()
    }
    export(table, tmp_path / "toy.safetensors", ours)
    with open_weights(tmp_path / "toy.safetensors") as weights:
        with pytest.raises(UserError, match=r"does not tell its RoPE axes, and head size 8"):
            flux_from_tensors(weights)
        assert flux_from_tensors(weights, config.axes_dim) == config
