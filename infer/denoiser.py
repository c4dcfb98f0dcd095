"""The transformer on its devices with the adapters in use, and a compiled sampler per canvas."""

import contextlib
import dataclasses
import gc
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dsd_jax.config import FluxConfig
from dsd_jax.encoders import Text, groups_of, in_groups
from dsd_jax.flow import Schedule
from dsd_jax.flux import Flux, Modulations
from dsd_jax.frames import Canvas, FluxInputs, unpack_latents
from dsd_jax.infer.guidance import TrueGuidance
from dsd_jax.infer.options import LoadOptions
from dsd_jax.infer.prepared import Prepared
from dsd_jax.infer.sampler import Callback, Method, Sampler, SamplerInputs
from dsd_jax.infer.shown import Shown
from dsd_jax.infer.solvers import SOLVERS
from dsd_jax.infer.structure import SharedStructure
from dsd_jax.lora import MergedSource
from dsd_jax.models import abstract, load
from dsd_jax.parts import Component, ScaledAdapter, with_condition
from dsd_jax.progress import Advance, phase, progress
from dsd_jax.sharding import batch_sharding, batch_ways
from dsd_jax.stack import layer_paths
from dsd_jax.types import AnyArray, Float32

__all__ = ["MAX_CANVASES", "Denoiser", "Start"]

MAX_CANVASES = 4  # sizes and methods whose programs are kept; one more clears them


