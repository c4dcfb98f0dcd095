"""The teacher that paints grids: FLUX, by our own pipeline, from text alone."""

import math
from collections.abc import Callable, Sequence

import jax
import numpy as np
from PIL import Image

from dsd_jax.config import PRECISIONS
from dsd_jax.data.make.config import MakeConfig
from dsd_jax.data.make.grids import GridsConfig, Teacher
from dsd_jax.images import NotFiniteError
from dsd_jax.infer.arguments import check_count
from dsd_jax.infer.pipeline import Pipeline
from dsd_jax.infer.prepared import prepare
from dsd_jax.infer.settings import Settings
from dsd_jax.sharding import MeshConfig, make_mesh

__all__ = ["open_teacher", "teacher_of"]


def open_teacher(
    config: MakeConfig,
    batch_size: int | None = None,
    mesh: MeshConfig = MeshConfig(),
    note: Callable[[str], None] = print,
) -> Teacher:
    """Loads the model of a configuration.

    Args:
        config: All settings.
        batch_size: Number of pictures painted at once. None takes one per device that shares the
            batch.
        mesh: Devices along each axis.
        note: Gets the notices of the pipeline.

    Raises:
        UserError: The model cannot be loaded, or the settings do not fit it.
    """
    pipeline = Pipeline.load(
        config.base_path,
        precision=PRECISIONS[config.grids.dtype],
        mesh=None if jax.device_count() == 1 else make_mesh(mesh),
    )
    for notice in pipeline.notices:
        note(f"note: {notice}")
    return teacher_of(pipeline, config.grids, batch_size)


def teacher_of(pipeline: Pipeline, config: GridsConfig, batch_size: int | None = None) -> Teacher:
    """Makes a teacher of a pipeline; the batch is sharded over the pipeline's mesh.

    Raises:
        UserError: The settings do not fit the pipeline.
    """
    wanted = pipeline.group if batch_size is None else check_count("batch_size", batch_size)
    size = math.ceil(wanted / pipeline.group) * pipeline.group
    wished = Settings(
        height=config.height, width=config.width, steps=config.steps, guidance=config.guidance
    )
    settings = pipeline.check(wished, two_frames=False)

    def paint(prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        numbers = np.asarray(seeds, np.uint32)
        prepared = prepare(pipeline.tokenizers, prompts, None, numbers, settings)
        return pipeline.run(prepared, batch_size=size).images

    def paint_alone(prompt: str, seed: int) -> Image.Image | None:
        """Paints one picture by the same program, which has a fixed batch size."""
        try:
            return paint([prompt] * size, [seed] * size)[0]
        except NotFiniteError:
            return None

    def paint_or_none(prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image | None]:
        try:
            return [*paint(prompts, seeds)]
        except NotFiniteError:  # at least one of the pictures is at fault
            return [paint_alone(*each) for each in zip(prompts, seeds, strict=True)]

    parameters = {
        "height": config.height,
        "width": config.width,
        "steps": config.steps,
        "guidance": config.guidance,
        **pipeline.identity,
    }
    return Teacher(size, parameters, paint_or_none)
