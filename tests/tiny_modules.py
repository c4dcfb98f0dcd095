"""Modules of any kind with random weights."""

from collections.abc import Callable
from typing import TypeVar

import jax.numpy as jnp
import numpy as np
from flax import nnx

__all__ = ["random_module"]

Module = TypeVar("Module", bound=nnx.Module)


def random_module(make: Callable[[nnx.Rngs], Module], seed: int = 0) -> Module:
    """The module with every parameter random: biases are not 0 and norm scales are not 1.

    Filled on the host, which is faster than running the initialisers op by op.
    """
    graphdef, state = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
    random = np.random.default_rng(seed)
    filled = []
    for path, variable in nnx.to_flat_state(state):
        value = random.standard_normal(variable.shape)
        if path[-1] == "scale":
            value = 1 + 0.3 * value
        elif path[-1] == "bias":
            value = 0.3 * value
        elif path[-1] != "embedding":
            value = value / np.sqrt(value.size / value.shape[-1])
        filled.append((path, variable.replace(jnp.asarray(value, variable.dtype))))
    return nnx.merge(graphdef, nnx.from_flat_state(filled))
