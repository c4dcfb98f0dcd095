"""The same training run on one device, on meshes of eight, and on two processes.

    python -m benchmarks.exact.train_meshes

LoRA training of a small random FLUX, float32: 20 steps of AdamW, 16 pairs each, in two
micro-batches. A mesh of one process is one of eight virtual CPU devices; two processes have four
such devices each and talk to each other through JAX's distributed service on this machine, as
hosts would. `largest difference` is the largest relative difference of a step's loss from the first
row's; `norm` compares the norm of all trained parameters at the end.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks.ports import held_port
from benchmarks.results import save
from dsd_jax.config import FluxConfig
from dsd_jax.flow import Schedule
from dsd_jax.frames import Canvas
from dsd_jax.lora import LoraConfig
from dsd_jax.parts import Component
from dsd_jax.processes import ClusterConfig, join
from dsd_jax.sharding import LOGICAL_TO_MESH, MeshConfig, make_mesh
from dsd_jax.toy.making.random_pipeline import random_tensors
from dsd_jax.train.config import OptimizerConfig, TrainConfig
from dsd_jax.train.model import first_state, make_trainee
from dsd_jax.train.objective import Customise, EncodedBatch
from dsd_jax.train.optimizer import make_optimizer
from dsd_jax.train.step import make_step
from dsd_jax.weights import TensorSource

SECTIONS = {
    "": (
        "Training over meshes and processes",
        "Losses of the same run on every mesh.",
    ),
}

FLUX = FluxConfig(
    in_channels=16,
    out_channels=16,
    num_heads=8,
    head_dim=16,
    double_depth=2,
    single_depth=4,
    txt_width=32,
    vec_width=24,
    axes_dim=(4, 6, 6),
)
CANVAS, TEXT, BATCH = Canvas(8, 16), 8, 16  # latent pixels; T5 tokens; pairs
MESHES = (
    MeshConfig(data=8),
    MeshConfig(data=1, fsdp=8),
    MeshConfig(data=1, fsdp=4, tensor=2),
    MeshConfig(data=2, fsdp=2, context=2),
    MeshConfig(data=1, fsdp=2, tensor=2, context=2),
)
TWO_PROCESSES = (
    MeshConfig(data=8),
    MeshConfig(data=2, fsdp=4),
    MeshConfig(data=1, fsdp=8),
    MeshConfig(data=1, fsdp=4, tensor=2),
)


@dataclasses.dataclass(frozen=True)
class Run:
    """Losses of every step, and the norm of the trained parameters after the last one."""

    losses: list[float]
    norm: float


def batch_of(step: int, mesh: Mesh) -> EncodedBatch:
    """A batch of random numbers; every process makes all of it and keeps its devices' part."""
    rng = np.random.default_rng(step)
    tokens = CANVAS.tokens
    shapes = EncodedBatch(
        x_0=(BATCH, tokens, FLUX.in_channels),
        img_cond=(BATCH, tokens, FLUX.in_channels),
        txt=(BATCH, TEXT, FLUX.txt_width),
        vec=(BATCH, FLUX.vec_width),
        drop_text=(BATCH,),
        drop_image=(BATCH,),
        null_txt=(TEXT, FLUX.txt_width),
        null_vec=(FLUX.vec_width,),
    )

    def place(name: str, shape: tuple[int, ...]) -> jax.Array:
        value: np.ndarray = rng.standard_normal(shape, np.float32)
        value = value > 1 if name.startswith("drop") else value
        rows = None if name.startswith("null") else LOGICAL_TO_MESH["batch"]
        spec = PartitionSpec() if rows is None else PartitionSpec(rows)
        return jax.make_array_from_callback(
            shape, NamedSharding(mesh, spec), lambda index: value[index]
        )

    return EncodedBatch(*(place(*item) for item in shapes._asdict().items()))


