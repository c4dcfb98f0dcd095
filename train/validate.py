"""Validation: a loss that is the same for the same weights, and pictures to look at."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from dsd_jax.autoencoder import unnormalize
from dsd_jax.data.load.loader import PairBatch
from dsd_jax.flux import Flux
from dsd_jax.frames import FluxInputs, pack_latents, unpack_latents
from dsd_jax.infer.sampler import Programs, SamplerInputs, initial_noise
from dsd_jax.infer.settings import Settings
from dsd_jax.sharding import replicated
from dsd_jax.train.objective import EncodedBatch
from dsd_jax.train.state import TrainState
from dsd_jax.train.trainer import Trainer
from dsd_jax.types import Array, Float32, UInt8

__all__ = ["Samples", "Validation"]

TIMES = 8  # evenly spaced, in the middle of their intervals
_SEED = 2**31 - 1  # of the noise; any other than a run's own would do


@dataclasses.dataclass(frozen=True)
class Samples:
    """Which pictures a validation samples.

    Attributes:
        count: pairs that are sampled; 0 samples none.
        steps: sampling steps.
    """

    count: int = 0
    steps: int = Settings.steps


class Validation:
    """Held-out pairs, encoded once, and what is done with them.

    Args:
        trainer: of the run; its encoders encode the pairs and decode the samples.
        pairs: on the mesh, as pictures.
        samples: which pictures are sampled.
    """

    def __init__(self, trainer: Trainer, pairs: PairBatch, samples: Samples | None = None) -> None:
        self._trainer, self._samples = trainer, samples or Samples()
        self._graphdef, self._encoder = trainer.trainee.split.graphdef, trainer.encoder
        self._batch = trainer.encoder(pairs, _SEED)
        self._objective, self._frozen = trainer.objective(pairs.size), trainer.frozen
        everywhere = replicated(trainer.mesh)
        options = dict(trainer.options.compiler)
        self._loss = jax.jit(self._loss_program, out_shardings=everywhere, compiler_options=options)
        self._pictures = jax.jit(
            self._pictures_program, out_shardings=everywhere, compiler_options=options
        )
        shown = (pairs.reference, pairs.target) if trainer.config.condition else (pairs.target,)
        count = self._samples.count
        beside = jax.jit(
            lambda *frames: jnp.concatenate([frame[:count] for frame in frames], axis=2),
            out_shardings=everywhere,
        )
        self._truth = np.asarray(beside(*shown)) if count else None

    def loss(self, state: TrainState) -> dict[str, float]:
        """Loss over fixed noise and a fixed grid of times, of the averaged parameters if any."""
        params = state.params if state.ema is None else state.ema
        means = self._loss(params, self._frozen, self._batch)
        names = "eval/loss", "eval/loss_reference", "eval/loss_target"
        return dict(zip(names, map(float, means), strict=True))

    def pictures(self, state: TrainState) -> UInt8[np.ndarray, "H W 3"] | None:
        """A row per pair: the pair itself, and beside it the canvas sampled from it.

        Sampled as `dsd generate` does without true guidance; row i has the noise of seed i.
        """
        if self._truth is None:
            return None
        params = state.params if state.ema is None else state.ema
        vae = self._encoder.images.state
        made = np.asarray(self._pictures(params, self._frozen, vae, self._batch))
        rows = np.concatenate([self._truth, made], axis=2)
        return np.concatenate(list(rows), axis=0)

    def _model(self, params: nnx.State, frozen: nnx.State) -> Flux:
        return nnx.merge(self._graphdef, params, frozen)

    def _loss_program(
        self, params: nnx.State, frozen: nnx.State, batch: EncodedBatch
    ) -> Float32[Array, " 3"]:
        model = self._model(params, frozen)
        count = batch.x_0.shape[0]

        def at(index: Array) -> Array:
            key = jax.random.fold_in(jax.random.key(_SEED), index)
            noise = jax.random.normal(key, batch.x_0.shape, jnp.float32)
            t = jnp.full(count, (index.astype(jnp.float32) + 0.5) / TIMES, jnp.float32)
            return jnp.stack(self._objective.at(model, batch, noise, t))

        return lax.map(at, jnp.arange(TIMES)).mean(0)

    def _pictures_program(
        self, params: nnx.State, frozen: nnx.State, vae: nnx.State, batch: EncodedBatch
    ) -> UInt8[Array, "n H W 3"]:
        count, canvas = self._samples.count, self._objective.canvas
        graphdef, weights = nnx.split(self._model(params, frozen))
        autoencoder = nnx.merge(self._encoder.images.graphdef, vae)
        noise = initial_noise(np.arange(count), canvas, autoencoder.config.latent_channels)
        cond = None if batch.img_cond is None else batch.img_cond[:count]
        guidance = jnp.full(count, Settings.guidance, jnp.float32)
        inputs = FluxInputs(batch.txt[:count], batch.vec[:count], guidance, cond)
        times = self._trainer.base.schedule.timesteps(self._samples.steps, canvas.tokens)
        img = Programs(graphdef, canvas).loop(
            weights, pack_latents(noise), SamplerInputs(inputs), jnp.asarray(times)
        )
        latents = unnormalize(unpack_latents(img, canvas), autoencoder.config)
        made = autoencoder.decode(latents)
        return (jnp.clip(made / 2 + 0.5, 0, 1) * 255).round().astype(jnp.uint8)
