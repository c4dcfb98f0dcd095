"""Training of an autoencoder, as `dsd_jax.train.trainer` trains the transformer.

The loss is `|x - decoded|`, averaged over pixels, plus a small weight on the Kullback-Leibler
divergence of the posterior from a standard normal, averaged over latents (Kingma & Welling 2014).
There is no discriminator: the toy world has no texture that would blur.
"""

import functools
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from dsd_jax.autoencoder import Autoencoder
from dsd_jax.config import FLOAT32, AutoencoderConfig
from dsd_jax.data.load.loader import PairBatch
from dsd_jax.models import abstract, load
from dsd_jax.sharding import batch_sharding, replicated
from dsd_jax.toy.making.recipes import VaeConfig
from dsd_jax.train.optimizer import learning_rate, make_optimizer
from dsd_jax.train.record import Origin
from dsd_jax.train.state import TrainState, init_state
from dsd_jax.types import Array, Float32, UInt8
from dsd_jax.weights import WeightSource

__all__ = ["KL_WEIGHT", "VaeMetrics", "VaeTrainer", "latent_statistics", "vae_loss"]

KL_WEIGHT = 1e-3


class VaeMetrics(NamedTuple):
    """Means over the batch, float32 scalars; `l1` of pixels in [-1, 1], `kl` in nats a latent."""

    loss: Array
    l1: Array
    kl: Array
    grad_norm: Array
    param_norm: Array


def vae_loss(
    model: Autoencoder, pictures: UInt8[Array, "B H W 3"], key: Array
) -> tuple[Float32[Array, ""], tuple[Array, Array]]:
    """Computes the loss, and its two parts before they are weighted."""
    pixels = pictures.astype(jnp.float32) / 127.5 - 1
    posterior = model.encode(pixels)
    decoded = model.decode(posterior.sample(key))
    l1 = jnp.abs(decoded - pixels).mean()
    mean, logvar = posterior.mean, posterior.logvar
    kl = 0.5 * (jnp.square(mean) + jnp.exp(logvar) - 1 - logvar).mean()
    return l1 + KL_WEIGHT * kl, (l1, kl)


class VaeTrainer:
    """Autoencoder, optimiser and compiled steps on a mesh; for `dsd_jax.train.loop.train`.

    Args:
        config: The recipe.
        model: Sizes of the autoencoder.
        mesh: All devices of the run. Each of them holds the whole model.
        start: Weights whose decoder is trained further. Their encoder stays as it is, so that a
            transformer trained on its latents still fits. None trains all from random weights.
        origin: Origin of `start`, stored with checkpoints.
    """

    compiled_in = 0.0

    def __init__(
        self,
        config: VaeConfig,
        model: AutoencoderConfig,
        mesh: Mesh,
        *,
        start: WeightSource | None = None,
        origin: Origin = Origin("", {}),
    ) -> None:
        self.config, self.mesh, self.origin = config, mesh, origin
        self._model = model
        self.optimizer = make_optimizer(config.optimizer, config.steps)
        module = abstract(model, precision=FLOAT32)
        if start is not None:
            module = load(module, start, mesh=mesh)
        trained = nnx.Param if start is None else _is_decoder
        self.graphdef, *states = nnx.split(module, trained, ...)
        loaded, self.frozen = states
        self._start = None if start is None else loaded
        self._everywhere = replicated(mesh)
        self._rows = batch_sharding(mesh)
        self._step = jax.jit(
            self._step_program,
            in_shardings=(self._everywhere, self._everywhere, self._rows),
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
            model = Autoencoder(
                self._model, precision=FLOAT32, rngs=nnx.Rngs(params=self.config.seed)
            )
            params = nnx.state(model, nnx.Param)
        return init_state(params, self.optimizer, ema=self.config.optimizer.ema > 0)

    def step(
        self,
        state: TrainState,
        batch: PairBatch,
        step: int,  # noqa: ARG002 - as the loop calls it
    ) -> tuple[TrainState, VaeMetrics]:
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
        """Returns None, since the FLOPs of convolutions are not counted."""

    def _step_program(
        self, state: TrainState, frozen: nnx.State, pictures: UInt8[Array, "B H W 3"]
    ) -> tuple[TrainState, VaeMetrics]:
        key = jax.random.fold_in(jax.random.key(self.config.seed), state.step)

        def loss_of(params: nnx.State) -> tuple[Array, tuple[Array, Array]]:
            return vae_loss(nnx.merge(self.graphdef, params, frozen), pictures, key)

        (loss, (l1, kl)), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        with jax.numpy_dtype_promotion("standard"):  # optax multiplies floats by its counter
            updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema is not None:
            ema = optax.incremental_update(params, ema, 1 - self.config.optimizer.ema)
        metrics = VaeMetrics(loss, l1, kl, optax.tree.norm(grads), optax.tree.norm(params))
        return TrainState(state.step + 1, params, opt_state, ema), metrics


def _is_decoder(path: tuple[Any, ...], variable: Any) -> bool:  # noqa: ARG001 - a filter of nnx
    return path[:1] == ("decoder",)


def latent_statistics(model: Autoencoder, batches: Iterable[PairBatch]) -> tuple[float, float]:
    """Measures mean and standard deviation of latents drawn from the posteriors of pictures."""
    graphdef, state = nnx.split(model)

    @functools.partial(jax.jit)
    def draw(state: nnx.State, pictures: Array) -> Array:
        pixels = pictures.astype(jnp.float32) / 127.5 - 1
        posterior = nnx.merge(graphdef, state).encode(pixels)
        return posterior.sample(jax.random.key(0))

    latents = np.concatenate([np.asarray(draw(state, b.target)).ravel() for b in batches])
    return float(latents.mean()), float(latents.std())
