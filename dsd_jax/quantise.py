"""Kernels of blocks in 8 or 4 bits, beside scales; products undo it while they read them.

A kernel `[*in, *out]` becomes whole numbers of the same shape and a scale beside it: a number is
`code * scale`. Codes are symmetric about zero, so no offset is stored.

    int8    one float32 scale per output channel, `[*out]`
    int4    one bfloat16 scale per output channel and group of 32 inputs, `[*in / 32, *out]`, where
            groups lie along the last input axis; devices hold two codes in a byte

Only kernels of blocks are quantised. Embedders, final layers, norms, biases and adapters are less
than 1 % of the weights of FLUX.1-dev, and every token passes through the embedders and the final
layer unaveraged.
"""

import dataclasses
import threading
from collections.abc import Collection, Iterator, Mapping
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import nnx

from dsd_jax.errors import UserError
from dsd_jax.layers import JoinedLinear, Linear
from dsd_jax.stack import SCALE, kernel_of_scale, layer_paths
from dsd_jax.types import DTypeLike, Shape
from dsd_jax.weights import Index, WeightSource

__all__ = [
    "GROUP",
    "QuantisedSource",
    "WeightKind",
    "coded",
    "kind_of",
    "quantise",
    "quantise_model",
    "quantised",
]

WeightKind: TypeAlias = Literal["int8", "int4"]
GROUP = 32
"""Inputs that share a scale of int4."""


@dataclasses.dataclass(frozen=True)
class _Form:
    """Dtypes of codes and scales, and the largest code."""

    codes: DTypeLike
    scales: DTypeLike
    largest: int
    grouped: bool


_FORMS: dict[WeightKind, _Form] = {
    "int8": _Form(np.int8, np.float32, 127, grouped=False),
    "int4": _Form(ml_dtypes.int4, ml_dtypes.bfloat16, 7, grouped=True),
}


