"""Files of one model packed by other programs: prefixes, several models in a file, quantisation."""

import json
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from dsd_jax.config import AutoencoderConfig, FluxConfig
from dsd_jax.convert.flux.bfl import flux_bfl
from dsd_jax.convert.flux.config import flux_to_json
from dsd_jax.convert.flux.diffusers import flux_diffusers
from dsd_jax.convert.jobs import to_jax
from dsd_jax.convert.open import open_component
from dsd_jax.convert.table.engine import Table
from dsd_jax.convert.vae import autoencoder_bfl
from dsd_jax.errors import UserError
from dsd_jax.toy.making.random_pipeline import SMALL, random_tensors
from tests.lora_dialects import save

# A head of 128 channels tells the RoPE axes of FLUX.1, so that a file needs no config.
FLUX = FluxConfig(
    in_channels=16,
    out_channels=16,
    num_heads=1,
    double_depth=1,
    single_depth=1,
    txt_width=12,
    vec_width=8,
    condition_embed=False,
)
OURS = random_tensors(FLUX, 0)
Tensors = dict[str, np.ndarray]


def theirs(table: Table, ours: Mapping[str, np.ndarray] = OURS) -> Tensors:
    return dict(table.iter_theirs(ours.__getitem__))


BFL = theirs(flux_bfl(FLUX))
VAE = theirs(autoencoder_bfl(SMALL.vae), random_tensors(SMALL.vae, 0))


