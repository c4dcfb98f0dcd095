"""Adapters that factors cannot hold, merged into full weights; and what passes as plain LoRA."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dsd_jax.convert.flux.bfl import flux_bfl
from dsd_jax.convert.flux.diffusers import flux_diffusers
from dsd_jax.convert.io import open_weights
from dsd_jax.convert.jobs import to_torch
from dsd_jax.convert.lora.edits import read_mergeables
from dsd_jax.convert.lora.read import read_lora
from dsd_jax.errors import UserError
from dsd_jax.toy.making.random_pipeline import random_tensors, write_model
from tests.lora_dialects import DIALECTS, TINY, random_pairs, save, split

OURS = random_tensors(TINY, 0)
BFL = dict(flux_bfl(TINY).iter_theirs(OURS.__getitem__))
SPLIT = dict(flux_diffusers(TINY).iter_theirs(OURS.__getitem__))
RNG = np.random.default_rng(0)
Tensors = dict[str, np.ndarray]


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32) / 4


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "transformer"
    write_model(folder, TINY, OURS)
    return folder


def merge(base: Path, folder: Path, tensors: Tensors, scale: float, layout: str) -> Tensors:
    """Their tensors with the adapter in them."""
    file = save(folder / "x.safetensors", tensors)
    adapters, _ = read_mergeables([file], [scale], TINY)
    to_torch(base, folder / "merged", layout=layout, adapters=adapters)
    with open_weights(folder / "merged") as weights:
        return {name: weights.read(name) for name in weights.tensors}


def row_norms(matrix: np.ndarray) -> np.ndarray:
    return np.linalg.norm(matrix, axis=1, keepdims=True)


QKV, PROJ = "lora_unet_double_blocks_1_img_attn_qkv", "lora_unet_double_blocks_0_img_attn_proj"
LINEAR1 = "diffusion_model.single_blocks.0.linear1"
W_QKV, W_PROJ = "double_blocks.1.img_attn.qkv.weight", "double_blocks.0.img_attn.proj.weight"
W_LINEAR1 = "single_blocks.0.linear1.weight"
D = TINY.width
A, B, M, COLUMNS = normal(4, D), normal(3 * D, 4), 1 + normal(3 * D, 1), 1 + normal(1, D)
W1, W2A, W2B = normal(8, 4), normal(12, 2), normal(2, 8)
HADA = [normal(7 * D, 2), normal(2, D), normal(7 * D, 2), normal(2, D)]
Change = Callable[[np.ndarray], np.ndarray]
CASES: dict[str, tuple[Tensors, str, Change]] = {
    "DoRA of kohya, rows": (
        {
            f"{QKV}.lora_down.weight": A,
            f"{QKV}.lora_up.weight": B,
            f"{QKV}.alpha": np.array(2),
            f"{QKV}.dora_scale": M,
        },
        W_QKV,
        lambda w: M * (w + B @ A / 2) / row_norms(w + B @ A / 2),
    ),
    "DoRA of kohya, columns": (
        {
            f"{QKV}.lora_down.weight": A,
            f"{QKV}.lora_up.weight": B,
            f"{QKV}.dora_scale": COLUMNS,
        },
        W_QKV,
        lambda w: COLUMNS * (w + B @ A) / row_norms((w + B @ A).T).T,
    ),
    "LoKr": (
        {
            f"{QKV}.lokr_w1": W1,
            f"{QKV}.lokr_w2_a": W2A,
            f"{QKV}.lokr_w2_b": W2B,
            f"{QKV}.alpha": np.array(6),
        },
        W_QKV,
        lambda w: w + 3 * np.kron(W1, W2A @ W2B),
    ),
    "LoKr of whole matrices ignores alpha": (
        {
            f"{QKV}.lokr_w1": W1,
            f"{QKV}.lokr_w2": W2A @ W2B,
            f"{QKV}.alpha": np.array(1e9),
        },
        W_QKV,
        lambda w: w + np.kron(W1, W2A @ W2B),
    ),
    "LoHa over a layer of several of ours": (
        {
            f"{LINEAR1}.hada_{name}": part
            for name, part in zip(("w1_a", "w1_b", "w2_a", "w2_b"), HADA, strict=True)
        }
        | {f"{LINEAR1}.alpha": np.array(1)},
        W_LINEAR1,
        lambda w: w + ((HADA[0] @ HADA[1]) * (HADA[2] @ HADA[3])) / 2,
    ),
    "whole difference": ({f"{PROJ}.diff": A.T @ A}, W_PROJ, lambda w: w + A.T @ A),
    "difference of a bias": (
        {f"{PROJ}.diff_b": A[0]},
        "double_blocks.0.img_attn.proj.bias",
        lambda b: b + A[0],
    ),
}


@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.parametrize("case", CASES)
def test_changes_are_merged_into_full_weights(
    base: Path, tmp_path: Path, case: str, scale: float
) -> None:
    tensors, name, change = CASES[case]
    cast = {key: np.asarray(tensor, np.float32) for key, tensor in tensors.items()}
    merged = merge(base, tmp_path, cast, scale, "bfl")
    expected = BFL[name] + scale * (change(BFL[name]) - BFL[name])
    np.testing.assert_allclose(merged[name], expected, rtol=1e-5, atol=1e-6)
    assert not np.allclose(merged[name], BFL[name])
    assert [k for k in BFL if not np.array_equal(merged[k], BFL[k])] == [name]


def test_a_bias_of_the_second_factor(base: Path, tmp_path: Path) -> None:
    stem = "transformer.transformer_blocks.0.attn.to_k"
    a, b, bias = normal(4, D), normal(D, 4), normal(D)
    tensors = {f"{stem}.lora_A.weight": a, f"{stem}.lora_B.weight": b, f"{stem}.lora_B.bias": bias}
    merged = merge(base, tmp_path, tensors, 0.5, "diffusers")
    for kind, change in (("weight", b @ a), ("bias", bias)):
        name = f"transformer_blocks.0.attn.to_k.{kind}"
        np.testing.assert_allclose(merged[name], SPLIT[name] + change / 2, rtol=1e-5, atol=1e-6)


def test_a_change_and_a_lora_follow_each_other(base: Path, tmp_path: Path) -> None:
    pair = random_pairs()["double_blocks.0.img_attn.proj"]
    lora = save(
        tmp_path / "lora.safetensors",
        DIALECTS["kohya"].write({"double_blocks.0.img_attn.proj": pair}, TINY, None),
    )
    diff = save(tmp_path / "diff.safetensors", {f"{PROJ}.diff": A.T @ A})
    adapters, notices = read_mergeables([lora, diff], [1.0, 1.0], TINY)
    assert notices == ["diff.safetensors changes 1 layers, merged one by one"]
    to_torch(base, tmp_path / "merged", layout="bfl", adapters=adapters)
    with open_weights(tmp_path / "merged") as weights:
        np.testing.assert_allclose(
            weights.read(W_PROJ), BFL[W_PROJ] + pair[1] @ pair[0] + A.T @ A, rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({f"{PROJ}.dora_scale": normal(5)}, r"has \{'magnitude': \[5\]\}, which does not make up"),
        ({f"{PROJ}.lokr_w1": normal(3, 3), f"{PROJ}.lokr_w2": normal(3, 3)}, "does not make up a"),
        ({f"{PROJ}.lokr_w1": normal(3, 3)}, "does not make up a change of its weight"),
        ({f"{PROJ}.diff": normal(1)}, r"'diff': \[1\]"),
        ({f"{PROJ}.lora_up.bias": normal(D)}, r"'bias': \[32\]"),
        ({f"{PROJ}.oft_blocks": normal(4, 4)}, r"LyCORIS \(LoKr, LoHa, OFT, \.\.\.\)"),
        ({"lora_unet_nowhere.diff": normal(4)}, "whole differences of weights or biases"),
    ],
)
def test_changes_that_do_not_fit_are_refused(
    tmp_path: Path, tensors: Tensors, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        read_mergeables([save(tmp_path / "x.safetensors", tensors)], [], TINY)


# What is plain LoRA after all


def test_differences_that_are_all_zero_lose_nothing(tmp_path: Path) -> None:
    tensors = DIALECTS["ComfyUI"].write(random_pairs(), TINY, None)
    norm = "diffusion_model.double_blocks.0.img_attn.norm.query_norm"
    zeros = {
        "diffusion_model.double_blocks.0.img_attn.proj.diff_b": np.zeros(D, np.float32),
        f"{norm}.diff": np.zeros(16, np.float32),
        "diffusion_model.img_in.lora_up.bias": np.zeros(D, np.float32),
    }
    adapter, report = read_lora(save(tmp_path / "x.safetensors", tensors | zeros), TINY)
    assert report.notices == ("3 tensors that are zero differences were left aside",)
    plain, _ = read_lora(save(tmp_path / "y.safetensors", tensors), TINY)
    assert adapter.factors.keys() == plain.factors.keys()
    one = zeros | {f"{norm}.diff": np.eye(16, dtype=np.float32)[3]}
    with pytest.raises(UserError, match="whole differences of weights or biases"):
        read_lora(save(tmp_path / "z.safetensors", tensors | one), TINY)


def test_names_of_diffusers_before_peft(tmp_path: Path) -> None:
    pairs = split({k: v for k, v in random_pairs().items() if "attn" in k})
    old: Tensors = {}
    for name, (a, b) in pairs.items():
        block, _, layer = name.rpartition(".attn.")
        spelled = (
            f"{block}.attn.processor.{layer.removesuffix('.0')}_lora"
            if ".0.attn" in name
            else f"{name}.lora"
        )
        old |= {f"transformer.{spelled}.down.weight": a, f"transformer.{spelled}.up.weight": b}
    adapter, report = read_lora(save(tmp_path / "old.safetensors", old), TINY)
    assert report.dialect == "diffusers before PEFT"
    new = {
        f"transformer.{name}.lora_{x}.weight": factor
        for name, pair in pairs.items()
        for x, factor in zip("AB", pair, strict=True)
    }
    expected, _ = read_lora(save(tmp_path / "new.safetensors", new), TINY)
    assert adapter.factors.keys() == expected.factors.keys()
    for path, factor in expected.factors.items():
        np.testing.assert_array_equal(adapter.factors[path], factor)