def train(mesh: Mesh, steps: int) -> Run:
    """The run on a mesh, which may reach over several processes."""
    config = TrainConfig(
        steps=steps,
        batch_size=BATCH,
        lora=LoraConfig(rank=8),
        optimizer=OptimizerConfig(learning_rate=1e-3, accumulate=2, ema=0.9),
        base_dtype="float32",
    )
    source = TensorSource(random_tensors(FLUX, seed=0))
    opened = Component("", FLUX, source, "memory")
    split = make_trainee(config, opened, mesh).split
    optimizer = make_optimizer(config.optimizer, steps)
    state = first_state(split, optimizer, mesh, ema=True)
    where = jax.tree.map(lambda x: x.sharding, state)
    step = jax.jit(
        make_step(split.graphdef, optimizer, Customise(config.flow, Schedule(), CANVAS), config),
        donate_argnums=0,
        out_shardings=(where, NamedSharding(mesh, PartitionSpec())),
    )
    losses, norm = [], 0.0
    with jax.set_mesh(mesh):
        for i in range(steps):
            state, metrics = step(state, split.frozen, batch_of(i, mesh))
            losses.append(float(metrics.loss))
            norm = float(metrics.param_norm)
    return Run(losses, norm)


def two_processes(mesh: MeshConfig, steps: int, *, flags: str = "", timeout: float = 600) -> Run:
    """The run on two processes with four devices each, which this one starts.

    Args:
        mesh: sizes of the axes, for eight devices.
        steps: training steps.
        flags: for XLA.
        timeout: in seconds.

    Raises:
        RuntimeError: one of them failed.
    """
    held = held_port()
    address = f"localhost:{held.getsockname()[1]}"
    job = json.dumps({"mesh": dataclasses.asdict(mesh), "steps": steps, "address": address})
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": paths}
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.exact.train_meshes", "--worker", str(i), job],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    try:
        outputs = [worker.communicate(timeout=timeout) for worker in workers]
    finally:
        held.close()
        for worker in workers:
            worker.kill()
    for worker, (_, errors) in zip(workers, outputs, strict=True):
        if worker.returncode:
            raise RuntimeError(f"a process failed:\n{errors}")
    runs = [Run(**json.loads(out.splitlines()[-1])) for out, _ in outputs]
    if runs[0] != runs[1]:
        raise RuntimeError(f"the processes disagree: {runs}")
    return runs[0]


def work(index: int, job: dict[str, Any]) -> None:
    """Runs in a started process: joins the other one, trains, prints the run."""
    jax.config.update("jax_num_cpu_devices", 4)
    join(ClusterConfig(job["address"], 2, index))
    run = train(make_mesh(MeshConfig(**job["mesh"])), job["steps"])
    print(json.dumps(dataclasses.asdict(run)))


def row(mesh: MeshConfig, processes: int, run: Run, expected: Run) -> dict[str, Any]:
    """A line of the table."""
    sizes = {k: v for k, v in dataclasses.asdict(mesh).items() if v > 1}
    losses, reference = np.array(run.losses), np.array(expected.losses)
    return {
        "mesh": ", ".join(f"{k}={v}" for k, v in sizes.items()) or "one device",
        "processes": processes,
        "first loss": round(run.losses[0], 4),
        "last loss": round(run.losses[-1], 4),
        "largest difference": f"{np.abs(losses / reference - 1).max():.1e}",
        "norm": f"{abs(run.norm / expected.norm - 1):.1e}",
    }


def compare(steps: int) -> None:
    """Trains on every mesh, prints and saves the table."""
    jax.config.update("jax_num_cpu_devices", 8)
    one = MeshConfig(data=1)
    expected = train(make_mesh(one, jax.devices()[:1]), steps)
    rows = [row(one, 1, expected, expected)]
    for mesh in MESHES:
        rows.append(row(mesh, 1, train(make_mesh(mesh), steps), expected))
        print(rows[-1], flush=True)
    for mesh in TWO_PROCESSES:
        rows.append(row(mesh, 2, two_processes(mesh, steps), expected))
        print(rows[-1], flush=True)
    save(__file__, rows, steps=steps, batch=BATCH)


def main() -> None:
    """Compares, or is one of the two processes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(int(arguments.worker[0]), json.loads(arguments.worker[1]))
    else:
        compare(arguments.steps)


if __name__ == "__main__":
    main()
