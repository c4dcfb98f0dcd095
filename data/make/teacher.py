"""The teacher that paints grids: FLUX, by our own pipeline, from text alone."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import jax
import numpy as np
from PIL import Image

from dsd_jax.config import PRECISIONS
from dsd_jax.data.make.config import MakeConfig
from dsd_jax.data.make.grids import GridsConfig, Teacher, Teachers
from dsd_jax.data.make.routes import GRID, Route
from dsd_jax.images import NotFiniteError
from dsd_jax.infer.arguments import check_count
from dsd_jax.infer.pipeline import Pipeline
from dsd_jax.infer.prepared import prepare
from dsd_jax.infer.settings import Settings
from dsd_jax.infer.structure import SharedStructure
from dsd_jax.sharding import MeshConfig, make_mesh

__all__ = ["open_teachers", "teacher_of"]


def open_teachers(
    config: MakeConfig,
    batch_size: int | None = None,
    mesh: MeshConfig = MeshConfig(),
    note: Callable[[str], None] = print,
) -> Teachers:
    """Loads the model of a configuration, which paints for every route.

    Args:
        config: All settings.
        batch_size: Number of grids painted at once. None takes one per device that shares the
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
    return lambda route: teacher_of(
        pipeline, config.grids, batch_size, route, config.relight.shared_steps
    )


def teacher_of(
    pipeline: Pipeline,
    config: GridsConfig,
    batch_size: int | None = None,
    route: Route = GRID,
    shared_steps: float = 0.0,
) -> Teacher:
    """Makes a teacher of a pipeline; the batch is sharded over the pipeline's mesh.

    Args:
        pipeline: The text-to-image model.
        config: Settings of a grid. A route of scenes paints pictures of half its height and width.
        batch_size: Number of grids painted at once. None takes as many as the devices need.
        route: Route that it paints for.
        shared_steps: Part of the steps that the pictures of a grid share, if there are several.

    Raises:
        UserError: The settings do not fit the pipeline.
    """
    wanted = pipeline.group if batch_size is None else check_count("batch_size", batch_size)
    size = math.ceil(wanted / pipeline.group) * pipeline.group
    sides = 2 if route.of_scene else 1
    height, width = config.height // sides, config.width // sides
    wished = Settings(height=height, width=width, steps=config.steps, guidance=config.guidance)
    settings = pipeline.check(wished, two_frames=False)
    each = route.painted
    shared = SharedStructure(each, shared_steps) if each > 1 else None

    def paint(prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        numbers = np.repeat(np.asarray(seeds, np.uint32), each)
        prepared = prepare(pipeline.tokenizers, prompts, None, numbers, settings)
        return pipeline.run(prepared, batch_size=size * each, shared=shared).images

    def paint_alone(prompts: Sequence[str], seed: int) -> list[Image.Image | None]:
        """Paints one grid by the same program, which has a fixed batch size."""
        try:
            return [*paint([*prompts] * size, [seed] * size)[:each]]
        except NotFiniteError:
            return [None] * each

    def paint_or_none(prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image | None]:
        try:
            return [*paint(prompts, seeds)]
        except NotFiniteError:  # at least one of the pictures is at fault
            own = [prompts[i : i + each] for i in range(0, len(prompts), each)]
            alone = (paint_alone(*one) for one in zip(own, seeds, strict=True))
            return [picture for pictures in alone for picture in pictures]

    parameters = {
        "height": height,
        "width": width,
        "steps": config.steps,
        "guidance": config.guidance,
        **pipeline.identity,
        **({} if shared is None else dataclasses.asdict(shared)),
    }
    return Teacher(size, parameters, paint_or_none)
