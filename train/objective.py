"""The losses that training minimises, all of them squared errors of the velocity.

`Customise` is the method (paper, section 3.2): reference and target lie on one canvas, are noised
at one time and denoised together, given the condition. `Teach` is plain text-to-image training of
a whole canvas, by which a teacher is made. `Distill` learns the velocity of another model.
"""

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from dsd_jax.errors import UserError
from dsd_jax.flow import Schedule, euler_step, interpolate, velocity
from dsd_jax.flux import Flux, Modulations
from dsd_jax.frames import Canvas, FluxInputs
from dsd_jax.infer.guidance import FIRST_STEP, TrueGuidance, guided, with_null
from dsd_jax.train.config import DistillConfig, FlowConfig, TrainConfig
from dsd_jax.types import Array, Bool, Float, Float32

__all__ = [
    "Customise",
    "Distill",
    "EncodedBatch",
    "Imitate",
    "Losses",
    "MakeObjective",
    "Objective",
    "Teach",
    "frame_weights",
    "method_of",
    "sample_times",
]


class EncodedBatch(NamedTuple):
    """A batch as the transformer takes it, on the mesh.

    Attributes:
        x_0: packed clean latents of the canvases.
        img_cond: condition tokens; None when there is no condition (training a teacher).
        txt, vec: embeddings of the texts.
        drop_text: samples trained without text: the null text stands in, as in sampling.
        drop_image: samples trained without condition: zero tokens stand in, as in sampling.
        null_txt, null_vec: embeddings of the empty text.
    """

    x_0: Float[Array, "B L C"]
    img_cond: Float[Array, "B L C"] | None
    txt: Float[Array, "B Lt Dt"]
    vec: Float[Array, "B Dv"]
    drop_text: Bool[Array, " B"]
    drop_image: Bool[Array, " B"]
    null_txt: Float[Array, "Lt Dt"]
    null_vec: Float[Array, " Dv"]

    def inputs(self, guidance: float) -> FluxInputs:
        """Inputs of the model, with the null ones where a sample's own are dropped."""
        drop = self.drop_text[:, None, None]
        img_cond = self.img_cond
        if img_cond is not None:
            img_cond = jnp.where(self.drop_image[:, None, None], 0, img_cond)
        return FluxInputs(
            txt=jnp.where(drop, self.null_txt[None].astype(self.txt.dtype), self.txt),
            vec=jnp.where(drop[:, 0], self.null_vec[None].astype(self.vec.dtype), self.vec),
            guidance=jnp.full(len(self.vec), guidance, jnp.float32),
            img_cond=img_cond,
        )


class Losses(NamedTuple):
    """The loss, and the plain errors of both frames; float32 scalars."""

    loss: Array
    reference: Array
    target: Array


@dataclasses.dataclass(frozen=True)
class Objective(abc.ABC):
    """A loss on batches of one canvas."""

    flow: FlowConfig
    schedule: Schedule
    canvas: Canvas

    def __call__(self, model: Flux, batch: EncodedBatch, key: Array) -> Losses:
        """Computes the losses of a batch with noise and times drawn from `key`."""
        return self.at(model, batch, *self.draw(key, batch.x_0))

    def taught(self, teacher: Flux | None) -> "Objective":  # noqa: ARG002 - for `Distill`
        """Returns this loss with the model that is learned from, if it learns from one."""
        return self

    @abc.abstractmethod
    def at(
        self, model: Flux, batch: EncodedBatch, noise: Float[Array, "B L C"], t: Float[Array, " B"]
    ) -> Losses:
        """Computes the losses for given noise and times."""

    def draw(
        self, key: Array, x_0: Float[Array, "B L C"]
    ) -> tuple[Float32[Array, "B L C"], Float32[Array, " B"]]:
        """Draws noise, and one time per sample."""
        time_key, noise_key = jax.random.split(key)
        t = sample_times(time_key, len(x_0), self.flow, self.schedule, self.canvas.tokens)
        return jax.random.normal(noise_key, x_0.shape, jnp.float32), t

    def error(
        self,
        model: Flux,
        batch: EncodedBatch,
        x_t: Float[Array, "B L C"],
        noise: Float[Array, "B L C"],
        t: Float[Array, " B"],
    ) -> Float32[Array, "B L"]:
        """Squared error of the predicted velocity, averaged over the channels of a token."""
        predicted = model(x_t, t, batch.inputs(self.flow.guidance), self.canvas)
        difference = predicted.astype(jnp.float32) - velocity(batch.x_0, noise)
        return jnp.square(difference).mean(-1)


