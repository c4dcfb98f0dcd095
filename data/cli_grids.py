"""`dsd data grids` and `dsd data pairs`: the stages between the questions, painted and cut here."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro
from PIL import Image

from dsd_jax.config import BFLOAT16, FLOAT32
from dsd_jax.data.make.config import MakeConfig, begin_stage, load_config
from dsd_jax.data.make.grids import GridsConfig, paint_grids
from dsd_jax.data.make.pairs import make_pairs
from dsd_jax.data.make.parts import Shard, shard_from_environment
from dsd_jax.data.make.tables import summary
from dsd_jax.errors import UserError
from dsd_jax.images import NotFiniteError
from dsd_jax.infer.pipeline import Pipeline
from dsd_jax.infer.settings import Settings
from dsd_jax.sharding import MeshConfig, make_mesh

__all__ = ["PipelineTeacher", "grids", "pairs", "run_grids", "run_pairs"]

Config = tyro.conf.Positional[Path]


class PipelineTeacher:
    """FLUX as a teacher: plain text to image, batch-sharded over the pipeline's mesh."""

    def __init__(self, pipeline: Pipeline, config: GridsConfig, batch_size: int | None) -> None:
        """`batch_size`: pictures painted at once, by default one for every device of the batch."""
        wanted = pipeline.group if batch_size is None else batch_size
        if wanted < 1:
            raise UserError(f"batch_size must be at least 1, got {wanted}")
        self.batch_size = math.ceil(wanted / pipeline.group) * pipeline.group
        settings = Settings(
            height=config.height, width=config.width, steps=config.steps, guidance=config.guidance
        )
        downscale = pipeline.autoencoder_config.downscale
        self._settings = settings.checked(two_frames=False, downscale=downscale)
        self._pipeline = pipeline
        self.parameters: Mapping[str, Any] = {
            "height": config.height,
            "width": config.width,
            "steps": config.steps,
            "guidance": config.guidance,
            **pipeline.identity,
        }

    def __call__(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image | None]:
        """One picture for each prompt; None for one that is not finite."""
        try:
            return [*self._paint(prompts, seeds)]
        except NotFiniteError:  # it is the fault of one or some of them
            return [self._alone(*each) for each in zip(prompts, seeds, strict=True)]

    def _paint(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        made = self._pipeline.run(
            list(prompts),
            None,
            np.asarray(seeds, np.uint32),
            self._settings,
            batch_size=self.batch_size,
        )
        return made.images

    def _alone(self, prompt: str, seed: int) -> Image.Image | None:
        """A picture by the same program, which takes no fewer."""
        try:
            return self._paint([prompt] * self.batch_size, [seed] * self.batch_size)[0]
        except NotFiniteError:
            return None


def grids(
    config: Config,
    batch_size: int | None = None,
    shard: int | None = None,
    num_shards: int | None = None,
    mesh: Annotated[MeshConfig, tyro.conf.arg(name="mesh")] = MeshConfig(),
) -> None:
    """Paint grids from the prompts that were kept; stopped and started again, it goes on.

    Args:
        config: TOML file of all stages.
        batch_size: Pictures painted at once; default: one per device that shares the batch.
        shard: Number of this worker, from 0; default: that of the SLURM array or indexed job.
        num_shards: Number of workers.
        mesh: Devices to use along each axis; -1: all that the other axes leave.
    """
    chosen = load_config(config)
    worker = shard_from_environment(shard, num_shards)
    run_grids(chosen, worker, batch_size=batch_size, mesh=mesh)


def run_grids(
    config: MakeConfig,
    shard: Shard,
    *,
    batch_size: int | None = None,
    mesh: MeshConfig = MeshConfig(),
) -> None:
    """Finishes this worker's parts of `grids`, with our own pipeline as the teacher.

    Raises:
        UserError: the prompts are not finished, the model cannot be loaded, or there is no space.
    """
    parts = begin_stage(config, "grids")

    def teacher() -> PipelineTeacher:
        pipeline = Pipeline.load(
            config.base_path,
            precision=FLOAT32 if config.grids.dtype == "float32" else BFLOAT16,
            mesh=None if jax.device_count() == 1 else make_mesh(mesh),
        )
        for notice in pipeline.notices:
            print(f"note: {notice}")
        return PipelineTeacher(pipeline, config.grids, batch_size)

    paint_grids(parts, config.grids, teacher, shard)
    print(summary(parts, "grids", shard))


def pairs(config: Config, shard: int | None = None, num_shards: int | None = None) -> None:
    """Cut grids into panels, drop what is no even grid, a near copy or a repetition, make pairs.

    Pairs are made when the grids of all workers are cut.

    Args:
        config: TOML file of all stages.
        shard: Number of this worker, from 0; default: that of the SLURM array or indexed job.
        num_shards: Number of workers.
    """
    chosen = load_config(config)
    run_pairs(chosen, shard_from_environment(shard, num_shards))


def run_pairs(config: MakeConfig, shard: Shard) -> None:
    """Finishes this worker's parts of `pairs`, or leaves with status 0 until all grids are cut.

    Raises:
        UserError: the grids are not finished, or there is no space.
    """
    parts = begin_stage(config, "pairs")
    waiting = make_pairs(parts, config.pairs, shard)
    if waiting:
        print(
            f"the grids of this worker are cut; {len(waiting)} of {parts.count} parts of other "
            "workers are not. Pairs are compared across all of them, so run the same command again "
            "when those are done"
        )
        raise SystemExit(0)
    print(summary(parts, "pairs", shard))
