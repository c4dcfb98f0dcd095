"""Places of parameters on a mesh, which changes nothing else."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, Mesh
from jax.sharding import PartitionSpec as P

from dsd_jax.config import BFLOAT16, Execution, FluxConfig, flux_dev, flux_schnell
from dsd_jax.errors import UserError
from dsd_jax.flux import Flux
from dsd_jax.lora import TARGETS, add_factors, combine, select
from dsd_jax.models import abstract
from dsd_jax.sharding import (
    AUTOENCODER_RULES,
    FLUX_RULES,
    LORA_RULES,
    MESH_AXES,
    TRAINED_LORA_RULES,
    MeshConfig,
    Rules,
    activation_spec,
    constrain,
    device_grid,
    make_mesh,
    param_shardings,
    param_specs,
)
from dsd_jax.types import Shape
from dsd_jax.weights import TensorSource, materialise, param_shapes
from tests.tiny_flux import abstract_flux, flux_inputs, random_adapter, random_tensors

STACKS = ("double_blocks", "single_blocks")
RANK, TARGETED = 4, (r".*\.qkv", r".*\.linear2")
MESHES = {
    "data=8": MeshConfig(8, 1, 1, 1),
    "fsdp=8": MeshConfig(1, 8, 1, 1),
    "tensor=4": MeshConfig(2, 1, 4, 1),
    "context=4": MeshConfig(2, 1, 1, 4),
    "fsdp=2, tensor=2, context=2": MeshConfig(1, 2, 2, 2),
    "data=2, fsdp=2, tensor=2": MeshConfig(2, 2, 2, 1),
}
F, T = "fsdp", "tensor"
# Every parameter of the scanned layout that is not whole on every device of a mesh with all axes.
SPECS = {
    "img_in.kernel": P(None, F),
    "cond_in.kernel": P(None, F),
    "txt_in.kernel": P(None, F),
    "time_in.in_layer.kernel": P(None, F),
    "time_in.out_layer.kernel": P(F, T),
    "vector_in.in_layer.kernel": P(None, F),
    "vector_in.out_layer.kernel": P(F, T),
    "guidance_in.in_layer.kernel": P(None, F),
    "guidance_in.out_layer.kernel": P(F, T),
    "double_blocks.img_mod.lin.kernel": P(None, F, None, T),
    "double_blocks.txt_mod.lin.kernel": P(None, F, None, T),
    "double_blocks.img_attn.qkv.kernel": P(None, F, None, T, None),
    "double_blocks.txt_attn.qkv.kernel": P(None, F, None, T, None),
    "double_blocks.img_attn.proj.kernel": P(None, T, None, F),
    "double_blocks.txt_attn.proj.kernel": P(None, T, None, F),
    "double_blocks.img_mlp.in_layer.kernel": P(None, F, T),
    "double_blocks.txt_mlp.in_layer.kernel": P(None, F, T),
    "double_blocks.img_mlp.out_layer.kernel": P(None, T, F),
    "double_blocks.txt_mlp.out_layer.kernel": P(None, T, F),
    "single_blocks.modulation.lin.kernel": P(None, F, None, T),
    "single_blocks.qkv.kernel": P(None, F, None, T, None),
    "single_blocks.mlp_in.kernel": P(None, F, T),
    "single_blocks.linear2.attn_kernel": P(None, T, None, F),
    "single_blocks.linear2.mlp_kernel": P(None, T, F),
    "final_layer.modulation.kernel": P(F, None, T),
    "final_layer.linear.kernel": P(F, None),
}


def abstract_mesh(data: int = 1, fsdp: int = 1, tensor: int = 1, context: int = 1) -> AbstractMesh:
    return AbstractMesh((data, fsdp, tensor, context), MESH_AXES)


def ways(spec: P, mesh: AbstractMesh) -> int:
    """Number of devices that a parameter is cut into."""
    names = [n for entry in spec if entry for n in ([entry] if isinstance(entry, str) else entry)]
    return math.prod(mesh.shape[name] for name in names)


# Specs


@pytest.mark.parametrize(
    "mesh",
    [
        abstract_mesh(data=8),
        abstract_mesh(fsdp=8),
        abstract_mesh(tensor=4),
        abstract_mesh(context=4),
        abstract_mesh(2, 2, 2, 2),
    ],
    ids=lambda mesh: ",".join(f"{k}={v}" for k, v in mesh.shape.items() if v > 1),
)
def test_specs_of_every_parameter(mesh: AbstractMesh) -> None:
    """Axes of size one are left out."""
    shapes = param_shapes(abstract_flux(scan_layers=True))
    specs = param_specs(shapes, FLUX_RULES, mesh, STACKS)
    assert specs.keys() == shapes.keys()
    for path, spec in specs.items():
        entries = SPECS.get(path, [None] * len(spec))
        assert spec == P(*(e if e and mesh.shape[e] > 1 else None for e in entries)), path


def test_layouts_agree() -> None:
    """A layer's own parameter is sharded like its slice of the stack."""
    mesh = abstract_mesh(1, 2, 2, 2)
    scanned = param_specs(param_shapes(abstract_flux(scan_layers=True)), FLUX_RULES, mesh, STACKS)
    unrolled = param_specs(param_shapes(abstract_flux()), FLUX_RULES, mesh, STACKS)
    assert unrolled["double_blocks.1.img_attn.qkv.kernel"] == P(F, None, T, None)
    for path, spec in unrolled.items():
        stack, *rest = path.split(".")
        if stack in STACKS:
            assert scanned[".".join([stack, *rest[1:]])] == P(None, *spec)
        else:
            assert scanned[path] == spec


