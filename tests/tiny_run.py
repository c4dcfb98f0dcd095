"""A whole training run of toy size: a random pipeline, a few pairs, everything on disk."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dsd_jax.checkpoint import OrbaxSource
from dsd_jax.convert.open import open_flux
from dsd_jax.sharding import MeshConfig, make_mesh
from dsd_jax.toy.making.random_pipeline import write_random_pipeline
from dsd_jax.train.config import DataConfig, OptimizerConfig, RunConfig, TrainConfig
from dsd_jax.train.data import open_data
from dsd_jax.train.loop import Outcome, train
from dsd_jax.train.presets import tiny
from dsd_jax.train.trainer import StepOptions, Trainer
from tests.tiny_pairs import write_pairs

__all__ = ["RECIPE", "arrays_of", "run_training", "write_world"]

RECIPE = dataclasses.replace(
    tiny(),
    steps=4,
    height=32,
    width=64,
    mesh=MeshConfig(data=-1, fsdp=1),
    optimizer=OptimizerConfig(learning_rate=1e-2, ema=0.9),
)


def write_world(folder: Path) -> Path:
    """`flux/`, `pairs/` (8) and `held/` (2); the folder itself."""
    write_random_pipeline(folder / "flux")
    write_pairs(folder / "pairs", 8)
    write_pairs(folder / "held", 2, first=100)
    return folder


def run_training(
    world: Path,
    output_dir: Path,
    config: TrainConfig = RECIPE,
    *,
    devices: Sequence[jax.Device] | None = None,
    threads: int = 2,
    **settings: Any,
) -> Outcome:
    """`dsd train` without its flags, on the first device unless told otherwise."""
    mesh = make_mesh(config.mesh, devices or jax.devices()[:1])
    base = open_flux(world / "flux", condition=config.condition, max_sequence_length=8)
    run = RunConfig(output_dir, **{"log_every": 1, "tensorboard": False} | settings)
    data = DataConfig((str(world / "pairs"),), threads=threads)
    trainer = Trainer(config, base, mesh, options=StepOptions(run.skip_bad_batches))
    return train(trainer, run, open_data(data, config, mesh, base))


def arrays_of(checkpoint: Path) -> dict[str, np.ndarray]:
    """Everything in a checkpoint, by name."""
    source = OrbaxSource(str(checkpoint / "state"))
    return {
        name: source.read(name, tuple(slice(0, n) for n in shape))
        for name, shape in source.shapes.items()
    }
