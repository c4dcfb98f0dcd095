"""Fills a module on devices from a source of weights, one tensor (or slice) at a time.

Weights enter through one protocol. A source knows parameters by their per-layer paths
(`double_blocks.3.img_mod.lin.kernel`) and reads any slice of one; `materialise` asks for exactly
the slices that this host's devices hold, stacks layers where the module is scanned, and never has
more than a few tensors on the host.
"""

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Sharding

from dsd_jax.errors import UserError
from dsd_jax.stack import SCALE, layer_paths
from dsd_jax.types import DTypeLike, Shape

__all__ = [
    "Layered",
    "TensorSource",
    "WeightSource",
    "Zeros",
    "empty",
    "materialise",
    "param_shapes",
]

Module = TypeVar("Module", bound=nnx.Module)
Index = tuple[slice, ...]
READERS = 4  # tensors in flight: enough to overlap reading, reordering and the copy to devices
_ALIGNMENT = 64  # bytes


@runtime_checkable
class WeightSource(Protocol):
    """Anything that holds parameters under per-layer paths."""

    @property
    def shapes(self) -> Mapping[str, Shape]:
        """Shape of every parameter it holds."""

    @property
    def dtypes(self) -> Mapping[str, np.dtype]:
        """Dtype in which each parameter is read."""

    def read(self, path: str, index: Index) -> np.ndarray:
        """One slice of one parameter, in the dtype of the source; may be a strided view."""


@runtime_checkable
class Filling(Protocol):
    """A source that can read into memory at hand."""

    def fill(self, path: str, index: Index, out: np.ndarray) -> None:
        """Reads one slice into an array of its shape, cast to its dtype."""


class TensorSource:
    """Parameters in memory. Nothing may change them: CPU devices may share the memory."""

    def __init__(self, tensors: Mapping[str, np.ndarray]) -> None:
        self.tensors = tensors

    @property
    def shapes(self) -> dict[str, Shape]:
        return {path: tensor.shape for path, tensor in self.tensors.items()}

    @property
    def dtypes(self) -> dict[str, np.dtype]:
        return {path: tensor.dtype for path, tensor in self.tensors.items()}

    def read(self, path: str, index: Index) -> np.ndarray:
        return self.tensors[path][index]


class Zeros:
    """Parameters that start at zero, whatever the other sources hold."""

    def __init__(self, shapes: Mapping[str, Shape], dtype: DTypeLike = np.float32) -> None:
        self.shapes = dict(shapes)
        self.dtypes = dict.fromkeys(shapes, np.dtype(dtype))

    def read(self, path: str, index: Index) -> np.ndarray:
        # A view of one element: no memory for what is only copied from.
        return np.broadcast_to(np.zeros((), self.dtypes[path]), self.shapes[path])[index]


class Layered:
    """Several sources as one. If two hold a path, the earlier one is read."""

    def __init__(self, *sources: WeightSource) -> None:
        self._owner: dict[str, WeightSource] = {}
        for source in sources:
            for path in source.shapes:
                self._owner.setdefault(path, source)

    @property
    def shapes(self) -> dict[str, Shape]:
        return {path: owner.shapes[path] for path, owner in self._owner.items()}

    @property
    def dtypes(self) -> dict[str, np.dtype]:
        return {path: owner.dtypes[path] for path, owner in self._owner.items()}

    def read(self, path: str, index: Index) -> np.ndarray:
        return self._owner[path].read(path, index)

    def fill(self, path: str, index: Index, out: np.ndarray) -> None:
        _fill(self._owner[path], path, index, out)


def _fill(source: WeightSource, path: str, index: Index, out: np.ndarray) -> None:
    """Reads one slice into an array of its shape, cast to its dtype."""
    if isinstance(source, Filling):
        source.fill(path, index, out)
    else:
        out[...] = source.read(path, index)


def empty(shape: Sequence[int], dtype: DTypeLike) -> np.ndarray:
    """A new array, not yet filled, whose memory a CPU device takes over instead of copying it."""
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def param_shapes(module: nnx.Module) -> dict[str, Shape]:
    """Path -> shape of every parameter of a (possibly abstract) module, in its own layout."""
    flat = nnx.to_flat_state(nnx.state(module, nnx.Param))
    return {".".join(map(str, path)): tuple(variable.shape) for path, variable in flat}


