"""Quantised kernels: codes and scales, products with them, loading, and places on a mesh."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dsd_jax.config import BFLOAT16, FLOAT32, Execution, FluxConfig, Precision
from dsd_jax.errors import UserError
from dsd_jax.layers import JoinedLinear, Linear
from dsd_jax.lora import MergedSource, add_factors, merge
from dsd_jax.models import abstract, load
from dsd_jax.quantise import GROUP, QuantisedSource, WeightKind, kind_of, quantise
from dsd_jax.sharding import MeshConfig, make_mesh, on_mesh
from dsd_jax.weights import TensorSource, param_shapes
from tests.tiny_flux import TINY, flux_inputs, random_adapter, random_tensors

# Heads of 32 channels, so that groups divide every kernel.
SIZE = dataclasses.replace(TINY, num_heads=4, head_dim=32, axes_dim=(8, 12, 12))
KINDS: tuple[WeightKind, ...] = ("int8", "int4")
SHAPES = {  # of a kernel -> number of its input axes
    (64, 96): 1,
    (64, 3, 2, 32): 1,
    (2, 64, 48): 2,
}


def dequantised(codes: np.ndarray, scales: np.ndarray, inputs: int) -> np.ndarray:
    """The numbers that codes stand for, by the definition: a loop over groups."""
    numbers = codes.astype(np.float32)
    if scales.ndim < codes.ndim:
        return numbers * scales
    out = np.empty_like(numbers)
    for group in range(codes.shape[inputs - 1] // GROUP):
        rows = (slice(None),) * (inputs - 1) + (slice(group * GROUP, (group + 1) * GROUP),)
        own = (slice(None),) * (inputs - 1) + (slice(group, group + 1),)
        out[rows] = numbers[rows] * scales[own].astype(np.float32)
    return out


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("shape", "inputs"), SHAPES.items())
def test_every_number_is_within_half_a_step_of_its_code(
    shape: tuple[int, ...], inputs: int, kind: WeightKind
) -> None:
    kernel = np.random.default_rng(0).standard_normal(shape, np.float32)
    kernel[..., 0] = 0  # a channel without weights
    codes, scales = quantise(kernel, inputs, kind)
    back = dequantised(codes, scales, inputs)
    step = dequantised(np.ones_like(codes), scales, inputs)
    # The largest number of a group may lie beyond the largest code by the rounding of its scale.
    slack = np.float32(2**-8 * 7) if kind == "int4" else np.float32(1e-4)
    assert (np.abs(back - kernel) <= (0.5 + slack) * step).all()
    assert (back[..., 0] == 0).all()
    assert codes.astype(np.int32).max() == -codes.astype(np.int32).min() or kind == "int8"
    error = np.linalg.norm(back - kernel) / np.linalg.norm(kernel)
    assert error < {"int8": 0.012, "int4": 0.12}[kind]


def quantised_layer(layer: Linear, kind: WeightKind) -> Linear:
    inputs = layer.kernels["kernel"]
    codes, scales = quantise(np.asarray(layer.kernel[...]), inputs, kind)
    layer.kernel = nnx.Param(jnp.asarray(codes))
    layer.kernel_scale = nnx.Param(jnp.asarray(scales))
    return layer


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("ins", "outs"), [((64,), (3, 2, 32)), ((2, 64), (48,))])
def test_a_product_with_codes_is_the_product_with_the_numbers(
    ins: tuple[int, ...], outs: tuple[int, ...], kind: WeightKind
) -> None:
    layer = Linear(ins, outs, precision=FLOAT32, rngs=nnx.Rngs(0))
    x = np.random.default_rng(1).standard_normal((2, 5, *ins), np.float32)
    plain = np.asarray(layer(jnp.asarray(x)))
    layer = quantised_layer(layer, kind)
    assert layer.kernel_scale is not None
    numbers = dequantised(
        np.asarray(layer.kernel[...]), np.asarray(layer.kernel_scale[...]), len(ins)
    )
    expected = np.tensordot(x.astype(np.float64), numbers.astype(np.float64), len(ins))
    got = np.asarray(layer(jnp.asarray(x)))
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    error = np.linalg.norm(got - plain) / np.linalg.norm(plain)
    assert error < {"int8": 0.012, "int4": 0.12}[kind]


def test_in_bfloat16_int8_adds_less_than_rounding_does() -> None:
    exact = Linear((256,), (64,), precision=FLOAT32, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (16, 256))
    expected = exact(x)

    def error(layer: Linear) -> float:
        layer.precision = Precision(jnp.bfloat16, jnp.bfloat16)
        off = layer(x.astype(jnp.bfloat16)).astype(jnp.float32) - expected
        return float(jnp.linalg.norm(off) / jnp.linalg.norm(expected))

    codes = quantised_layer(Linear((256,), (64,), precision=FLOAT32, rngs=nnx.Rngs(0)), "int8")
    assert error(codes) < error(exact) + 0.009


@pytest.fixture(scope="module")
def tensors() -> dict[str, np.ndarray]:
    return random_tensors(SIZE)


def empty(kind: WeightKind | None, precision: Precision = FLOAT32, **execution: Any) -> Any:
    return abstract(SIZE, precision=precision, execution=Execution(**execution), weights=kind)


def leaves(model: nnx.Module) -> dict[str, np.ndarray]:
    flat = nnx.to_flat_state(nnx.state(model))
    return {".".join(map(str, path)): np.asarray(variable[...]) for path, variable in flat}


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_holds_codes_in_its_blocks_and_plain_numbers_elsewhere(
    kind: WeightKind, tensors: dict[str, np.ndarray]
) -> None:
    loaded = leaves(load(empty(kind, scan_layers=True), TensorSource(tensors)))
    for path, value in loaded.items():
        block = path.startswith(("double_blocks.", "single_blocks."))
        coded = block and path.endswith("kernel")
        assert (value.dtype.name == kind) == coded, path
        assert (f"{path}_scale" in loaded) == coded, path
    for layer in range(SIZE.double_depth):
        codes, scales = quantise(tensors[f"double_blocks.{layer}.img_attn.proj.kernel"], 2, kind)
        assert (loaded["double_blocks.img_attn.proj.kernel"][layer] == codes).all()
        assert (loaded["double_blocks.img_attn.proj.kernel_scale"][layer] == scales).all()


class Whole:
    """A source that counts how often whole tensors are read."""

    def __init__(self, tensors: dict[str, np.ndarray]) -> None:
        self.tensors, self.reads = TensorSource(tensors), dict.fromkeys(tensors, 0)
        self.shapes, self.dtypes = self.tensors.shapes, self.tensors.dtypes

    def read(self, path: str, index: Any) -> np.ndarray:
        self.reads[path] += 1
        return self.tensors.read(path, index)


def test_on_one_device_each_kernel_is_read_once(tensors: dict[str, np.ndarray]) -> None:
    source = Whole(tensors)
    load(empty("int8", scan_layers=True), source)
    assert set(source.reads.values()) == {1}


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    return make_mesh(MeshConfig(1, 8))


@pytest.mark.parametrize("kind", KINDS)
def test_a_mesh_gets_the_same_codes_and_scales(
    kind: WeightKind, tensors: dict[str, np.ndarray], mesh: Mesh
) -> None:
    """Also where groups do not divide among devices: 128 inputs in 4 groups on 8 devices."""
    whole = leaves(load(empty(kind, scan_layers=True), TensorSource(tensors)))
    shared = load(empty(kind, scan_layers=True), TensorSource(tensors), mesh=mesh)
    for path, value in leaves(shared).items():
        assert value.dtype == whole[path].dtype
        assert (value == whole[path]).all(), path
    codes = shared.double_blocks.img_mlp.in_layer.kernel[...]
    assert codes.sharding.shard_shape(codes.shape)[1] == codes.shape[1] // 8


@pytest.mark.parametrize("kind", KINDS)
def test_a_product_on_a_mesh_is_that_on_one_device(kind: WeightKind, mesh: Mesh) -> None:
    layer = quantised_layer(Linear((128,), (48,), precision=FLOAT32, rngs=nnx.Rngs(0)), kind)
    x = jax.random.normal(jax.random.key(1), (2, 3, 128))
    one = np.asarray(layer(x))
    layer.kernel.set_value(jax.device_put(layer.kernel[...], NamedSharding(mesh, P("fsdp"))))
    with jax.set_mesh(mesh):
        many = np.asarray(layer(jax.device_put(x, NamedSharding(mesh, P()))))
    np.testing.assert_allclose(many, one, rtol=0, atol=1e-5 * np.abs(one).max())


def test_a_whole_model_in_int4_predicts_alike_on_a_mesh(
    tensors: dict[str, np.ndarray], mesh: Mesh
) -> None:
    inputs = flux_inputs(SIZE, batch=1)

    def velocity(mesh: Mesh | None) -> np.ndarray:
        model = load(empty("int4", scan_layers=True), TensorSource(tensors), mesh=mesh)
        graphdef, state = nnx.split(model)
        run = jax.jit(lambda s: nnx.merge(graphdef, s)(**inputs))
        with on_mesh(mesh):
            return np.asarray(run(state))

    one = velocity(None)
    np.testing.assert_allclose(velocity(mesh), one, rtol=0, atol=1e-4 * np.abs(one).max())


def test_adapters_stay_beside_codes_in_their_own_precision(tensors: dict[str, np.ndarray]) -> None:
    adapter = random_adapter({"double_blocks.0.img_attn.qkv": 2}, SIZE)
    model = load(
        empty("int8", BFLOAT16, scan_layers=True), TensorSource(tensors), adapters=[(adapter, 1.0)]
    )
    assert model.double_blocks.img_attn.qkv.lora_a.dtype == jnp.float32
    assert model.double_blocks.img_attn.qkv.kernel.dtype == jnp.int8


def test_merging_into_codes_is_refused(tensors: dict[str, np.ndarray]) -> None:
    adapter = random_adapter({"double_blocks.0.img_attn.qkv": 2}, SIZE)
    inputs = {"double_blocks.0.img_attn.qkv.kernel": 1}
    source = QuantisedSource(TensorSource(tensors), inputs, "int8")
    with pytest.raises(UserError, match=r"cannot be merged into int8 or int4 weights.*beside them"):
        MergedSource(source, [(adapter, 1.0)])
    model = empty("int8")
    add_factors(model, {"double_blocks.0.img_attn.qkv": 2})
    with pytest.raises(UserError, match="cannot be merged"):
        merge(model)


def test_groups_that_do_not_divide_the_inputs_are_named() -> None:
    size = FluxConfig(head_dim=16, axes_dim=(4, 6, 6), num_heads=4, double_depth=1, single_depth=1)
    with pytest.raises(UserError, match=r"groups of 32, but .*proj\.kernel has 16; use int8"):
        abstract(size, precision=FLOAT32, weights="int4")


def test_the_kind_of_a_source_is_known_by_its_dtypes(tensors: dict[str, np.ndarray]) -> None:
    assert kind_of(TensorSource(tensors).dtypes) is None
    inputs = {"single_blocks.0.mlp_in.kernel": 1}
    for kind in KINDS:
        assert kind_of(QuantisedSource(TensorSource(tensors), inputs, kind).dtypes) == kind
    assert np.dtype(ml_dtypes.int4).name == "int4"


def test_the_scale_of_a_joined_layer_belongs_to_each_of_its_kernels() -> None:
    assert {f"{name}_scale" for name in JoinedLinear.kernels} == {
        path.rpartition(".")[2]
        for path in param_shapes(empty("int8"))
        if path.startswith("single_blocks.0.linear2.") and path.endswith("_scale")
    }
