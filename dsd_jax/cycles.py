"""The cycles that the TPU compiler estimates for a program, operation by operation.

The compiler writes `estimated_cycles` beside every fusion, copy and product. It says nothing of
Pallas kernels, and it charges passes over memory up to twice too much, so a sum is given twice: as
estimated, and with everything that is no product at the peak of the chip's memory. Neither is a
measured time.
"""

import dataclasses
import math
import re
from collections.abc import Iterable
from typing import Literal

from dsd_jax.hlo import array_bytes, executed
from dsd_jax.topology import Chip

__all__ = ["PARTS", "Cycles", "Estimate", "Operation", "Part", "estimated", "operations", "summed"]

Part = Literal["products", "attention", "rope and norms", "copies", "the rest"]
PARTS: tuple[Part, ...] = ("products", "attention", "rope and norms", "copies", "the rest")

_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_OP = re.compile(r"(?:^|\s)([a-z][\w-]*)\(")
_FRAME = re.compile(r"stack_frame_id=(\d+)")
_ROW = re.compile(r"^(\d+) (.*)$")
_OPERANDS = re.compile(r"operand_layout_constraints=\{(.*?)\}\}")
_FLOATS = re.compile(r"(?:bf16|f32)\[([\d,]+)\]")
_NORMS = {"apply_rope", "layer_norm", "modulate", "RMSNorm.__call__"}