def _scale_shape(kernel: Shape, inputs: int, form: _Form) -> Shape:
    """Shape of the scales of one layer's kernel, whose first `inputs` axes are summed over."""
    if not form.grouped:
        return kernel[inputs:]
    return (*kernel[: inputs - 1], kernel[inputs - 1] // GROUP, *kernel[inputs:])


def _check_groups(path: str, kernel: Shape, inputs: int, form: _Form) -> None:
    size = kernel[inputs - 1]
    if form.grouped and size % GROUP:
        raise UserError(
            f"int4 weights need inputs in groups of {GROUP}, but {path} has {size}; use int8"
        )


def quantise(kernel: np.ndarray, inputs: int, kind: WeightKind) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scales of one kernel.

    The largest magnitude that shares a scale becomes the largest code, 127 or 7. Scales are rounded
    to their dtype before codes are chosen, so that codes make up for it.

    Args:
        kernel: `[*in, *out]`, of any float dtype.
        inputs: number of axes of `in`.
        kind: kind of codes.
    """
    form, kernel = _FORMS[kind], kernel.astype(np.float32, copy=False)
    scales = _scales(kernel, inputs, form)
    return _codes(kernel, _spread(scales, kernel.shape, inputs, form), form), scales


def _scales(kernel: np.ndarray, inputs: int, form: _Form) -> np.ndarray:
    axes = tuple(range(inputs))
    if form.grouped:
        shape = kernel.shape
        kernel = kernel.reshape(*shape[: inputs - 1], -1, GROUP, *shape[inputs:])
        axes = (inputs,)
    largest = np.maximum(kernel.max(axes), -kernel.min(axes))
    scales = largest / np.float32(form.largest)
    return np.where(scales == 0, np.float32(1), scales).astype(form.scales)


def _spread(scales: np.ndarray, shape: Shape, inputs: int, form: _Form) -> np.ndarray:
    """The scale of every number of a kernel, float32."""
    scales = scales.astype(np.float32, copy=False)
    if form.grouped:
        return np.repeat(scales, GROUP, axis=inputs - 1)
    return np.broadcast_to(scales, shape)


def _codes(kernel: np.ndarray, spread: np.ndarray, form: _Form) -> np.ndarray:
    codes = kernel / spread
    np.rint(codes, out=codes)
    np.clip(codes, -form.largest, form.largest, out=codes)
    return codes.astype(form.codes)


# Models


@dataclasses.dataclass(frozen=True)
class _Kernel:
    """A kernel in a block: its module and name there, its path, and its number of input axes."""

    module: Linear | JoinedLinear
    name: str
    path: str
    inputs: int

    @property
    def value(self) -> nnx.Param:
        return getattr(self.module, self.name)


def _kernels(model: nnx.Module, stacks: Mapping[str, int]) -> Iterator[_Kernel]:
    """Yields the kernels in the blocks of a model, with paths of its own layout."""
    for keys, part in nnx.iter_modules(model):
        path = ".".join(map(str, keys))
        if isinstance(part, Linear | JoinedLinear) and path.partition(".")[0] in stacks:
            for name, inputs in part.kernels.items():
                yield _Kernel(part, name, f"{path}.{name}", inputs)


def quantise_model(model: nnx.Module, stacks: Mapping[str, int], kind: WeightKind) -> None:
    """Gives the blocks of an abstract model quantised kernels with scales, in place.

    Args:
        model: result of `dsd_jax.models.abstract`.
        stacks: path and depth of its stacks of blocks.
        kind: kind of codes.

    Raises:
        UserError: groups do not divide the inputs of a kernel.
    """
    form = _FORMS[kind]
    for kernel in _kernels(model, stacks):
        shape = tuple(kernel.value.shape)
        depth = 0 if layer_paths(kernel.path, stacks) == [kernel.path] else 1
        own = shape[depth:]
        _check_groups(kernel.path, own, kernel.inputs, form)
        scales = (*shape[:depth], *_scale_shape(own, kernel.inputs, form))
        for name, size, dtype in (
            (kernel.name, shape, form.codes),
            (kernel.name + SCALE, scales, form.scales),
        ):
            value = nnx.Param(jax.ShapeDtypeStruct(size, jnp.dtype(dtype)))
            setattr(kernel.module, name, value)


def kind_of(dtypes: Mapping[str, np.dtype]) -> WeightKind | None:
    """The kind of the kernels in a source of weights, by its dtypes; None for plain ones."""
    for path in dtypes:
        if kernel := kernel_of_scale(path):
            return next(kind for kind in _FORMS if kind == dtypes[kernel].name)
    return None


def coded(paths: Collection[str]) -> frozenset[str]:
    """Those paths of parameters that are codes or their scales."""
    kernels = {path: kernel for path in paths if (kernel := kernel_of_scale(path))}
    return frozenset({*kernels, *kernels.values()})


def quantised(source: WeightSource, model: nnx.Module, stacks: Mapping[str, int]) -> WeightSource:
    """The source with the codes and scales that a model wants; plain ones become codes when read.

    Args:
        source: weights of the model.
        model: the model, quantised or not.
        stacks: path and depth of its stacks of blocks.
    """
    found = {
        path: kernel
        for kernel in _kernels(model, stacks)
        if getattr(kernel.module, kernel.name + SCALE) is not None
        for path in layer_paths(kernel.path, stacks)
    }
    if not found or kind_of(source.dtypes) is not None:
        return source
    inputs = {path: kernel.inputs for path, kernel in found.items()}
    dtype = next(iter(found.values())).value.dtype
    kind = next(kind for kind in _FORMS if kind == jnp.dtype(dtype).name)
    return QuantisedSource(source, inputs, kind)


class QuantisedSource:
    """Weights whose kernels become codes and scales while they are read.

    One plain kernel at a time is in memory for each reader. Scales depend on all inputs, so a slice
    of a kernel is read after the whole kernel was read once for its scales, which are kept.

    Args:
        base: plain weights.
        inputs: per-layer path of every kernel to quantise -> number of its input axes.
        kind: kind of codes.
    """

    def __init__(self, base: WeightSource, inputs: Mapping[str, int], kind: WeightKind) -> None:
        self._base, self._inputs, self._form = base, inputs, _FORMS[kind]
        self._scales: dict[str, np.ndarray] = {}
        self._locks = {path: threading.Lock() for path in inputs}

    @property
    def shapes(self) -> dict[str, Shape]:
        held = self._base.shapes
        scales = {
            path + SCALE: _scale_shape(tuple(held[path]), inputs, self._form)
            for path, inputs in self._inputs.items()
            if path in held
        }
        return {**held, **scales}

    @property
    def dtypes(self) -> dict[str, np.dtype]:
        codes = dict.fromkeys(self._inputs, np.dtype(self._form.codes))
        scales = {path + SCALE: np.dtype(self._form.scales) for path in self._inputs}
        return {**self._base.dtypes, **codes, **scales}

    def read(self, path: str, index: Index) -> np.ndarray:
        kernel = path.removesuffix(SCALE)
        if kernel not in self._inputs:
            return self._base.read(path, index)
        inputs, shape = self._inputs[kernel], tuple(self._base.shapes[kernel])
        part = None
        with self._locks[kernel]:
            if kernel not in self._scales:
                part = self._base.read(kernel, tuple(slice(0, size) for size in shape))
                part = part.astype(np.float32, copy=False)
                self._scales[kernel] = _scales(part, inputs, self._form)
        scales = self._scales[kernel]
        if path != kernel:
            return scales[index]
        if part is None:
            part = self._base.read(kernel, index).astype(np.float32, copy=False)
        else:
            part = part[index]
        return _codes(part, _spread(scales, shape, inputs, self._form)[index], self._form)
