"""One sampling step as a job to plan: abstract weights and inputs, the real program."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from dsd_jax.aot import Job
from dsd_jax.config import BFLOAT16, Execution, FluxConfig
from dsd_jax.flux import Modulations, parted
from dsd_jax.frames import Canvas, FluxInputs
from dsd_jax.infer.guidance import FIRST_STEP, TrueGuidance
from dsd_jax.infer.sampler import Carry, Programs, SamplerInputs, Step, batch_axes
from dsd_jax.infer.settings import Settings
from dsd_jax.models import abstract, abstract_state
from dsd_jax.quantise import WeightKind
from dsd_jax.sharding import activation_spec

__all__ = ["SampleSize", "abstract_inputs", "abstract_modulations", "abstract_step", "sample_job"]


@dataclasses.dataclass(frozen=True)
class SampleSize:
    """Size of a sampling step.

    Attributes:
        batch: images sampled together.
        canvas: canvas of each image.
        text: T5 tokens of a text.
        guided: whether true guidance takes three passes.
        weights: kind of the kernels of blocks that are held in few bits.
    """

    batch: int
    canvas: Canvas
    text: int = 512
    guided: bool = False
    weights: WeightKind | None = None


def abstract_inputs(
    flux: FluxConfig, mesh: Mesh, size: SampleSize
) -> tuple[jax.ShapeDtypeStruct, SamplerInputs]:
    """Makes packed latents and inputs of shapes and shardings only."""

    def array(*shape: int, dtype: Any = jnp.bfloat16) -> Any:
        spec = activation_spec(mesh, shape, ("batch", *(None,) * (len(shape) - 1)))
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    txt = array(size.batch, size.text, flux.txt_width)
    vec = array(size.batch, flux.vec_width)
    scale = array(size.batch, dtype=jnp.float32)
    img = array(size.batch, size.canvas.tokens, flux.in_channels, dtype=jnp.float32)
    inputs = FluxInputs(txt, vec, scale, img if flux.condition_embed else None)
    guidance = TrueGuidance(txt, vec, scale, scale) if size.guided else None
    return img, SamplerInputs(inputs, guidance)


def abstract_modulations(
    programs: Programs, mesh: Mesh, state: nnx.State, inputs: SamplerInputs, steps: int
) -> Modulations:
    """Makes the modulations of `steps` steps with guidance, or without if there is none."""
    count = steps + (0 if inputs.true_guidance is None else FIRST_STEP)
    times = jax.ShapeDtypeStruct((count + 1,), jnp.float32)
    *_, last = jax.eval_shape(programs.modulations, state, inputs, times)

    def array(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        sharding = NamedSharding(mesh, activation_spec(mesh, x.shape, batch_axes(x.ndim)))
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(array, last)


def abstract_step() -> Step:
    """Makes a step without numbers."""
    number: Any = jax.ShapeDtypeStruct((), jnp.int32)
    time: Any = jax.ShapeDtypeStruct((), jnp.float32)
    return Step(number, time, time)


def sample_job(
    flux: FluxConfig, mesh: Mesh, size: SampleSize, execution: Execution, flops: float
) -> Job:
    """Builds one sampling step of a batch; `flops` are those of one image's forward pass."""
    model = abstract(flux, precision=BFLOAT16, execution=execution, weights=size.weights)
    programs = Programs(nnx.graphdef(model), size.canvas)
    state = abstract_state(model, mesh)
    img, inputs = abstract_inputs(flux, mesh, size)
    start = functools.partial(programs.method.start, true_guidance=size.guided)
    carry = jax.eval_shape(start, img)._replace(img=img)
    modulations = abstract_modulations(programs, mesh, state, inputs, Settings.steps)

    def run(
        state: Any, carry: Carry, inputs: SamplerInputs, made: Modulations, step: Step
    ) -> Carry:
        return programs.step(
            state, carry, inputs, made, step, kind="guided" if size.guided else "plain"
        )

    return Job(
        run=run,
        arguments=(parted(state)[1], carry, inputs, modulations, abstract_step()),
        kinds={"base": state, "batch": (img, inputs, modulations)},
        flops=flops * size.batch * (3 if size.guided else 1),
        donate=(1,),
    )
