"""Low-rank adapters (LoRA): y = x W + scale * (x A) B, with scale = alpha / rank.

A model holds one pair of factors per adapted Linear. Several adapters at once are one adapter of
their summed rank: A factors side by side, B factors stacked and scaled. Where ranks differ, or an
adapter leaves a Linear alone, zeros fill up; they change nothing and are not exported.

In files and in `Adapter` the factors have per-layer paths beside the kernel they adapt
(`double_blocks.0.img_attn.qkv.lora_a`); their shapes are given in `dsd_jax.layers`.
"""

import collections
import dataclasses
import difflib
import functools
import hashlib
import itertools
import math
import numbers
import re
from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dsd_jax.condition import CANVAS
from dsd_jax.distilled import Distilled
from dsd_jax.errors import UserError
from dsd_jax.layers import JoinedLinear, Linear, LoraParam
from dsd_jax.quantise import kind_of
from dsd_jax.stack import SCALE, layer_paths, without_layers
from dsd_jax.types import Array, DTypeLike, Shape
from dsd_jax.weights import Index, TensorSource, WeightSource

__all__ = [
    "FACTOR_OF",
    "NO_MERGE",
    "TARGETS",
    "Adapter",
    "LoraConfig",
    "MergedSource",
    "add_factors",
    "check_scale",
    "combine",
    "initialise",
    "is_fused",
    "merge",
    "unmerge",
]

