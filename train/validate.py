"""Validation: a loss that depends on the weights alone, and sheets of samples."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from dsd_jax.autoencoder import unnormalize
from dsd_jax.data.load.loader import PairBatch
from dsd_jax.flux import Flux
from dsd_jax.frames import FluxInputs, pack_latents, unpack_latents
from dsd_jax.infer.mask import mask_steps
from dsd_jax.infer.sampler import Method, Programs, SamplerInputs, initial_noise
from dsd_jax.infer.settings import Settings
from dsd_jax.sharding import replicated
from dsd_jax.train.objective import EncodedBatch
from dsd_jax.train.sheet import Sheet, draw_sheet
from dsd_jax.train.state import TrainState
from dsd_jax.train.trainer import Trainer
from dsd_jax.types import Array, Float32, UInt8

__all__ = ["HeldOut", "SampleSheet", "Validation"]

TIMES = 8  # evenly spaced, in the middle of their intervals
_SEED = 2**31 - 1  # seed of the noise; any seed but the run's own would do


class SampleSheet:
    """Pictures that are sampled at every validation, always from the same noise.

    They are sampled as `dsd generate` does without true guidance, and with the step mask of a
    distillation.

    Args:
        trainer: trainer of the run; its encoders encode the inputs and decode the samples.
        pairs: pairs on the mesh, as pictures; the first `len(seeds)` are sampled.
        seeds: seeds of the noise, one per sample.
        steps: sampling steps.
        show_target: whether the pairs have targets to compare with.
    """

    def __init__(
        self,
        trainer: Trainer,
        pairs: PairBatch,
        seeds: Sequence[int],
        steps: int,
        *,
        show_target: bool = True,
    ) -> None:
        self._trainer, self._seeds, self._steps = trainer, np.asarray(seeds, np.uint32), steps
        self._canvas = trainer.objective(pairs.size).canvas
        # The texts of other hosts' samples are not known here.
        self._captions = [*pairs.texts, *[""] * len(seeds)][: len(seeds)]
        batch = trainer.encoder(pairs, _SEED)
        first = jax.jit(
            lambda tree: jax.tree.map(lambda x: x[: len(seeds)], tree),
            out_shardings=replicated(trainer.mesh),
        )
        condition = trainer.config.condition
        shown = {
            **({"reference": pairs.reference} if condition else {}),
            **({"target": pairs.target} if show_target else {}),
        }
        drawn = ["sampled reference", "sampled target"] if condition else ["sampled"]
        self._heads = [*shown, *drawn]
        self._shown = [np.asarray(x) for x in first(list(shown.values()))]
        self._inputs = first((batch.txt, batch.vec, batch.img_cond))
        self._program = jax.jit(
            self._sample,
            out_shardings=replicated(trainer.mesh),
        )

    def draw(self, state: TrainState) -> Sheet:
        """Samples the sheet with these weights, the averaged ones if there are any."""
        params = state.params if state.ema is None else state.ema
        vae = self._trainer.encoder.images.state
        made = np.asarray(self._program(params, self._trainer.frozen, vae, self._inputs))
        rows = np.concatenate([*self._shown, made], axis=2)
        return draw_sheet(rows, self._heads, self._captions)

    def _sample(
        self,
        params: nnx.State,
        frozen: nnx.State,
        vae: nnx.State,
        inputs: tuple[Array, Array, Array | None],
    ) -> UInt8[Array, "n H W 3"]:
        canvas = self._canvas
        graphdef, weights = nnx.split(_model(self._trainer, params, frozen))
        autoencoder = nnx.merge(self._trainer.encoder.images.graphdef, vae)
        noise = initial_noise(self._seeds, canvas, autoencoder.config.latent_channels)
        txt, vec, img_cond = inputs
        guidance = jnp.full(len(self._seeds), Settings.guidance, jnp.float32)
        schedule = self._trainer.base.schedule
        own = SamplerInputs(FluxInputs(txt, vec, guidance, img_cond))
        distill = self._trainer.config.distill
        mask = None if distill is None else distill.mask
        steps = self._steps if mask is None else len(mask)
        method = Method(masked=mask is not None)
        kinds = method.kinds(
            steps, true_guidance=False, mask=None if mask is None else mask_steps(mask)
        )
        programs = Programs(graphdef, canvas, method)
        times = jnp.asarray(schedule.timesteps(steps, canvas.tokens))
        modulations = programs.modulations(weights, own, times)
        chosen = method.places(kinds, true_guidance=False)
        img = programs.loop(weights, pack_latents(noise), own, modulations, times, chosen)
        made = autoencoder.decode(unnormalize(unpack_latents(img, canvas), autoencoder.config))
        return (jnp.clip(made / 2 + 0.5, 0, 1) * 255).round().astype(jnp.uint8)


class HeldOut:
    """The loss over held-out pairs, encoded once.

    Args:
        trainer: trainer of the run.
        pairs: pairs on the mesh, as pictures.
    """

    def __init__(self, trainer: Trainer, pairs: PairBatch) -> None:
        self._trainer = trainer
        self._batch = trainer.encoder(pairs, _SEED)
        self._objective = trainer.objective(pairs.size)
        self._program = jax.jit(
            self._losses,
            out_shardings=replicated(trainer.mesh),
        )

    def loss(self, state: TrainState) -> dict[str, float]:
        """Computes the loss for fixed noise and times, with averaged parameters if any."""
        params = state.params if state.ema is None else state.ema
        trainer = self._trainer
        means = self._program(params, trainer.frozen, self._batch, trainer.teacher)
        names = "eval/loss", "eval/loss_reference", "eval/loss_target"
        return dict(zip(names, map(float, means), strict=True))

    def _losses(
        self,
        params: nnx.State,
        frozen: nnx.State,
        batch: EncodedBatch,
        teacher: nnx.State | None,
    ) -> Float32[Array, " 3"]:
        objective = self._objective
        if teacher is not None:
            objective = objective.taught(_model(self._trainer, teacher, frozen))
        model = _model(self._trainer, params, frozen)
        count = batch.x_0.shape[0]

        def at(index: Array) -> Array:
            key = jax.random.fold_in(jax.random.key(_SEED), index)
            noise = jax.random.normal(key, batch.x_0.shape, jnp.float32)
            t = jnp.full(count, (index.astype(jnp.float32) + 0.5) / TIMES, jnp.float32)
            return jnp.stack(objective.at(model, batch, noise, t))

        return lax.map(at, jnp.arange(TIMES)).mean(0)


def _model(trainer: Trainer, params: nnx.State, frozen: nnx.State) -> Flux:
    return nnx.merge(trainer.trainee.split.graphdef, params, frozen)


@dataclasses.dataclass(frozen=True)
class Validation:
    """The checks that a run makes from time to time.

    Attributes:
        held_out: pairs for the validation loss.
        sheets: samples by the name of their sheet.
    """

    held_out: HeldOut | None = None
    sheets: dict[str, SampleSheet] = dataclasses.field(default_factory=dict)

    def loss(self, state: TrainState) -> dict[str, float]:
        """Computes the losses by name; none without held-out pairs."""
        return {} if self.held_out is None else self.held_out.loss(state)

    def draw(self, state: TrainState) -> dict[str, Sheet]:
        """Samples the sheets by name."""
        return {name: sheet.draw(state) for name, sheet in self.sheets.items()}
