"""Samples packed latents: by a jitted step that can be watched, or by one program for the loop."""

import copy
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from dsd_jax.flux import Flux, Modulations, parted
from dsd_jax.frames import Canvas, FluxInputs
from dsd_jax.infer.guidance import FIRST_STEP, TrueGuidance, combined, with_null
from dsd_jax.infer.solvers import EULER, Solver
from dsd_jax.infer.structure import SharedStructure
from dsd_jax.sharding import Axis, constrain
from dsd_jax.types import Array, Float32, PyTree

__all__ = [
    "Callback",
    "Carry",
    "Kind",
    "Method",
    "Programs",
    "Sampler",
    "SamplerInputs",
    "Step",
    "batch_axes",
    "initial_noise",
    "sample",
]

At = TypeVar("At")
Own = TypeVar("Own")

# (number of the step just done, from 1; number of steps; packed latents) -> True to stop here
Callback = Callable[[int, int, Array], bool | None]
# One pass; one in which groups of pictures see each other; three with true guidance; one, to which
# is added what guidance added before; or the first block of it, to which is added what the other
# blocks and guidance added before.
Kind = Literal["plain", "shared", "guided", "kept", "reused"]
Mask = Sequence[bool]  # for each step, whether it runs all blocks


class SamplerInputs(NamedTuple):
    """The inputs of a batch of images; `true_guidance` None means a single pass."""

    flux: FluxInputs
    true_guidance: TrueGuidance | None = None


def initial_noise(seeds: np.ndarray, canvas: Canvas, channels: int) -> Float32[Array, "B h w C"]:
    """Draws standard normal latents; an image's depend on its own seed (32 bits) alone."""
    shape = canvas.height, canvas.width, channels
    draw = functools.partial(jax.random.normal, shape=shape)
    return jax.vmap(lambda seed: draw(jax.random.key(seed)))(jnp.asarray(seeds, jnp.uint32))


class Step(NamedTuple):
    """A step of sampling.

    Attributes:
        number: number of earlier steps in its phase, with or without true guidance.
        now, next: the times that it leads from and to.
    """

    number: Array
    now: Array
    next: Array


class Carry(NamedTuple):
    """State that one step leaves for the next.

    Attributes:
        img: packed latents.
        memory: the solver's memory.
        added: share of true guidance in the velocity when it was last computed; () where every
            step computes it.
        residual: sum that the blocks after the first have added to the image tokens of a single
            pass when they last ran; () where they run in every step.
    """

    img: Array
    memory: Any
    added: Any = ()
    residual: Any = ()


@dataclasses.dataclass(frozen=True)
class Method:
    """The way from noise to an image.

    Attributes:
        solver: solver of the flow.
        guidance_every: true guidance takes its three passes in every so many-th step; the steps
            between keep what it added, and take one pass.
        shared: groups of pictures with a structure in common, neighbours in the batch. They have no
            true guidance.
        masked: a mask says which steps run all blocks. The others run the first one, and keep what
            the rest of the blocks and true guidance added last.
    """

    solver: Solver = EULER
    guidance_every: int = 1
    shared: SharedStructure | None = None
    masked: bool = False

    def keeps(self, *, true_guidance: bool) -> bool:
        """Whether a step may need what true guidance has added before."""
        return true_guidance and (self.guidance_every > 1 or self.masked)

    def start(self, img: Array, *, true_guidance: bool) -> Carry:
        """Makes the carry of the first step.

        Raises:
            ValueError: `shared` together with true guidance or a mask.
        """
        if self.shared is not None and (true_guidance or self.masked):
            raise ValueError("pictures that share a structure have no true guidance and no mask")
        keeps = self.keeps(true_guidance=true_guidance)
        return Carry(img, self.solver.init(img), jnp.zeros_like(img) if keeps else ())

    def together(self, count: int) -> int:
        """The number of steps, of `count`, in which groups of pictures see each other."""
        return 0 if self.shared is None else self.shared.steps(count)

    def kinds(self, count: int, *, true_guidance: bool, mask: Mask | None = None) -> list[Kind]:
        """The kinds of `count` steps in order.

        Args:
            count: number of steps.
            true_guidance: whether there is true guidance.
            mask: for a method that is masked: whether each step runs all blocks, which the first
                one must.

        Raises:
            ValueError: a mask for a method without, a missing one, or one that does not fit.
        """
        if (mask is not None) != self.masked:
            raise ValueError("a masked method needs a mask, another one takes none")
        if mask is not None and (len(mask) != count or not mask[0]):
            raise ValueError(f"a mask of {count} steps is needed whose first step is computed")
        together, full = self.together(count), 0
        kinds: list[Kind] = []
        for step in range(count):
            if step < together:
                kinds.append("shared")
            elif mask is not None and not mask[step]:
                kinds.append("reused")
            elif not true_guidance or step < FIRST_STEP:
                kinds.append("plain")
            else:
                kinds.append("kept" if full % self.guidance_every else "guided")
                full += 1
        return kinds

    def choices(self, *, guided: bool) -> tuple[Kind, ...]:
        """The kinds of steps with true guidance, or without it, of a method that is masked."""
        if not guided:
            return "plain", "reused"
        return ("guided", *(("kept",) if self.guidance_every > 1 else ()), "reused")

    def places(self, kinds: Sequence[Kind], *, true_guidance: bool) -> Array | None:
        """The place of every step's kind among `choices`; None for a method that is not masked."""
        if not self.masked:
            return None
        phases = [self.choices(guided=true_guidance and i >= FIRST_STEP) for i in range(len(kinds))]
        places = [own.index(kind) for own, kind in zip(phases, kinds, strict=True)]
        return jnp.asarray(places, jnp.int32)


