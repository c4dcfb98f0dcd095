"""Reads compiled HLO text: computations, sizes of arrays, and the bytes that collectives move."""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping

__all__ = [
    "KERNELS",
    "array_bytes",
    "collectives",
    "executed",
    "kernels",
]

_Computation = list[str]
"""The lines of a computation, an instruction each."""

_OPS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) .*\{$")
_CALL = re.compile(r"(?:calls|to_apply|body|condition|(?:true|false)_computation)=%?([\w.-]+)")
_CONTROL = re.compile(r"\s(while|conditional|call)\(")
_STARTED = re.compile(r"(?:body|to_apply|(?:true|false)_computation)=%?([\w.-]+)")
_TRIPS = re.compile(r"known_trip_count[^\d]*(\d+)")
_CONDITION = re.compile(r" while\(.*condition=%?([\w.-]+)")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_CONSTANT = re.compile(r"[su]\d+\[\][^ ]* constant\((\d+)\)")
_SHAPE = re.compile(r"\b(pred|[suf]\d+|bf16|f8\w*)\[([\d,]*)\](\{[^}]*\})?")
_SIZES = {"pred": 1, "bf16": 2}


def _computations(hlo: str) -> tuple[str, dict[str, _Computation]]:
    """Name of the entry computation, and all computations by name."""
    bodies: dict[str, _Computation] = {}
    entry, name = "", ""
    for line in hlo.splitlines():
        if not line.startswith(" ") and (match := _COMPUTATION.match(line)):
            name = match.group(1)
            bodies[name] = []
            entry = name if line.startswith("ENTRY") else entry
        elif name:
            bodies[name].append(line)
    return entry, bodies


def executed(hlo: str, *, fused: bool = False) -> Iterator[tuple[str, str, int]]:
    """The instructions that a program starts, each as often as it is called.

    Args:
        hlo: Text of the compiled program.
        fused: Add those inside of fusions, reductions and conditions of loops, which are no
            operations of their own.

    Yields:
        The computation, the instruction, and how often it runs; a loop's own line is left out.
    """
    entry, bodies = _computations(hlo)

    def walk(name: str, times: int) -> Iterator[tuple[str, str, int]]:
        for line in bodies.get(name, ()):
            right = line.partition(" = ")[2]
            control = _CONTROL.search(right)
            if right and not control:
                yield name, line, times
            if fused or control:
                for called in (_CALL if fused else _STARTED).findall(right):
                    yield from walk(called, times * _turns(right, bodies))

    return walk(entry, 1)


KERNELS = {
    "attention": r'custom_call_target="__cudnn\$fmha',
    "products": r'"kind":"__triton_(?:nested_)?gemm|custom_call_target="__cublas',
    "fused": r"\sfusion\(",
    "copies": r"\scopy\(",
    "other calls": r"\scustom-call\(",
}
"""Kinds of kernels in a program for GPUs: patterns, of which the first that matches counts."""


def kernels(hlo: str) -> dict[str, int]:
    """Number of kernels of each kind in `KERNELS` that a program for a GPU starts."""
    total = dict.fromkeys(KERNELS, 0)
    for _, line, times in executed(hlo):
        for kind, pattern in KERNELS.items():
            if re.search(pattern, line):
                total[kind] += times
                break
    return total


def collectives(hlo: str) -> dict[str, int]:
    """Adds up the bytes of each kind of collective; a loop counts as often as it runs.

    The bytes of a collective are those of its result. The TPU compiler spreads one collective over
    several fusions, some of them inside loops that overlap with it. All carry its channel, and the
    fusion that runs least often tells how often the collective happens.
    """
    moved: dict[tuple[str, str], dict[str, int]] = {}  # (kind, channel) -> instruction -> bytes
    for computation, line, times in executed(hlo, fused=True):
        left, _, right = line.partition(" = ")
        for op in _OPS:
            if re.search(rf"\s{op}(-start)?\(", right):
                channel = _CHANNEL.search(right)
                place = f"{computation} {left}"
                own = moved.setdefault((op, channel.group(1) if channel else place), {})
                own[place] = own.get(place, 0) + times * _result_bytes(right, op)
    total: Counter[str] = Counter()
    for (op, _), instructions in moved.items():
        total[op] += min(instructions.values())
    return {op: total[op] for op in _OPS if total[op]}


def _turns(instruction: str, bodies: Mapping[str, _Computation]) -> int:
    """Number of times that a loop runs its body; 1 for anything else.

    The CPU compiler states the number. The TPU compiler leaves it in the loop's condition: a scan
    counts from zero and compares with its length, the largest constant there.
    """
    if found := _TRIPS.search(instruction):
        return int(found.group(1))
    if not (condition := _CONDITION.search(instruction)):
        return 1
    lines = list(bodies.get(condition.group(1), ()))
    for name in _CALL.findall("\n".join(lines)):
        lines += bodies.get(name, ())
    return max((int(n) for n in _CONSTANT.findall("\n".join(lines))), default=1)


def _result_bytes(instruction: str, op: str) -> int:
    """Bytes of the result; for a started operation, of the last array in its tuple."""
    head = instruction[: re.search(rf"\s{op}(-start)?\(", instruction).start()]  # type: ignore[union-attr]
    shapes = _SHAPE.findall(head)
    if f" {op}-start(" in instruction and len(shapes) > 1:
        shapes = shapes[len(shapes) // 2 :]
    return sum(_bytes(kind, dims) for kind, dims, _ in shapes)


def array_bytes(text: str) -> int:
    """Bytes of all arrays whose shapes a text names, without those in a chip's fast memory."""
    return sum(
        _bytes(kind, dims) for kind, dims, layout in _SHAPE.findall(text) if "S(1)" not in layout
    )


def _bytes(kind: str, dims: str) -> int:
    size = _SIZES.get(kind) or (1 if kind.startswith("f8") else int(kind[1:]) / 8)
    return int(size * math.prod(int(d) for d in dims.split(",") if d))
