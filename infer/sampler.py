"""Samples packed latents: by a jitted step that can be watched, or by one program for the loop."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from dsd_jax.flux import Flux
from dsd_jax.frames import Canvas, FluxInputs
from dsd_jax.infer.guidance import FIRST_STEP, TrueGuidance, guided, with_null
from dsd_jax.infer.solvers import EULER, Solver, VelocityFn
from dsd_jax.infer.structure import SharedStructure
from dsd_jax.sharding import constrain
from dsd_jax.types import Array, Float32

__all__ = ["Callback", "Programs", "Sampler", "SamplerInputs", "initial_noise", "sample"]

# (number of the step just done, from 1; number of steps; packed latents) -> True to stop here
Callback = Callable[[int, int, Array], bool | None]
Carry = tuple[Array, Any]  # packed latents, and the solver's memory


class SamplerInputs(NamedTuple):
    """The inputs of a batch of images; `true_guidance` None means a single pass."""

    flux: FluxInputs
    true_guidance: TrueGuidance | None = None


def initial_noise(seeds: np.ndarray, canvas: Canvas, channels: int) -> Float32[Array, "B h w C"]:
    """Draws standard normal latents; an image's depend on its own seed (32 bits) alone."""
    shape = canvas.height, canvas.width, channels
    draw = functools.partial(jax.random.normal, shape=shape)
    return jax.vmap(lambda seed: draw(jax.random.key(seed)))(jnp.asarray(seeds, jnp.uint32))


def sample(solver: Solver, velocity: VelocityFn, carry: Carry, timesteps: Array) -> Carry:
    """Runs the solver over decreasing `timesteps` `[n + 1]`, as one `lax.scan`."""

    def step(carry: Carry, times: tuple[Array, Array]) -> tuple[Carry, None]:
        return _step(solver, velocity, carry, *times), None

    return lax.scan(step, carry, (timesteps[:-1], timesteps[1:]))[0]


def _step(solver: Solver, velocity: VelocityFn, carry: Carry, t_cur: Array, t_next: Array) -> Carry:
    img, memory = solver.step(velocity, *carry, t_cur, t_next)
    # Keep the sharding: XLA may choose another order of devices and recompile the next step.
    return constrain(img, "batch", None, None), memory


@dataclasses.dataclass(frozen=True)
class Programs:
    """The computations of sampling with a model on one canvas, ready to be traced.

    The weights are an argument, not a part: what is compiled must not keep them alive.
    """

    graphdef: nnx.GraphDef[Flux]
    canvas: Canvas
    solver: Solver = EULER

    def step(
        self,
        state: nnx.State,
        carry: Carry,
        inputs: SamplerInputs,
        times: tuple[Array, Array],
        *,
        true_guidance: bool,
        panels: int = 1,
    ) -> Carry:
        """Takes one step of the solver, from the first of `times` to the second."""
        if true_guidance:
            return _step(self.solver, self._guided(state, inputs), carry, *times)
        return _step(self.solver, self._velocity(state, inputs.flux, panels), carry, *times)

    def loop(
        self,
        state: nnx.State,
        img: Array,
        inputs: SamplerInputs,
        timesteps: Array,
        shared: SharedStructure | None = None,
    ) -> Array:
        """Takes all steps, with true guidance from step `FIRST_STEP` on if there is any."""
        carry = img, self.solver.init(img)
        plain = self._velocity(state, inputs.flux)
        if shared is not None and (count := shared.steps(len(timesteps) - 1)):
            together = self._velocity(state, inputs.flux, shared.panels)
            carry = sample(self.solver, together, carry, timesteps[: count + 1])
            timesteps = timesteps[count:]
        if inputs.true_guidance is None:
            return sample(self.solver, plain, carry, timesteps)[0]
        first = min(FIRST_STEP, timesteps.shape[0] - 1)
        carry = sample(self.solver, plain, carry, timesteps[: first + 1])
        return sample(self.solver, self._guided(state, inputs), carry, timesteps[first:])[0]

    def _guided(self, state: nnx.State, inputs: SamplerInputs) -> VelocityFn:
        assert inputs.true_guidance is not None  # checked by the callers
        three = with_null(inputs.flux, inputs.true_guidance)
        return guided(self._velocity(state, three), inputs.true_guidance)

    def _velocity(self, state: nnx.State, inputs: FluxInputs, panels: int = 1) -> VelocityFn:
        model = nnx.merge(self.graphdef, state)

        def velocity(img: Array, t: Array) -> Array:
            return model(img, jnp.broadcast_to(t, img.shape[:1]), inputs, self.canvas, panels)

        return velocity


class Sampler:
    """Samples with one model on one canvas."""

    def __init__(self, model: Flux, canvas: Canvas, solver: Solver = EULER) -> None:
        graphdef, self.state = nnx.split(model)
        self.programs = Programs(graphdef, canvas, solver)
        self._step = jax.jit(
            self.programs.step,
            static_argnames=("true_guidance", "panels"),
            donate_argnames="carry",
        )
        self._loop = jax.jit(self.programs.loop, static_argnames="shared", donate_argnames="img")

    def run(
        self,
        img: Float32[Array, "B L C"],
        inputs: SamplerInputs,
        timesteps: np.ndarray,
        callback: Callback | None = None,
        shared: SharedStructure | None = None,
    ) -> Float32[Array, "B L C"]:
        """Samples a batch.

        Args:
            img: packed noise; donated.
            inputs: text, condition and scales.
            timesteps: decreasing times `[n + 1]`, float32.
            callback: called after every step; returning True stops there. The latents it is given
                are donated to the next step, so it must copy what it keeps. Without a callback,
                the whole loop is a single program.
            shared: groups of pictures with a structure in common, neighbours in the batch.

        Raises:
            ValueError: `shared` together with true guidance.
        """
        if shared is not None and inputs.true_guidance is not None:
            raise ValueError("pictures that share a structure have no true guidance")
        if callback is None:
            return self._loop(self.state, img, inputs, jnp.asarray(timesteps), shared=shared)
        count = len(timesteps) - 1
        together = 0 if shared is None else shared.steps(count)
        carry = img, self.programs.solver.init(img)
        for i in range(count):
            true_guidance = inputs.true_guidance is not None and i >= FIRST_STEP
            times = timesteps[i], timesteps[i + 1]
            panels = shared.panels if shared is not None and i < together else 1
            carry = self._step(
                self.state, carry, inputs, times, true_guidance=true_guidance, panels=panels
            )
            if callback(i + 1, count, carry[0]):
                break
        return carry[0]
