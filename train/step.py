"""The loss and the training step: pure functions of state and batch, jitted by the caller."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from dsd_jax.errors import UserError
from dsd_jax.flow import Schedule, interpolate, velocity
from dsd_jax.flux import Flux
from dsd_jax.frames import Canvas, FluxInputs
from dsd_jax.train.config import FlowConfig, TrainConfig
from dsd_jax.train.state import TrainState
from dsd_jax.types import Array, Bool, Float, Float32

__all__ = [
    "EncodedBatch",
    "Metrics",
    "Step",
    "draw",
    "frame_weights",
    "make_step",
    "sample_times",
    "two_frame_loss",
]


class EncodedBatch(NamedTuple):
    """A batch as the transformer takes it; `L` tokens of the canvas.

    `img_cond` None: no condition (training a teacher). The masks say which samples are trained
    without text or image; then the null text and zero condition tokens stand in, as in sampling.
    """

    x_0: Float[Array, "B L C"]
    img_cond: Float[Array, "B L C"] | None
    txt: Float[Array, "B Lt Dt"]
    vec: Float[Array, "B Dv"]
    drop_text: Bool[Array, " B"]
    drop_image: Bool[Array, " B"]
    null_txt: Float[Array, "Lt Dt"]
    null_vec: Float[Array, " Dv"]


class Metrics(NamedTuple):
    """Means over the effective batch, float32 scalars."""

    loss: Array
    loss_reference: Array
    loss_target: Array
    grad_norm: Array
    param_norm: Array


Step = Callable[[TrainState, nnx.State, EncodedBatch], tuple[TrainState, Metrics]]


def sample_times(
    key: Array, count: int, config: FlowConfig, schedule: Schedule, num_tokens: int
) -> Float32[Array, " {count}"]:
    """Times in (0, 1), one per sample.

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


def draw(
    key: Array, x_0: Float[Array, "B L C"], config: FlowConfig, schedule: Schedule
) -> tuple[Float32[Array, "B L C"], Float32[Array, " B"]]:
    """Noise and times of a batch: the only randomness of its loss."""
    time_key, noise_key = jax.random.split(key)
    count, tokens, _ = x_0.shape
    t = sample_times(time_key, count, config, schedule, tokens)
    return jax.random.normal(noise_key, x_0.shape, jnp.float32), t


