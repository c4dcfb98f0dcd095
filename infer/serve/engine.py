"""The pipeline, one step at a time: images of several requests share a step of the model."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from dsd_jax.errors import UserError
from dsd_jax.frames import Canvas, unpack_latents
from dsd_jax.images import Frame, beside
from dsd_jax.infer.denoiser import MAX_CANVASES
from dsd_jax.infer.guidance import FIRST_STEP
from dsd_jax.infer.pipeline import Pipeline
from dsd_jax.infer.prepared import Prepared, prepare
from dsd_jax.infer.sampler import SamplerInputs
from dsd_jax.infer.serve.scheduler import Lane
from dsd_jax.infer.serve.wire import ImageRequest, Offer, Size, shown_size
from dsd_jax.infer.settings import Settings
from dsd_jax.sharding import batch_sharding, on_mesh

__all__ = ["Engine", "Painted", "PipelineEngine", "Sampling"]

State = TypeVar("State")
_VARIANTS = 4  # scales of LoRAs whose factors stay on the device, besides the default


class Painted(NamedTuple):
    """A finished image, the parameters that it was made with, and both frames if they are kept."""

    image: Image.Image
    parameters: dict[str, Any]
    frames: Image.Image | None = None


@runtime_checkable
class Engine(Protocol[State]):
    """Makes images step by step; one thread calls it."""

    offer: Offer

    def lane(self, request: ImageRequest, *, edit: bool) -> Lane:
        """The lane of a request's images; raises a UserError if they cannot be made."""
        ...

    def warm_up(self, report: Callable[[str], None]) -> None:
        """Compiles every program, and reports each."""
        ...

    def open(self, request: ImageRequest, frame: Frame | None, rows: Sequence[int]) -> list[State]:
        """Encodes some of a request's images."""
        ...

    def step(self, states: Sequence[State], *, guided: bool) -> None:
        """Takes one step with images of one lane."""
        ...

    def preview(self, state: State) -> Image.Image:
        """The image that the latest step leads to."""
        ...

    def finish(self, state: State) -> Painted:
        """Decodes a finished image."""
        ...


@dataclasses.dataclass(eq=False)
class Sampling:
    """An image under way.

    Attributes:
        pipeline: Pipeline with the LoRAs of the request.
        prepared: The image alone.
        inputs: Inputs of the model, without batch axis.
        timesteps: Times of all steps.
        img: Packed latents.
        before: Packed latents before the latest step.
        step: Steps taken.
        task: Name of the task, if the request has one.
        save_frames: Keep both frames of the finished image.
    """

    pipeline: Pipeline
    prepared: Prepared
    canvas: Canvas
    inputs: SamplerInputs
    timesteps: np.ndarray
    img: np.ndarray
    before: np.ndarray
    step: int = 0
    task: str | None = None
    save_frames: bool = False

    def times(self) -> np.ndarray:
        """Time now and next time."""
        return self.timesteps[self.step : self.step + 2]