class Customise(Objective):
    """The error over both frames at one time, given the condition; each frame has its weight."""

    def at(
        self, model: Flux, batch: EncodedBatch, noise: Float[Array, "B L C"], t: Float[Array, " B"]
    ) -> Losses:
        return self.weighted(self.error(model, batch, interpolate(batch.x_0, noise, t), noise, t))

    def weighted(self, error: Float32[Array, "B L"]) -> Losses:
        """Computes the losses from the errors of tokens."""
        frames = (frame_weights(self.canvas) * error.mean(0, keepdims=True)).mean(-1)
        reference, target = frames
        shares = self.flow.reference_weight, self.flow.target_weight
        loss = (shares[0] * reference + shares[1] * target) / sum(shares)
        return Losses(loss, reference, target)


class Teach(Objective):
    """The error over the whole canvas at one time, without a reference."""

    def at(
        self, model: Flux, batch: EncodedBatch, noise: Float[Array, "B L C"], t: Float[Array, " B"]
    ) -> Losses:
        loss = self.error(model, batch, interpolate(batch.x_0, noise, t), noise, t).mean()
        return Losses(loss, loss, loss)


@dataclasses.dataclass(frozen=True)
class Distill(Customise):
    """The error of one pass against the velocity that a teacher's sampler makes of three.

    The teacher has true guidance from the time of its third step on, as in sampling. The loss is
    the first stage of Meng et al. 2023, "On Distillation of Guided Diffusion Models", for
    velocities and at fixed scales.

    Attributes:
        distill: scales and steps of the teacher.
        teacher: the teacher.
    """

    distill: DistillConfig = dataclasses.field(default_factory=DistillConfig)
    teacher: Flux | None = None

    def taught(self, teacher: Flux | None) -> "Distill":
        return dataclasses.replace(self, teacher=teacher)

    def at(
        self, model: Flux, batch: EncodedBatch, noise: Float[Array, "B L C"], t: Float[Array, " B"]
    ) -> Losses:
        x_t = interpolate(batch.x_0, noise, t)
        predicted = model(x_t, t, batch.inputs(self.flow.guidance), self.canvas)
        difference = predicted.astype(jnp.float32) - self.target(batch, x_t, t)
        return self.weighted(jnp.square(difference).mean(-1))

    def target(
        self, batch: EncodedBatch, x_t: Float32[Array, "B L C"], t: Float32[Array, " B"]
    ) -> Float32[Array, "B L C"]:
        """Computes the velocity of the teacher with true guidance; no gradient goes through it."""
        teacher = self.teacher
        if teacher is None:
            raise ValueError("a distillation needs its teacher; see `taught`")
        first = self.schedule.timesteps(self.distill.steps, self.canvas.tokens)[FIRST_STEP]
        guidance = TrueGuidance(
            jnp.broadcast_to(batch.null_txt.astype(batch.txt.dtype), batch.txt.shape),
            jnp.broadcast_to(batch.null_vec.astype(batch.vec.dtype), batch.vec.shape),
            *(
                jnp.where(t <= first, jnp.float32(scale), jnp.float32(1))
                for scale in (self.distill.i_guidance, self.distill.t_guidance)
            ),
        )
        inputs = with_null(batch.inputs(self.flow.guidance), guidance)

        def of_three(img: Array, at: Array) -> Array:
            return teacher(img, at, inputs, self.canvas)

        found, _ = guided(of_three, guidance)(x_t, jnp.repeat(t, 3))
        return jax.lax.stop_gradient(found)


