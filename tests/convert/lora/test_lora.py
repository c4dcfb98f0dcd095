"""LoRA files of every dialect: what is read and written, which bits survive, what is refused."""

import json
import re
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from dsd_jax.config import FluxConfig
from dsd_jax.convert.flux.bfl import flux_bfl
from dsd_jax.convert.io import open_weights
from dsd_jax.convert.lora.read import read_lora
from dsd_jax.convert.lora.write import write_lora
from dsd_jax.errors import UserError
from dsd_jax.lora import Adapter, MergedSource
from dsd_jax.weights import Zeros
from tests.lora_dialects import (
    DIALECTS,
    TINY,
    Pairs,
    attention_only,
    random_pairs,
    save,
    split,
    write_dialect,
)

DSD = FluxConfig(**{**vars(TINY), "condition_embed": True})
PEFT_NAME = "pytorch_lora_weights.safetensors"


def tensors_in(path: Path) -> dict[str, np.ndarray]:
    with open_weights(path) as weights:
        return {name: weights.read(name) for name in weights.tensors}


def deltas(adapter: Adapter, config: FluxConfig = TINY) -> dict[str, np.ndarray]:
    """A B for every kernel of the model, zero where the adapter leaves it alone."""
    shapes = {k: v for k, v in flux_bfl(config).our_shapes.items() if k.endswith("kernel")}
    merged = MergedSource(Zeros(shapes), [(Adapter(adapter.factors), 1.0)])
    return {path: merged.read(path, ()) for path in shapes}


class _Whole:
    """The products B A as the weights of a whole BFL file, for the table to convert."""

    def __init__(self, pairs: Pairs, scale: float) -> None:
        self.tensors = {
            name: np.zeros(shape, np.float32) for name, shape in flux_bfl(TINY).their_shapes.items()
        }
        for name, (a, b) in pairs.items():
            self.tensors[f"{name}.weight"] = scale * b.astype(np.float32) @ a.astype(np.float32)

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        return self.tensors[name][slice(None) if rows is None else rows]


def expected_deltas(pairs: Pairs, scale: float = 1.0) -> dict[str, np.ndarray]:
    source = flux_bfl(TINY).check(_Whole(pairs, scale))
    return {path: source.read(path) for path in source.shapes if path.endswith("kernel")}


