"""One sampling step as a job to plan: abstract weights and inputs, the real program."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from dsd_jax.aot import Job
from dsd_jax.config import BFLOAT16, Execution, FluxConfig
from dsd_jax.frames import Canvas, FluxInputs
from dsd_jax.infer.guidance import TrueGuidance
from dsd_jax.infer.sampler import Carry, Programs, SamplerInputs
from dsd_jax.models import abstract, abstract_state
from dsd_jax.quantise import WeightKind
from dsd_jax.sharding import activation_spec

__all__ = ["SampleSize", "abstract_inputs", "sample_job"]


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


def sample_job(
    flux: FluxConfig, mesh: Mesh, size: SampleSize, execution: Execution, flops: float
) -> Job:
    """Builds one sampling step of a batch; `flops` are those of one image's forward pass."""
    model = abstract(flux, precision=BFLOAT16, execution=execution, weights=size.weights)
    programs = Programs(nnx.graphdef(model), size.canvas)
    state = abstract_state(model, mesh)
    img, inputs = abstract_inputs(flux, mesh, size)
    carry = img, jax.eval_shape(programs.solver.init, img)
    time = jax.ShapeDtypeStruct((), jnp.float32)

    def step(state: Any, carry: Carry, inputs: SamplerInputs, times: Any) -> Carry:
        return programs.step(state, carry, inputs, times, true_guidance=size.guided)

    return Job(
        run=step,
        arguments=(state, carry, inputs, (time, time)),
        kinds={"base": state, "batch": (img, inputs)},
        flops=flops * size.batch * (3 if size.guided else 1),
        donate=(1,),
    )
