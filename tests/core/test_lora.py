"""Adapters: what they add, how they combine and merge."""

import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from dsd_jax.config import BFLOAT16, Execution, flux_dev
from dsd_jax.errors import UserError
from dsd_jax.flux import Flux
from dsd_jax.layers import Linear, LoraParam
from dsd_jax.lora import (
    TARGETS,
    Adapter,
    LoraConfig,
    MergedSource,
    add_factors,
    combine,
    initialise,
    is_fused,
    merge,
    select,
    unmerge,
)
from dsd_jax.models import abstract, load, model_shardings
from dsd_jax.sharding import MeshConfig, make_mesh
from dsd_jax.stack import layer_paths
from dsd_jax.weights import TensorSource, materialise, param_shapes
from tests.tiny_flux import (
    TINY,
    abstract_flux,
    flux_inputs,
    make_flux,
    random_adapter,
    random_tensors,
    randoms,
)

ALL = select(abstract_flux(), "all")  # every Linear but the condition embedding, per layer
LAYOUTS = pytest.mark.parametrize("scan_layers", [False, True], ids=["unrolled", "scanned"])
# Two layers of two projections of one kind, and one Linear of each other kind; ranks differ.
SOME = {
    "double_blocks.0.img_attn.qkv": 2,
    "double_blocks.1.img_attn.qkv": 5,
    "double_blocks.1.txt_attn.proj": 3,
    "double_blocks.0.txt_mlp.out_layer": 1,
    "single_blocks.2.qkv": 4,
    "single_blocks.1.linear2": 3,
    "single_blocks.0.modulation.lin": 2,
    "final_layer.modulation": 2,
    "time_in.in_layer": 2,
}


@functools.cache
def compiled(graphdef: nnx.GraphDef[Flux]) -> Any:
    inputs = flux_inputs()
    return jax.jit(lambda state: nnx.merge(graphdef, state)(**inputs))


def output(model: Flux) -> np.ndarray:
    graphdef, state = nnx.split(model)
    return np.asarray(compiled(graphdef)(state))


def relative(ours: Any, theirs: Any) -> float:
    difference = np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)
    return float(np.linalg.norm(difference) / np.linalg.norm(np.asarray(theirs, np.float64)))


def with_adapters(adapters: Sequence[tuple[Adapter, float]], *, scan_layers: bool = True) -> Flux:
    model = abstract_flux(scan_layers=scan_layers)
    return load(model, TensorSource(random_tensors()), adapters=adapters)


def with_kernels(adapters: Sequence[tuple[Adapter, float]]) -> Flux:
    """The model whose kernels were added to by hand, in float64: the meaning of an adapter."""
    tensors = random_tensors()
    for adapter, scale in adapters:
        for module in adapter.ranks:
            b = adapter.factors[f"{module}.lora_b"].astype(np.float64)
            for name, kernel in (
                ("lora_a", "kernel"),
                ("lora_a_attn", "attn_kernel"),
                ("lora_a_mlp", "mlp_kernel"),
            ):
                a = adapter.factors.get(f"{module}.{name}")
                if a is None:
                    continue
                product = "dsr,srnh->dsnh" if module.endswith("qkv") else "...r,re->...e"
                if module.endswith(".modulation.lin") or module == "final_layer.modulation":
                    product = "dr,rse->dse"
                delta = np.einsum(product, a.astype(np.float64), b)
                path = f"{module}.{kernel}"
                tensors[path] = (tensors[path] + scale * delta).astype(np.float32)
    model = abstract_flux(scan_layers=True)
    return materialise(model, TensorSource(tensors), stacks=model.stacks)


# Targets


def test_attention_is_what_the_release_adapts() -> None:
    """8 projections per double block and 3 per single block: 266 in FLUX.1-dev."""
    model = abstract(flux_dev(), precision=BFLOAT16, execution=Execution(scan_layers=True))
    chosen = select(model, "attention")
    count = 0
    for path in chosen:
        layers = layer_paths(path, model.stacks)
        count += len(layers) * (3 if path.endswith("qkv") else 1)
    assert count == 266


