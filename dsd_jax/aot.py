"""Memory and time of a program on hardware that you do not have yet, read off the compiler.

For TPU slices the real compiler runs on this machine (`libtpu`, without a TPU) and its own account
of memory decides. For GPUs there is no such compiler without a GPU: the program is compiled for as
many CPU devices, which gives the collectives, and memory is counted by arithmetic; the result says
so.
"""

import dataclasses
import math
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from dsd_jax.errors import UserError
from dsd_jax.extras import require
from dsd_jax.hlo import collectives
from dsd_jax.sharding import MeshConfig, make_mesh
from dsd_jax.types import PyTree

__all__ = [
    "CHIPS",
    "Chip",
    "Job",
    "Plan",
    "Topology",
    "bytes_per_chip",
    "compile_job",
    "devices_of",
    "stand_in",
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
MOST_CHIPS = 8192  # near the largest pod's 8,960; a process has memory for this many stand-ins


class Job(NamedTuple):
    """A program to plan.

    Attributes:
        run: the function to compile.
        arguments: abstract, with shardings.
        kinds: name -> tree of abstract arrays that are in memory while it runs.
        flops: FLOPs of one step over all chips, without rematerialisation.
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
    """Memory, work and traffic of one chip and step, with sizes in GiB.

    Attributes:
        memory: GiB by kind; "temporary" is what the compiler adds (workspace, gradients, copies).
        total: GiB of all kinds together.
        fits: whether the chip has that much.
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


@dataclasses.dataclass(frozen=True)
class Topology:
    """Accelerators to plan for.

    Attributes:
        kind: a key of `CHIPS`.
        shape: number of chips along each axis of their network.
    """

    kind: str
    shape: tuple[int, ...]

    @classmethod
    def parse(cls, text: str) -> "Topology":
        """`v5e:8x8` or `h100:8`.

        Raises:
            UserError: an unknown kind, or an impossible number of chips.
        """
        kind, _, shape = text.partition(":")
        if kind not in CHIPS or not re.fullmatch(r"[0-9]{1,6}(x[0-9]{1,6})*", shape):
            raise UserError(
                f"unknown topology {text!r}; write KIND:SHAPE as in v5e:8x8, v5p:4x4x4 or h100:8, "
                f"with KIND one of {', '.join(CHIPS)}"
            )
        topology = cls(kind, tuple(map(int, shape.split("x"))))
        if not 1 <= topology.chips <= MOST_CHIPS:
            raise UserError(
                f"the topology {text!r} has {topology.chips:,} chips; give 1 to {MOST_CHIPS:,}"
            )
        return topology

    def __str__(self) -> str:
        return f"{self.kind}:{'x'.join(map(str, self.shape))}"

    @property
    def chips(self) -> int:
        """Number of chips."""
        return math.prod(self.shape)

    @property
    def is_gpu(self) -> bool:
        """Whether CPU devices stand in for them."""
        return self.kind in GPUS


def stand_in(topology: Topology) -> None:
    """Gives this process the CPU devices that stand in for GPUs, before JAX looks for devices."""
    if topology.is_gpu:
        jax.config.update("jax_num_cpu_devices", topology.chips)


def devices_of(topology: Topology) -> list[jax.Device]:
    """The devices of a topology, or CPU devices standing in for GPUs.

    Raises:
        UserError: the compiler is not installed or does not know the topology, or there are too few
            stand-ins.
    """
    if topology.is_gpu:
        devices, count = jax.devices("cpu"), topology.chips
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
        return list(
            topologies.get_topology_desc(platform="tpu", topology_name=str(topology)).devices
        )
    except Exception as error:  # noqa: BLE001 - the compiler's loader raises what it likes
        require("tpu")
        reason = str(error).strip().split("\n")[0][:200]
        raise UserError(f"the TPU compiler does not know {topology}: {reason}") from None


def bytes_per_chip(tree: PyTree) -> int:
    """Bytes of the largest shard of every abstract array, added up."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape) if x.sharding else x.shape)
        * jax.dtypes.itemsize_bits(x.dtype)
        // 8
        for x in jax.tree.leaves(tree)
    )


def compile_job(build: Callable[[Mesh], Job], topology: Topology, mesh: MeshConfig) -> Plan:
    """Compiles a job for a topology and reads what it needs.

    Args:
        build: makes the job for a mesh.
        mesh: sizes of the mesh over the topology's devices.
    """
    chip, gpu = CHIPS[topology.kind], topology.is_gpu
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
        topology=str(topology),
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
    """Finds the compiler's sentence about memory; None if it failed for another reason."""
    found = re.search(r"Used [\d.]+[GMK] of [\d.]+[GMK] hbm[^\n]*", message) or re.search(
        r"total memory required for [^\n]* exceeds available HBM[^\n.]*[\d.]*\w*\)", message
    )
    return found.group(0) if found else None


def _refused_bytes(words: str, argued: int) -> int:
    """Temporary bytes that the compiler asked for.

    One of its sentences counts the arguments too.
    """
    found = re.search(r"([\d.]+)([GMK])", words)
    if not found:
        return 0
    size = int(float(found.group(1)) * {"G": 2**30, "M": 2**20, "K": 2**10}[found.group(2)])
    return size if "temporaries" in words else max(size - argued, 0)