# Patterns match module paths without layer numbers. "attention" is what the released DSD adapter
# covers: 8 projections per double block and q, k, v per single block, 266 Linears in FLUX.1-dev.
_ATTENTION = (r".*\.qkv", r".*_attn\.proj")
_FEED_FORWARD = (r".*_mlp\.(in|out)_layer", r".*\.mlp_in", r".*\.linear2")
TARGETS: dict[str, tuple[str, ...]] = {
    "attention": _ATTENTION,
    "attention+ff": (*_ATTENTION, *_FEED_FORWARD),
    "all": (rf"(?!{CANVAS.module}$).*",),  # the condition is trained in full instead
}
FACTOR_OF = {"kernel": "lora_a", "attn_kernel": "lora_a_attn", "mlp_kernel": "lora_a_mlp"}
"""Name of a kernel -> name of its A factor. The kernels of a layer share one `lora_b`."""
NO_MERGE = (
    "a LoRA cannot be merged into int8 or int4 weights, whose rounding would lose most of it; "
    "leave out merge_lora, and it is applied beside them"
)
FACTOR_NAMES = (*FACTOR_OF.values(), "lora_b")


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Size of a new adapter.

    Attributes:
        rank: Rank of the factors.
        alpha: Scale times rank. Default: the rank, which gives a scale of 1.
        targets: Layers to adapt: attention, attention+ff, all, or regular expressions of paths.
    """

    rank: int = 512
    alpha: float | None = None
    targets: str | tuple[str, ...] = "attention"

    @property
    def scale(self) -> float:
        """`alpha / rank`; 1 without alpha."""
        return 1.0 if self.alpha is None else self.alpha / self.rank


@dataclasses.dataclass(frozen=True)
class Adapter:
    """An adapter outside a model.

    Attributes:
        factors: per-layer path -> factor, with alpha / rank folded into B.
        full: per-layer path -> tensor that replaces a base parameter (the condition embedding).
        name: name for messages.
        distilled: the sampling that it was distilled for, if it was.
    """

    factors: Mapping[str, np.ndarray]
    full: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    name: str = "adapter"
    distilled: Distilled | None = None

    @property
    def ranks(self) -> dict[str, int]:
        """Rank of every adapted module, by path."""
        return {
            path.removesuffix(".lora_b"): factor.shape[_rank_axis(path)]
            for path, factor in self.factors.items()
            if path.endswith(".lora_b")
        }

    def sha256(self) -> str:
        """Digest of its tensors."""
        digest = hashlib.sha256()
        for name, value in sorted({**self.factors, **self.full}.items()):
            digest.update(f"{name} {value.dtype} {value.shape}".encode())
            digest.update(np.ascontiguousarray(value).tobytes())
        return digest.hexdigest()


def is_fused(module_path: str) -> bool:
    """Whether a Linear of FLUX holds q, k and v, each with factors of its own (`Linear.fused`)."""
    return module_path.endswith(".qkv")


def _rank_axis(path: str) -> int:
    """Axis of the rank in a factor, without layer axis."""
    module, _, factor = path.rpartition(".")
    if factor.startswith("lora_a"):
        return -1
    return 1 if is_fused(module) else 0


def _linears(module: nnx.Module) -> Iterator[tuple[str, Linear | JoinedLinear]]:
    for path, part in nnx.iter_modules(module):
        if isinstance(part, Linear | JoinedLinear):
            yield ".".join(map(str, path)), part


def _factor_shapes(linear: Linear | JoinedLinear, rank: int) -> dict[str, Shape]:
    """Shapes of the factors of one layer."""
    if isinstance(linear, JoinedLinear):
        heads, dim, width = linear.attn_kernel.shape[-3:]
        return {
            "lora_a_attn": (heads, dim, rank),
            "lora_a_mlp": (linear.mlp_kernel.shape[-2], rank),
            "lora_b": (rank, width),
        }
    inputs, outputs = linear.in_shape, linear.out_shape
    if linear.fused == 1:
        return {"lora_a": (*inputs, rank), "lora_b": (rank, *outputs)}
    count, *rest = outputs
    return {"lora_a": (*inputs, count, rank), "lora_b": (count, rank, *rest)}


def _layer_axis(linear: Linear | JoinedLinear) -> Shape:
    """`(depth,)` for a Linear of a scanned stack, else `()`."""
    if isinstance(linear, JoinedLinear):
        return tuple(linear.attn_kernel.shape[:-3])
    return tuple(linear.kernel.shape[: -len(linear.in_shape) - len(linear.out_shape)])


def select(module: nnx.Module, targets: str | Sequence[str]) -> list[str]:
    """Finds the paths of the Linears that `targets` names, in the module's own layout.

    Raises:
        UserError: a pattern that matches nothing, or an unknown name of a set of targets.
    """
    patterns = TARGETS.get(targets, (targets,)) if isinstance(targets, str) else tuple(targets)
    paths = [path for path, _ in _linears(module)]
    for pattern in patterns:
        if not any(re.fullmatch(pattern, without_layers(path)) for path in paths):
            near = difflib.get_close_matches(pattern, [*TARGETS, *map(without_layers, paths)], 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; sets: {', '.join(TARGETS)}"
            raise UserError(f"LoRA target {pattern!r} matches no Linear of this model{hint}")
    return [p for p in paths if any(re.fullmatch(q, without_layers(p)) for q in patterns)]


def add_factors(module: nnx.Module, ranks: Mapping[str, int]) -> None:
    """Gives an abstract module abstract float32 factors, ready for `weights.materialise`."""
    for path, linear in _linears(module):
        if path in ranks:
            for name, own in _factor_shapes(linear, ranks[path]).items():
                shape = (*_layer_axis(linear), *own)
                setattr(linear, name, LoraParam(jax.ShapeDtypeStruct(shape, jnp.float32)))
            linear.lora_scale, linear.lora_merged = 1.0, False


def initialise(module: nnx.Module, config: LoraConfig, rngs: nnx.Rngs) -> None:
    """Adds a new adapter in place: A uniform in +-1/sqrt(fan in) as PEFT does, B zero.

    Raises:
        UserError: a rank below 1, or targets that match nothing.
    """
    if config.rank < 1:
        raise UserError(f"LoRA rank must be at least 1, got {config.rank}")
    chosen = set(select(module, config.targets))
    for path, linear in _linears(module):
        if path not in chosen:
            continue
        fan_in = (
            math.prod(linear.in_shape)
            if isinstance(linear, Linear)
            else math.prod(linear.attn_kernel.shape[-3:-1]) + linear.mlp_kernel.shape[-2]
        )
        bound = fan_in**-0.5
        for name, own in _factor_shapes(linear, config.rank).items():
            shape = (*_layer_axis(linear), *own)
            if name == "lora_b":
                value = jnp.zeros(shape, jnp.float32)
            else:
                value = jax.random.uniform(
                    rngs.params(), shape, jnp.float32, minval=-bound, maxval=bound
                )
            setattr(linear, name, LoraParam(value))
        linear.lora_scale, linear.lora_merged = config.scale, False


def check_scale(scale: object) -> float:
    """Returns the strength of an adapter.

    Raises:
        UserError: it is not finite, which would make every image of the model so.
    """
    if not isinstance(scale, numbers.Real) or not math.isfinite(scale):
        raise UserError(f"the scale of a LoRA must be a finite number, got {scale!r}")
    return float(scale)


def combine(
    module: nnx.Module, adapters: Sequence[tuple[Adapter, float]], stacks: Mapping[str, int]
) -> tuple[dict[str, int], TensorSource]:
    """Several scaled adapters as one.

    Args:
        module: the model they are for, with or without arrays.
        adapters: each with its scale.
        stacks: path and depth of the model's stacks.

    Returns:
        Rank of every adapted Linear in the module's own layout, for `add_factors`, and a source of
        all factors, for `materialise`.

    Raises:
        UserError: an adapter that names a Linear the model lacks, or does not fit its shape.
    """
    linears = dict(_linears(module))
    layers = {path: layer_paths(path, stacks) for path in linears}
    owner = {layer: path for path, names in layers.items() for layer in names}
    problems = [
        problem
        for adapter, _ in adapters
        for problem in _misfits(adapter, {layer: linears[path] for layer, path in owner.items()})
    ]
    if problems:
        raise UserError(_listing(problems))

    widths: collections.Counter[str] = collections.Counter()
    for adapter, _ in adapters:
        widths.update(adapter.ranks)
    ranks = {path: max(widths[layer] for layer in names) for path, names in layers.items()}
    ranks = {path: rank for path, rank in ranks.items() if rank}

    tensors: dict[str, np.ndarray] = {}
    for path, rank in ranks.items():
        shapes = _factor_shapes(linears[path], rank)
        for layer, name in itertools.product(layers[path], shapes):
            full = f"{layer}.{name}"
            tensors[full] = np.zeros(shapes[name], np.float32)
            rows = np.moveaxis(tensors[full], _rank_axis(full), 0)
            start = 0
            for adapter, scale in adapters:
                if full in adapter.factors:
                    part = np.moveaxis(adapter.factors[full], _rank_axis(full), 0)
                    factor = scale if name == "lora_b" else 1.0
                    rows[start : start + len(part)] = part.astype(np.float32) * np.float32(factor)
                    start += len(part)
    return ranks, TensorSource(tensors)


def _misfits(adapter: Adapter, linears: Mapping[str, Linear | JoinedLinear]) -> Iterator[str]:
    """Yields the problems of an adapter with a model that has these (per-layer) Linears."""
    for path in adapter.factors:
        module = path.rpartition(".")[0]
        if f"{module}.lora_b" not in adapter.factors:
            yield f"{adapter.name}: {path} has no lora_b beside it"
    for module, rank in adapter.ranks.items():
        if module not in linears:
            yield f"{adapter.name}: the model has no {module}"
            continue
        for name, shape in _factor_shapes(linears[module], rank).items():
            factor = adapter.factors.get(f"{module}.{name}")
            if factor is None:
                yield f"{adapter.name}: {module} has a lora_b, but no {name}"
            elif factor.shape != shape:
                yield f"{adapter.name}: {module}.{name} is {factor.shape}, expected {shape}"


def _listing(problems: Sequence[str]) -> str:
    more = f"\n  and {len(problems) - 8} more" if len(problems) > 8 else ""
    return "this LoRA is for another model:\n  " + "\n  ".join(problems[:8]) + more


@functools.partial(jax.jit, donate_argnums=0, static_argnames=("fused", "ndim"))
def _add_product(
    kernel: Array, a: Array, b: Array, scale: Array, *, fused: bool, ndim: int
) -> Array:
    def one(kernel: Array, a: Array, b: Array) -> Array:
        product = jax.vmap(_product, (-2, 0), a.ndim - 2)(a, b) if fused else _product(a, b)
        return (kernel.astype(jnp.float32) + scale * product).astype(kernel.dtype)

    return jax.vmap(one)(kernel, a, b) if kernel.ndim > ndim else one(kernel, a, b)


def _product(a: Array, b: Array) -> Array:
    return jnp.tensordot(a, b, 1, precision="highest")


def _fold(module: nnx.Module, sign: float) -> None:
    for _, linear in _linears(module):
        if linear.lora_b is None or linear.lora_merged == (sign > 0):
            continue
        scale = jnp.float32(sign * linear.lora_scale)
        b = linear.lora_b[...]
        if isinstance(linear, JoinedLinear):
            pairs = [
                (linear.attn_kernel, linear.lora_a_attn, 3),
                (linear.mlp_kernel, linear.lora_a_mlp, 2),
            ]
        else:
            pairs = [(linear.kernel, linear.lora_a, len(linear.in_shape) + len(linear.out_shape))]
        fused = isinstance(linear, Linear) and linear.fused > 1
        for kernel, a, ndim in pairs:
            assert a is not None  # factors are added together
            kernel.set_value(_add_product(kernel[...], a[...], b, scale, fused=fused, ndim=ndim))
        linear.lora_merged = sign > 0


def merge(module: nnx.Module) -> None:
    """Adds every adapter to its kernel in place; the factors stay, unused, for `unmerge`.

    The sum is formed in float32 and rounded to the kernel's dtype.

    Raises:
        UserError: the kernels are quantised, and rounding to their codes would lose the adapter.
    """
    for _, linear in _linears(module):
        if linear.lora_b is not None and any(
            getattr(linear, name + SCALE) is not None for name in linear.kernels
        ):
            raise UserError(NO_MERGE)
    _fold(module, 1.0)


def unmerge(module: nnx.Module) -> None:
    """Takes merged adapters out of the kernels again, up to one rounding in the kernel's dtype."""
    _fold(module, -1.0)