def test_targets_grow() -> None:
    model = abstract_flux(scan_layers=True)
    attention, feed_forward, everything = (set(select(model, name)) for name in TARGETS)
    assert attention == {
        "double_blocks.img_attn.qkv",
        "double_blocks.img_attn.proj",
        "double_blocks.txt_attn.qkv",
        "double_blocks.txt_attn.proj",
        "single_blocks.qkv",
    }
    assert feed_forward - attention == {
        "double_blocks.img_mlp.in_layer",
        "double_blocks.img_mlp.out_layer",
        "double_blocks.txt_mlp.in_layer",
        "double_blocks.txt_mlp.out_layer",
        "single_blocks.mlp_in",
        "single_blocks.linear2",
    }
    assert everything - feed_forward == {
        "double_blocks.img_mod.lin",
        "double_blocks.txt_mod.lin",
        "single_blocks.modulation.lin",
        "final_layer.modulation",
        "final_layer.linear",
        "img_in",
        "txt_in",
        *(f"{name}_in.in_layer" for name in ("time", "vector", "guidance")),
        *(f"{name}_in.out_layer" for name in ("time", "vector", "guidance")),
    }


def test_patterns_match_modules_without_layer_numbers() -> None:
    assert select(abstract_flux(), (r"single_blocks\.qkv", "img_in")) == [
        "img_in",
        *(f"single_blocks.{layer}.qkv" for layer in range(3)),
    ]


@pytest.mark.parametrize(
    ("targets", "hint"),
    [
        ("attentoin", "did you mean 'attention'?"),
        ("single_blocks.qvk", "did you mean 'single_blocks.qkv'?"),
        ("zzz", "sets: attention, attention+ff, all"),
        (("img_in", "img_out"), "did you mean 'img_in'?"),
    ],
)
def test_unknown_targets(targets: str | tuple[str, ...], hint: str) -> None:
    with pytest.raises(UserError, match="matches no Linear of this model; " + re.escape(hint)):
        select(abstract_flux(), targets)


# New adapters


def randomise_b(model: Flux) -> None:
    """Makes B like a trained one; a constant would vanish in the next layer norm."""
    for path, variable in nnx.to_flat_state(nnx.state(model, LoraParam)):
        if path[-1] == "lora_b":
            variable.set_value(jnp.asarray(randoms({"b": variable.shape})["b"]))


def test_a_new_adapter_changes_nothing_and_a_trained_one_does() -> None:
    model = make_flux(scan_layers=True)
    before = output(model)
    initialise(model, LoraConfig(rank=4, alpha=1.0, targets="attention+ff"), nnx.Rngs(0))
    assert relative(output(model), before) < 1e-6
    randomise_b(model)
    assert relative(output(model), before) > 0.01


def test_new_factors_are_uniform_as_in_peft() -> None:
    """A in +-1/sqrt(fan in), B zero, float32 beside a bfloat16 base; layers differ."""
    model = make_flux(precision=BFLOAT16, scan_layers=True)
    targets = (r"single_blocks\.(qkv|linear2)", r".*\.img_attn\.proj", r"vector_in\.in_layer")
    initialise(model, LoraConfig(rank=32, targets=targets), nnx.Rngs(0))
    blocks = model.single_blocks
    for a, fan_in in (
        (blocks.qkv.lora_a, 64),
        (blocks.linear2.lora_a_attn, 64 + 128),
        (blocks.linear2.lora_a_mlp, 64 + 128),
        (model.double_blocks.img_attn.proj.lora_a, 64),
        (model.vector_in.in_layer.lora_a, 20),
    ):
        bound = fan_in**-0.5
        assert a is not None
        assert a.dtype == jnp.float32
        assert 0.95 * bound < np.abs(a[...]).max() <= bound
        assert np.std(a[...]) == pytest.approx(bound / 3**0.5, rel=0.1)
    layers = np.asarray(blocks.qkv.lora_a[...])
    assert relative(layers[0], layers[1]) > 1
    assert not blocks.qkv.lora_b[...].any()


def test_only_factors_are_trained() -> None:
    """The filter by type: gradients exist for the factors and reach every one of them."""
    model = make_flux(scan_layers=True)
    initialise(model, LoraConfig(rank=4, targets="attention+ff"), nnx.Rngs(0))
    randomise_b(model)
    graphdef, factors, *others = nnx.split(model, LoraParam, ...)
    (rest,) = others
    assert not any("lora" in str(path[-1]) for path, _ in nnx.to_flat_state(rest))

    def loss(factors: nnx.State, rest: nnx.State) -> jax.Array:
        return jnp.sin(nnx.merge(graphdef, factors, rest)(**flux_inputs())).sum()

    grads = jax.jit(jax.grad(loss))(factors, rest)
    flat = dict(nnx.to_flat_state(grads))
    assert len(flat) == 2 * 10 + 3  # two factors each, and three of the joined Linear
    for path, grad in flat.items():
        assert np.isfinite(grad[...]).all(), path
        assert np.abs(grad[...]).max() > 0, path