class Denoiser:
    """The transformer with its weights on devices, and a sampler for each of a few canvases.

    Args:
        transformer: the opened transformer.
        adapters: adapters, each with its scale.
        options: options of loading and running.
        reuse: arrays to take instead of reading them, by parameter path.

    Raises:
        UserError: weights or adapters do not fit, or the mesh does not divide the model.
    """

    def __init__(
        self,
        transformer: Component[FluxConfig],
        adapters: Sequence[ScaledAdapter],
        options: LoadOptions,
        *,
        reuse: Mapping[str, jax.Array] | None = None,
    ) -> None:
        self._transformer, self._adapters, self._options = transformer, adapters, options
        opened = with_condition(transformer, adapters)
        model = abstract(
            opened.config,
            precision=options.precision,
            execution=options.running,
            weights=opened.settle(options.weights),
        )
        if options.merge_lora and adapters:
            dtype = options.precision.param_dtype
            merged = MergedSource(opened.source, adapters, dtype)
            self._model = load(model, merged, mesh=options.mesh)
        else:
            self._model = load(
                model, opened.source, mesh=options.mesh, adapters=adapters, reuse=reuse
            )
        self._samplers: dict[tuple[Canvas, Method], Sampler] = {}

    def sampler(self, canvas: Canvas, method: Method = Method()) -> Sampler:
        """The sampler of a canvas and a method, made when it is first asked for."""
        if (canvas, method) not in self._samplers:
            if len(self._samplers) == MAX_CANVASES:
                self._samplers.clear()
                jax.clear_caches()  # JAX keeps every program, about 70 MB a size on a CPU
                gc.collect()
            self._samplers[canvas, method] = Sampler(self._model, canvas, method)
        return self._samplers[canvas, method]

    def with_adapters(self, adapters: Sequence[ScaledAdapter]) -> "Denoiser":
        """Returns the transformer with other adapters; its base weights are not read again.

        If only scales or values change, the compiled programs stay in use too.

        Raises:
            UserError: an adapter does not fit.
        """
        changed = Denoiser(
            self._transformer, adapters, self._options, reuse=self._base_arrays(adapters)
        )
        graphdef, state = nnx.split(changed._model)
        for kind, sampler in self._samplers.items():
            if sampler.programs.graphdef == graphdef:
                changed._samplers[kind] = sampler.with_state(state)
        return changed

    def run(
        self,
        prepared: Prepared,
        start: "Start",
        schedule: Schedule,
        *,
        batch_size: int | None = None,
        callback: Callback | None = None,
        shared: SharedStructure | None = None,
        show: Shown = "nothing",
    ) -> Float32[np.ndarray, "N h w C"]:
        """Samples all images, a batch at a time.

        Args:
            prepared: the images to make.
            start: tokens and embeddings that sampling starts from.
            schedule: schedule of the times of the steps.
            batch_size: images sampled together. Default: as few as occupy every device.
            callback: called after every step of every batch.
            shared: groups of images with a structure in common; a batch holds whole groups.
            show: amount of output on standard error.

        Returns:
            Final latents.
        """
        canvas, settings = start.canvas, prepared.settings
        group = batch_ways(self._options.mesh)
        timesteps = schedule.timesteps(settings.steps, canvas.tokens)
        inputs, form = jax.tree.flatten(start.inputs(prepared))
        arrays = [start.noise, *inputs]
        if shared is not None:
            group = math.lcm(group, shared.panels)
        # Groups that occupy every device, and no more of them than there are images to fill.
        count = len(prepared.texts)
        groups = min(-(-(batch_size or 1) // group), -(-count // group))
        batches = -(-count // (groups * group))
        with contextlib.ExitStack() as shown:
            sampler = self.sampler(
                canvas,
                Method(
                    SOLVERS[settings.solver],
                    settings.guidance_every,
                    shared,
                    masked=settings.mask is not None,
                ),
            )
            if show == "all":
                advance = shown.enter_context(
                    progress("sampling", settings.steps * batches, "steps", "compiling")
                )
                callback = _counting(advance, callback)
            elif show == "phases":
                shown.enter_context(phase("compiling, and sampling the first images"))

            def placed(img: AnyArray, *rows: AnyArray) -> tuple[jax.Array, SamplerInputs]:
                given = jax.tree.map(jnp.asarray, (img, jax.tree.unflatten(form, rows)))
                if self._options.mesh is not None:
                    given = jax.device_put(given, batch_sharding(self._options.mesh))
                return given

            made: Iterator[list[Modulations] | None] = itertools.repeat(None)
            if not self._options.stays:  # the weights that make them then leave the device
                made = iter(
                    [
                        jax.device_get(sampler.modulations(placed(*rows)[1], timesteps))
                        for rows in groups_of(arrays, groups * group)
                    ]
                )
                sampler.free_making()

            def denoise(*rows: AnyArray) -> jax.Array:
                return sampler.run(*placed(*rows), timesteps, callback, next(made), settings.mask)

            done = in_groups(denoise, arrays, groups * group)
        return np.asarray(unpack_latents(jnp.asarray(done), canvas))

    def _base_arrays(self, adapters: Sequence[ScaledAdapter]) -> dict[str, jax.Array]:
        """Arrays of the base that neither the old nor the new adapters replace."""
        if self._options.merge_lora:
            return {}
        replaced = {path for own, _ in (*self._adapters, *adapters) for path in own.full}
        return {
            path: array
            for path, array in _arrays(self._model).items()
            if ".lora_" not in path and replaced.isdisjoint(layer_paths(path, self._model.stacks))
        }


@dataclasses.dataclass(frozen=True)
class Start:
    """The tokens and embeddings that sampling starts from.

    Attributes:
        canvas: canvas of every image.
        noise: packed initial noise.
        text: embeddings of the distinct prompts.
        condition: tokens of every reference.
    """

    canvas: Canvas
    noise: Float32[np.ndarray, "N L Cp"]
    text: Text
    condition: Float32[np.ndarray, "N L Cp"] | None

    def inputs(self, prepared: Prepared) -> SamplerInputs:
        """Inputs of the model for every image, arrays of NumPy with one row per image."""
        settings = prepared.settings
        place = {prompt: i for i, prompt in enumerate(prepared.prompts)}
        rows = np.asarray([place[text] for text in prepared.texts])

        def scale(value: float) -> Any:
            return np.full(len(rows), value, np.float32)

        txt, vec = self.text
        condition: Any = self.condition
        inputs = FluxInputs(txt[rows], vec[rows], scale(settings.guidance), condition)
        if not settings.true_guidance:
            return SamplerInputs(inputs)
        null = np.full(len(rows), place[settings.negative_prompt])
        guidance = TrueGuidance(
            null_txt=txt[null],
            null_vec=vec[null],
            image_scale=scale(settings.i_guidance),
            text_scale=scale(settings.t_guidance),
        )
        return SamplerInputs(inputs, guidance)


def _counting(advance: Advance, callback: Callback | None) -> Callback:
    """A callback that shows every step before it calls the user's."""

    def count(done: int, steps: int, img: jax.Array) -> bool | None:
        jax.block_until_ready(img)  # otherwise the bar would run ahead of the device
        advance()
        return None if callback is None else callback(done, steps, img)

    return count


def _arrays(model: Flux) -> dict[str, jax.Array]:
    flat = nnx.to_flat_state(nnx.state(model))
    return {".".join(map(str, path)): variable[...] for path, variable in flat}