class PipelineEngine:
    """Makes images with a pipeline, on its devices.

    A step is compiled for a few numbers of images; a batch is filled up to the next of them.

    Args:
        pipeline: The pipeline. Its LoRAs are those that requests may name.
        sizes: Sizes of images to compile programs for.
        batch: Most images that take a step together.
        true_guidance: Also compile programs of true guidance.
        model: Name that clients see. Default: that of the weights.

    Raises:
        UserError: Sizes that the pipeline cannot make, more than it keeps programs for, or a
            pipeline whose weights do not stay in memory; or a LoRA for a step mask.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        sizes: Sequence[Size],
        batch: int,
        *,
        true_guidance: bool = True,
        model: str | None = None,
    ) -> None:
        if not pipeline.options.stays:
            raise UserError(
                "a server keeps its weights in memory; leave out --model_offload and "
                "--sequential_offload, or spread the model over a mesh"
            )
        for name, mask in pipeline.step_masks.items():
            raise UserError(
                f"a server runs all blocks in every step, but {name} is distilled for the "
                f"step_mask {mask}; leave it out, or make its images with dsd batch"
            )
        edits = pipeline.transformer_config.condition_embed
        self.offer = Offer(
            model=model or str(pipeline.identity["model"]),
            sizes=tuple(dict.fromkeys(sizes)),
            loras={} if pipeline.options.merge_lora else pipeline.loras,
            edits=edits,
            true_guidance=edits and true_guidance,
        )
        group = pipeline.group
        self.batches = [group]
        while self.batches[-1] < batch:
            self.batches.append(2 * self.batches[-1])
        self._base = pipeline
        self._variants: dict[tuple[tuple[str, float], ...], Pipeline] = {}
        self._inputs: tuple[tuple[int, ...], bool, SamplerInputs] | None = None
        canvases = {self._checked(size, edit=edit).size for size, edit in self._kinds()}
        if len(canvases) > MAX_CANVASES:
            raise UserError(
                f"these sizes make {len(canvases)} canvases, and programs are kept for "
                f"{MAX_CANVASES}; an edit's canvas is twice as wide as its image. Give fewer sizes"
            )

    def _kinds(self) -> list[tuple[Size, bool]]:
        return [
            (size, edit)
            for size in self.offer.sizes
            for edit in (False, True)[: 1 + self.offer.edits]
        ]

    def _checked(self, size: Size, *, edit: bool) -> Settings:
        width, height = size
        settings = Settings(height=height, width=2 * width if edit else width)
        try:
            return self._base.check(settings, two_frames=edit)
        except UserError as error:
            raise UserError(f"size {shown_size(size)}: {error}") from None

    def lane(self, request: ImageRequest, *, edit: bool) -> Lane:
        """The lane of a request's images; raises a UserError if they cannot be made."""
        scales = None if self._base.options.merge_lora else request.lora
        checked = self._base.check(request.settings, two_frames=edit, scales=scales)
        return Lane((checked.size, edit), tuple(sorted(request.lora.items())))

    def warm_up(self, report: Callable[[str], None]) -> None:
        """Compiles every program, and reports each."""
        for size, edit in self._kinds():
            scales = (1.0, 2.0) if edit and self.offer.true_guidance else (1.0,)
            for i_guidance in scales:
                settings = dataclasses.replace(
                    self._checked(size, edit=edit), steps=FIRST_STEP + 1, i_guidance=i_guidance
                )
                request = ImageRequest("warm up", (0,), size, settings, self.offer.loras)
                frame = Frame(Image.new("RGB", size, "grey")) if edit else None
                # Not `open`: a distilled LoRA refuses guidance, but requests may turn it off.
                [state] = self._opened(self._base, request, frame, [0])
                guided = i_guidance > 1
                for count in self.batches:
                    state.step = FIRST_STEP if guided else 0
                    self.step([state] * count, guided=guided)
                    kind = "with true guidance" if guided else "edits" if edit else "generations"
                    report(f"compiled {shown_size(size)} {kind}, {count} at a time")
            self.finish(state)

    def open(
        self, request: ImageRequest, frame: Frame | None, rows: Sequence[int]
    ) -> list[Sampling]:
        """Encodes some of a request's images.

        Args:
            request: The request.
            frame: Its reference, cropped and resized.
            rows: Numbers of the images within the request.
        """
        pipeline = self._with_loras(request.lora)
        checked = pipeline.check(request.settings, two_frames=frame is not None)
        request = dataclasses.replace(request, settings=checked)
        return self._opened(pipeline, request, frame, rows)

    def _opened(
        self, pipeline: Pipeline, request: ImageRequest, frame: Frame | None, rows: Sequence[int]
    ) -> list[Sampling]:
        """Encodes images of a request whose settings were checked."""
        checked = request.settings
        prepared = prepare(
            pipeline.tokenizers,
            [request.prompt] * len(rows),
            None if frame is None else [frame] * len(rows),
            np.asarray([request.seeds[row] for row in rows], np.uint32),
            checked,
        )
        start = pipeline.start(prepared)
        inputs = start.inputs(prepared)
        timesteps = pipeline.schedule.timesteps(checked.steps, start.canvas.tokens)
        return [
            Sampling(
                pipeline=pipeline,
                prepared=prepared.only(i),
                canvas=start.canvas,
                inputs=jax.tree.map(lambda array, i=i: array[i], inputs),
                timesteps=timesteps,
                img=start.noise[i],
                before=start.noise[i],
                task=request.task,
                save_frames=request.save_frames,
            )
            for i in range(len(rows))
        ]

    def step(self, states: Sequence[Sampling], *, guided: bool) -> None:
        """Takes one step with images of one lane.

        Args:
            states: The images.
            guided: Whether the step has true guidance.
        """
        pipeline, canvas = states[0].pipeline, states[0].canvas
        size = next(size for size in self.batches if size >= len(states))
        filled = [*states, *[states[-1]] * (size - len(states))]
        now, after = np.stack([state.times() for state in filled], axis=1).astype(np.float32)
        with on_mesh(pipeline.mesh):
            img = self._placed(np.stack([state.img for state in filled]))
            done = pipeline.sampler(canvas).step(img, self._stacked(filled, guided), (now, after))
            rows = np.asarray(done)
        for state, row in zip(states, rows, strict=False):
            state.before, state.img = state.img, row
            state.step += 1

    def preview(self, state: Sampling) -> Image.Image:
        """The image that the latest step leads to: noise taken off along the latest velocity."""
        now, after = state.timesteps[state.step - 1 : state.step + 1]
        velocity = (state.img - state.before) / np.float32(after - now)
        return self._decoded(state, state.img - np.float32(after) * velocity).image

    def finish(self, state: Sampling) -> Painted:
        """Decodes a finished image."""
        self._inputs = None
        return self._decoded(state, state.img)

    def _decoded(self, state: Sampling, img: np.ndarray) -> Painted:
        latents = np.asarray(unpack_latents(jnp.asarray(img[None]), state.canvas))
        made = state.pipeline.finish(state.prepared, latents)
        task = {} if state.task is None else {"task": state.task}
        frames = beside([made.references[0], made.images[0]]) if state.save_frames else None
        return Painted(made.images[0], made.parameters[0] | task, frames)

    def _with_loras(self, scales: Mapping[str, float]) -> Pipeline:
        if self._base.options.merge_lora or scales == self._base.loras:
            return self._base
        key = tuple(sorted(scales.items()))
        if key not in self._variants:
            while len(self._variants) >= _VARIANTS:
                self._variants.pop(next(iter(self._variants)))
            self._variants[key] = self._base.scaled(scales)
        return self._variants[key]

    def _stacked(self, states: Sequence[Sampling], guided: bool) -> SamplerInputs:
        """Inputs of a batch on the devices; those of the same images stay there between steps."""
        key = tuple(map(id, states))
        if self._inputs is None or self._inputs[:2] != (key, guided):
            own = [state.inputs if guided else SamplerInputs(state.inputs.flux) for state in states]
            stacked = jax.tree.map(lambda *arrays: self._placed(np.stack(arrays)), *own)
            self._inputs = key, guided, stacked
        return self._inputs[2]

    def _placed(self, rows: np.ndarray) -> jax.Array:
        mesh = self._base.mesh
        return jnp.array(rows) if mesh is None else jax.device_put(rows, batch_sharding(mesh))