def test_scale_is_alpha_over_rank() -> None:
    assert LoraConfig(rank=8).scale == 1
    assert LoraConfig(rank=8, alpha=4.0).scale == 0.5
    outputs = []
    for alpha in (4.0, 8.0):
        model = make_flux(scan_layers=True)
        before = np.asarray(model.txt_in(flux_inputs()["inputs"].txt))
        initialise(model, LoraConfig(rank=4, alpha=alpha, targets="txt_in"), nnx.Rngs(0))
        randomise_b(model)
        outputs.append(np.asarray(model.txt_in(flux_inputs()["inputs"].txt)) - before)
    assert relative(outputs[1], 2 * outputs[0]) < 1e-5


def test_fused_layers_are_known_by_their_path() -> None:
    linears = {
        ".".join(map(str, path)): part.fused
        for path, part in nnx.iter_modules(abstract_flux())
        if isinstance(part, Linear)
    }
    assert {path: is_fused(path) for path in linears} == {
        path: fused > 1 for path, fused in linears.items()
    }
    assert max(linears.values()) == 3


def test_ranks_below_one() -> None:
    with pytest.raises(UserError, match="LoRA rank must be at least 1, got 0"):
        initialise(abstract_flux(), LoraConfig(rank=0), nnx.Rngs(0))


# Adapters from files


@LAYOUTS
def test_an_adapter_is_what_it_adds_to_the_kernels(scan_layers: bool) -> None:
    """Some layers only, every rank its own."""
    adapters = [(random_adapter(SOME), 1.0)]
    ours = output(with_adapters(adapters, scan_layers=scan_layers))
    assert relative(ours, output(with_kernels(adapters))) < 1e-5
    assert relative(ours, output(make_flux(scan_layers=True))) > 0.01


def test_several_adapters_add_up() -> None:
    """Two of them share Linears, with different ranks; one has a negative scale."""
    adapters = [
        (random_adapter(dict.fromkeys(select(abstract_flux(), "attention"), 3), seed=3), 0.5),
        (random_adapter(SOME, seed=4), -0.7),
        (random_adapter({"single_blocks.0.mlp_in": 2}, seed=5), 2.0),
    ]
    assert relative(output(with_adapters(adapters)), output(with_kernels(adapters))) < 1e-5


def test_rank_of_a_stack_is_that_of_its_largest_layer() -> None:
    model = abstract_flux(scan_layers=True)
    ranks, source = combine(model, [(random_adapter(SOME), 1.0)] * 2, model.stacks)
    assert ranks["double_blocks.img_attn.qkv"] == 10
    assert ranks["single_blocks.linear2"] == 6
    padded = source.tensors["double_blocks.0.img_attn.qkv.lora_a"]
    assert padded.shape == (64, 3, 10)
    assert not padded[..., 4:].any()


def test_full_tensors_replace_parameters() -> None:
    full = {"cond_in.bias": np.full(64, 3, np.float32)}
    first = dataclasses.replace(random_adapter({"img_in": 2}), full=full)
    last = dataclasses.replace(first, full={"cond_in.bias": full["cond_in.bias"] + 1})
    model = with_adapters([(first, 1.0), (last, 0.5)])
    found = nnx.state(model)["cond_in"]["bias"][...]
    np.testing.assert_array_equal(found, np.full(64, 4.0))
    source = MergedSource(TensorSource(random_tensors()), [(first, 1.0), (last, 0.5)])
    np.testing.assert_array_equal(source.read("cond_in.bias", (slice(None),)), np.full(64, 4.0))


# Merging


@LAYOUTS
def test_merged_is_unmerged(scan_layers: bool) -> None:
    model = with_adapters([(random_adapter(dict.fromkeys(ALL, 3)), 1.0)], scan_layers=scan_layers)
    kernels = {path: np.asarray(v[...]) for path, v in nnx.to_flat_state(nnx.state(model))}
    apart = output(model)
    merge(model)
    merge(model)  # once more is no more
    assert relative(output(model), apart) < 1e-5
    assert relative(model.img_in.kernel[...], kernels[("img_in", "kernel")]) > 0.01
    unmerge(model)
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        assert relative(variable[...], kernels[path]) < 1e-6, path
    assert relative(output(model), apart) < 1e-5


def test_merging_uses_the_scale() -> None:
    model = make_flux(scan_layers=True)
    initialise(model, LoraConfig(rank=4, alpha=1.0, targets="attention+ff"), nnx.Rngs(0))
    randomise_b(model)
    apart = output(model)
    merge(model)
    assert relative(output(model), apart) < 1e-5