def frame_weights(canvas: Canvas) -> Float32[Array, "2 L"]:
    """Which tokens are the reference's and which the target's, each row with mean weight 1.

    The mean of `weights * error` over tokens is the mean error of that frame.
    """
    column = canvas.image_ids[:, 2]
    reference = (column < (column.max() + 1) // 2).astype(jnp.float32)
    return jnp.stack([2 * reference, 2 * (1 - reference)])


def two_frame_loss(
    model: Flux,
    batch: EncodedBatch,
    noise: Float[Array, "B L C"],
    t: Float32[Array, " B"],
    config: FlowConfig,
    canvas: Canvas,
    t_reference: Float32[Array, " B"] | None = None,
) -> tuple[Array, tuple[Array, Array]]:
    """Mean squared error of the velocity, both frames at one t (paper, section 3.2).

    Args:
        canvas: of the tokens.
        t_reference: time of the reference frame where it is another; None: t. A frame that is
            nearer to the picture than the target is given and bears no loss; not with a condition.

    Returns:
        The weighted loss, and the plain losses of reference and target; float32.
    """
    drop = batch.drop_text[:, None, None]
    txt = jnp.where(drop, batch.null_txt[None].astype(batch.txt.dtype), batch.txt)
    vec = jnp.where(drop[:, 0], batch.null_vec[None].astype(batch.vec.dtype), batch.vec)
    img_cond = batch.img_cond
    if img_cond is not None:
        img_cond = jnp.where(batch.drop_image[:, None, None], 0, img_cond)
    weights = frame_weights(canvas)
    x_t = interpolate(batch.x_0, noise, t)
    given = jnp.zeros(x_t.shape[:2], bool)
    if t_reference is not None:
        given = (t_reference < t)[:, None] & (weights[:1] > 0)
        x_t = jnp.where(given[..., None], interpolate(batch.x_0, noise, t_reference), x_t)
    inputs = FluxInputs(txt, vec, jnp.full_like(t, config.guidance), img_cond)
    predicted = model(x_t, t, inputs, canvas)
    difference = predicted.astype(jnp.float32) - velocity(batch.x_0, noise)
    error = jnp.square(difference).mean(-1)
    if img_cond is None:
        loss = error.mean(where=~given)
        return loss, (loss, loss)
    reference, target = (weights * error.mean(0, keepdims=True)).mean(-1)
    shares = config.reference_weight, config.target_weight
    loss = (shares[0] * reference + shares[1] * target) / sum(shares)
    return loss, (reference, target)


def make_step(
    graphdef: nnx.GraphDef[Flux],
    optimizer: optax.GradientTransformation,
    config: TrainConfig,
    schedule: Schedule,
    canvas: Canvas,
) -> Step:
    """The training step for a canvas.

    Randomness is a function of (seed, step) alone, so that a resumed run takes the steps that an
    uninterrupted one would have taken.
    """
    accumulate = config.optimizer.accumulate

    def loss_of(
        params: nnx.State, frozen: nnx.State, batch: EncodedBatch, key: Array
    ) -> tuple[Array, tuple[Array, Array]]:
        noise, t = draw(key, batch.x_0, config.flow, schedule)
        t_reference = None
        if config.flow.inpaint > 0:
            given_key, share_key = jax.random.split(jax.random.fold_in(key, 2))
            given = jax.random.bernoulli(given_key, config.flow.inpaint, t.shape)
            share = config.flow.inpaint_noise * jax.random.uniform(share_key, t.shape, jnp.float32)
            t_reference = jnp.where(given, share * t, t)
        model = nnx.merge(graphdef, params, frozen)
        return two_frame_loss(model, batch, noise, t, config.flow, canvas, t_reference)

    gradient = jax.value_and_grad(loss_of, has_aux=True)

    def step(
        state: TrainState, frozen: nnx.State, batch: EncodedBatch
    ) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        if accumulate == 1:
            (loss, frames), grads = gradient(state.params, frozen, batch, key)
        else:

            def one(carry: Any, index: Array) -> tuple[Any, None]:
                part = _micro_batch(batch, index, accumulate)
                new = gradient(state.params, frozen, part, jax.random.fold_in(key, index))
                return jax.tree.map(lambda a, b: a + b / accumulate, carry, new), None

            shapes = jax.eval_shape(gradient, state.params, frozen, batch, key)
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
            ((loss, frames), grads), _ = jax.lax.scan(one, zeros, jnp.arange(accumulate))
        with jax.numpy_dtype_promotion("standard"):  # optax multiplies floats by its counter
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema is not None:
            ema = optax.incremental_update(params, ema, 1 - config.optimizer.ema)
        reference, target = frames
        metrics = Metrics(loss, reference, target, optax.tree.norm(grads), optax.tree.norm(params))
        return TrainState(state.step + 1, params, opt_state, ema), metrics

    return step


def _micro_batch(batch: EncodedBatch, index: Array, count: int) -> EncodedBatch:
    """Every `count`-th sample, so that each device keeps its share of every micro-batch."""

    def take(x: Array) -> Array:
        return jax.lax.dynamic_index_in_dim(
            x.reshape(x.shape[0] // count, count, *x.shape[1:]), index, axis=1, keepdims=False
        )

    part = jax.tree.map(take, batch._replace(null_txt=batch.txt, null_vec=batch.vec))
    return part._replace(null_txt=batch.null_txt, null_vec=batch.null_vec)
