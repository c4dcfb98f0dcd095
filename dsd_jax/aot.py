"""Memory and time of a program on hardware that you do not have yet, read off the compiler.

The real compilers run here without an accelerator, and their own account of memory decides. Where
CPU devices stand in for GPUs, the compiled program gives the collectives, and memory is counted by
arithmetic; the result says so.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
from jax.sharding import Mesh

from dsd_jax.cycles import Estimate, estimated
from dsd_jax.hlo import collectives
from dsd_jax.sharding import MeshConfig, make_mesh
from dsd_jax.topology import Topology, devices_of
from dsd_jax.types import PyTree

__all__ = ["Job", "Plan", "bytes_per_chip", "compile_job"]

GIB = 2**30


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
        estimate: what the TPU compiler expects of the step; None for GPUs, or if it refused.
        problem: the compiler's own words where it refused.
    """

    topology: str
    mesh: dict[str, int]
    memory: dict[str, float]
    total: float
    available: float
    fits: bool
    source: Literal["compiler", "arithmetic"]
    tflops: float
    step_floor_s: float
    collectives: dict[str, float]
    estimate: Estimate | None = None
    problem: str | None = None


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
    chip, devices = topology.chip, devices_of(topology)
    platform = devices[0].platform
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
        assert stats is not None  # every compiler here gives its account
        temporary = int(stats.temp_size_in_bytes)
    else:
        temporary = _refused_bytes(problem or "", argued)
    memory["activations"] = job.activations
    counted = platform == "cpu"
    memory["temporary"] = job.working if counted else max(temporary - job.activations, 0)
    total = sum(memory.values())
    flops = job.flops / len(devices)
    return Plan(
        topology=str(topology),
        mesh=dict(real.shape),
        memory={name: round(size / GIB, 2) for name, size in memory.items()},
        total=round(total / GIB, 2),
        available=chip.memory_gib,
        fits=problem is None and total < chip.memory_gib * GIB,
        source="arithmetic" if counted else "compiler",
        tflops=round(flops / 1e12, 1),
        step_floor_s=round(flops / chip.peak_tflops / 1e12, 2),
        collectives={k: round(v / GIB, 3) for k, v in collectives(text).items()},
        estimate=estimated(text, chip) if platform == "tpu" and text else None,
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

    Its sentences count the arguments too, also the one that speaks of temporaries alone.
    """
    found = re.search(r"([\d.]+)([GMK])", words)
    if not found:
        return 0
    size = int(float(found.group(1)) * {"G": 2**30, "M": 2**20, "K": 2**10}[found.group(2)])
    return max(size - argued, 0)