def test_a_new_adapter_on_a_merged_one() -> None:
    """The old one stays in the kernels, the new one is at work."""
    model = with_adapters([(random_adapter({"txt_in": 3}), 1.0)])
    txt = flux_inputs()["inputs"].txt
    before = model.txt_in(txt)
    merge(model)
    initialise(model, LoraConfig(rank=2, targets="txt_in"), nnx.Rngs(0))
    assert relative(model.txt_in(txt), before) < 1e-5
    randomise_b(model)
    assert relative(model.txt_in(txt), before) > 0.01


def test_merged_kernels_keep_dtype_and_sharding() -> None:
    mesh = make_mesh(MeshConfig(2, 2, 2))
    model = abstract(TINY, precision=BFLOAT16, execution=Execution(scan_layers=True))
    adapter = random_adapter(dict.fromkeys(ALL, 4))
    model = load(model, TensorSource(random_tensors()), mesh=mesh, adapters=[(adapter, 1.0)])
    merge(model)
    shardings = model_shardings(model, mesh)
    for parts, variable in nnx.to_flat_state(nnx.state(model)):
        path = ".".join(map(str, parts))
        assert variable[...].sharding.is_equivalent_to(shardings[path], variable.ndim), path
        assert variable.dtype == (jnp.float32 if "lora" in path else jnp.bfloat16)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_merged_source_is_merge(dtype: Any) -> None:
    """Read as a whole and by slices."""
    adapters = [(random_adapter(dict.fromkeys(ALL, 3)), 0.6), (random_adapter(SOME, seed=6), -1.0)]
    tensors = {path: tensor.astype(dtype) for path, tensor in random_tensors().items()}
    source = MergedSource(TensorSource(tensors), adapters)
    precision = BFLOAT16 if dtype == ml_dtypes.bfloat16 else None
    model = abstract(TINY, precision=precision) if precision else abstract_flux()
    model = load(model, TensorSource(tensors), adapters=adapters)
    merge(model)
    assert source.shapes == TensorSource(tensors).shapes
    merged = {".".join(map(str, p)): v[...] for p, v in nnx.to_flat_state(nnx.state(model))}
    for path, shape in source.shapes.items():
        whole = source.read(path, (slice(None),) * len(shape))
        assert whole.dtype == dtype
        # bfloat16: a sum that float32 rounds differently may fall on the other side of a tie.
        assert relative(whole, merged[path]) < (1e-6 if dtype == np.float32 else 1e-4), path
        index = tuple(slice(size // 3, size - size // 4) for size in shape)
        part = source.read(path, index)
        np.testing.assert_allclose(
            part.astype(np.float32), whole[index].astype(np.float32), rtol=1e-6, atol=1e-6
        )
    changed = [p for p in source.shapes if relative(merged[p], tensors[p]) > 1e-3]
    assert len(changed) == len(ALL) + TINY.single_depth  # joined Linears have two kernels


def test_merged_source_rounds_to_a_dtype_on_request() -> None:
    tensors = {p: t.astype(ml_dtypes.bfloat16) for p, t in random_tensors().items()}
    adapters = [(random_adapter({"img_in": 3}), 1.0)]
    source = MergedSource(TensorSource(tensors), adapters, np.float32)
    read = source.read("img_in.kernel", (slice(None), slice(None)))
    a, b = (adapters[0][0].factors[f"img_in.lora_{x}"] for x in "ab")
    assert read.dtype == np.float32
    np.testing.assert_allclose(read, tensors["img_in.kernel"].astype(np.float32) + a @ b, atol=1e-5)
    assert set(source.dtypes.values()) == {np.dtype(np.float32)}


# Numbers of an adapter


def test_factors_of_abstract_models_are_float32() -> None:
    model = abstract(TINY, precision=BFLOAT16, execution=Execution(scan_layers=True))
    add_factors(model, {"single_blocks.qkv": 5})
    assert param_shapes(model)["single_blocks.qkv.lora_b"] == (3, 3, 5, 4, 16)
    assert model.single_blocks.qkv.lora_b.dtype == jnp.float32


def test_the_digest_of_an_adapter_is_that_of_its_numbers():
    a, b = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones(2, np.float32)
    digest = Adapter({"x.lora_a": a}, {"y": b}).sha256()
    assert digest == Adapter({"x.lora_a": a.copy()}, {"y": b}, "another name").sha256()
    others = [
        Adapter({"x.lora_a": a + 1}, {"y": b}),
        Adapter({"x.lora_a": a.reshape(3, 2)}, {"y": b}),
        Adapter({"z.lora_a": a}, {"y": b}),
        Adapter({"x.lora_a": a}),
    ]
    assert digest not in {other.sha256() for other in others}