def _check(wanted: Mapping[str, Shape], held: Mapping[str, Shape]) -> None:
    problems = [f"missing: {path} {shape}" for path, shape in wanted.items() if path not in held]
    problems += [
        f"wrong shape: {path} is {held[path]}, the model needs {shape}"
        for path, shape in wanted.items()
        if path in held and tuple(held[path]) != tuple(shape)
    ]
    if problems:
        more = f"\n  and {len(problems) - 8} more" if len(problems) > 8 else ""
        listed = "\n  ".join(problems[:8])
        raise UserError(f"these weights do not fit the model:\n  {listed}{more}")


def materialise(
    module: Module,
    source: WeightSource,
    *,
    stacks: Mapping[str, int],
    shardings: Mapping[str, Sharding] | Sharding | None = None,
    reuse: Mapping[str, jax.Array] | None = None,
) -> Module:
    """Fills an abstract module with weights.

    Args:
        module: result of `nnx.eval_shape`; the weights are cast to its dtypes.
        source: source of the weights.
        stacks: path and depth of the module's stacks of blocks.
        shardings: per path in the module's own layout, or one for all; default: one device.
        reuse: arrays to take instead of reading them, by path in the module's own layout.

    Returns:
        The module with arrays on devices.

    Raises:
        UserError: the source lacks a parameter or holds it in another shape.
    """
    graphdef, state = nnx.split(module)
    flat = nnx.to_flat_state(state)
    paths = [".".join(map(str, path)) for path, _ in flat]
    layers = {path: layer_paths(path, stacks) for path in paths}
    wanted: dict[str, Shape] = {}
    for path, (_, variable) in zip(paths, flat, strict=True):
        shape = tuple(variable.shape)
        own = shape if layers[path] == [path] else shape[1:]
        wanted |= dict.fromkeys(layers[path], own)
    _check(wanted, source.shapes)

    if shardings is None:
        shardings = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def load(item: tuple[str, tuple[object, nnx.Variable]]) -> jax.Array:
        path, (_, variable) = item
        if reuse is not None and path in reuse:
            return reuse[path]
        shape, dtype = tuple(variable.shape), jnp.dtype(variable.dtype)
        names = layers[path]

        def read(index: Index) -> np.ndarray:
            if names == [path]:
                return source.read(path, index).astype(dtype, copy=False)
            kept, rest = range(len(names))[index[0]], index[1:]
            sizes = [len(range(n)[s]) for n, s in zip(shape[1:], rest, strict=True)]
            out = empty((len(kept), *sizes), dtype)
            for row, layer in zip(out, kept, strict=True):
                _fill(source, names[layer], rest, row)
            return out

        held: dict[str, np.ndarray] = {}

        def read_once(index: Index | None) -> np.ndarray:
            assert index is not None  # None only if the sharding has no indices
            key = repr(index)  # JAX asks anew for every device that holds the same slice
            if key not in held:
                held[key] = read(index)
            return held[key]

        sharding = shardings[path] if isinstance(shardings, Mapping) else shardings
        return jax.make_array_from_callback(shape, sharding, read_once)

    # Large parameters first: they take longest. Scales follow when all kernels are there, because a
    # source that quantises knows them from then on and need not read a kernel twice.
    items = list(zip(paths, flat, strict=True))
    order = sorted(range(len(items)), key=lambda i: -math.prod(items[i][1][1].shape))
    scales = [i for i in order if paths[i].endswith(SCALE)]
    kernels = [i for i in order if not paths[i].endswith(SCALE)]
    loaded: dict[int, jax.Array] = {}
    with ThreadPoolExecutor(READERS) as pool:
        for some in (kernels, scales):
            loaded |= zip(some, pool.map(load, (items[i] for i in some)), strict=True)
    arrays = [loaded[i] for i in range(len(items))]
    filled = [
        (path, variable.replace(array))
        for (path, variable), array in zip(flat, arrays, strict=True)
    ]
    return nnx.merge(graphdef, nnx.from_flat_state(filled))
