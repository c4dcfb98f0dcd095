"""Training of a model on pictures alone, as `dsd_jax.train.trainer` trains the transformer."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import optax
from flax import nnx
from jax.sharding import Mesh

from dsd_jax.data.load.loader import PairBatch
from dsd_jax.sharding import batch_sharding, replicated
from dsd_jax.toy.making.recipes import PictureConfig
from dsd_jax.train.optimizer import learning_rate, make_optimizer
from dsd_jax.train.record import Origin
from dsd_jax.train.state import TrainState, init_state
from dsd_jax.types import Array, UInt8

__all__ = ["PictureLoss", "PictureMetrics", "PictureTrainer"]


PictureLoss: TypeAlias = Callable[[Any, Array, Array], tuple[Array, dict[str, Array]]]
"""The loss of a model on pictures `[B, H, W, 3]`, uint8, with a key for all that it draws; and
further numbers for the log by name."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PictureMetrics:
    """Numbers of a step, float32 scalars.

    Attributes:
        loss: Mean over the batch.
        parts: Further numbers of the loss, by name.
        grad_norm, param_norm: Norms over all trained parameters.
    """

    loss: Array
    parts: Mapping[str, Array]
    grad_norm: Array
    param_norm: Array

    def _asdict(self) -> dict[str, Array]:
        """All numbers by name, for the log."""
        norms = {"grad_norm": self.grad_norm, "param_norm": self.param_norm}
        return {"loss": self.loss, **self.parts, **norms}


class PictureTrainer:
    """Model, optimiser and compiled steps on a mesh; for `dsd_jax.train.loop.train`.

    Args:
        config: The recipe.
        loss: The loss.
        make: Makes the model of random weights.
        mesh: All devices of the run. Each of them holds the whole model.
        start: A model with weights that are trained further. None trains those of `make`.
        trained: Filter of the parameters of `start` that are trained; the others stay as they are.
        origin: Origin of `start`, stored with checkpoints.
    """

    compiled_in = 0.0

    def __init__(
        self,
        config: PictureConfig,
        loss: PictureLoss,
        make: Callable[[nnx.Rngs], nnx.Module],
        mesh: Mesh,
        *,
        start: nnx.Module | None = None,
        trained: nnx.filterlib.Filter = nnx.Param,
        origin: Origin = Origin("", {}),
    ) -> None:
        self.config, self.mesh, self.origin = config, mesh, origin
        self._loss, self._make = loss, make
        self.optimizer = make_optimizer(config.optimizer, config.steps)
        module = nnx.eval_shape(lambda: make(nnx.Rngs(0))) if start is None else start
        self.graphdef, *states = nnx.split(module, trained, ...)
        loaded, self.frozen = states
        self._start = None if start is None else loaded
        self._everywhere = replicated(mesh)
        self._step = jax.jit(
            self._step_program,
            in_shardings=(self._everywhere, self._everywhere, batch_sharding(mesh)),
            out_shardings=self._everywhere,
            donate_argnums=0,
        )
        self._seen: set[tuple[int, int]] = set()

    @property
    def stacks(self) -> dict[str, int]:
        return {}

    def state(self, restore: Callable[[TrainState], TrainState] | None = None) -> TrainState:
        """Makes the state to go on from, as `dsd_jax.train.trainer.Trainer.state` does."""
        shapes = jax.eval_shape(self._first, self._start)
        like = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._everywhere), shapes
        )
        if restore is not None:
            return restore(like)
        return jax.jit(self._first, out_shardings=self._everywhere)(self._start)

    def _first(self, params: nnx.State | None) -> TrainState:
        if params is None:
            params = nnx.state(self._make(nnx.Rngs(params=self.config.seed)), nnx.Param)
        return init_state(params, self.optimizer, ema=self.config.optimizer.ema > 0)

    def step(
        self,
        state: TrainState,
        batch: PairBatch,
        step: int,  # noqa: ARG002 - as the loop calls it
    ) -> tuple[TrainState, PictureMetrics]:
        """Makes one update; `state` is used up."""
        start = time.perf_counter()
        new = batch.size not in self._seen
        self._seen.add(batch.size)
        with jax.set_mesh(self.mesh):
            done = self._step(state, self.frozen, batch.target)
        self.compiled_in = time.perf_counter() - start if new else 0.0
        return done

    def learning_rate(self, step: int) -> float:
        """Learning rate of update `step + 1`."""
        with jax.numpy_dtype_promotion("standard"):
            return float(learning_rate(self.config.optimizer, self.config.steps)(step))

    def flops(self, size: tuple[int, int]) -> None:
        """Returns None, since the FLOPs of these models are not counted."""

    def _step_program(
        self, state: TrainState, frozen: nnx.State, pictures: UInt8[Array, "B H W 3"]
    ) -> tuple[TrainState, PictureMetrics]:
        key = jax.random.fold_in(jax.random.key(self.config.seed), state.step)

        def loss_of(params: nnx.State) -> tuple[Array, dict[str, Array]]:
            return self._loss(nnx.merge(self.graphdef, params, frozen), pictures, key)

        (loss, parts), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        with jax.numpy_dtype_promotion("standard"):  # optax multiplies floats by its counter
            updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema is not None:
            ema = optax.incremental_update(params, ema, 1 - self.config.optimizer.ema)
        metrics = PictureMetrics(loss, parts, optax.tree.norm(grads), optax.tree.norm(params))
        return TrainState(state.step + 1, params, opt_state, ema), metrics
