"""The sampling step as a job to plan: abstract weights and inputs, the real program."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from dsd_jax.aot import Job
from dsd_jax.config import BFLOAT16, Execution, FluxConfig
from dsd_jax.frames import PATCH
from dsd_jax.infer.guidance import Conditioning
from dsd_jax.infer.sampler import Inputs, Programs, TrueGuidance
from dsd_jax.models import abstract, abstract_state
from dsd_jax.sharding import activation_spec

__all__ = ["abstract_inputs", "sample_job"]


def abstract_inputs(
    flux: FluxConfig,
    mesh: Mesh,
    batch: int,
    canvas: tuple[int, int],
    *,
    text: int = 512,
    guided: bool,
) -> tuple[jax.ShapeDtypeStruct, Inputs]:
    """Packed latents and inputs, with shapes and shardings only.

    Args:
        flux: size of the model.
        mesh: of the devices.
        batch: samples.
        canvas: height and width in latent pixels.
        text: T5 tokens of a text.
        guided: with the inputs of true guidance.
    """
    tokens = canvas[0] * canvas[1] // PATCH**2

    def array(*shape: int, dtype: Any = jnp.bfloat16) -> Any:
        spec = activation_spec(mesh, shape, ("batch", *(None,) * (len(shape) - 1)))
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    txt = array(batch, text, flux.txt_width)
    vec = array(batch, flux.vec_width)
    scale = array(batch, dtype=jnp.float32)
    img = array(batch, tokens, flux.in_channels, dtype=jnp.float32)
    conditioning = Conditioning(txt, vec, scale, img if flux.condition_embed else None)
    return img, Inputs(conditioning, TrueGuidance(txt, vec, scale, scale) if guided else None)


def sample_job(
    flux: FluxConfig,
    mesh: Mesh,
    batch: int,
    canvas: tuple[int, int],
    execution: Execution,
    flops: float,
    *,
    text: int,
    guided: bool,
) -> Job:
    """One sampling step of a batch.

    `flops` are those of one sample's forward pass, `text` its T5 tokens.
    """
    model = abstract(flux, precision=BFLOAT16, execution=execution)
    programs = Programs(nnx.graphdef(model), *canvas)
    state = abstract_state(model, mesh)
    img, inputs = abstract_inputs(flux, mesh, batch, canvas, text=text, guided=guided)
    time = jax.ShapeDtypeStruct((), jnp.float32)

    def step(state: Any, img: Any, inputs: Inputs, t_cur: Any, t_next: Any) -> jax.Array:
        return programs.step(state, img, inputs, t_cur, t_next, true_guidance=guided)

    return Job(
        run=step,
        arguments=(state, img, inputs, time, time),
        kinds={"base": state, "batch": (img, inputs)},
        flops=flops * batch * (3 if guided else 1),
        donate=(1,),
    )
