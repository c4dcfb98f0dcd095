"""LoRA files that a model cannot hold, and damaged ones: every message, all faults at once."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsd_jax.convert.lora.read import read_lora
from dsd_jax.errors import UserError
from tests.lora_dialects import DIALECTS, TINY, random_pairs, save

Q = "transformer.transformer_blocks.0.attn.to_q"
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "rank mismatch": (
        {f"{Q}.lora_B.weight": np.ones((32, 5), np.float32)},
        r"1 layers whose A and B differ in rank: transformer_blocks.0.attn.to_q, A 4 and B 5",
    ),
    "no B": (
        {f"{Q}.lora_B.weight": None},
        r"1 tensors without their other half .*: transformer.transformer_blocks.0.attn.to_q.lora_A",
    ),
    "alpha of nothing": (
        {f"{Q}.lora_A.weight": None, f"{Q}.lora_B.weight": None, f"{Q}.alpha": np.ones(())},
        r"1 tensors without their other half .*: transformer.transformer_blocks.0.attn.to_q.alpha",
    ),
    "two spellings": (
        {
            "lora_transformer_transformer_blocks_0_attn_to_q.lora_down.weight": np.ones((4, 32)),
            "lora_transformer_transformer_blocks_0_attn_to_q.lora_up.weight": np.ones((32, 4)),
        },
        r"2 layers given twice: lora_transformer_.*to_q.lora_down.weight and transformer.*lora_A",
    ),
    "split and fused": (
        {
            "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": np.ones((4, 32)),
            "lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight": np.ones((96, 4)),
        },
        r"3 layers given twice: double_blocks_0_img_attn_qkv and transformer_blocks.0.attn.to_q",
    ),
    "integers": (
        {f"{Q}.lora_A.weight": np.ones((4, 32), np.int8)},
        r"1 tensors that are not floating point: transformer.*to_q.lora_A.weight int8",
    ),
    "alpha zero": (
        {f"{Q}.alpha": np.zeros((), np.float32)},
        r"1 alphas that are not a number above 0: transformer.*to_q.alpha is 0",
    ),
    "alpha of several numbers": (
        {f"{Q}.alpha": np.ones(3, np.float32)},
        r"alphas .*: transformer.*to_q.alpha has shape \[3\]",
    ),
    "too deep": (
        {"transformer.transformer_blocks.2.attn.to_q.lora_A.weight": np.ones((4, 32))},
        r"2 single blocks, width 32\n  1 tensors of layers that this model lacks: transformer",
    ),
    "two adapters": (
        {
            f"{Q}.lora_A.weight": None,
            f"{Q}.lora_B.weight": None,
            "transformer_blocks.0.attn.to_q.lora_A.one.weight": np.ones((4, 32)),
            "transformer_blocks.0.attn.to_q.lora_B.one.weight": np.ones((32, 4)),
        },
        r"2 adapters in one file, save them one by one: \(no name\); one",
    ),
    "DoRA of PEFT": (
        {f"{Q}.lora_magnitude_vector.weight": np.ones(32)},
        r"1 tensors are magnitudes of DoRA, .*\n  merge it into full weights instead: dsd conv",
    ),
    "DoRA of kohya": (
        {f"{Q}.dora_scale": np.ones((32, 1))},
        r"1 tensors are magnitudes of DoRA",
    ),
    "LoKr": (
        {f"lycoris_transformer_blocks_0_attn_to_k.lokr_{x}": np.ones((4, 4)) for x in ("w1", "w2")},
        r"2 tensors are LyCORIS .*, which is no product of A and B: lyc",
    ),
    "LoHa": (
        {"lora_unet_single_blocks_0_linear1.hada_w1_a": np.ones((4, 4))},
        r"1 tensors are LyCORIS",
    ),
    "lora_bias": (
        {f"{Q}.lora_B.bias": np.ones(32)},
        r"1 tensors are biases of factors, for which a DSD model has no place",
    ),
    "differences": (
        {"diffusion_model.double_blocks.0.img_attn.proj.diff_b": np.ones(32)},
        r"1 tensors are whole differences of weights or biases",
    ),
    "OFT, which merging cannot use either": (
        {f"{Q}.oft_blocks": np.ones((2, 2, 2))},
        r"1 tensors are LyCORIS[^\n]*\Z",
    ),
    "a difference of a norm, likewise": (
        {"diffusion_model.double_blocks.0.img_attn.norm.query_norm.diff": np.ones(32)},
        r"1 tensors are whole differences of weights or biases[^\n]*\Z",
    ),
    "replacements": (
        {"diffusion_model.double_blocks.0.img_attn.proj.set_weight": np.zeros((32, 32))},
        r"1 tensors are whole weights that replace the model's, for which",
    ),
    "other full tensors": (
        {"transformer.x_embedder.weight": np.ones((32, 8))},
        r"1 tensors are whole weights, of which an adapter holds only c_embedder's",
    ),
    "condition embedding of another width": (
        {"transformer.c_embedder.weight": np.ones((64, 8))},
        r"1 tensors of wrong shape: transformer.c_embedder.weight \[64, 8\], expected \[32, 8\]",
    ),
    "noise": ({"transformer.what": np.ones(2)}, r"1 tensors of layers that this model lacks: "),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_refused(tmp_path: Path, case: str) -> None:
    changes, message = BAD[case]
    tensors: dict[str, Any] = DIALECTS["PEFT"].write(random_pairs(), TINY, None)
    tensors = {k: v for k, v in {**tensors, **changes}.items() if v is not None}
    with pytest.raises(UserError, match=message):
        read_lora(save(tmp_path / "x.safetensors", tensors), TINY)


def test_everything_wrong_is_told_at_once(tmp_path: Path) -> None:
    """BFL's control LoRAs: biases, norms, and an image input twice as wide."""
    pairs = random_pairs()
    tensors = {
        f"{k}.lora_{x}.weight": f for k, v in pairs.items() for x, f in zip("AB", v, strict=True)
    }
    tensors["img_in.lora_A.weight"] = np.ones((4, 16), np.float32)
    tensors |= {f"{k}.lora_B.bias": np.ones(len(v[1]), np.float32) for k, v in pairs.items()}
    norms = [
        f"double_blocks.{i}.img_attn.norm.{x}_norm.scale" for i in (0, 1) for x in ("query", "key")
    ]
    tensors |= {name: np.ones(16, np.float32) for name in norms}
    with pytest.raises(UserError) as caught:
        read_lora(save(tmp_path / "control.safetensors", tensors), TINY)
    shape, bias, norm = str(caught.value).split("\n")[1:]
    assert shape == "  1 tensors of wrong shape: img_in.lora_A.weight [4, 16], expected [rank, 8]"
    no_place = "for which {} has no place (control LoRAs have them): "
    assert bias.startswith(f"  36 tensors are biases of factors, {no_place.format('a DSD model')}")
    assert bias.endswith("; and 32 more")
    assert norm == (
        f"  4 tensors are scales of norms, {no_place.format('an adapter')}{'; '.join(norms)}"
    )


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight", "Stable Diffusion 1.5"),
        ("lora_unet_input_blocks_4_1_proj_in.lora_down.weight", "Stable Diffusion 1.5 or SDXL"),
        ("unet.up_blocks.0.attentions.1.proj_in.lora_A.weight", "Stable Diffusion 1.5 or SDXL"),
        ("lora_unet_joint_blocks_0_x_block_attn_qkv.lora_down.weight", "Stable Diffusion 3"),
        ("diffusion_model.double_blocks.0.img_attn_qkv.lora_A.weight", "HunyuanVideo"),
        ("transformer.transformer_blocks.0.img_mlp.net.2.lora_A.weight", "Qwen-Image"),
        ("diffusion_model.blocks.0.self_attn.q.lora_A.weight", "Wan"),
        ("transformer.single_transformer_blocks.0.attn.to_qkv_mlp_proj.lora_A.weight", "FLUX.2"),
    ],
)
def test_loras_of_other_models_are_named(tmp_path: Path, name: str, model: str) -> None:
    path = save(tmp_path / "x.safetensors", {name: np.ones((4, 8), np.float32)})
    with pytest.raises(
        UserError, match=rf"is for {model}.*, not FLUX.1: it holds {re.escape(name)}"
    ):
        read_lora(path, TINY)


