"""Compiles the full-size sampling step with the real TPU compiler, on a machine without a TPU.

    pip install libtpu
    python -m benchmarks.memory.sampling_memory [--topologies v5e:2x4 v6e:2x4 v5p:2x2x1]

FLUX.1-dev with the condition embedding, two frames of 512 x 512, one true-guidance step (three
passes in one batch) and one plain step. Prints the memory of each chip: arguments (weights,
latents, text), temporary memory, and whether it fits. Weights are abstract; nothing is downloaded
or run.
"""

import argparse
import dataclasses
import os
import time
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
from flax import nnx

from benchmarks.results import save
from dsd_jax.config import BFLOAT16, Execution, flux_dev
from dsd_jax.flux import parted
from dsd_jax.frames import Canvas
from dsd_jax.infer.job import SampleSize, abstract_inputs, abstract_modulations, abstract_step
from dsd_jax.infer.sampler import Carry, Programs
from dsd_jax.infer.settings import Settings
from dsd_jax.models import abstract, abstract_state
from dsd_jax.quantise import WeightKind
from dsd_jax.sharding import MeshConfig, make_mesh
from dsd_jax.topology import Topology, devices_of

SECTIONS = {
    "": (
        "The sampling step on TPU slices",
        """FLUX.1-dev, two frames of 512 x 512, compiled by the TPU compiler on a machine without
a TPU; memory per chip. The weights of the modulations are dropped before the first step.""",
    ),
}

GIB = 2**30
CANVAS = Canvas(64, 128)  # two frames of 512 x 512 pixels


@dataclasses.dataclass(frozen=True)
class Case:
    """One way to run the step: images per step, mesh, how layers run, and kinds of weights."""

    topology: str
    batch: int
    mesh: MeshConfig
    execution: Execution
    weights: WeightKind | None = None


def compiled_step(case: Case, *, guided: bool) -> jax.stages.Compiled:
    """Compiles one step for a topology."""
    mesh = make_mesh(case.mesh, devices_of(Topology.parse(case.topology)))
    model = abstract(flux_dev(), precision=BFLOAT16, execution=case.execution, weights=case.weights)
    programs = Programs(nnx.graphdef(model), CANVAS)
    state = abstract_state(model, mesh)
    size = SampleSize(case.batch, CANVAS, guided=guided)
    img, inputs = abstract_inputs(flux_dev(), mesh, size)
    with jax.set_mesh(mesh):
        made = abstract_modulations(programs, mesh, state, inputs, Settings.steps)
        return (
            jax.jit(programs.step, static_argnames="kind", donate_argnums=1)
            .lower(
                parted(state)[1],
                Carry(img, ()),
                inputs,
                made,
                abstract_step(),
                kind="guided" if guided else "plain",
            )
            .compile()
        )


def compile_step(case: Case, *, guided: bool) -> dict[str, Any]:
    """Compiles one step for a topology and reads the compiler's own account of memory."""
    start = time.monotonic()
    compiled = compiled_step(case, guided=guided)
    memory = compiled.memory_analysis()
    available = Topology.parse(case.topology).chip.memory_gib
    used = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    return {
        "topology": case.topology,
        "mesh": "x".join(map(str, case.mesh.sizes(Topology.parse(case.topology).chips))),
        "batch": case.batch,
        "guided": guided,
        "scan": case.execution.scan_layers,
        "stream": case.execution.stream_layers,
        "arguments_gib": round(memory.argument_size_in_bytes / GIB, 2),
        "temporary_gib": round(memory.temp_size_in_bytes / GIB, 2),
        "host_gib": round(memory.host_argument_size_in_bytes / GIB, 2),
        "chip_gib": available,
        "fits": used < available * GIB,
        "compile_s": round(time.monotonic() - start, 1),
    }


def main() -> None:
    """Prints the table and saves it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--topologies", nargs="+", default=["v5e:2x4", "v6e:2x4", "v5p:2x2x1"])
    arguments = parser.parse_args()
    scan = Execution(scan_layers=True, attention="splash")
    stream = dataclasses.replace(scan, stream_layers=True)
    rows = []
    for topology in arguments.topologies:
        chips = Topology.parse(topology).chips
        throughput = Case(topology, chips, MeshConfig(fsdp=-1, data=1), scan)
        latency = Case(topology, 1, MeshConfig(data=1, tensor=4, context=-1), scan)
        streamed = Case(topology, chips, MeshConfig(), stream)  # weights in host memory
        jobs = [(throughput, False), (throughput, True), (latency, False), (streamed, False)]
        for case, guided in jobs:
            rows.append(compile_step(case, guided=guided))
            print(rows[-1], flush=True)
    save(__file__, rows)


if __name__ == "__main__":
    main()
