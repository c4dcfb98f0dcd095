"""Training of the toy's autoencoder.

The loss is `|x - decoded|`, averaged over pixels, plus a small weight on the Kullback-Leibler
divergence of the posterior from a standard normal, averaged over latents (Kingma & Welling 2014).
There is no discriminator: the toy world has no texture that would blur.
"""

import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from dsd_jax.autoencoder import Autoencoder
from dsd_jax.config import FLOAT32, AutoencoderConfig
from dsd_jax.data.load.loader import PairBatch
from dsd_jax.models import abstract, load
from dsd_jax.toy.making.recipes import PictureConfig
from dsd_jax.toy.making.trainer import PictureTrainer
from dsd_jax.train.record import Origin
from dsd_jax.types import Array, Float32, UInt8
from dsd_jax.weights import WeightSource

__all__ = ["KL_WEIGHT", "latent_statistics", "vae_loss", "vae_trainer"]

KL_WEIGHT = 1e-3


def vae_loss(
    model: Autoencoder, pictures: UInt8[Array, "B H W 3"], key: Array
) -> tuple[Float32[Array, ""], dict[str, Array]]:
    """Computes the loss and its two parts before they are weighted.

    The parts are `l1` of pixels in [-1, 1], and `kl` in nats a latent.
    """
    pixels = pictures.astype(jnp.float32) / 127.5 - 1
    posterior = model.encode(pixels)
    decoded = model.decode(posterior.sample(key))
    l1 = jnp.abs(decoded - pixels).mean()
    mean, logvar = posterior.mean, posterior.logvar
    kl = 0.5 * (jnp.square(mean) + jnp.exp(logvar) - 1 - logvar).mean()
    return l1 + KL_WEIGHT * kl, {"l1": l1, "kl": kl}


def vae_trainer(
    config: PictureConfig,
    model: AutoencoderConfig,
    mesh: Mesh,
    *,
    start: WeightSource | None = None,
    origin: Origin = Origin("", {}),
) -> PictureTrainer:
    """Makes the trainer of an autoencoder.

    Args:
        config: The recipe.
        model: Sizes of the autoencoder.
        mesh: All devices of the run.
        start: Weights whose decoder is trained further. Their encoder stays as it is, so that a
            transformer trained on its latents still fits. None trains all from random weights.
        origin: Origin of `start`, stored with checkpoints.
    """

    def make(rngs: nnx.Rngs) -> Autoencoder:
        return Autoencoder(model, precision=FLOAT32, rngs=rngs)

    if start is None:
        return PictureTrainer(config, vae_loss, make, mesh)
    loaded = load(abstract(model, precision=FLOAT32), start, mesh=mesh)
    return PictureTrainer(
        config, vae_loss, make, mesh, start=loaded, trained=_is_decoder, origin=origin
    )


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
