"""What a program needs on machines that are not here, read off the compiler.

For TPU slices the real compiler runs on this machine (`libtpu`, without a TPU) and its own account
of memory decides. For GPUs there is no such compiler without a GPU: the program is compiled for as
many CPU devices, which gives the collectives, and memory is counted by arithmetic; the result says
so.
"""

import dataclasses
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from dsd_jax.sharding import MeshConfig, make_mesh
from dsd_jax.types import UserError

__all__ = [
    "CHIPS",
    "Chip",
    "Job",
    "Plan",
    "bytes_per_chip",
    "collectives",
    "compile_job",
    "devices_of",
]

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """Memory in GiB and dense bfloat16 peak in TFLOP/s of one chip, by its maker's documents."""

    memory_gib: float
    peak_tflops: float


CHIPS: dict[str, Chip] = {
    "v4": Chip(32, 275),
    "v5e": Chip(16, 197),
    "v5p": Chip(95, 459),
    "v6e": Chip(32, 918),
    "a100": Chip(80, 312),
    "h100": Chip(80, 989),
    "h200": Chip(141, 989),
}
GPUS = ("a100", "h100", "h200")


class Job(NamedTuple):
    """A program to plan.

    Attributes:
        run: what is jitted.
        arguments: abstract, with shardings.
        kinds: name -> tree of abstract arrays that are in memory while it runs.
        flops: of one step over all chips, without rematerialisation.
        activations: bytes per chip that a training step keeps for its backward pass, by arithmetic.
        working: bytes per chip beside all that, by arithmetic, where no compiler tells.
        donate: positions of donated arguments.
    """

    run: Callable[..., Any]
    arguments: tuple[Any, ...]
    kinds: Mapping[str, Any]
    flops: float
    activations: int = 0
    working: int = 0
    donate: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one chip needs. Sizes in GiB; collectives in GiB sent or received per chip and step.

    Attributes:
        memory: by kind; "temporary" is what the compiler adds (workspace, gradients, copies).
        total: of memory on the chip.
        fits: whether that is less than the chip has.
        source: "compiler" or "arithmetic".
        step_floor_s: seconds of a step at the chip's peak, if nothing else took time.
        problem: the compiler's own words where it refused.
    """

    topology: str
    mesh: dict[str, int]
    memory: dict[str, float]
    total: float
    available: float
    fits: bool
    source: str
    tflops: float
    step_floor_s: float
    collectives: dict[str, float]
    problem: str | None = None


def devices_of(topology: str) -> list[jax.Device]:
    """Devices of `v5e:4x8`, or CPU devices standing in for `h100:8`.

    Raises:
        UserError: an unknown topology, or a compiler that is not installed.
    """
    kind, _, shape = topology.partition(":")
    if kind not in CHIPS or not re.fullmatch(r"\d+(x\d+)*", shape):
        raise UserError(
            f"unknown topology {topology!r}; write KIND:SHAPE as in v5e:8x8, v5p:4x4x4 or h100:8, "
            f"with KIND one of {', '.join(CHIPS)}"
        )
    if kind in GPUS:
        count = math.prod(map(int, shape.split("x")))
        devices = jax.devices("cpu")
        if len(devices) < count:
            raise UserError(
                f"{count} devices are needed to stand in for {topology}, this process has "
                f"{len(devices)}; set XLA_FLAGS=--xla_force_host_platform_device_count={count}"
            )
        return devices[:count]
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
    except Exception as error:  # noqa: BLE001 - the compiler's loader raises what it likes
        reason = str(error).strip().split("\n")[0][:200]
        raise UserError(
            f"the TPU compiler does not know {topology} or is not installed "
            f"(pip install libtpu): {reason}"
        ) from None


def bytes_per_chip(tree: Any) -> int:
    """Bytes of the largest shard of every abstract array, added up."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape) if x.sharding else x.shape) * x.dtype.itemsize
        for x in jax.tree.leaves(tree)
    )


