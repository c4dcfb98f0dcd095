"""Finds a step mask for a pipeline and its settings on a few images; see `dsd_jax.infer.mask`."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np

from dsd_jax.errors import UserError
from dsd_jax.images import open_frame
from dsd_jax.infer.arguments import check_count
from dsd_jax.infer.batch import Row
from dsd_jax.infer.mask import Found, check_search, mask_steps, search_mask
from dsd_jax.infer.pipeline import Pipeline
from dsd_jax.infer.prepared import Prepared, prepare
from dsd_jax.infer.sampler import Method
from dsd_jax.infer.solvers import SOLVERS
from dsd_jax.progress import progress
from dsd_jax.sharding import batch_sharding, on_mesh
from dsd_jax.types import Float32

__all__ = ["find_mask", "prepare_rows"]


def prepare_rows(pipeline: Pipeline, rows: list[Row], count: int) -> Prepared:
    """Opens the first rows of a manifest as one batch.

    Args:
        pipeline: the pipeline.
        rows: the rows, which have equal settings, and all or none of them a reference.
        count: number of images; every device that shares the batch gets as many.

    Raises:
        UserError: a row that cannot be used, rows that differ, or too few of them; no images; or a
            LoRA that has a step mask of its own.
    """
    count = check_count("images", count)
    count = max(count // pipeline.group, 1) * pipeline.group
    own = rows[:count]
    if len(own) < count:
        fewer = "a smaller --images" if count > pipeline.group else "--mesh.data 1"
        raise UserError(
            f"{count} images are needed for the search, the manifest has {len(own)}; add rows, or "
            f"give {fewer}"
        )
    for row in own:
        if row.error:
            raise UserError(f"row {row.id}: {row.error}")
    kinds = {(row.settings, row.image is not None) for row in own}
    if len(kinds) > 1:
        raise UserError(
            "a mask is found for images of equal settings, all or none with a reference; leave "
            "out the columns of the manifest that differ"
        )
    for name, mask in pipeline.step_masks.items():
        raise UserError(
            f"{name} is distilled for the step_mask {mask} and samples with no other; leave out "
            "its --lora_path, or give dsd generate this mask"
        )
    ((settings, two_frames),) = kinds
    checked = pipeline.check(settings, two_frames=two_frames)
    height, width = checked.size
    frames = [
        open_frame(row.folder / row.image, height, width // 2)
        for row in own
        if row.image is not None
    ]
    seeds = np.asarray([row.seed for row in own], np.uint32)
    texts = [row.text for row in own]
    return prepare(pipeline.tokenizers, texts, frames or None, seeds, checked)


def find_mask(pipeline: Pipeline, prepared: Prepared, full: int, trials: int) -> Found:
    """Searches for the mask whose final latents are nearest to those of all steps.

    Args:
        pipeline: the pipeline.
        prepared: the images, sampled as one batch.
        full: number of steps that run all blocks.
        trials: number of masks to try.

    Raises:
        UserError: `full` or `trials` is not in reach, or there is a mask already.
    """
    settings = prepared.settings
    if settings.step_mask is not None:
        raise UserError("the search finds a mask and takes none; leave out step_mask")
    check_search(settings.steps, full, trials)  # before weights are read and programs compiled
    start = pipeline.start(prepared)
    method = Method(SOLVERS[settings.solver], settings.guidance_every, masked=True)
    sampler = pipeline.sampler(start.canvas, method)
    timesteps = pipeline.schedule.timesteps(settings.steps, start.canvas.tokens)
    with contextlib.ExitStack() as stack:
        stack.enter_context(on_mesh(pipeline.mesh))
        inputs = jax.tree.map(jnp.asarray, start.inputs(prepared))
        if pipeline.mesh is not None:
            inputs = jax.device_put(inputs, batch_sharding(pipeline.mesh))
        modulations = sampler.modulations(inputs, timesteps)
        advance = stack.enter_context(progress("searching", trials, "masks", "compiling"))

        def sampled(mask: str) -> Float32[np.ndarray, "B L C"]:
            noise = jnp.asarray(start.noise)
            if pipeline.mesh is not None:
                noise = jax.device_put(noise, batch_sharding(pipeline.mesh))
            made = sampler.run(
                noise, inputs, timesteps, modulations=modulations, mask=mask_steps(mask)
            )
            return np.asarray(made)

        exact = sampled("1" * settings.steps)

        def error(mask: str) -> float:
            found = float(np.linalg.norm(sampled(mask) - exact) / np.linalg.norm(exact))
            advance()
            return found

        return search_mask(error, settings.steps, full, trials)