def in_folder(folder: Path, tensors: Tensors, **config: object) -> Path:
    folder.mkdir()
    save(folder / "diffusion_pytorch_model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps(flux_to_json(FLUX) | config))
    return folder


def read(path: Path) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    component = open_component(path)
    assert component.config == FLUX
    whole = {
        name: component.source.read(name, tuple(slice(0, size) for size in shape))
        for name, shape in component.source.shapes.items()
    }
    return whole, component.notices


def assert_equal(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


# Prefixes and neighbours


@pytest.mark.parametrize(
    "prefix", ["model.diffusion_model.", "diffusion_model.", "transformer.", "module._orig_mod."]
)
def test_prefixes_are_cut(tmp_path: Path, prefix: str) -> None:
    bfl = save(tmp_path / "x.safetensors", {f"{prefix}{k}": v for k, v in BFL.items()})
    assert_equal(read(bfl)[0], OURS)
    split = {f"{prefix}{k}": v for k, v in theirs(flux_diffusers(FLUX)).items()}
    found, notices = read(in_folder(tmp_path / "folder", split))
    assert_equal(found, OURS)
    assert notices == ()


@pytest.mark.parametrize(
    "wrapper", ["_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module."]
)
def test_names_of_wrapped_blocks_are_cut(tmp_path: Path, wrapper: str) -> None:
    """As torch.compile, FSDP and activation checkpointing write them, also for blocks alone."""
    wrapped = {k.replace("_blocks.0.", f"_blocks.0.{wrapper}"): v for k, v in BFL.items()}
    assert_equal(read(save(tmp_path / "x.safetensors", wrapped))[0], OURS)


def test_the_mark_of_scaled_fp8_in_a_file_without_scales(tmp_path: Path) -> None:
    path = save(tmp_path / "x.safetensors", BFL | {"scaled_fp8": np.zeros(0, np.float32)})
    assert_equal(read(path)[0], OURS)


def test_the_transformer_is_found_among_several_models(tmp_path: Path) -> None:
    tensors = {f"model.diffusion_model.{k}": v for k, v in BFL.items()}
    tensors |= {f"vae.{k}": v for k, v in VAE.items()}
    tensors |= {"text_encoders.t5xxl.transformer.shared.weight": np.ones((4, 4), np.float32)}
    path = save(tmp_path / "all.safetensors", tensors)
    found, notices = read(path)
    assert_equal(found, OURS)
    (notice,) = notices
    counts = f"vae ({len(VAE)} tensors), text_encoders (1 tensors), left aside"
    assert notice == f"{path} also holds {counts}"
    assert to_jax(path, tmp_path / "jax") == [notice]


def test_an_autoencoder_alone_may_have_a_prefix(tmp_path: Path) -> None:
    path = save(tmp_path / "ae.safetensors", {f"first_stage_model.{k}": v for k, v in VAE.items()})
    component = open_component(path)
    assert isinstance(component.config, AutoencoderConfig)
    assert component.config.block_channels == SMALL.vae.block_channels


def test_two_transformers_in_one_file_are_named(tmp_path: Path) -> None:
    tensors = {f"{p}.{k}": v for p in ("model", "ema") for k, v in BFL.items()}
    with pytest.raises(
        UserError, match=r"holds 2 transformers, whose names begin with 'ema\.', 'm"
    ):
        open_component(save(tmp_path / "x.safetensors", tensors))


def test_a_lora_is_not_taken_for_a_model(tmp_path: Path) -> None:
    name = "transformer.transformer_blocks.0.attn.to_q.lora_A.weight"
    path = save(tmp_path / "x.safetensors", {name: np.ones((4, 128), np.float32)})
    with pytest.raises(
        UserError, match=r"x.safetensors is a LoRA, not a model; give it as --lora_p"
    ):
        open_component(path)


# Quantised weights


def is_quantised(name: str) -> bool:
    return "blocks" in name and name.endswith(".weight")


FP8 = ml_dtypes.float8_e4m3fn


def fp8(scale: str, seed: int = 0) -> tuple[Tensors, Tensors]:
    """A file of ComfyUI, and the numbers that it means."""
    rng = np.random.default_rng(seed)
    held: Tensors = {}
    means: Tensors = {}
    for name, tensor in BFL.items():
        if not is_quantised(name):
            held[name] = means[name] = tensor
            continue
        factor = np.float32(rng.uniform(0.1, 3.0))
        held[name] = (tensor / factor).astype(FP8)
        stem = name.removesuffix(".weight")
        held[f"{stem}.{scale}"] = np.array(factor, np.float32)
        means[name] = held[name].astype(np.float32) * factor
    return held, means


def expected(means: Tensors) -> Mapping[str, np.ndarray]:
    class Held:
        tensors = means

        def read(self, name: str, rows: slice | None = None) -> np.ndarray:
            return means[name][slice(None) if rows is None else rows]

    return dict(flux_bfl(FLUX).check(Held()).iter_ours())


def test_scaled_fp8_of_comfyui(tmp_path: Path) -> None:
    held, means = fp8("scale_weight")
    stem = "double_blocks.0.img_attn.qkv"
    held |= {"scaled_fp8": np.zeros(0, FP8), f"{stem}.scale_input": np.array(2, np.float32)}
    tensors = {f"model.diffusion_model.{k}": v for k, v in held.items()}
    found, notices = read(save(tmp_path / "x.safetensors", tensors))
    assert_equal(found, expected(means))
    assert notices[0].endswith("is quantised; its weights are read as float32")


def test_scaled_fp8_under_its_newer_names(tmp_path: Path) -> None:
    held, means = fp8("weight_scale")
    stem = "double_blocks.0.img_attn.qkv"
    told = json.dumps({"format": "float8_e4m3fn"}).encode()
    held[f"{stem}.comfy_quant"] = np.frombuffer(told, np.uint8)
    held[f"{stem}.input_scale"] = np.array(1, np.float32)
    assert_equal(read(save(tmp_path / "x.safetensors", held))[0], expected(means))
    held[f"{stem}.comfy_quant"] = np.frombuffer(told.replace(b"float8_e4m3fn", b"mxfp8"), np.uint8)
    with pytest.raises(
        UserError, match=r"comfy_quant in .* says format 'mxfp8', which is not read"
    ):
        open_component(save(tmp_path / "y.safetensors", held))


def test_a_scale_for_each_row(tmp_path: Path) -> None:
    """The int8 of bitsandbytes."""
    rng = np.random.default_rng(0)
    held, means = dict(BFL), dict(BFL)
    for name in filter(is_quantised, BFL):
        rows = rng.uniform(0.5, 2, len(BFL[name])).astype(np.float32)
        held[name] = rng.integers(-127, 128, BFL[name].shape).astype(np.int8)
        held[f"{name.removesuffix('.weight')}.SCB"] = rows
        means[name] = held[name].astype(np.float32) * (rows / np.float32(127))[:, None]
    assert_equal(read(save(tmp_path / "x.safetensors", held))[0], expected(means))


NF4 = np.sort(np.random.default_rng(1).uniform(-1, 1, 16)).astype(np.float32)


def four_bit(name: str, codes: np.ndarray, rng: np.random.Generator, *, nested: bool) -> Tensors:
    """The tensors of bitsandbytes for codes of 4 bits, and under "" the numbers that they mean."""
    block, flat = 64, codes.reshape(-1)
    packed = (flat[::2] << 4 | flat[1::2]).astype(np.uint8)
    count = -(-len(flat) // block)
    told = {"quant_type": "nf4", "blocksize": block, "dtype": "bfloat16", "shape": codes.shape}
    made: Tensors = {name: packed[:, None], f"{name}.quant_map": NF4}
    if nested:
        table = np.linspace(-1, 1, 256).astype(np.float32)
        own = rng.integers(0, 256, count).astype(np.uint8)
        outer = rng.uniform(1, 2, -(-count // 256)).astype(np.float32)
        scales = table[own] * np.repeat(outer, 256)[:count] + np.float32(0.25)
        told |= {"nested_blocksize": 256, "nested_offset": 0.25, "nested_dtype": "float32"}
        made |= {f"{name}.nested_absmax": outer, f"{name}.nested_quant_map": table}
        made[f"{name}.absmax"] = own
    else:
        made[f"{name}.absmax"] = scales = rng.uniform(1, 2, count).astype(np.float32)
    text = json.dumps(told).encode()
    made[f"{name}.quant_state.bitsandbytes__nf4"] = np.frombuffer(text, np.uint8)
    made[""] = (NF4[flat] * np.repeat(scales, block)[: len(flat)]).reshape(codes.shape)
    return made


@pytest.mark.parametrize("nested", [False, True])
def test_nf4_of_bitsandbytes(tmp_path: Path, nested: bool) -> None:
    rng = np.random.default_rng(0)
    held, means = dict(BFL), dict(BFL)
    for name in filter(is_quantised, BFL):
        made = four_bit(name, rng.integers(0, 16, BFL[name].shape), rng, nested=nested)
        means[name] = made.pop("")
        held |= made
    path = save(tmp_path / "x.safetensors", held)
    assert_equal(read(path)[0], expected(means))
    kernel = open_component(path).source
    part = kernel.read("double_blocks.0.img_attn.qkv.kernel", (slice(3, 9), slice(1, 2)))
    whole = expected(means)["double_blocks.0.img_attn.qkv.kernel"]
    np.testing.assert_array_equal(part, whole[3:9, 1:2])


def test_the_config_of_a_quantised_folder_is_understood(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    held = theirs(flux_diffusers(FLUX))
    name = "transformer_blocks.0.ff.net.2.weight"
    made = four_bit(name, rng.integers(0, 16, held[name].shape), rng, nested=False)
    means = made.pop("")
    folder = in_folder(tmp_path / "nf4", held | made, quantization_config={"load_in_4bit": True})
    np.testing.assert_array_equal(
        read(folder)[0]["double_blocks.0.img_mlp.out_layer.kernel"], means.T
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"double_blocks.0.img_mlp.0.weight._data": np.ones(4)},
            r"quantised by quanto \(double_blo",
        ),
        ({"double_blocks.0.img_mlp.0.wscales": np.ones(4)}, r"quantised by SVDQuant"),
        ({"double_blocks.0.img_mlp.0.qweight": np.ones(4)}, r"quantised by GPTQ or AWQ"),
        ({"double_blocks.0.img_mlp.0.weight_scale_2": np.ones(4)}, r"quantised by NVFP4"),
        ({"double_blocks.0.img_mlp.0.weight_scale_inv": np.ones(4)}, r"by fp8 with a scale for ea"),
        ({"double_blocks.0.img_mlp.0.W_q": np.ones(4)}, r"quantised by HQQ"),
        ({"double_blocks.0.img_mlp.0.weight.qdata": np.ones(4)}, r"quantised by torchao"),
        (
            {"double_blocks.0.img_mlp.0.scale_weight": np.ones((4, 4))},
            r"scale_weight in .* has shape \[4, 4\] beside weights \[512, 128\]; this program",
        ),
        ({"nowhere.scale_weight": np.ones(())}, r"is quantised but lacks nowhere.weight; download"),
        (
            {"a.weight.quant_state.bitsandbytes__nf4": np.frombuffer(b"{}", np.uint8)},
            r"is quantised but lacks a.weight; download",
        ),
    ],
)
def test_what_cannot_be_read_exactly_is_named(
    tmp_path: Path, change: Tensors, message: str
) -> None:
    cast = {k: v if v.dtype == np.uint8 else v.astype(np.float32) for k, v in change.items()}
    with pytest.raises(UserError, match=message):
        open_component(save(tmp_path / "x.safetensors", BFL | cast))


@pytest.mark.parametrize(
    "told",
    [
        '{"shape": [512, 128], "blocksize": 0}',
        '{"shape": [1e9, 128], "blocksize": 64}',
        '{"shape": [99999999999, 128], "blocksize": 64}',
        '{"shape": [], "blocksize": 64}',
        '{"blocksize": 64}',
    ],
)
def test_a_quant_state_that_contradicts_its_tensors(tmp_path: Path, told: str) -> None:
    rng = np.random.default_rng(0)
    name = "double_blocks.0.img_mlp.0.weight"
    made = four_bit(name, rng.integers(0, 16, BFL[name].shape), rng, nested=False)
    del made[""]
    made[f"{name}.quant_state.bitsandbytes__nf4"] = np.frombuffer(told.encode(), np.uint8)
    with pytest.raises(UserError, match=r"bitsandbytes__nf4 in .* does not fit its tensors"):
        open_component(save(tmp_path / "x.safetensors", BFL | made))