class MergedSource:
    """Base weights with adapters merged in: the sum is formed in float32 while it is read.

    Args:
        base: the weights.
        adapters: each with its scale; if several replace the same tensor, the last one wins.
        dtype: dtype of everything that is read; by default sums have the dtype of the weights, and
            tensors that an adapter replaces have the adapter's.

    Raises:
        UserError: an adapter does not fit the weights, or they are quantised.
    """

    def __init__(
        self,
        base: WeightSource,
        adapters: Sequence[tuple[Adapter, float]],
        dtype: DTypeLike | None = None,
    ) -> None:
        self.base, self.adapters = base, list(adapters)
        if self.adapters and kind_of(base.dtypes) is not None:
            raise UserError(NO_MERGE)
        self._dtype = None if dtype is None else np.dtype(dtype)
        held = base.shapes
        problems = []
        self._full: dict[str, np.ndarray] = {}
        sums: dict[str, Shape] = {}
        for adapter, _ in self.adapters:
            self._full |= adapter.full
            kernels = _kernel_shapes(adapter)
            sums |= kernels
            wanted = {path: tensor.shape for path, tensor in adapter.full.items()} | kernels
            problems += [
                f"{adapter.name}: these weights have no {path}"
                if path not in held
                else f"{adapter.name}: {path} is {tuple(held[path])}, the adapter is for {shape}"
                for path, shape in wanted.items()
                if path not in held or tuple(held[path]) != shape
            ]
        if problems:
            raise UserError(_listing(problems))
        self.sums = sums.keys() - self._full.keys()
        """Paths of the kernels that adapters are added to."""

    @property
    def shapes(self) -> Mapping[str, Shape]:
        return self.base.shapes

    @property
    def dtypes(self) -> Mapping[str, np.dtype]:
        own = self.base.dtypes
        if self._dtype is not None:
            return dict.fromkeys(own, self._dtype)
        return {**own, **{path: tensor.dtype for path, tensor in self._full.items()}}

    def read(self, path: str, index: Index) -> np.ndarray:
        if path in self._full:
            return self._full[path][index].astype(self.dtypes[path])
        total = self.base.read(path, index)
        for adapter, scale in self.adapters:
            delta = _delta(adapter, path, index)
            if delta is not None:
                total = total.astype(np.float32) + np.float32(scale) * delta
        return total.astype(self.dtypes[path], copy=False)


