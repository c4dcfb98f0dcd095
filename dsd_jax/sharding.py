"""One mesh with four named axes, and tables that say which parameter axis lies on which of them.

Models carry no annotation but `constrain` at block borders. Everything else is here: a mesh, an
ordered table `path pattern -> logical axes` per model (first match wins), and one map from logical
axes to mesh axes. JAX's partitioner does the rest.

    data      replicas of the model, each with its part of the batch
    fsdp      parameters sharded along the width, gathered layer by layer; the batch is split too
    tensor    heads and mlp channels
    context   image tokens; exchanged for heads inside attention
"""

import contextlib
import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from dsd_jax.errors import UserError
from dsd_jax.stack import kernel_of_scale, without_layers
from dsd_jax.types import Array, Float, Int, Shape

__all__ = [
    "AUTOENCODER_RULES",
    "CLIP_RULES",
    "FLUX_RULES",
    "LORA_RULES",
    "MESH_AXES",
    "T5_RULES",
    "TRAINED_LORA_RULES",
    "VISION_RULES",
    "MeshConfig",
    "activation_spec",
    "batch_sharding",
    "batch_ways",
    "constrain",
    "current_mesh",
    "device_grid",
    "make_mesh",
    "on_mesh",
    "param_shardings",
    "param_specs",
    "place_batch",
    "replicated",
]

MESH_AXES = ("data", "fsdp", "tensor", "context")
LARGE = 2**20  # elements; a parameter this large must be named by a rule

Axis = str | None
Rules = Sequence[tuple[str, tuple[Axis, ...]]]

LOGICAL_TO_MESH: dict[str, tuple[str, ...]] = {
    "width": ("fsdp",),
    "heads": ("tensor",),
    "mlp": ("tensor",),
    "rank": ("fsdp",),
    # Not (data, fsdp): parameters are cut by fsdp and repeated over data. Where activations are cut
    # in the other order, XLA's partitioner swaps them for some products and forgets to swap back
    # (jax 0.10.2; half of the batch came out wrong on data=2, fsdp=2, tensor=2).
    "trained_rank": ("fsdp", "data"),
    "batch": ("fsdp", "data"),
    "length": ("context",),
    "attention_heads": ("tensor", "context"),
}
# Mesh axes that do not divide it are left out: a rank belongs to an adapter, whoever made it.
YIELDING = frozenset({"rank", "trained_rank"})

