"""Weights stored in few bits with scales beside them, read as the float32 numbers they stand for.

Formats: a scale per tensor or per row (ComfyUI's scaled fp8, in its older and newer names, and the
int8 of bitsandbytes), and the 4-bit formats of bitsandbytes (nf4, fp4), where a code is an index of
a table of 16 numbers and each block of numbers shares a scale. Every number is computed in float32
as the format's own library does, so nothing is lost against that library. Other formats are
refused by name.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dsd_jax.convert.table.refusals import Tensors
from dsd_jax.errors import UserError
from dsd_jax.structured import Limits, parse_json
from dsd_jax.types import Shape

__all__ = ["Dequantised", "dequantised"]

# Ending of a tensor that holds the scales of a `.weight`, and what the scales are divided by.
_SCALES = {"scale_weight": 1.0, "weight_scale": 1.0, "SCB": 127.0}
# Tensors beside them that do not change what the weights are.
_MARKERS = re.compile(r"(.*\.)?(scaled_fp8|scale_input|input_scale|weight_format|comfy_quant)")
_FOUR_BIT = ".quant_state.bitsandbytes__"
_FOREIGN = (
    (r"\.weight\._(data|scale)$", "quanto"),
    (r"\.(wscales|smooth_factor|proj_down)$", "SVDQuant (nunchaku)"),
    (r"\.(qzeros|g_idx|qweight)$", "GPTQ or AWQ"),
    (r"\.weight_scale_2$", "NVFP4"),
    (r"\.weight_scale_inv$", "fp8 with a scale for each block"),
    (r"\.W_q$", "HQQ"),
    (r"(\.weight|_weight)[._]?qdata$", "torchao"),
)
_READABLE = "this program reads fp8 with scales, and bitsandbytes"


@dataclasses.dataclass(frozen=True)
class _Spec:
    shape: Shape
    dtype: np.dtype[Any] = dataclasses.field(default_factory=lambda: np.dtype(np.float32))


_Read = Callable[[slice], np.ndarray]
"""Gives a range of rows, in float32."""


class Dequantised:
    """Tensors by their names, the quantised ones as float32 (a `Tensors`)."""

    def __init__(self, weights: Tensors, made: Mapping[str, tuple[Shape, _Read]]) -> None:
        self._weights, self._made = weights, made
        self.tensors = {
            name: _Spec(made[name][0]) if name in made else spec
            for name, spec in weights.tensors.items()
            if not _is_beside(name)
        }

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        """The tensor, or the given range of its leading axis."""
        if name not in self._made:
            return self._weights.read(name, rows)
        shape, read = self._made[name]
        start, stop, _ = (rows or slice(None)).indices(shape[0])
        return read(slice(start, max(start, stop)))


def dequantised(weights: Tensors, where: str) -> Dequantised | None:
    """The weights with plain numbers, or None if none of them are quantised.

    Args:
        weights: tensors of one model.
        where: the file, for messages.

    Raises:
        UserError: a format that cannot be read, or tensors that contradict each other.
    """
    for pattern, what in _FOREIGN:
        if name := next((name for name in weights.tensors if re.search(pattern, name)), None):
            raise UserError(
                f"{where} is quantised by {what} ({name}), which is not read; give the original "
                f"weights ({_READABLE})"
            )
    made: dict[str, tuple[Shape, _Read]] = {}
    for name in weights.tensors:
        stem, _, ending = name.rpartition(".")
        if ending in _SCALES:
            made[f"{stem}.weight"] = _scaled(weights, stem, ending, where)
        elif _FOUR_BIT in name:
            own = name.partition(_FOUR_BIT)[0]
            made[own] = _four_bit(weights, own, name, where)
    marked = any(_MARKERS.fullmatch(name) for name in weights.tensors)
    return Dequantised(weights, made) if made or marked else None


def _is_beside(name: str) -> bool:
    """Whether a tensor belongs to a quantised one."""
    return (
        name.rpartition(".")[2] in _SCALES
        or _MARKERS.fullmatch(name) is not None
        or re.search(
            r"\.weight\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\.)", name
        )
        is not None
    )


def _require(weights: Tensors, name: str, where: str) -> Any:
    if name not in weights.tensors:
        raise UserError(f"{where} is quantised but lacks {name}; download the file again")
    return weights.tensors[name]


def _scaled(weights: Tensors, stem: str, ending: str, where: str) -> tuple[Shape, _Read]:
    """Weights times one scale, or one for each row."""
    name, beside = f"{stem}.weight", f"{stem}.{ending}"
    shape = tuple(_require(weights, name, where).shape)
    if f"{stem}.comfy_quant" in weights.tensors:
        _check_comfy(weights, f"{stem}.comfy_quant", where)
    held = tuple(weights.tensors[beside].shape)
    single = math.prod(held) == 1
    if not single and (len(shape) != 2 or held not in {shape[:1], (shape[0], 1)}):
        raise UserError(
            f"{beside} in {where} has shape {list(held)} beside weights {list(shape)}; "
            f"{_READABLE} with a scale for each tensor or row"
        )
    scale = weights.read(beside).astype(np.float32).reshape(-1, 1) / np.float32(_SCALES[ending])

    def read(rows: slice) -> np.ndarray:
        own = scale if single else scale[rows]
        part = weights.read(name, rows).astype(np.float32)
        return part * own.reshape((-1,) + (1,) * (part.ndim - 1))

    return shape, read


def _check_comfy(weights: Tensors, name: str, where: str) -> None:
    text = weights.read(name).tobytes()
    told = parse_json(text, f"{name} in {where}", dict, Limits(size=4096, depth=8))
    kind = str(told.get("format"))
    if not kind.startswith("float8_"):
        raise UserError(
            f"{name} in {where} says format {kind!r}, which is not read; give the original weights "
            f"({_READABLE})"
        )


def _four_bit(weights: Tensors, name: str, state: str, where: str) -> tuple[Shape, _Read]:
    """Reads two codes per byte, the high bits first: a table of 16 numbers, a scale per block."""
    text = weights.read(state).tobytes()
    told = parse_json(text, f"{state} in {where}", dict, Limits(size=1 << 16, depth=8))
    packed = _require(weights, name, where)
    absmax_spec = _require(weights, f"{name}.absmax", where)
    table_spec = _require(weights, f"{name}.quant_map", where)
    shape, block = told.get("shape"), told.get("blocksize")
    if (
        not isinstance(shape, list)
        or not all(type(size) is int and size > 0 for size in shape)
        or not 1 <= len(shape) <= 4
        or type(block) is not int
        or not 1 <= block <= 1 << 16
        or packed.dtype != np.uint8
        or math.prod(packed.shape) != -(-math.prod(shape) // 2)
        or math.prod(absmax_spec.shape) != -(-math.prod(shape) // block)
        or math.prod(table_spec.shape) != 16
    ):
        raise UserError(f"{state} in {where} does not fit its tensors; download the file again")
    table = weights.read(f"{name}.quant_map").astype(np.float32).reshape(-1)
    count, width = math.prod(shape), math.prod(shape[1:])

    def codes(first: int, last: int) -> np.ndarray:
        """The codes of a range of numbers."""
        if packed.shape[0] == math.prod(packed.shape):
            packed_rows = weights.read(name, slice(first // 2, -(-last // 2)))
        else:
            packed_rows = weights.read(name).reshape(-1)[first // 2 : -(-last // 2)]
        held = packed_rows.reshape(-1)
        both = np.stack([held >> 4, held & 15], axis=1).reshape(-1)
        return both[first % 2 : first % 2 + last - first]

    def read(rows: slice) -> np.ndarray:
        first, last = rows.start * width, rows.stop * width
        from_block, to_block = first // block, -(-last // block)
        start, stop = from_block * block, min(to_block * block, count)
        numbers = np.zeros((to_block - from_block) * block, np.float32)
        numbers[: stop - start] = table[codes(start, stop)]
        scales = _absmax(weights, name, told, where)[from_block:to_block]
        numbers = (numbers.reshape(-1, block) * scales[:, None]).reshape(-1)
        return numbers[first - start : last - start].reshape(-1, *shape[1:])

    return tuple(shape), read


def _absmax(weights: Tensors, name: str, told: Mapping[str, Any], where: str) -> np.ndarray:
    """The scale of every block; with double quantisation they are codes of 8 bits themselves."""
    held = weights.read(f"{name}.absmax").reshape(-1)
    if "nested_blocksize" not in told:
        return held.astype(np.float32)
    for ending in ("nested_absmax", "nested_quant_map"):
        _require(weights, f"{name}.{ending}", where)
    table = weights.read(f"{name}.nested_quant_map").astype(np.float32).reshape(-1)
    scales = weights.read(f"{name}.nested_absmax").astype(np.float32).reshape(-1)
    block, offset = told["nested_blocksize"], told.get("nested_offset", 0.0)
    if (
        type(block) is not int
        or not 1 <= block <= 1 << 16
        or len(scales) != -(-len(held) // block)
        or len(table) != 256
        or held.dtype != np.uint8
        or not isinstance(offset, int | float)
    ):
        raise UserError(f"{name}.nested_absmax in {where} does not fit; download the file again")
    numbers = table[held] * np.repeat(scales, block)[: len(held)]
    return numbers + np.float32(offset)