def sample(
    solver: Solver,
    velocity: Callable[[Array, At], Array],
    carry: Carry,
    timesteps: Array,
    each: At,
) -> Carry:
    """Runs the solver over decreasing `timesteps` `[n + 1]`, as one `lax.scan`.

    Args:
        solver: the solver.
        velocity: (latents, an element of `each`) -> velocity.
        carry: result of `Method.start`.
        timesteps: decreasing times.
        each: inputs of the velocity in every step, arrays with a leading axis n.
    """

    def take(carry: Carry, own: tuple[At, Array, Array]) -> Carry:
        at, now, following = own
        return _moved(solver, velocity(carry.img, at), carry, now, following)

    return _scan(take, carry, (each, timesteps[:-1], timesteps[1:]))


def _scan(take: Callable[[Carry, Own], Carry], carry: Carry, steps: Own) -> Carry:
    return lax.scan(lambda carry, own: (take(carry, own), None), carry, steps)[0]


def _switching(
    takes: Sequence[Callable[[Carry, Own], Carry]],
) -> Callable[[Carry, tuple[Array, Own]], Carry]:
    """The function that takes a step by one of `takes`, whose place comes with the step."""
    return lambda carry, own: lax.switch(own[0], takes, carry, own[1])


def _moved(solver: Solver, velocity: Array, carry: Carry, now: Array, following: Array) -> Carry:
    img, memory = solver.step(velocity, carry.img, carry.memory, now, following)
    # Keep the sharding: XLA may choose another order of devices and recompile the next step.
    return carry._replace(img=constrain(img, "batch", None, None), memory=memory)


