"""Euler sampling of packed latents: one jitted step to watch, or the whole loop as one program."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from dsd_jax.flow import euler_step
from dsd_jax.flux import Flux
from dsd_jax.frames import image_ids, text_ids
from dsd_jax.infer.guidance import FIRST_STEP, Conditioning, VelocityFn, guided, with_null
from dsd_jax.sharding import constrain
from dsd_jax.types import Array, Float, Float32

__all__ = ["Callback", "Inputs", "Programs", "Sampler", "TrueGuidance", "initial_noise", "sample"]

# (step that was done, from 1; number of steps; packed latents after it) -> True to stop here
Callback = Callable[[int, int, Array], bool | None]


class TrueGuidance(NamedTuple):
    """The empty text and the scales of every image."""

    null_txt: Float[Array, "B Lt Dt"]
    null_vec: Float[Array, "B Dv"]
    image_scale: Float[Array, " B"]
    text_scale: Float[Array, " B"]


class Inputs(NamedTuple):
    """Everything a batch of images is sampled from; `guidance` None: no true guidance."""

    conditioning: Conditioning
    guidance: TrueGuidance | None = None


def initial_noise(
    seeds: np.ndarray, height: int, width: int, channels: int
) -> Float32[Array, "B h w C"]:
    """Standard normal latents; each image's depend on its own seed (32 bits) alone."""
    draw = functools.partial(jax.random.normal, shape=(height, width, channels))
    return jax.vmap(lambda seed: draw(jax.random.key(seed)))(jnp.asarray(seeds, jnp.uint32))


def sample(velocity: VelocityFn, img: Array, timesteps: Array) -> Array:
    """Euler steps through decreasing `timesteps` `[n + 1]`, as one `lax.scan`."""

    def step(img: Array, times: tuple[Array, Array]) -> tuple[Array, None]:
        return _step(velocity, img, *times), None

    return lax.scan(step, img, (timesteps[:-1], timesteps[1:]))[0]


def _step(velocity: VelocityFn, img: Array, t_cur: Array, t_next: Array) -> Array:
    img = euler_step(img, velocity(img, t_cur), t_cur, t_next)
    # Where it came from: XLA may choose another order of devices, and recompile the next step.
    return constrain(img, "batch", None, None)


@dataclasses.dataclass(frozen=True)
class Programs:
    """What is computed with a model on one canvas size (in latent pixels), ready to be traced.

    The weights are an argument, not a part: what is compiled must not keep them alive.
    """

    graphdef: nnx.GraphDef[Flux]
    height: int
    width: int

    def step(
        self,
        state: nnx.State,
        img: Array,
        inputs: Inputs,
        t_cur: Array,
        t_next: Array,
        *,
        true_guidance: bool,
    ) -> Array:
        """One Euler step."""
        make = self._guided if true_guidance else self._plain
        return _step(make(state, inputs), img, t_cur, t_next)

    def loop(self, state: nnx.State, img: Array, inputs: Inputs, timesteps: Array) -> Array:
        """All steps; true guidance, if any, from step `FIRST_STEP`."""
        if inputs.guidance is None:
            return sample(self._plain(state, inputs), img, timesteps)
        first = min(FIRST_STEP, timesteps.shape[0] - 1)
        img = sample(self._plain(state, inputs), img, timesteps[: first + 1])
        return sample(self._guided(state, inputs), img, timesteps[first:])

    def _plain(self, state: nnx.State, inputs: Inputs) -> VelocityFn:
        return self._velocity(state, inputs.conditioning)

    def _guided(self, state: nnx.State, inputs: Inputs) -> VelocityFn:
        assert inputs.guidance is not None  # the callers' condition
        null_txt, null_vec, image_scale, text_scale = inputs.guidance
        three = with_null(inputs.conditioning, null_txt, null_vec)
        return guided(self._velocity(state, three), image_scale, text_scale)

    def _velocity(self, state: nnx.State, conditioning: Conditioning) -> VelocityFn:
        model = nnx.merge(self.graphdef, state)
        txt, vec, guidance, img_cond = conditioning
        img_ids, txt_ids = image_ids(self.height, self.width), text_ids(txt.shape[1])

        def velocity(img: Array, t: Array) -> Array:
            times = jnp.broadcast_to(t, img.shape[:1])
            return model(img, img_ids, txt, txt_ids, vec, times, guidance, img_cond)

        return velocity


class Sampler:
    """Samples with one model on one canvas size (in latent pixels)."""

    def __init__(self, model: Flux, height: int, width: int) -> None:
        graphdef, self.state = nnx.split(model)
        self.programs = Programs(graphdef, height, width)
        self._step = jax.jit(
            self.programs.step, static_argnames="true_guidance", donate_argnames="img"
        )
        self._loop = jax.jit(self.programs.loop, donate_argnames="img")

    def run(
        self,
        img: Float32[Array, "B L C"],
        inputs: Inputs,
        timesteps: np.ndarray,
        callback: Callback | None = None,
    ) -> Float32[Array, "B L C"]:
        """Samples a batch.

        Args:
            img: packed noise; donated.
            inputs: conditionings and scales.
            timesteps: decreasing times `[n + 1]`, float32.
            callback: called after every step; returning True stops there. The latents it is given
                are donated to the next step, so it must copy what it keeps. Without a callback,
                the whole loop is a single program.
        """
        if callback is None:
            return self._loop(self.state, img, inputs, jnp.asarray(timesteps))
        count = len(timesteps) - 1
        for i in range(count):
            true_guidance = inputs.guidance is not None and i >= FIRST_STEP
            t_cur, t_next = timesteps[i], timesteps[i + 1]
            img = self._step(self.state, img, inputs, t_cur, t_next, true_guidance=true_guidance)
            if callback(i + 1, count, img):
                break
        return img