def test_a_wrong_width_tells_the_model(tmp_path: Path) -> None:
    tensors = {
        "transformer.transformer_blocks.0.attn.to_q.lora_A.weight": np.ones((4, 1536), np.float32),
        "transformer.transformer_blocks.0.attn.to_q.lora_B.weight": np.ones((1536, 4), np.float32),
    }
    message = (
        r"width 32 \(is it for Stable Diffusion 3\?\)\n  2 tensors of wrong shape: "
        r"transformer.*to_q.lora_A.weight \[4, 1536\], expected \[rank, 32\]; "
        r"transformer.*to_q.lora_B.weight \[1536, 4\], expected \[32, rank\]$"
    )
    with pytest.raises(UserError, match=message):
        read_lora(save(tmp_path / "x.safetensors", tensors), TINY)


def test_files_without_lora(tmp_path: Path) -> None:
    weights = {"transformer_blocks.0.attn.to_q.weight": np.ones((32, 32), np.float32)}
    path = save(tmp_path / "model.safetensors", weights)
    with pytest.raises(UserError, match=r"is not a LoRA of FLUX.1: it holds transformer_blocks.0"):
        read_lora(path, TINY)
    te = {"lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": np.ones((4, 8))}
    with pytest.raises(UserError, match=r"is not a LoRA of FLUX.1: it holds lora_te1_.*; expected"):
        read_lora(save(tmp_path / "te.safetensors", te), TINY)
    with pytest.raises(UserError, match=r"it holds no tensors; expected names such as transformer"):
        read_lora(save(tmp_path / "empty.safetensors", {}), TINY)


