"""Convolutional networks of one safetensors file, which metrics of an evaluation look with."""

import dataclasses
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import jax
from flax import nnx
from jax.sharding import Mesh, SingleDeviceSharding

from dsd_jax.config import FLOAT32
from dsd_jax.convert.io import Weights
from dsd_jax.convert.table.engine import Source
from dsd_jax.sharding import replicated
from dsd_jax.weights import materialise

__all__ = ["Network"]

S = TypeVar("S")
M = TypeVar("M", bound=nnx.Module)


@dataclasses.dataclass(frozen=True)
class Network(Generic[S, M]):
    """A network on disk; no weights have been read.

    Attributes:
        kind: Class of the network, which takes the sizes, `precision` and `rngs`.
        sizes: Its sizes, as the tensors of the file tell them.
        weights: The file.
        source: Its tensors under the network's names.
    """

    kind: Callable[..., M]
    sizes: S
    weights: Weights
    source: Source

    def sha256(self) -> str:
        """Digest of the file."""
        return self.weights.fingerprint().combined

    def load(self, *, mesh: Mesh | None = None) -> M:
        """Reads the weights onto every device of a mesh; None for one device.

        Raises:
            UserError: The file cannot be read any more.
        """
        model: Any = nnx.eval_shape(
            lambda: self.kind(self.sizes, precision=FLOAT32, rngs=nnx.Rngs(0))
        )
        where = SingleDeviceSharding(jax.devices()[0]) if mesh is None else replicated(mesh)
        filled: M = materialise(model, self.source, stacks={}, shardings=where)
        return filled