FULL_MESH = abstract_mesh(2, 64, 8, 2)


def full_size(config: FluxConfig, *, scan_layers: bool = True, **adapter: Any) -> dict[str, Shape]:
    """Shapes of all parameters, with factors of one rank if `rank` and `targets` are given."""
    model = abstract(config, precision=BFLOAT16, execution=Execution(scan_layers=scan_layers))
    if adapter:
        add_factors(model, dict.fromkeys(select(model, adapter["targets"]), adapter["rank"]))
    return param_shapes(model)


@pytest.mark.parametrize(
    ("config", "scan_layers"),
    [(flux_dev(), False), (flux_dev(), True), (flux_schnell(), True)],
    ids=["dev-unrolled", "dev-scanned", "schnell-scanned"],
)
def test_full_size(config: FluxConfig, scan_layers: bool) -> None:
    """No dead rule, no unnamed large parameter, and each device holds its share."""
    shapes = full_size(config, scan_layers=scan_layers)
    specs = param_specs(shapes, FLUX_RULES, FULL_MESH, STACKS)
    total = sum(math.prod(shape) for shape in shapes.values())
    held = sum(math.prod(shape) // ways(specs[path], FULL_MESH) for path, shape in shapes.items())
    assert 11.8e9 < total < 12.0e9
    assert held < 1.2 * total / (64 * 8)


@pytest.mark.parametrize(
    ("targets", "scan_layers"), [*((name, True) for name in TARGETS), ("attention+ff", False)]
)
def test_full_size_adapters(targets: str, scan_layers: bool) -> None:
    """Every factor has a rule, and lies on many devices."""
    shapes = full_size(flux_dev(), scan_layers=scan_layers, targets=targets, rank=512)
    # With targets "all", none of the rules for adapters may be dead either.
    base = (*FLUX_RULES, *LORA_RULES) if targets == "all" else FLUX_RULES
    specs = param_specs(shapes, base, FULL_MESH, STACKS, spare=LORA_RULES)
    factors = [path for path in shapes if ".lora_" in path]
    assert factors
    assert all(ways(specs[path], FULL_MESH) >= 64 for path in factors)


@pytest.mark.parametrize("rank", [1, 4, 16, 128])
def test_full_size_adapters_of_any_rank(rank: int) -> None:
    shapes = full_size(flux_dev(), targets="all", rank=rank)
    for rules in (LORA_RULES, TRAINED_LORA_RULES):
        specs = param_specs(shapes, (*FLUX_RULES, *rules), FULL_MESH, STACKS)
        assert specs.keys() == shapes.keys()
        assert all(math.prod(shapes[path]) % ways(specs[path], FULL_MESH) == 0 for path in shapes)


def test_factors_in_training_lie_on_all_replicas() -> None:
    """Factors with their gradients and moments outweigh what replicas could share."""
    shapes = full_size(flux_dev(), targets="all", rank=512)
    specs = param_specs(shapes, (*FLUX_RULES, *TRAINED_LORA_RULES), FULL_MESH, STACKS)
    assert all(ways(specs[path], FULL_MESH) >= 2 * 64 for path in shapes if ".lora_" in path)


def test_rank_that_the_mesh_does_not_divide_stays_whole() -> None:
    """The rank of an adapter has nothing to do with the mesh it is run on."""
    shapes = {"single_blocks.qkv.lora_b": (38, 3, 6, 24, 128), "img_in.lora_a": (64, 8)}
    specs = param_specs(shapes, (), abstract_mesh(fsdp=4, tensor=2), STACKS, spare=LORA_RULES)
    assert specs["single_blocks.qkv.lora_b"] == P(None, None, None, T, None)
    assert specs["img_in.lora_a"] == P(None, F)


def test_replicated_models() -> None:
    shapes = {"encoder.conv_in.kernel": (3, 3, 512, 512)}
    assert param_specs(shapes, AUTOENCODER_RULES, abstract_mesh(fsdp=8)) == {
        "encoder.conv_in.kernel": P()
    }


# Refusals


def refusal(shapes: dict[str, tuple[int, ...]], rules: Any, mesh: AbstractMesh) -> str:
    with pytest.raises(UserError) as error:
        param_specs(shapes, rules, mesh, ("blocks",))
    return str(error.value)


def test_large_parameter_without_rule() -> None:
    shapes = {"blocks.new.kernel": (4, 1024, 1024), "blocks.new.bias": (4, 1024)}
    message = refusal(shapes, (), abstract_mesh(fsdp=8))
    assert "cannot shard the parameters over mesh {'data': 1, 'fsdp': 8" in message
    assert (
        "blocks.new.kernel (4, 1024, 1024): no sharding rule matches this large parameter"
        in message
    )
    assert "blocks.new.bias" not in message


def test_rule_that_matches_nothing() -> None:
    rules = ((r"a\.kernel", ("width",)), (r"b\.kernel", ("width",)))
    message = refusal({"a.kernel": (8,)}, rules, abstract_mesh())
    assert r"rule 'b\\.kernel' matches no parameter" in message
    assert r"a\\.kernel" not in message


def test_spare_rules_may_match_nothing() -> None:
    spare = ((r"b\.kernel", ("width",)),)
    specs = param_specs({"a.kernel": (8,)}, ((r"a.*", ()),), abstract_mesh(fsdp=8), spare=spare)
    assert specs == {"a.kernel": P()}


def test_axes_that_collide() -> None:
    rules = ((r".*", ("heads", "mlp")),)
    message = refusal({"a.kernel": (8, 8)}, rules, abstract_mesh(tensor=2))
    assert "a.kernel: rule '.*' puts two axes on one mesh axis" in message


def test_mesh_that_does_not_divide_a_parameter() -> None:
    rules = ((r".*", ("width", "heads")),)
    message = refusal({"blocks.a": (5, 8, 24)}, rules, abstract_mesh(fsdp=3, tensor=8))
    assert "blocks.a (8, 24): fsdp=3 does not divide 8" in message
    assert "tensor" not in message.split("\n", 1)[1]


def test_rule_with_another_number_of_axes() -> None:
    message = refusal({"blocks.a": (5, 8, 24)}, ((r".*", ("width",)),), abstract_mesh())
    assert "blocks.a (8, 24): rule '.*' has 1 axes" in message


def test_long_lists_are_cut() -> None:
    message = refusal({f"p{i}": (1024, 1024) for i in range(20)}, (), abstract_mesh())
    assert "and 12 more" in message


@pytest.mark.parametrize(
    "config", [MeshConfig(3), MeshConfig(fsdp=3), MeshConfig(2, 2, 1, 1), MeshConfig(tensor=16)]
)
def test_mesh_that_does_not_divide_the_devices(config: MeshConfig) -> None:
    with pytest.raises(UserError, match=r"does not divide 8 devices; choose sizes whose"):
        make_mesh(config)


@pytest.mark.parametrize("config", [MeshConfig(fsdp=-1), MeshConfig(tensor=0), MeshConfig(-2)])
def test_mesh_sizes_that_make_no_sense(config: MeshConfig) -> None:
    with pytest.raises(UserError, match="must be positive, at most one of them -1; got"):
        config.sizes(8)


def test_mesh_fills_the_free_axis() -> None:
    assert MeshConfig().sizes(8) == (8, 1, 1, 1)
    assert MeshConfig(data=2, fsdp=-1, tensor=2).sizes(8) == (2, 2, 2, 1)
    assert make_mesh(MeshConfig(fsdp=4)).shape == {"data": 2, "fsdp": 4, "tensor": 1, "context": 1}
    assert make_mesh(MeshConfig(), jax.devices()[:2]).size == 2


@dataclasses.dataclass(frozen=True)
class Chip:
    """The attributes of a device that a mesh is laid out by."""

    id: int
    slice_index: int
    process_index: int = 0
    platform: str = "gpu"
    device_kind: str = "any"


def test_a_mesh_over_slices_crosses_them_along_data_or_else_fsdp() -> None:
    chips = [Chip(i, slice_index=i // 4) for i in range(8)]
    slices = np.vectorize(lambda chip: chip.slice_index)
    data = slices(device_grid((2, 2, 2, 1), chips))
    assert data[:, 0, 0, 0].tolist() == [0, 1]
    assert (np.ptp(data, axis=(1, 2, 3)) == 0).all()
    assert slices(device_grid((1, 8, 1, 1), chips)).ravel().tolist() == [0] * 4 + [1] * 4
    with pytest.raises(UserError, match=r"2 slices divide neither data \(1\) nor fsdp \(1\); make"):
        device_grid((1, 1, 8, 1), chips)


# Activations


def test_activations_leave_out_what_does_not_divide() -> None:
    mesh = abstract_mesh(2, 4, 2, 3)
    assert activation_spec(mesh, (8, 24, 64), ("batch", "length", None)) == P(
        ("fsdp", "data"), "context", None
    )
    assert activation_spec(mesh, (2, 25, 64), ("batch", "length", None)) == P("data", None, None)
    assert activation_spec(mesh, (4, 6, 24, 8), ("batch", None, "attention_heads", None)) == P(
        "fsdp", None, ("tensor", "context"), None
    )


def test_constrain_does_nothing_without_a_mesh() -> None:
    x = jnp.ones((2, 3))
    assert constrain(x, "batch", None) is x
    with jax.set_mesh(make_mesh(MeshConfig(8))):
        y = jax.jit(lambda x: constrain(x, "batch", None))(jnp.ones((16, 3)))
    assert {shard.data.shape for shard in y.addressable_shards} == {(2, 3)}


# Numbers


def on_mesh(mesh: Mesh | None, *, scan_layers: bool = True, rules: Rules = LORA_RULES) -> Flux:
    """The tiny model with an adapter, the same numbers on every mesh."""
    model = abstract_flux(scan_layers=scan_layers)
    tensors = random_tensors()
    ranks = dict.fromkeys(select(abstract_flux(), TARGETED), RANK)
    _, factors = combine(model, [(random_adapter(ranks), 1.0)], model.stacks)
    add_factors(model, dict.fromkeys(select(model, TARGETED), RANK))
    shardings = None
    if mesh is not None:
        shapes = param_shapes(model)
        shardings = param_shardings(shapes, FLUX_RULES, mesh, STACKS, spare=rules)
    source = TensorSource(tensors | dict(factors.tensors))
    return materialise(model, source, stacks=model.stacks, shardings=shardings)


def run(model: Flux, *, gradient: bool) -> tuple[jax.Array, dict[str, jax.Array]]:
    graphdef, state = nnx.split(model)
    inputs = flux_inputs(batch=8)

    def loss(state: nnx.State) -> tuple[jax.Array, jax.Array]:
        out = nnx.merge(graphdef, state)(**inputs)
        return jnp.sin(out).mean(), out

    if not gradient:
        return jax.jit(loss)(state)[1], {}
    grads, out = jax.jit(jax.grad(loss, has_aux=True))(state)
    return out, {".".join(map(str, p)): v[...] for p, v in nnx.to_flat_state(grads)}


@functools.cache
def on_one_device() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    out, grads = run(on_mesh(None), gradient=True)
    return np.asarray(out), {path: np.asarray(grad) for path, grad in grads.items()}


def relative(ours: jax.Array, theirs: np.ndarray) -> float:
    return float(np.linalg.norm(np.asarray(ours) - theirs) / np.linalg.norm(theirs))


@pytest.mark.parametrize("mesh", ["data=8", "fsdp=8", "tensor=4", "context=4"])
def test_outputs_equal_those_of_one_device(mesh: str) -> None:
    devices = make_mesh(MESHES[mesh])
    with jax.set_mesh(devices):
        out, _ = run(on_mesh(devices), gradient=False)
    assert relative(out, on_one_device()[0]) < 1e-5


@pytest.mark.parametrize(
    ("mesh", "rules"),
    [("data=2, fsdp=2, tensor=2", LORA_RULES), ("fsdp=2, tensor=2, context=2", TRAINED_LORA_RULES)],
    ids=["replicas", "context"],
)
def test_gradients_equal_those_of_one_device(mesh: str, rules: Rules) -> None:
    devices = make_mesh(MESHES[mesh])
    with jax.set_mesh(devices):
        out, grads = run(on_mesh(devices, rules=rules), gradient=True)
    expected, expected_grads = on_one_device()
    assert relative(out, expected) < 1e-5
    for path, grad in grads.items():
        assert np.abs(expected_grads[path]).max() > 0, path
        assert relative(grad, expected_grads[path]) < 2e-3, path


def test_unrolled_layers_on_a_mesh() -> None:
    devices = make_mesh(MESHES["data=2, fsdp=2, tensor=2"])
    with jax.set_mesh(devices):
        out, _ = run(on_mesh(devices, scan_layers=False), gradient=False)
    assert relative(out, on_one_device()[0]) < 1e-5
