"""Trains a text-to-image model to paint beside a given picture, as FLUX.1-dev can.

In some samples the left frame is given, with little noise or none, and bears no loss (Huang et al.
2024, "In-Context LoRA", is about how FLUX.1-dev does this without being asked).
"""

import dataclasses

import jax
import jax.numpy as jnp

from dsd_jax.errors import UserError
from dsd_jax.flow import interpolate
from dsd_jax.flux import Flux
from dsd_jax.train.objective import EncodedBatch, Losses, Teach, frame_weights
from dsd_jax.types import Array, Float

__all__ = ["Inpaint"]


@dataclasses.dataclass(frozen=True)
class Inpaint(Teach):
    """`Teach`, but the left frame of some samples is given.

    Attributes:
        share: Share of the samples whose left frame is given.
        noise: Largest time of a given frame, as a share of the other's. Times are drawn uniformly
            from zero up.
    """

    share: float = 0.7
    noise: float = 0.6

    def __post_init__(self) -> None:
        for name in ("share", "noise"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"inpaint {name} must lie in [0, 1), got {getattr(self, name)}")

    def __call__(self, model: Flux, batch: EncodedBatch, key: Array) -> Losses:
        noise, t = self.draw(key, batch.x_0)
        given_key, share_key = jax.random.split(jax.random.fold_in(key, 2))
        given = jax.random.bernoulli(given_key, self.share, t.shape)
        share = self.noise * jax.random.uniform(share_key, t.shape, jnp.float32)
        return self.beside(model, batch, noise, t, jnp.where(given, share * t, t))

    def beside(
        self,
        model: Flux,
        batch: EncodedBatch,
        noise: Float[Array, "B L C"],
        t: Float[Array, " B"],
        t_left: Float[Array, " B"],
    ) -> Losses:
        """Computes the losses for given noise and times.

        A left frame whose time `t_left` is before `t` is given and bears no loss.
        """
        left = frame_weights(self.canvas)[:1] > 0
        given = (t_left < t)[:, None] & left
        x_t = jnp.where(
            given[..., None],
            interpolate(batch.x_0, noise, t_left),
            interpolate(batch.x_0, noise, t),
        )
        loss = self.error(model, batch, x_t, noise, t).mean(where=~given)
        return Losses(loss, loss, loss)
