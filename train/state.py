"""The trained parameters (float32) and the frozen base."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, Sharding

from dsd_jax.condition import CANVAS
from dsd_jax.flux import Flux
from dsd_jax.layers import LoraParam
from dsd_jax.sharding import replicated
from dsd_jax.types import Array

__all__ = ["Split", "TrainState", "init_state", "split_model", "state_shardings"]


class Split(NamedTuple):
    """A split model; `merge(graphdef, trained, frozen)` puts it together."""

    graphdef: nnx.GraphDef[Flux]
    trained: nnx.State
    frozen: nnx.State


class TrainState(NamedTuple):
    """Everything that a checkpoint holds; `ema` is None if no average is kept."""

    step: Array
    params: nnx.State
    opt_state: optax.OptState
    ema: nnx.State | None


def is_adapter(path: tuple[object, ...], variable: object) -> bool:
    """Selects what LoRA trains: the factors, and the condition embedding in full."""
    return isinstance(variable, LoraParam) or CANVAS.owns(".".join(map(str, path)))


def split_model(model: Flux, *, full: bool) -> Split:
    """Splits a model; the parameters to be trained become float32.

    Args:
        model: with arrays or abstract.
        full: train every parameter, not just the adapter and the condition embedding.
    """
    graphdef, *states = nnx.split(model, nnx.Param if full else is_adapter, ...)
    trained, frozen = states

    def master(x: Array | jax.ShapeDtypeStruct) -> Array | jax.ShapeDtypeStruct:
        if isinstance(x, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(x.shape, jnp.float32, sharding=x.sharding)
        return x.astype(jnp.float32)

    return Split(graphdef, jax.tree.map(master, trained), frozen)


def init_state(
    params: nnx.State, optimizer: optax.GradientTransformation, *, ema: bool
) -> TrainState:
    """Makes the state before the first step; no two of its arrays share memory."""
    average = jax.tree.map(jnp.copy, params) if ema else None
    start = jax.tree.map(jnp.copy, params)  # prodigy keeps where it started
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(start), average)


def state_shardings(
    params: nnx.State,
    shardings: nnx.State,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    ema: bool,
) -> TrainState:
    """Finds the shardings of a state: moments are sharded like their parameters.

    Arrays of other shapes (counters, adafactor's row and column means) are replicated.

    Args:
        params: arrays or abstract.
        shardings: a sharding for every leaf of `params`.
    """
    everywhere = replicated(mesh)
    moments: Any = optax.tree_map_params(
        optimizer,
        lambda moment, param, sharding: sharding if moment.shape == param.shape else everywhere,
        jax.eval_shape(optimizer.init, params),
        params,
        shardings,
        transform_non_params=lambda _: everywhere,
    )
    counter: Sharding = everywhere
    return TrainState(counter, shardings, moments, shardings if ema else None)  # type: ignore[arg-type]