def compile_job(build: Callable[[Mesh], Job], topology: str, mesh: MeshConfig) -> Plan:
    """Compiles a job for a topology and says what it needs.

    Args:
        build: makes the job for a mesh.
        mesh: how the topology's devices are used.
    """
    kind = topology.partition(":")[0]
    chip, gpu = CHIPS[kind], kind in GPUS
    devices = devices_of(topology)
    real = make_mesh(mesh, devices)
    job = build(real)
    memory = {name: bytes_per_chip(tree) for name, tree in job.kinds.items()}
    argued = bytes_per_chip(job.arguments)
    problem: str | None = None
    text = ""
    with jax.set_mesh(real):
        lowered = jax.jit(job.run, donate_argnums=job.donate).lower(*job.arguments)
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            problem = _memory_words(str(error))
            if problem is None:
                raise
            compiled = None
    if compiled is not None:
        text = compiled.as_text() or ""
        stats = compiled.memory_analysis()
        temporary = 0 if gpu or stats is None else int(stats.temp_size_in_bytes)
    else:
        temporary = _refused_bytes(problem or "", argued)
    memory["activations"] = job.activations
    memory["temporary"] = job.working if gpu else max(temporary - job.activations, 0)
    total = sum(memory.values())
    flops = job.flops / len(devices)
    return Plan(
        topology=topology,
        mesh=dict(real.shape),
        memory={name: round(size / GIB, 2) for name, size in memory.items()},
        total=round(total / GIB, 2),
        available=chip.memory_gib,
        fits=problem is None and total < chip.memory_gib * GIB,
        source="arithmetic" if gpu else "compiler",
        tflops=round(flops / 1e12, 1),
        step_floor_s=round(flops / chip.peak_tflops / 1e12, 2),
        collectives={k: round(v / GIB, 3) for k, v in collectives(text).items()},
        problem=problem,
    )


def _memory_words(message: str) -> str | None:
    """The sentence of the compiler about memory, or None if it failed for another reason."""
    found = re.search(r"Used [\d.]+[GMK] of [\d.]+[GMK] hbm[^\n]*", message) or re.search(
        r"total memory required for [^\n]* exceeds available HBM[^\n.]*[\d.]*\w*\)", message
    )
    return found.group(0) if found else None


def _refused_bytes(words: str, argued: int) -> int:
    """Temporary bytes that the compiler wanted; one of its sentences counts the arguments too."""
    found = re.search(r"([\d.]+)([GMK])", words)
    if not found:
        return 0
    size = int(float(found.group(1)) * {"G": 2**30, "M": 2**20, "K": 2**10}[found.group(2)])
    return size if "temporaries" in words else max(size - argued, 0)


_OPS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) .*\{$")
_CALL = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.-]+)")
_BRANCHES = re.compile(r"(?:true_computation|false_computation)=%?([\w.-]+)")
_TRIPS = re.compile(r"known_trip_count[^\d]*(\d+)")
_CONDITION = re.compile(r" while\(.*condition=%?([\w.-]+)")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_CONSTANT = re.compile(r"[su]\d+\[\][^ ]* constant\((\d+)\)")
_SHAPE = re.compile(r"(pred|[suf]\d+|bf16|f8\w*)\[([\d,]*)\]")
_SIZES = {"pred": 1, "bf16": 2}


def collectives(hlo: str) -> dict[str, int]:
    """Bytes of every kind of collective in an HLO text, loops counted as often as they run.

    A collective counts the size of its result. The TPU compiler spreads one over several fusions,
    some inside loops that it overlaps with: all carry its channel, and the one that runs least
    often says how often it happens.
    """
    bodies: dict[str, list[str]] = {}
    entry, name = "", ""
    for line in hlo.splitlines():
        if not line.startswith(" ") and (match := _COMPUTATION.match(line)):
            name = match.group(1)
            bodies[name] = []
            entry = name if line.startswith("ENTRY") else entry
        elif name:
            bodies[name].append(line)
    moved: dict[tuple[str, str], dict[str, int]] = {}  # (kind, channel) -> instruction -> bytes

    def walk(computation: str, times: int) -> None:
        for line in bodies.get(computation, ()):
            left, _, right = line.partition(" = ")
            for op in _OPS:
                if re.search(rf"\s{op}(-start)?\(", right):
                    channel = _CHANNEL.search(right)
                    place = f"{computation} {left}"
                    own = moved.setdefault((op, channel.group(1) if channel else place), {})
                    own[place] = own.get(place, 0) + times * _result_bytes(right, op)
            turns = times * _turns(right, bodies)
            for inner in [*_CALL.findall(right), *_BRANCHES.findall(right)]:
                walk(inner, turns)

    walk(entry, 1)
    total: Counter[str] = Counter()
    for (op, _), instructions in moved.items():
        total[op] += min(instructions.values())
    return {op: total[op] for op in _OPS if total[op]}


def _turns(instruction: str, bodies: Mapping[str, list[str]]) -> int:
    """How often a loop runs its body; 1 for anything else.

    The CPU compiler writes it down. The TPU compiler leaves it in the condition: a scan counts from
    zero and compares with its length, the largest constant there.
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
    """Size of the result; of a started one, its tuple's last array."""
    head = instruction[: re.search(rf"\s{op}(-start)?\(", instruction).start()]  # type: ignore[union-attr]
    shapes = _SHAPE.findall(head)
    if f" {op}-start(" in instruction and len(shapes) > 1:
        shapes = shapes[len(shapes) // 2 :]
    total = 0
    for kind, dims in shapes:
        size = _SIZES.get(kind) or (1 if kind.startswith("f8") else int(kind[1:]) // 8)
        total += size * math.prod(int(d) for d in dims.split(",") if d)
    return total