@dataclasses.dataclass(frozen=True)
class Programs:
    """The computations of sampling with a model on one canvas, ready to be traced.

    The weights are an argument, not a part: what is compiled must not keep them alive. The
    modulations of all steps come first; steps use the other weights alone (`dsd_jax.flux.parted`).
    """

    graphdef: nnx.GraphDef[Flux]
    canvas: Canvas
    method: Method = Method()

    def modulations(
        self, state: nnx.State, inputs: SamplerInputs, timesteps: Array
    ) -> list[Modulations]:
        """Computes the modulations of the plain steps and, with true guidance, of the guided ones.

        Every array has a leading axis of its steps.
        """
        model, times = nnx.merge(self.graphdef, state), timesteps[:-1]

        def computed(inputs: FluxInputs, times: Array) -> Modulations:
            t = jnp.broadcast_to(times[:, None], (len(times), len(inputs.vec)))
            made = model.modulations(t, inputs)
            return jax.tree.map(lambda x: constrain(x, *batch_axes(x.ndim)), made)

        if inputs.true_guidance is None:
            return [computed(inputs.flux, times)]
        first = min(FIRST_STEP, len(times))
        three = with_null(inputs.flux, inputs.true_guidance)
        return [computed(inputs.flux, times[:first]), computed(three, times[first:])]

    def step(
        self,
        state: nnx.State,
        carry: Carry,
        inputs: SamplerInputs,
        modulations: Modulations,
        step: Step,
        *,
        kind: Kind,
    ) -> Carry:
        """Takes one step of the solver, with its modulations among those of its phase."""
        own = jax.tree.map(lambda x: x[step.number], modulations)
        return self.taking(kind, state, inputs)(carry, (own, step.now, step.next))

    def apart(
        self,
        making: nnx.State,
        using: nnx.State,
        img: Array,
        inputs: SamplerInputs,
        times: tuple[Array, Array],
    ) -> Array:
        """Takes one Euler step with every image at times `[B]` of its own, now and next.

        Modulations are computed in the step, since no two batches need to share their times.
        """
        now, following = times
        kind: Kind = "plain" if inputs.true_guidance is None else "guided"
        if inputs.true_guidance is None:
            three, at = inputs.flux, now
        else:
            three, at = with_null(inputs.flux, inputs.true_guidance), jnp.repeat(now, 3)
        modulations = nnx.merge(self.graphdef, making).modulations(at, three)
        step = dataclasses.replace(self, method=Method()).taking(kind, using, inputs)
        carry = Method().start(img, true_guidance=kind == "guided")
        return step(carry, (modulations, now, following)).img

    def start(self, state: nnx.State, img: Array, *, true_guidance: bool) -> Carry:
        """Makes the carry of the first step."""
        carry = self.method.start(img, true_guidance=true_guidance)
        if not self.method.masked:
            return carry
        model = nnx.merge(self.graphdef, state)
        shape = *img.shape[:2], model.config.width
        residual = jnp.zeros(shape, model.precision.compute_dtype)
        return carry._replace(residual=constrain(residual, "batch", "length", None))

    def loop(
        self,
        state: nnx.State,
        img: Array,
        inputs: SamplerInputs,
        modulations: Sequence[Modulations],
        timesteps: Array,
        chosen: Array | None = None,
    ) -> Array:
        """Takes all steps, with true guidance from step `FIRST_STEP` on if there is any.

        Args:
            state: weights that use the modulations.
            img: packed noise.
            inputs: text, condition and scales.
            modulations: result of `modulations`.
            timesteps: decreasing times.
            chosen: with a mask, result of `Method.places`, an array so that masks share a program.
        """
        guided = inputs.true_guidance is not None
        carry = self.start(state, img, true_guidance=guided)
        times = timesteps[:-1], timesteps[1:]
        count = len(timesteps) - 1
        first = min(FIRST_STEP, count) if guided else count

        def part(of: PyTree, start: int, stop: int) -> PyTree:
            return jax.tree.map(lambda x: x[start:stop], of)

        if chosen is not None:
            for phase, (start, stop) in enumerate(((0, first), (first, count))):
                if start < stop:
                    kinds = self.method.choices(guided=phase == 1)
                    takes = [self.taking(kind, state, inputs) for kind in kinds]
                    steps = modulations[phase], *part(times, start, stop)
                    carry = _scan(_switching(takes), carry, (chosen[start:stop], steps))
            return carry.img

        ends = self.method.together(count)
        leading: tuple[tuple[Kind, int, int], ...] = (("shared", 0, ends), ("plain", ends, first))
        for kind, start, stop in leading:
            if start < stop:
                take = self.taking(kind, state, inputs)
                own = part((modulations[0], *times), start, stop)
                carry = _scan(take, carry, own)
        if not guided:
            return carry.img
        steps = modulations[1], *part(times, first, count)
        guide, every = self.taking("guided", state, inputs), self.method.guidance_every
        if every == 1:
            return _scan(guide, carry, steps).img
        keep = self.taking("kept", state, inputs)

        def period(carry: Carry, own: PyTree) -> Carry:
            carry = guide(carry, jax.tree.map(lambda x: x[0], own))
            return _scan(keep, carry, jax.tree.map(lambda x: x[1:], own))

        whole = (count - first) // every * every
        periods = jax.tree.map(lambda x: x.reshape(-1, every, *x.shape[1:]), part(steps, 0, whole))
        carry = _scan(period, carry, periods)
        if whole < count - first:
            carry = period(carry, part(steps, whole, count))
        return carry.img

    def taking(
        self, kind: Kind, state: nnx.State, inputs: SamplerInputs
    ) -> Callable[[Carry, tuple[Modulations, Array, Array]], Carry]:
        """The function that takes a step: (carry, (modulations, time now, next time)) -> carry."""
        model = nnx.merge(self.graphdef, state)
        shared = self.method.shared
        panels = shared.panels if shared is not None and kind == "shared" else 1

        def full(img: Array, own: Modulations, inputs: FluxInputs) -> tuple[Array, Any]:
            """The velocity of all blocks, and the residual if steps to come may need it."""
            if self.method.masked:
                return model.velocity_and_residual(img, own, inputs, self.canvas)
            return model.velocity(img, own, inputs, self.canvas, panels), ()

        def velocity(carry: Carry, own: Modulations) -> tuple[Array, Carry]:
            """The velocity of this step, and the carry with what is kept of it."""
            guidance, (img, _, added, residual) = inputs.true_guidance, carry
            if kind == "guided":
                assert guidance is not None  # checked by the callers
                three = with_null(inputs.flux, guidance)
                found, residual = full(jnp.repeat(img, 3, axis=0), own, three)
                found, added = combined(found, guidance)
                if not self.method.keeps(true_guidance=True):
                    added = ()
                residual = jax.tree.map(lambda x: x[2::3], residual)  # of [u, v, c] only c
                return found, carry._replace(added=added, residual=residual)
            if len(own.final[0]) > len(img):  # in a step with true guidance: likewise
                own = jax.tree.map(lambda x: x[..., 2::3, :], own)
            if kind == "reused":
                found = model.velocity_reusing(residual, img, own, inputs.flux, self.canvas)
            else:
                found, residual = full(img, own, inputs.flux)
            if kind in ("kept", "reused") and guidance is not None:
                found = found + added
            return found, carry._replace(residual=residual)

        def take(carry: Carry, own: tuple[Modulations, Array, Array]) -> Carry:
            modulations, now, following = own
            found, carry = velocity(carry, modulations)
            return _moved(self.method.solver, found, carry, now, following)

        return take


