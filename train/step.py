"""The training step: a pure function of state and batch, jitted by the caller."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from dsd_jax.flux import Flux
from dsd_jax.train.config import TrainConfig
from dsd_jax.train.objective import EncodedBatch, Losses, Objective
from dsd_jax.train.state import TrainState
from dsd_jax.types import Array, PyTree

__all__ = ["Metrics", "Step", "guarded", "make_step"]


class Metrics(NamedTuple):
    """Means over the effective batch, float32 scalars."""

    loss: Array
    loss_reference: Array
    loss_target: Array
    grad_norm: Array
    param_norm: Array


Step = Callable[..., tuple[TrainState, Metrics]]
"""(state, frozen parameters, batch, and for a distillation the teacher's own parameters) -> (next
state, metrics). The teacher's other parameters are the frozen ones."""


def make_step(
    graphdef: nnx.GraphDef[Flux],
    optimizer: optax.GradientTransformation,
    objective: Objective,
    config: TrainConfig,
) -> Step:
    """Builds the training step of an objective.

    Randomness is a function of (seed, step) alone, so a resumed run takes the same steps as an
    uninterrupted one.
    """
    accumulate = config.optimizer.accumulate

    def loss_of(
        params: nnx.State,
        frozen: nnx.State,
        teacher: nnx.State | None,
        batch: EncodedBatch,
        key: Array,
    ) -> tuple[Array, Losses]:
        own = objective
        if teacher is not None:
            own = own.taught(nnx.merge(graphdef, teacher, frozen))
        losses = own(nnx.merge(graphdef, params, frozen), batch, key)
        return losses.loss, losses

    gradient = jax.grad(loss_of, has_aux=True)

    def step(
        state: TrainState,
        frozen: nnx.State,
        batch: EncodedBatch,
        teacher: nnx.State | None = None,
    ) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        if accumulate == 1:
            grads, losses = gradient(state.params, frozen, teacher, batch, key)
        else:

            def one(carry: PyTree, index: Array) -> tuple[PyTree, None]:
                part = _micro_batch(batch, index, accumulate)
                own_key = jax.random.fold_in(key, index)
                new = gradient(state.params, frozen, teacher, part, own_key)
                return jax.tree.map(lambda a, b: a + b / accumulate, carry, new), None

            shapes = jax.eval_shape(gradient, state.params, frozen, teacher, batch, key)
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
            (grads, losses), _ = jax.lax.scan(one, zeros, jnp.arange(accumulate))
        with jax.numpy_dtype_promotion("standard"):  # optax multiplies floats by its counter
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema is not None:
            ema = optax.incremental_update(params, ema, 1 - config.optimizer.ema)
        norms = optax.tree.norm(grads), optax.tree.norm(params)
        metrics = Metrics(losses.loss, losses.reference, losses.target, *norms)
        return TrainState(state.step + 1, params, opt_state, ema), metrics

    return step


def guarded(step: Step) -> Step:
    """Wraps a step so that a loss or gradient that is not finite changes only the counter."""

    def run(state: TrainState, *rest: PyTree) -> tuple[TrainState, Metrics]:
        new, metrics = step(state, *rest)
        good = jnp.isfinite(jnp.stack(jax.tree.leaves(metrics))).all()
        kept = jax.tree.map(lambda after, before: jnp.where(good, after, before), new, state)
        return kept._replace(step=new.step), metrics

    return run


def _micro_batch(batch: EncodedBatch, index: Array, count: int) -> EncodedBatch:
    """Takes every `count`-th sample, so that each device has its share of a micro-batch."""

    def take(x: Array) -> Array:
        return jax.lax.dynamic_index_in_dim(
            x.reshape(x.shape[0] // count, count, *x.shape[1:]), index, axis=1, keepdims=False
        )

    part = jax.tree.map(take, batch._replace(null_txt=batch.txt, null_vec=batch.vec))
    return part._replace(null_txt=batch.null_txt, null_vec=batch.null_vec)