def assert_same_deltas(ours: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert ours.keys() == expected.keys()
    for path, delta in expected.items():
        np.testing.assert_allclose(ours[path], delta, rtol=1e-5, atol=1e-6, err_msg=path)


def assert_same_tensors(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    """Names, dtypes, shapes and every bit."""
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert (ours[name].dtype, ours[name].shape) == (tensor.dtype, tensor.shape), name
        assert ours[name].tobytes() == np.ascontiguousarray(tensor).tobytes(), name


# Reading


@pytest.mark.parametrize("alpha", [None, 6.0])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dialect_gives_the_same_adapter(
    tmp_path: Path, dialect: str, alpha: float | None
) -> None:
    pairs = random_pairs(rank=4)
    path = write_dialect(tmp_path, dialect, pairs, TINY, alpha)
    adapter, report = read_lora(path, TINY)
    if "XLabs" in dialect:
        pairs = attention_only(pairs)
    told = alpha is not None and DIALECTS[dialect].alpha != ""
    assert_same_deltas(deltas(adapter), expected_deltas(pairs, 1.5 if told else 1.0))
    assert report.dialect == DIALECTS[dialect].called
    assert (report.ranks, report.alphas) == ((4,), (6.0,) if told else ())
    assert report.linears == (24 if "XLabs" in dialect else 50)
    assert report.targets == "all" or "XLabs" in dialect


def test_a_folder_is_searched_for_the_usual_names(tmp_path: Path) -> None:
    tensors = DIALECTS["PEFT"].write(random_pairs(), TINY, None)
    for name in (PEFT_NAME, "adapter_model.safetensors", "anything.safetensors"):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        save(folder / name, tensors)
        adapter, _ = read_lora(folder, TINY)
        assert adapter.name == name
        assert len(adapter.ranks) == 38


def test_alpha_of_layers_by_pattern(tmp_path: Path) -> None:
    pairs = {
        name: random_pairs(rank=rank)[name]
        for name, rank in {
            "img_in": 2,
            "final_layer.linear": 4,
            "single_blocks.1.linear2": 8,
        }.items()
    }
    header = {"r": 4, "lora_alpha": 4, "alpha_pattern": {"^proj_out": 8, "proj_out": 2.0}}
    path = save(tmp_path / "x.safetensors", DIALECTS["PEFT"].write(pairs, TINY, None), header)
    adapter, report = read_lora(path, TINY)
    assert (report.ranks, report.alphas) == ((2, 4, 8), (2.0, 4.0, 8.0))
    ours = deltas(adapter)
    for name, scale in {
        "img_in": 2.0,
        "final_layer.linear": 2.0,
        "single_blocks.1.linear2": 0.25,
    }.items():
        expected = expected_deltas({name: pairs[name]}, scale)
        assert_same_deltas(
            {k: ours[k] for k in ours if name in k},
            {k: v for k, v in expected.items() if name in k},
        )


def test_rank_stabilised_scale(tmp_path: Path) -> None:
    pairs = random_pairs(rank=4)
    header = {"r": 4, "lora_alpha": 6, "use_rslora": True}
    path = save(tmp_path / "x.safetensors", DIALECTS["PEFT"].write(pairs, TINY, None), header)
    assert_same_deltas(deltas(read_lora(path, TINY)[0]), expected_deltas(pairs, 3.0))


def test_without_alpha_mixed_ranks_keep_scale_one(tmp_path: Path) -> None:
    pairs = {name: random_pairs(rank=2 + k % 3)[name] for k, name in enumerate(random_pairs())}
    path = save(tmp_path / "x.safetensors", DIALECTS["PEFT"].write(pairs, TINY, None))
    adapter, report = read_lora(path, TINY)
    assert report.ranks == (2, 3, 4)
    assert_same_deltas(deltas(adapter), expected_deltas(pairs))


def test_factors_keep_their_bits_unless_alpha_scales_them(tmp_path: Path) -> None:
    pairs = random_pairs(rank=4, dtype=ml_dtypes.bfloat16)
    for alpha, b_dtype in ((4.0, ml_dtypes.bfloat16), (6.0, np.float32)):
        folder = tmp_path / str(alpha)
        path = write_dialect(folder, "kohya", pairs, TINY, alpha)
        adapter, _ = read_lora(path, TINY)
        a, b = (adapter.factors[f"double_blocks.1.img_mlp.in_layer.lora_{x}"] for x in "ab")
        assert (a.dtype, b.dtype) == (ml_dtypes.bfloat16, b_dtype)
        np.testing.assert_array_equal(a.T, pairs["double_blocks.1.img_mlp.0"][0])


def test_q_k_and_v_of_different_ranks_share_a_linear(tmp_path: Path) -> None:
    small, large = (split(random_pairs(rank=r, seed=r)) for r in (2, 5))
    q, v = "transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.to_v"
    tensors = {f"transformer.{q}.lora_{x}.weight": f for x, f in zip("AB", small[q], strict=True)}
    tensors |= {f"transformer.{v}.lora_{x}.weight": f for x, f in zip("AB", large[v], strict=True)}
    adapter, report = read_lora(save(tmp_path / "x.safetensors", tensors), TINY)
    delta = deltas(adapter)["double_blocks.0.img_attn.qkv.kernel"]
    for part, pair in ((0, small[q]), (2, large[v])):
        np.testing.assert_allclose(
            delta[:, part].reshape(TINY.width, -1), (pair[1] @ pair[0]).T, rtol=1e-5, atol=1e-6
        )
    assert not delta[:, 1].any()
    assert (report.ranks, report.linears) == ((2, 5), 2)
    assert report.targets == ("double_blocks.0.img_attn.qkv[qv]",)
    back = tensors_in(write_lora(tmp_path / "out", adapter, TINY))
    assert_same_tensors(back, tensors)


def test_targets_are_named_or_listed(tmp_path: Path) -> None:
    attention = {k: v for k, v in random_pairs().items() if "_attn." in k}
    layers = split(attention)
    single = split({k: v for k, v in random_pairs().items() if "linear1" in k})
    layers |= {k: v for k, v in single.items() if "attn" in k}
    tensors = {
        f"transformer.{k}.lora_{x}.weight": f
        for k, v in layers.items()
        for x, f in zip("AB", v, strict=True)
    }
    _, report = read_lora(save(tmp_path / "a.safetensors", tensors), TINY)
    assert (report.targets, report.linears) == ("attention", 2 * 8 + 2 * 3)
    assert str(report) == "PEFT LoRA: rank 4, alpha as rank, 22 layers, attention"
    fewer = {k: v for k, v in tensors.items() if "add_" not in k and ".1." not in k}
    _, report = read_lora(save(tmp_path / "b.safetensors", fewer), TINY)
    assert report.targets == (
        "double_blocks.0.img_attn.proj",
        "double_blocks.0.img_attn.qkv",
        "single_blocks.0.qkv",
    )
    both = {k: v for k, v in tensors.items() if "to_out" in k or "to_v" in k}
    _, report = read_lora(save(tmp_path / "c.safetensors", both), TINY)
    assert report.targets == (
        "double_blocks.0-1.img_attn.proj",
        "double_blocks.0-1.img_attn.qkv[v]",
        "single_blocks.0-1.qkv[v]",
    )


CONDITION = {
    "weight": np.random.default_rng(1).standard_normal((32, 8)).astype(ml_dtypes.bfloat16),
    "bias": np.random.default_rng(2).standard_normal(32).astype(ml_dtypes.bfloat16),
}


@pytest.mark.parametrize(
    "prefix",
    [
        "transformer.c_embedder.",
        "c_embedder.",
        "base_model.model.c_embedder.modules_to_save.default.",
        "base_model.model.c_embedder.modules_to_save.",
        "cond_in.",
        "diffusion_model.cond_in.",
    ],
)
@pytest.mark.parametrize("config", [TINY, DSD], ids=["plain", "conditional"])
def test_the_condition_embedding_travels(tmp_path: Path, prefix: str, config: FluxConfig) -> None:
    tensors = DIALECTS["PEFT"].write(random_pairs(), TINY, None)
    tensors |= {f"{prefix}{name}": tensor for name, tensor in CONDITION.items()}
    adapter, report = read_lora(save(tmp_path / "x.safetensors", tensors), config)
    assert report.notices[-1] == "the condition embedding comes from x.safetensors"
    assert adapter.full.keys() == {"cond_in.kernel", "cond_in.bias"}
    np.testing.assert_array_equal(adapter.full["cond_in.kernel"].T, CONDITION["weight"])
    for layout, name in (("peft", "transformer.c_embedder"), ("kohya", "cond_in")):
        file = write_lora(tmp_path / layout, adapter, config, layout)
        written = {
            k: v for k, v in tensors_in(file).items() if "lora_" not in k and "alpha" not in k
        }
        assert_same_tensors(written, {f"{name}.{k}": v for k, v in CONDITION.items()})
        again, _ = read_lora(file, config)
        np.testing.assert_array_equal(again.full["cond_in.bias"], CONDITION["bias"])


def test_a_condition_embedding_may_come_alone(tmp_path: Path) -> None:
    tensors = {f"transformer.c_embedder.{name}": tensor for name, tensor in CONDITION.items()}
    adapter, report = read_lora(save(tmp_path / "x.safetensors", tensors), DSD)
    assert (str(report), report.linears) == ("a condition embedding without LoRA", 0)
    for layout in ("peft", "kohya"):
        again, _ = read_lora(write_lora(tmp_path / layout, adapter, DSD, layout), DSD)
        assert_same_tensors(dict(again.full), dict(adapter.full))


def test_what_belongs_to_text_encoders_is_left_aside_with_a_notice(tmp_path: Path) -> None:
    tensors = DIALECTS["kohya"].write(random_pairs(), TINY, 4.0)
    rest = {
        "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": np.ones(
            (4, 8), np.float32
        ),
        "lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha": np.ones((), np.float32),
        "text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_A.weight": np.ones(
            (4, 8), np.float32
        ),
        "bundle_emb.subject.clip_l": np.ones((4, 8), np.float32),
    }
    adapter, report = read_lora(save(tmp_path / "x.safetensors", tensors | rest), TINY)
    assert report.notices == (
        "3 tensors of text encoders were left aside",
        "1 tensors that are text embeddings were left aside",
    )
    assert len(adapter.ranks) == 38


def test_raw_peft_without_its_config_is_told(tmp_path: Path) -> None:
    path = write_dialect(tmp_path, "raw PEFT", random_pairs(), TINY, None)
    _, report = read_lora(path, TINY)
    assert report.notices == (
        "no adapter_config.json beside adapter_model.safetensors: alpha is taken to be the rank",
    )


# Writing


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
def test_peft_files_come_back_with_every_bit(tmp_path: Path, dtype: Any) -> None:
    layers = {
        name: split(random_pairs(rank=2 + k % 3, dtype=dtype, seed=k))[name]
        for k, name in enumerate(split(random_pairs()))
    }  # no A in common, three ranks
    tensors = DIALECTS["PEFT"].write({}, TINY, None)
    for name, (a, b) in layers.items():
        tensors |= {f"transformer.{name}.lora_A.weight": a, f"transformer.{name}.lora_B.weight": b}
    adapter, report = read_lora(save(tmp_path / "x.safetensors", tensors), TINY)
    file = write_lora(tmp_path / "out", adapter, TINY)
    assert file == tmp_path / "out" / PEFT_NAME
    assert_same_tensors(tensors_in(file), tensors)
    again, second = read_lora(file, TINY)
    assert (report.alphas, second.alphas) == ((), (2.0, 3.0, 4.0))
    assert_same_tensors(dict(again.factors), dict(adapter.factors))


def test_header_says_alpha_is_the_rank_of_every_layer(tmp_path: Path) -> None:
    layers = {"img_in": 8, "final_layer.linear": 2, "double_blocks.0.img_mlp.0": 8}
    pairs = {name: random_pairs(rank=rank)[name] for name, rank in layers.items()}
    path = save(tmp_path / "x.safetensors", DIALECTS["kohya"].write(pairs, TINY, 16.0))
    file = write_lora(tmp_path / "out.safetensors", read_lora(path, TINY)[0], TINY)
    with open_weights(file) as weights:
        header = json.loads(weights.metadata["lora_adapter_metadata"])
    targets = r"proj_out|transformer_blocks\.0\.ff\.net\.0\.proj|x_embedder"
    assert header == {
        "transformer.peft_type": "LORA",
        "transformer.r": 8,
        "transformer.lora_alpha": 8,
        "transformer.rank_pattern": {"^proj_out": 2},
        "transformer.alpha_pattern": {"^proj_out": 2},
        "transformer.target_modules": targets,
    }


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_kohya_files_come_back_with_every_bit(tmp_path: Path, dtype: Any) -> None:
    tensors = DIALECTS["kohya"].write(random_pairs(rank=3, dtype=dtype), TINY, 3.0)
    adapter, _ = read_lora(save(tmp_path / "x.safetensors", tensors), TINY)
    file = write_lora(tmp_path / "out.safetensors", adapter, TINY, "kohya")
    assert_same_tensors(tensors_in(file), tensors)


def independent(rank: int) -> dict[str, np.ndarray]:
    """Factors of PEFT with an A of its own for each of q, k, v and mlp."""
    names = ("transformer_blocks.1.attn.to_{}", "single_transformer_blocks.0.attn.to_{}")
    layers = [name.format(x) for name in names for x in "qkv"]
    layers.append("single_transformer_blocks.0.proj_mlp")
    return {
        f"transformer.{name}.lora_{x}.weight": factor
        for seed, name in enumerate(layers)
        for x, factor in zip("AB", split(random_pairs(rank=rank, seed=seed))[name], strict=True)
    }


def test_independent_adapters_go_into_kohya_side_by_side(tmp_path: Path) -> None:
    tensors = independent(rank=4)
    adapter, _ = read_lora(save(tmp_path / "x.safetensors", tensors), TINY)
    file = write_lora(tmp_path / "kohya.safetensors", adapter, TINY, "kohya")
    fused = tensors_in(file)
    qkv, linear1 = "lora_unet_double_blocks_1_img_attn_qkv", "lora_unet_single_blocks_0_linear1"
    assert {name: tensor.shape for name, tensor in fused.items()} == {
        f"{qkv}.lora_down.weight": (12, 32),
        f"{qkv}.lora_up.weight": (96, 12),
        f"{qkv}.alpha": (),
        f"{linear1}.lora_down.weight": (16, 32),
        f"{linear1}.lora_up.weight": (224, 16),
        f"{linear1}.alpha": (),
    }
    assert [float(fused[f"{name}.alpha"]) for name in (qkv, linear1)] == [12, 16]
    again, report = read_lora(file, TINY)
    assert report.ranks == (4,)
    assert_same_tensors(dict(again.factors), dict(adapter.factors))
    assert_same_tensors(
        tensors_in(write_lora(tmp_path / "again.safetensors", again, TINY, "kohya")), fused
    )
    assert_same_tensors(tensors_in(write_lora(tmp_path / "peft.safetensors", again, TINY)), tensors)


@pytest.mark.parametrize("kept", ["to_q", "to_v|proj_mlp"])
def test_what_kohya_fuses_may_be_adapted_in_part(tmp_path: Path, kept: str) -> None:
    tensors = {name: t for name, t in independent(rank=4).items() if re.search(kept, name)}
    adapter, _ = read_lora(save(tmp_path / "x.safetensors", tensors), TINY)
    file = write_lora(tmp_path / "kohya.safetensors", adapter, TINY, "kohya")
    again, _ = read_lora(file, TINY)
    assert_same_tensors(dict(again.factors), dict(adapter.factors))


def test_a_common_a_stays_one_through_peft(tmp_path: Path) -> None:
    pairs = random_pairs(rank=4)
    tensors = DIALECTS["kohya"].write(pairs, TINY, 4.0)
    adapter, _ = read_lora(save(tmp_path / "kohya.safetensors", tensors), TINY)
    peft = write_lora(tmp_path / "peft.safetensors", adapter, TINY)
    assert_same_tensors(tensors_in(peft), DIALECTS["PEFT"].write(pairs, TINY, None))
    back = write_lora(tmp_path / "back.safetensors", read_lora(peft, TINY)[0], TINY, "kohya")
    assert_same_tensors(tensors_in(back), tensors)


@pytest.mark.parametrize("layout", ["peft", "kohya"])
def test_an_untrained_adapter_survives(tmp_path: Path, layout: str) -> None:
    """B is zero, so nothing tells the ranks of q, k and v apart."""
    tensors = {k: t * ("lora_A" in k) for k, t in independent(rank=4).items()}
    adapter, _ = read_lora(save(tmp_path / "x.safetensors", tensors), TINY)
    file = write_lora(tmp_path / f"{layout}.safetensors", adapter, TINY, layout)
    again, report = read_lora(file, TINY)
    assert report.linears == 7
    assert not any(delta.any() for delta in deltas(again).values())
    if layout == "peft":
        assert_same_tensors(tensors_in(file), tensors)


def test_padding_is_not_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((32, 3, 6)), rng.standard_normal((3, 6, 2, 16))
    a[:, :, 4:], b[:, 4:] = 0, 0  # rank 4, filled up to 6
    a[:, 1], b[1] = 0, 0  # no adapter of k
    b[2, 1] = 0  # an untrained component of v is not padding
    factors = {"double_blocks.0.img_attn.qkv.lora_a": a, "double_blocks.0.img_attn.qkv.lora_b": b}
    zeros = {"img_in.lora_a": np.zeros((8, 2)), "img_in.lora_b": np.zeros((2, 32))}
    adapter = Adapter({name: f.astype(np.float32) for name, f in (factors | zeros).items()})
    written = tensors_in(write_lora(tmp_path / "x.safetensors", adapter, TINY))
    block = "transformer.transformer_blocks.0.attn"
    assert {name: tensor.shape for name, tensor in written.items()} == {
        f"{block}.to_q.lora_A.weight": (4, 32),
        f"{block}.to_q.lora_B.weight": (32, 4),
        f"{block}.to_v.lora_A.weight": (4, 32),
        f"{block}.to_v.lora_B.weight": (32, 4),
    }
    assert_same_deltas(deltas(read_lora(tmp_path / "x.safetensors", TINY)[0]), deltas(adapter))


def test_dtype_is_cast_on_request(tmp_path: Path) -> None:
    tensors = DIALECTS["kohya"].write(random_pairs(), TINY, 4.0)
    adapter, _ = read_lora(save(tmp_path / "x.safetensors", tensors), TINY)
    for layout in ("peft", "kohya"):
        file = write_lora(tmp_path / f"{layout}.safetensors", adapter, TINY, layout, "bfloat16")
        dtypes = {name: tensor.dtype for name, tensor in tensors_in(file).items()}
        assert {d for name, d in dtypes.items() if "lora_" in name.partition(".")[2]} == {
            np.dtype(ml_dtypes.bfloat16)
        }


def test_a_file_is_replaced_only_on_request(tmp_path: Path) -> None:
    adapter, _ = read_lora(
        save(tmp_path / "x.safetensors", DIALECTS["kohya"].write(random_pairs(), TINY, 4.0)), TINY
    )
    write_lora(tmp_path, adapter, TINY)
    with pytest.raises(UserError, match=rf"{PEFT_NAME} exists already; give another output"):
        write_lora(tmp_path, adapter, TINY, "kohya")
    write_lora(tmp_path, adapter, TINY, "kohya", overwrite=True)
    assert read_lora(tmp_path, TINY)[1].dialect == "kohya"
    assert sorted(f.name for f in tmp_path.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        PEFT_NAME,
        "x.safetensors",
    ]


def test_adapters_that_cannot_be_written(tmp_path: Path) -> None:
    adapter, _ = read_lora(
        save(tmp_path / "x.safetensors", DIALECTS["kohya"].write(random_pairs(), TINY, 4.0)), TINY
    )
    out = tmp_path / "out.safetensors"

    def refused(factors: dict[str, Any], full: dict[str, Any], message: str) -> None:
        changed = Adapter({**adapter.factors, **factors}, full, name="mine")
        with pytest.raises(UserError, match=message):
            write_lora(out, changed, TINY)
        assert not out.exists()

    refused(
        {"double_blocks.7.img_attn.qkv.lora_b": np.ones((3, 4, 2, 16))},
        {},
        r"(?s)mine does not fit this FLUX.1 model:.*no double_blocks.7.img_attn.qkv",
    )
    refused(
        {"img_in.lora_b": np.ones((4, 33))},
        {},
        r"img_in has factors .*\(4, 33\).*, expected .*\(4, 32\)",
    )
    refused({"img_in.lora_b": np.ones((3, 32))}, {}, r"'lora_a': \(8, 4\).*'lora_a': \(8, 3\)")
    refused({}, {"img_in.bias": np.ones(32)}, r"img_in.bias cannot travel with a LoRA")
    refused({}, {"cond_in.bias": np.ones(8)}, r"cond_in.bias has shape \(8,\), expected \(32,\)")
    with pytest.raises(UserError, match=r"mine is empty: every factor is zero"):
        write_lora(out, Adapter({}, name="mine"), TINY)
    with pytest.raises(UserError, match=r"unknown LoRA layout 'bfl'; choose peft or kohya"):
        write_lora(out, adapter, TINY, "bfl")


@pytest.mark.parametrize("seed", range(3))
def test_any_adapter_comes_back(tmp_path: Path, seed: int) -> None:
    """Random layers, ranks and gaps, through both layouts."""
    rng = np.random.default_rng(seed)
    layers = {
        name: pair
        for k, name in enumerate(split(random_pairs()))
        for pair in [split(random_pairs(rank=int(rng.integers(1, 5)), seed=k))[name]]
        if rng.random() < 0.4
    }
    tensors = {
        f"{name}.lora_{x}.weight": f
        for name, pair in layers.items()
        for x, f in zip("AB", pair, strict=True)
    }
    adapter, _ = read_lora(save(tmp_path / "x.safetensors", tensors), TINY)
    for layout in ("peft", "kohya"):
        again, report = read_lora(write_lora(tmp_path / layout, adapter, TINY, layout), TINY)
        assert_same_tensors(dict(again.factors), dict(adapter.factors))
        assert report.linears == len(layers)