def batch_axes(ndim: int) -> tuple[Axis, ...]:
    """Logical axes of an array of `Modulations`: steps and layers, then batch and width."""
    return *(None,) * (ndim - 2), "batch", None


class Sampler:
    """Samples with one model on one canvas.

    Attributes:
        making: weights that make the modulations.
        using: all other weights.
    """

    def __init__(self, model: Flux, canvas: Canvas, method: Method = Method()) -> None:
        graphdef, state = nnx.split(model)
        self.making, self.using = parted(state)
        self.programs = Programs(graphdef, canvas, method)
        self._modulations = jax.jit(self.programs.modulations)
        self._start = jax.jit(
            self.programs.start, static_argnames="true_guidance", donate_argnames="img"
        )
        self._step = jax.jit(self.programs.step, static_argnames="kind", donate_argnames="carry")
        self._loop = jax.jit(self.programs.loop, donate_argnames="img")
        self._apart = jax.jit(self.programs.apart, donate_argnames="img")

    def with_state(self, state: nnx.State) -> "Sampler":
        """A sampler with other weights and the same compiled programs."""
        other = copy.copy(self)
        other.making, other.using = parted(state)
        return other

    def modulations(self, inputs: SamplerInputs, timesteps: np.ndarray) -> list[Modulations]:
        """Computes the modulations of all steps, see `Programs.modulations`."""
        return self._modulations(self.making, inputs, jnp.asarray(timesteps))

    def free_making(self) -> None:
        """Frees the weights that make modulations. From then on, `run` must be given these."""
        for array in jax.tree.leaves(self.making):
            array.delete()

    def step(
        self,
        img: Float32[Array, "B L C"],
        inputs: SamplerInputs,
        times: tuple[Float32[np.ndarray, " B"], Float32[np.ndarray, " B"]],
    ) -> Float32[Array, "B L C"]:
        """Takes one Euler step with every image, each at a time of its own.

        Args:
            img: packed latents; donated.
            inputs: text, condition and scales. With `true_guidance`, all images take three passes.
            times: time now and next time of each image.
        """
        return self._apart(self.making, self.using, img, inputs, times)

    def run(
        self,
        img: Float32[Array, "B L C"],
        inputs: SamplerInputs,
        timesteps: np.ndarray,
        callback: Callback | None = None,
        modulations: Sequence[Modulations] | None = None,
        mask: Mask | None = None,
    ) -> Float32[Array, "B L C"]:
        """Samples a batch.

        Args:
            img: packed noise; donated.
            inputs: text, condition and scales.
            timesteps: decreasing times `[n + 1]`, float32.
            callback: called after every step; returning True stops there. The latents it is given
                are donated to the next step, so it must copy what it keeps. Without a callback,
                the whole loop is a single program.
            modulations: result of `modulations`, which is called if there is none.
            mask: for a method that is masked: whether each step runs all blocks.
        """
        count, method = len(timesteps) - 1, self.programs.method
        guidance = inputs.true_guidance is not None
        kinds = method.kinds(count, true_guidance=guidance, mask=mask)
        if modulations is None:
            modulations = self.modulations(inputs, timesteps)
        if callback is None:
            times, chosen = jnp.asarray(timesteps), method.places(kinds, true_guidance=guidance)
            return self._loop(self.using, img, inputs, modulations, times, chosen)
        start = functools.partial(self._start, self.using) if method.masked else method.start
        carry = start(img, true_guidance=guidance)
        for i, kind in enumerate(kinds):
            phase = int(guidance and i >= FIRST_STEP)
            step = Step(jnp.int32(i - phase * FIRST_STEP), *map(jnp.float32, timesteps[i : i + 2]))
            carry = self._step(self.using, carry, inputs, modulations[phase], step, kind=kind)
            if callback(i + 1, count, carry.img):
                break
        return carry.img