@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation of a compiled program.

    Attributes:
        name: Its name in the program.
        part: The part of the model's work that it does.
        cycles: Estimated cycles of one run; 0 for a kernel, of which the compiler says nothing.
        bytes: Bytes that it reads and writes in the chip's large memory.
        times: Number of its runs.
        flops: FLOPs of one run of an attention kernel; 0 for anything else.
        functions: Names of the Python functions that it comes from, innermost first.
    """

    name: str
    part: Part
    cycles: int
    bytes: int
    times: int
    flops: int
    functions: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Cycles:
    """Sum over operations, in cycles.

    Attributes:
        parts: Estimated cycles of each part.
        at_peak: Cycles of each part if memory ran at its peak; products as estimated.
    """

    parts: dict[Part, int]
    at_peak: dict[Part, int]


@dataclasses.dataclass(frozen=True)
class Estimate:
    """One step as the TPU compiler sees it; nothing was measured.

    Attributes:
        mcycles: Million cycles as estimated. Attention kernels, of which the compiler says nothing,
            are counted at the chip's peak.
        mcycles_at_peak: The same with everything that is no product at the peak of the memory.
        seconds, seconds_at_peak: Both at the chip's clock.
    """

    mcycles: float
    mcycles_at_peak: float
    seconds: float
    seconds_at_peak: float


def operations(hlo: str) -> list[Operation]:
    """The operations of a program that was compiled for a TPU, in order.

    Args:
        hlo: Text of the compiled program.
    """
    frames = _functions(hlo)
    shapes: dict[tuple[str, str], int] = {}  # (computation, instruction) -> bytes
    found = []
    for computation, line, times in executed(hlo):
        left, _, right = line.strip().partition(" = ")
        left = left.removeprefix("ROOT ").lstrip("%")
        if not (op := _OP.search(right)):
            continue
        shapes[computation, left] = array_bytes(right[: op.start()])
        cycles = _CYCLES.search(right)
        kernel = 'custom_call_target="tpu_custom_call"' in right
        if cycles or kernel:
            read = sum(shapes.get((computation, x), 0) for x in _operands(right[op.end() :]))
            frame = _FRAME.search(right)
            functions = frames.get(frame.group(1), ()) if frame else ()
            found.append(
                Operation(
                    name=left,
                    part="attention" if kernel else _part(op.group(1), right, functions),
                    cycles=int(cycles.group(1)) if cycles else 0,
                    bytes=shapes[computation, left] + read,
                    times=times,
                    flops=_attention_flops(line) if kernel else 0,
                    functions=functions,
                )
            )
    return found


def summed(found: Iterable[Operation], bytes_per_cycle: float) -> Cycles:
    """Adds operations up.

    Args:
        found: The operations.
        bytes_per_cycle: Peak of the chip's memory.
    """
    parts, at_peak = dict.fromkeys(PARTS, 0), dict.fromkeys(PARTS, 0)
    for each in found:
        parts[each.part] += each.times * each.cycles
        product = each.part == "products"
        cycles = each.cycles if product else round(each.bytes / bytes_per_cycle)
        at_peak[each.part] += 0 if each.part == "attention" else each.times * cycles
    return Cycles(parts, at_peak)


def estimated(hlo: str, chip: Chip) -> Estimate:
    """Adds up what the compiler says of a whole program.

    Args:
        hlo: Text of the compiled program.
        chip: The chip that it was compiled for.
    """
    found = operations(hlo)
    cycles = summed(found, chip.gb_per_s / chip.clock_ghz)
    core = sum(each.times * each.flops for each in found) / (chip.peak_tflops * 1e3)
    core *= chip.clock_ghz
    both = [sum(parts.values()) + core for parts in (cycles.parts, cycles.at_peak)]
    return Estimate(
        *(round(each / 1e6, 1) for each in both),
        *(round(each / chip.clock_ghz / 1e9, 3) for each in both),
    )


def _attention_flops(instruction: str) -> int:
    """FLOPs of a splash kernel, from the shapes `[..., N, L, H]` of its queries and keys.

    The kernel takes two products of all queries with all keys, that of the gradient takes five.
    """
    operands = _OPERANDS.search(instruction)
    shapes = _FLOATS.findall(operands.group(1)) if operands else []
    if len(shapes) < 2:
        return 0
    queries, keys = (list(map(int, shape.split(","))) for shape in shapes[:2])
    products = 5 if "dkv" in instruction else 2
    return 2 * products * math.prod(queries) * keys[-2]


def _part(op: str, instruction: str, functions: tuple[str, ...]) -> Part:
    name = re.search(r'op_name="([^"]*)"', instruction)
    if op in {"fusion", "convolution", "dot"} and name and "dot_general" in name.group(1):
        return "products"
    if not _NORMS.isdisjoint(functions):
        return "rope and norms"
    return "copies" if op == "copy" or not functions else "the rest"


def _operands(text: str) -> list[str]:
    """Names of the operands, which end at the parenthesis that closes the call."""
    depth = 1
    for place, letter in enumerate(text):
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if depth == 0:
            return re.findall(r"%([\w.-]+)", text[:place])
    return []


def _functions(hlo: str) -> dict[str, tuple[str, ...]]:
    """Names of the functions of every stack frame in the tables at the head of a program."""
    tables: dict[str, dict[str, str]] = {}
    rows: dict[str, str] = {}
    for line in hlo.splitlines():
        if line in {"FileNames", "FunctionNames", "FileLocations", "StackFrames"}:
            rows = tables[line] = {}
        elif match := _ROW.match(line):
            rows[match.group(1)] = match.group(2)
        elif line.startswith("%"):
            break
    names, places = tables.get("FunctionNames", {}), tables.get("FileLocations", {})
    parents: dict[str, tuple[str, str]] = {}
    for key, row in tables.get("StackFrames", {}).items():
        place = _field(row, "file_location_id")
        name = names.get(_field(places.get(place, ""), "function_name_id"), "").strip('"')
        parents[key] = name, _field(row, "parent_frame_id")
    found = {}
    for key in parents:
        chain, at, seen = [], key, set()
        while at in parents and at not in seen:
            seen.add(at)
            name, at = parents[at]
            chain.append(name)
        found[key] = tuple(chain)
    return found


def _field(row: str, name: str) -> str:
    match = re.search(rf"{name}=(\d+)", row)
    return match.group(1) if match else ""