# Patterns are matched in full against the path without layer numbers.
FLUX_RULES: Rules = (
    (r".*\.qkv\.kernel", ("width", None, "heads", None)),
    (r".*_attn\.proj\.kernel", ("heads", None, "width")),
    (r".*(_mlp\.in_layer|\.mlp_in)\.kernel", ("width", "mlp")),
    (r".*_mlp\.out_layer\.kernel", ("mlp", "width")),
    (r".*\.linear2\.attn_kernel", ("heads", None, "width")),
    (r".*\.linear2\.mlp_kernel", ("mlp", "width")),
    (r".*(mod|modulation)\.lin\.kernel", ("width", None, "mlp")),
    (r"final_layer\.modulation\.kernel", ("width", None, "mlp")),
    (r"final_layer\.linear\.kernel", ("width", None)),
    (r"\w+_in\.kernel", (None, "width")),
    (r"(time_in|vector_in|guidance_in)\.in_layer\.kernel", (None, "width")),
    (r"(time_in|vector_in|guidance_in)\.out_layer\.kernel", ("width", "mlp")),
)
LORA_RULES: Rules = (
    (r".*\.qkv\.lora_a", ("width", None, None)),
    (r".*\.qkv\.lora_b", (None, "rank", "heads", None)),
    (r".*_attn\.proj\.lora_a", ("heads", None, "rank")),
    (r".*(_mlp\.out_layer)\.lora_a", ("mlp", "rank")),
    (r".*\.linear2\.lora_a_attn", ("heads", None, "rank")),
    (r".*\.linear2\.lora_a_mlp", ("mlp", "rank")),
    (r".*(_mlp\.in_layer|\.mlp_in)\.lora_b", ("rank", "mlp")),
    (r".*(mod|modulation)(\.lin)?\.lora_b", ("rank", None, "mlp")),
    (r"\w+_in(\.in_layer)?\.lora_a", (None, "rank")),
    (r"final_layer\.linear\.lora_b", ("rank", None)),
    (r".*\.lora_a", ("width", None)),
    (r".*\.lora_b", (None, "width")),
)
# While an adapter is trained, float32 factors and two moments of each outweigh everything that
# replicas could share; every device of the batch axes keeps a slice of the rank.
TRAINED_LORA_RULES: Rules = (
    (r".*\.qkv\.lora_b", (None, "trained_rank", "heads", None)),
    (r".*\.qkv\.lora_a", (None, None, "trained_rank")),
    (r".*(_attn\.proj\.lora_a|\.linear2\.lora_a_attn)", ("heads", None, "trained_rank")),
    (r".*(_mlp\.out_layer\.lora_a|\.linear2\.lora_a_mlp)", ("mlp", "trained_rank")),
    (r".*(_mlp\.in_layer|\.mlp_in)\.lora_b", ("trained_rank", "mlp")),
    (r".*(mod|modulation)(\.lin)?\.lora_b", ("trained_rank", None, "mlp")),
    (r".*\.lora_a", (None, "trained_rank")),
    (r".*\.lora_b", ("trained_rank", None)),
)
T5_RULES: Rules = (
    (r"shared\.embedding", (None, "width")),
    (r"blocks\.attn\.[qkv]\.kernel", ("width", "heads", None)),
    (r"blocks\.attn\.o\.kernel", ("heads", None, "width")),
    (r"blocks\.mlp\.wi_[01]\.kernel", ("width", "mlp")),
    (r"blocks\.mlp\.wo\.kernel", ("mlp", "width")),
)
# At most a billion parameters each: replicated, which costs less than gathering them.
CLIP_RULES: Rules = ((r".*", ()),)
AUTOENCODER_RULES: Rules = ((r".*", ()),)
VISION_RULES: Rules = ((r".*", ()),)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes. One may be -1, which takes the devices that the others leave.

    Attributes:
        data: Replicas of the model, each with its part of the batch.
        fsdp: Shards of the parameters along the width; the batch is split too.
        tensor: Shards of the attention heads and mlp channels.
        context: Shards of the image tokens.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    context: int = 1

    def sizes(self, num_devices: int) -> tuple[int, ...]:
        """The four sizes with -1 filled in; their product is `num_devices`."""
        sizes = [self.data, self.fsdp, self.tensor, self.context]
        given = dict(zip(MESH_AXES, sizes, strict=True))
        free = [i for i, size in enumerate(sizes) if size == -1]
        if len(free) > 1 or any(size < 1 and size != -1 for size in sizes):
            raise UserError(f"mesh sizes must be positive, at most one of them -1; got {given}")
        fixed = math.prod(size for size in sizes if size != -1)
        if num_devices % fixed or (not free and fixed != num_devices):
            raise UserError(
                f"a mesh of {given} does not divide {num_devices} devices; choose sizes whose "
                f"product is {num_devices}, or leave one at -1"
            )
        for i in free:
            sizes[i] = num_devices // fixed
        return tuple(sizes)


