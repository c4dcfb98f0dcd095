"""Validation: a loss that is the same for the same weights, and pictures to look at."""

from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from dsd_jax.autoencoder import Autoencoder
from dsd_jax.data.load.loader import PairBatch
from dsd_jax.flux import Flux
from dsd_jax.frames import Canvas
from dsd_jax.train.state import TrainState
from dsd_jax.train.step import EncodedBatch, two_frame_loss
from dsd_jax.train.trainer import Trainer
from dsd_jax.types import Array, Float32, UInt8

__all__ = ["Sample", "Validation"]

TIMES = 8  # evenly spaced, in the middle of their intervals
_SEED = 2**31 - 1  # of the noise; any other than a run's own would do


@runtime_checkable
class Sample(Protocol):
    """Samples canvases; traced, so that model and VAE may lie on any mesh."""

    def __call__(
        self, model: Flux, autoencoder: Autoencoder, batch: EncodedBatch, canvas: Canvas
    ) -> Float32[Array, "B H W 3"]:
        """Pictures in [-1, 1]."""


class Validation:
    """Held-out pairs, encoded once, and what is done with them.

    Args:
        trainer: of the run; its encoders encode the pairs and decode the samples.
        pairs: on the mesh, as pictures.
        sample: how pictures are sampled; None: they are not.
        samples: how many pairs are sampled.
    """

    def __init__(
        self, trainer: Trainer, pairs: PairBatch, *, sample: Sample | None = None, samples: int = 0
    ) -> None:
        self._graphdef, self._config = trainer.trainee.split.graphdef, trainer.config
        self._frozen = trainer.frozen
        self._encoder = encoder = trainer.encoder
        self._batch = encoder(pairs, _SEED)
        self._canvas = trainer.canvas(pairs.size)
        everywhere = NamedSharding(trainer.mesh, PartitionSpec())
        options = trainer.compiler_options
        self._loss = jax.jit(self._loss_program, out_shardings=everywhere, compiler_options=options)
        self._pictures = jax.jit(
            self._pictures_program, out_shardings=everywhere, compiler_options=options
        )
        self._sample = sample if samples else None
        self._samples = samples
        shown = (pairs.reference, pairs.target) if trainer.config.condition else (pairs.target,)
        beside = jax.jit(
            lambda *frames: jnp.concatenate([frame[:samples] for frame in frames], axis=2),
            out_shardings=everywhere,
        )
        self._truth = np.asarray(beside(*shown)) if self._sample else None

    def loss(self, state: TrainState) -> dict[str, float]:
        """Loss over fixed noise and a fixed grid of times, of the averaged parameters if any."""
        means = self._loss(
            state.params if state.ema is None else state.ema, self._frozen, self._batch
        )
        names = "eval/loss", "eval/loss_reference", "eval/loss_target"
        return dict(zip(names, map(float, means), strict=True))

    def pictures(self, state: TrainState) -> UInt8[np.ndarray, "H W 3"] | None:
        """A row per pair: the pair itself, and beside it the canvas sampled from it."""
        if self._sample is None:
            return None
        params = state.params if state.ema is None else state.ema
        graph, vae = self._encoder.autoencoder
        del graph  # static, taken from the encoder when the program is traced
        made = np.asarray(self._pictures(params, self._frozen, vae, self._batch))
        rows = np.concatenate([self._truth, made], axis=2)
        return np.concatenate(list(rows), axis=0)

    def _model(self, params: nnx.State, frozen: nnx.State) -> Flux:
        return nnx.merge(self._graphdef, params, frozen)

    def _loss_program(
        self, params: nnx.State, frozen: nnx.State, batch: EncodedBatch
    ) -> Float32[Array, " 3"]:
        model, flow = self._model(params, frozen), self._config.flow
        count = batch.x_0.shape[0]

        def at(index: Array) -> Array:
            key = jax.random.fold_in(jax.random.key(_SEED), index)
            noise = jax.random.normal(key, batch.x_0.shape, jnp.float32)
            t = jnp.full(count, (index.astype(jnp.float32) + 0.5) / TIMES, jnp.float32)
            loss, frames = two_frame_loss(model, batch, noise, t, flow, self._canvas)
            return jnp.stack([loss, *frames])

        return lax.map(at, jnp.arange(TIMES)).mean(0)

    def _pictures_program(
        self, params: nnx.State, frozen: nnx.State, vae: nnx.State, batch: EncodedBatch
    ) -> UInt8[Array, "n H W 3"]:
        assert self._sample is not None  # the caller's condition
        per_sample = {"x_0", "img_cond", "txt", "vec", "drop_text", "drop_image"}
        first = {
            name: value[: self._samples] if name in per_sample and value is not None else value
            for name, value in batch._asdict().items()
        }
        autoencoder = nnx.merge(self._encoder.autoencoder[0], vae)
        model = self._model(params, frozen)
        made = self._sample(model, autoencoder, EncodedBatch(**first), self._canvas)
        return (jnp.clip(made / 2 + 0.5, 0, 1) * 255).round().astype(jnp.uint8)