def _kernel_shapes(adapter: Adapter) -> dict[str, Shape]:
    """Kernel path -> shape of the kernel that an adapter is for."""
    shapes = {}
    for path, b in adapter.factors.items():
        module, _, name = path.rpartition(".")
        if name != "lora_b":
            continue
        outputs = b.shape[2:] if is_fused(module) else b.shape[1:]
        for kernel, factor in FACTOR_OF.items():
            a = adapter.factors.get(f"{module}.{factor}")
            if a is not None:
                shapes[f"{module}.{kernel}"] = (*a.shape[:-1], *outputs)
    return shapes


def _delta(adapter: Adapter, kernel_path: str, index: Index) -> np.ndarray | None:
    """Slice of A B for one kernel, float32; None if the adapter does not touch it."""
    module, _, kernel = kernel_path.rpartition(".")
    a = adapter.factors.get(f"{module}.{FACTOR_OF.get(kernel)}")
    if a is None:
        return None
    a, b = a.astype(np.float32), adapter.factors[f"{module}.lora_b"].astype(np.float32)
    index = (*index, *[slice(None)] * (a.ndim + b.ndim - 2 - is_fused(module) - len(index)))
    inputs = a.ndim - 1
    a = a[index[:inputs]]
    if not is_fused(module):
        return np.tensordot(a, b[(slice(None), *index[inputs:])], 1)
    b = b[(index[inputs - 1], slice(None), *index[inputs:])]
    parts = [np.tensordot(a[..., part, :], b[part], 1) for part in range(len(b))]
    return np.stack(parts, axis=a.ndim - 2)