def make_mesh(
    config: MeshConfig | None = None, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """Makes a mesh over `devices` (by default all), laid out for their interconnect.

    Raises:
        UserError: the sizes do not divide the devices, or the slices divide neither axis.
    """
    devices = list(devices or jax.devices())
    sizes = (config or MeshConfig()).sizes(len(devices))
    types = (AxisType.Auto,) * len(MESH_AXES)
    return Mesh(device_grid(sizes, devices), MESH_AXES, axis_types=types)


def device_grid(sizes: tuple[int, ...], devices: Sequence[Any]) -> np.ndarray:
    """Arranges devices in the shape of a mesh.

    The axis `data` runs between slices (or GPU hosts without a common link) if their number divides
    it; otherwise `fsdp` does.

    Raises:
        UserError: the slices divide neither axis.
    """
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    across = next((axis for axis in (0, 1) if sizes[axis] % slices == 0), None)
    if across is None:
        raise UserError(
            f"{slices} slices divide neither data ({sizes[0]}) nor fsdp ({sizes[1]}); make one of "
            "them a multiple of the slices"
        )
    outer = tuple(slices if axis == across else 1 for axis in range(len(sizes)))
    inner = tuple(size // own for size, own in zip(sizes, outer, strict=True))
    return mesh_utils.create_hybrid_device_mesh(
        inner, outer, devices, allow_split_physical_axes=True
    )


def on_mesh(mesh: Mesh | None) -> contextlib.AbstractContextManager[object]:
    """`jax.set_mesh`, or nothing for a single device."""
    return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


def current_mesh() -> AbstractMesh | None:
    """The mesh set by `jax.set_mesh`, or None where there is none or it is a single device."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or mesh.size == 1 else mesh


def activation_spec(mesh: Mesh | AbstractMesh, shape: Shape, axes: Sequence[Axis]) -> PartitionSpec:
    """Partition spec of an activation, without the mesh axes that do not divide a dimension."""
    spec = [
        _dividing(mesh, size, LOGICAL_TO_MESH[axis] if axis else ()) or None
        for size, axis in zip(shape, axes, strict=True)
    ]
    return PartitionSpec(*spec)


def _dividing(mesh: Mesh | AbstractMesh, size: int, names: Sequence[str]) -> tuple[str, ...]:
    """Keeps, in order, the mesh axes that together divide `size`."""
    kept: list[str] = []
    for name in names:
        if size % (math.prod(mesh.shape[k] for k in kept) * mesh.shape[name]) == 0:
            kept.append(name)
    return tuple(kept)


def batch_ways(mesh: Mesh | AbstractMesh | None) -> int:
    """Number of parts that the mesh cuts a batch into; one without a mesh."""
    if mesh is None:
        return 1
    return math.prod(mesh.shape[name] for name in LOGICAL_TO_MESH["batch"])


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of an array whose first axis is the batch."""
    return NamedSharding(mesh, PartitionSpec(LOGICAL_TO_MESH["batch"]))


def place_batch(rows: Float[Any, "B ..."] | Int[Any, "B ..."], mesh: Mesh | None) -> Array:
    """Rows on the devices of a mesh, split over its batch axes; on one device without a mesh."""
    return jnp.asarray(rows) if mesh is None else jax.device_put(rows, batch_sharding(mesh))


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of an array that every device holds."""
    return NamedSharding(mesh, PartitionSpec())


def constrain(x: Array, *axes: Axis) -> Array:
    """Fixes the sharding of an activation by logical axes; does nothing without a mesh."""
    mesh = current_mesh()
    if mesh is None:
        return x
    return jax.lax.with_sharding_constraint(x, activation_spec(mesh, x.shape, axes))


def param_specs(
    shapes: Mapping[str, Shape],
    rules: Rules,
    mesh: Mesh | AbstractMesh,
    stacks: Sequence[str] = (),
    *,
    spare: Rules = (),
) -> dict[str, PartitionSpec]:
    """Finds the partition spec of every parameter.

    The scales of a quantised kernel follow the kernel's rule: those of channels by the axes of its
    outputs, those of groups by all axes that divide them.

    Args:
        shapes: parameter path -> shape; paths as in either layout of `dsd_jax.stack`.
        rules: ordered table; the first pattern that matches the path (layer numbers removed) wins.
        mesh: gives the axis sizes.
        stacks: paths of stacks; a parameter below one, without layer number, has a layer axis.
        spare: more rules, tried last. These may match nothing, since the targets of adapters vary.

    Raises:
        UserError: a large parameter matches no rule, a rule matches nothing, two axes of a
            parameter land on one mesh axis, or a mesh axis does not divide a parameter's axis.
    """
    problems: list[str] = []
    used: set[str] = set()
    specs: dict[str, PartitionSpec] = {}
    for path, shape in shapes.items():
        kernel = kernel_of_scale(path)
        key = without_layers(kernel or path)
        stacked = without_layers(path) == path and any(
            path.startswith(stack + ".") for stack in stacks
        )
        pattern, axes = next(
            ((rule, axes) for rule, axes in (*rules, *spare) if re.fullmatch(rule, key)), ("", ())
        )
        used.add(pattern)
        if not pattern and math.prod(shape) >= LARGE:
            problems.append(f"{path} {shape}: no sharding rule matches this large parameter")
        own = shape[1:] if stacked else shape
        if kernel:
            axes = axes[len(axes) - len(own) :]
        if axes and len(axes) != len(own):
            problems.append(f"{path} {own}: rule {pattern!r} has {len(axes)} axes")
            continue
        entries = [LOGICAL_TO_MESH[axis] if axis else () for axis in axes]
        flat = [name for names in entries for name in names]
        if len(flat) != len(set(flat)):
            problems.append(f"{path}: rule {pattern!r} puts two axes on one mesh axis, {entries}")
        spec: list[tuple[str, ...] | None] = []
        for size, axis, names in zip(own, axes, entries, strict=bool(axes)):
            kept = _dividing(mesh, size, names)
            ways = math.prod(mesh.shape[name] for name in names)
            if size % ways and axis not in YIELDING and not kernel:
                problems.append(f"{path} {own}: {'x'.join(names)}={ways} does not divide {size}")
            spec.append(tuple(name for name in kept if mesh.shape[name] > 1) or None)
        specs[path] = PartitionSpec(*([None] * stacked), *spec)
    problems += [f"rule {rule!r} matches no parameter" for rule, _ in rules if rule not in used]
    if problems:
        shown = "\n  ".join(problems[:8])
        more = f"\n  and {len(problems) - 8} more" if len(problems) > 8 else ""
        sizes = dict(mesh.shape)
        raise UserError(f"cannot shard the parameters over mesh {sizes}:\n  {shown}{more}")
    return specs


def param_shardings(
    shapes: Mapping[str, Shape],
    rules: Rules,
    mesh: Mesh,
    stacks: Sequence[str] = (),
    *,
    spare: Rules = (),
) -> dict[str, NamedSharding]:
    """`param_specs` as shardings of concrete devices."""
    specs = param_specs(shapes, rules, mesh, stacks, spare=spare)
    return {path: NamedSharding(mesh, spec) for path, spec in specs.items()}