@dataclasses.dataclass(frozen=True)
class Imitate(Distill):
    """`Distill` for a student that runs all blocks in a few steps of a mask only.

    Between them it follows the policy that its last full step has set: the first block, and what
    the other blocks have added there. The student takes the steps of the mask from a noised pair
    on, and its velocity is compared with the teacher's where its own steps have led it. That is the
    imitation distillation of Chen et al. 2025, "pi-Flow" (arXiv 2510.14974), with a policy that
    needs no further output layer.
    """

    def draw(
        self, key: Array, x_0: Float[Array, "B L C"]
    ) -> tuple[Float32[Array, "B L C"], Float32[Array, " B"]]:
        """Draws noise, and for each sample a step: its place among all steps, from 0 to 1."""
        step_key, noise_key = jax.random.split(key)
        place = jax.random.uniform(step_key, (len(x_0),), jnp.float32)
        return jax.random.normal(noise_key, x_0.shape, jnp.float32), place

    def at(
        self, model: Flux, batch: EncodedBatch, noise: Float[Array, "B L C"], t: Float[Array, " B"]
    ) -> Losses:
        """Computes the losses for given noise and steps, which `t` tells as `draw` does."""
        steps = len(self.mask)
        number = jnp.clip((t * steps).astype(jnp.int32), 0, steps - 1)
        predicted, x_t, times = self.step(model, batch, noise, number)
        difference = predicted - self.target(batch, x_t, times)
        return self.weighted(jnp.square(difference).mean(-1))

    @property
    def mask(self) -> str:
        """The step mask of the student."""
        if self.distill.mask is None:
            raise ValueError("a student of few steps needs its mask")
        return self.distill.mask

    def step(
        self, model: Flux, batch: EncodedBatch, noise: Float[Array, "B L C"], number: Array
    ) -> tuple[Float32[Array, "B L C"], Float32[Array, "B L C"], Float32[Array, " B"]]:
        """Takes Euler steps from the last full step on to step `number` `[B]`.

        Returns:
            The velocity of that step, its latents, through which no gradient goes, and its time.
        """
        mask = self.mask
        schedule = jnp.asarray(self.schedule.timesteps(len(mask), self.canvas.tokens))
        starts = [mask.rindex("1", 0, i + 1) for i in range(len(mask))]
        start, inputs = jnp.asarray(starts)[number], batch.inputs(self.flow.guidance)
        ahead = max(i - own for i, own in enumerate(starts))  # most steps after a full one
        steps = jnp.minimum(start[None] + jnp.arange(ahead + 1)[:, None], number[None])
        times = schedule[steps]
        modulations = model.modulations(times, inputs)

        def of_step(index: int | Array) -> Modulations:
            return jax.tree.map(lambda x: x[index], modulations)

        x_start = interpolate(batch.x_0, noise, times[0])
        found, residual = model.velocity_and_residual(x_start, of_step(0), inputs, self.canvas)
        # The way to the step has no gradient, and so keeps nothing for a backward pass.
        graphdef, state = nnx.split(model)
        still = jax.lax.stop_gradient((state, found, residual, modulations))

        def walk(carry: tuple[Array, Array], own: tuple[Modulations, Array, Array]) -> Any:
            (x_t, found), (following, now, then) = carry, own
            x_t = euler_step(x_t, found, now, then)
            guide = nnx.merge(graphdef, still[0])
            found = guide.velocity_reusing(still[2], x_t, following, inputs, self.canvas)
            return (x_t, found), None

        # Samples whose step is reached stay there: their time does not change any more.
        rest = jax.tree.map(lambda x: x[1:], still[3]), times[:-1], times[1:]
        (x_t, _), _ = jax.lax.scan(walk, (x_start, still[1]), rest)
        last = model.velocity_reusing(residual, x_t, of_step(-1), inputs, self.canvas)
        return last.astype(jnp.float32), x_t, times[-1]


# An objective's class, or one whose further fields are filled in.
MakeObjective = Callable[[FlowConfig, Schedule, Canvas], Objective]


def method_of(config: TrainConfig) -> MakeObjective:
    """Chooses the objective of a recipe."""
    if config.distill is not None:
        loss = Distill if config.distill.mask is None else Imitate
        return functools.partial(loss, distill=config.distill)
    return Customise if config.condition else Teach


def sample_times(
    key: Array, count: int, config: FlowConfig, schedule: Schedule, num_tokens: int
) -> Float32[Array, " {count}"]:
    """Draws times in (0, 1), one per sample.

    Raises:
        UserError: an unknown distribution.
    """
    if config.t_sampling == "logit_normal":
        normal = jax.random.normal(key, (count,), jnp.float32)
        return jax.nn.sigmoid(config.t_mean + config.t_std * normal)
    if config.t_sampling not in ("uniform", "shifted"):
        raise UserError(
            f"unknown t_sampling {config.t_sampling!r}; choose one of logit_normal, uniform, "
            "shifted"
        )
    uniform = jax.random.uniform(key, (count,), jnp.float32)
    return schedule.warp(uniform, num_tokens) if config.t_sampling == "shifted" else uniform


def frame_weights(canvas: Canvas) -> Float32[Array, "2 L"]:
    """Weights of the tokens that select the reference and the target, each with mean 1.

    The mean of `weights * error` over tokens is the mean error of that frame.
    """
    column = canvas.image_ids[:, 2]
    reference = (column < (column.max() + 1) // 2).astype(jnp.float32)
    return jnp.stack([2 * reference, 2 * (1 - reference)])