def test_damaged_files(tmp_path: Path) -> None:
    path = save(tmp_path / "x.safetensors", DIALECTS["kohya"].write(random_pairs(), TINY, 4.0))
    data = path.read_bytes()
    (tmp_path / "short.safetensors").write_bytes(data[:-100])
    with pytest.raises(UserError, match=r"short.safetensors .* truncated"):
        read_lora(tmp_path / "short.safetensors", TINY)
    (tmp_path / "x.pt").write_bytes(b"PK\x03\x04")
    with pytest.raises(UserError, match=r"pickled weights, which can run code"):
        read_lora(tmp_path / "x.pt", TINY)
    with pytest.raises(UserError, match=r"does not exist"):
        read_lora(tmp_path / "nowhere", TINY)
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"folder holds no safetensors weights"):
        read_lora(tmp_path / "folder", TINY)


@pytest.mark.parametrize(
    "text",
    ["not json", "[]", "{}", '{"lora_alpha": 0}', '{"lora_alpha": 4, "alpha_pattern": {"(": 2}}'],
)
def test_damaged_settings(tmp_path: Path, text: str) -> None:
    tensors = DIALECTS["raw PEFT"].write(random_pairs(), TINY, None)
    path = save(tmp_path / "adapter_model.safetensors", tensors)
    (tmp_path / "adapter_config.json").write_text(text)
    message = r"adapter_config.json(: | is not a LoraConfig of PEFT, with alphas above 0; save the)"
    with pytest.raises(UserError, match=message):
        read_lora(path, TINY)


def test_factors_relative_to_a_changed_base_are_refused(tmp_path: Path) -> None:
    header = {"r": 4, "lora_alpha": 4, "init_lora_weights": "pissa_niter_16"}
    tensors = DIALECTS["PEFT"].write(random_pairs(), TINY, None)
    with pytest.raises(
        UserError, match=r"init_lora_weights='pissa_niter_16': .* plain LoRA with PEFT"
    ):
        read_lora(save(tmp_path / "x.safetensors", tensors, header), TINY)
