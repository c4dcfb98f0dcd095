"""Self-supervised training of the toy's image encoder.

The objective is that of SimCLR (Chen et al. 2020, algorithm 1): two random views of a picture must
be closer to each other than to the views of all other pictures of the batch. Views differ by crop,
reflection and colours alone. No view shows the subject in another scene and no word is read, so
identity has no say in it, as it has none in the encoders that metrics of photographs use.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from dsd_jax.config import FLOAT32, VisionConfig
from dsd_jax.layers import Mlp
from dsd_jax.toy.making.random_pipeline import write_model
from dsd_jax.toy.making.recipes import PictureConfig
from dsd_jax.toy.making.trainer import PictureTrainer
from dsd_jax.toy.world import PANEL
from dsd_jax.types import Array, Float32, UInt8
from dsd_jax.vision.vit import Vit

__all__ = ["Contrastive", "contrastive_loss", "views", "vision_trainer", "write_vision"]

TEMPERATURE = 0.2
_SMALLEST = 0.3  # share of the picture that a crop shows at least
_JITTER = 0.4  # brightness, contrast and saturation change by factors up to this far from 1
_JITTERED, _GREY = 0.8, 0.1  # shares of the views
_LUMA = (0.299, 0.587, 0.114)


class Contrastive(nnx.Module):
    """A vision transformer, and the head whose output is compared; it is dropped afterwards."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs) -> None:
        self.vit = Vit(config, precision=FLOAT32, rngs=rngs)
        self.head = Mlp(config.width, 2 * config.width, precision=FLOAT32, rngs=rngs)

    def __call__(self, pixels: Float32[Array, "B H W 3"]) -> Float32[Array, "B D"]:
        """The head's output, of length 1."""
        out = self.head(self.vit(pixels))
        return out / jnp.linalg.norm(out, axis=-1, keepdims=True)


def contrastive_loss(
    model: Contrastive, pictures: UInt8[Array, "B H W 3"], key: Array
) -> tuple[Float32[Array, ""], dict[str, Array]]:
    """Computes the loss of SimCLR, and `found`: the share of views whose nearest is their partner.

    It is the cross-entropy of the other view of a picture among all other views of the batch, by
    cosine similarity over a temperature.
    """
    first, second = jax.random.split(key)
    pixels = pictures.astype(jnp.float32) / 255
    both = jnp.concatenate([views(pixels, first), views(pixels, second)])
    out = model(both * 2 - 1)
    count = len(out)
    itself = jnp.eye(count, dtype=bool)
    logits = jnp.where(itself, -jnp.inf, out @ out.T / TEMPERATURE)
    other = jnp.roll(jnp.arange(count), count // 2)
    right = jax.nn.log_softmax(logits)[jnp.arange(count), other]
    found = (logits.argmax(1) == other).astype(jnp.float32)
    return -right.mean(), {"found": found.mean()}


def views(pixels: Float32[Array, "B H W 3"], key: Array) -> Float32[Array, "B H W 3"]:
    """Draws a view of every picture: a square crop of it, maybe reflected, in changed colours.

    Args:
        pixels: From 0 to 1, as is the result.
        key: Decides everything that is drawn.
    """
    crops, colours, grey = jax.random.split(key, 3)
    return _in_grey(_jittered(_cropped(pixels, crops), colours), grey)


def _cropped(pixels: Array, key: Array) -> Array:
    """Resizes crops to the size of the picture, bilinearly."""
    batch, side = pixels.shape[:2]
    keys = jax.random.split(key, 3)
    share = jnp.sqrt(jax.random.uniform(keys[0], (batch, 1), minval=_SMALLEST))
    corners = jax.random.uniform(keys[1], (2, batch, 1)) * (1 - share)[None]
    places = (jnp.arange(side, dtype=jnp.float32) + 0.5)[None] / side

    def weights(corner: Array) -> Array:
        centres = jnp.clip((corner + share * places) * side - 0.5, 0, side - 1)
        pixels = jnp.arange(side, dtype=jnp.float32)[None, None]
        return jax.nn.relu(1 - jnp.abs(centres[:, :, None] - pixels))

    down, across = map(weights, corners)
    reflected = jax.random.bernoulli(keys[2], shape=(batch, 1, 1))
    across = jnp.where(reflected, across[:, ::-1], across)
    rows = jnp.einsum("bij,bjkc->bikc", down, pixels)
    return jnp.einsum("blk,bikc->bilc", across, rows)


def _jittered(pixels: Array, key: Array) -> Array:
    """Changes brightness, contrast and saturation of most pictures."""
    which, amounts = jax.random.split(key)
    batch = len(pixels)
    drawn = jax.random.uniform(amounts, (3, batch, 1, 1, 1), minval=1 - _JITTER, maxval=1 + _JITTER)
    jitter = jax.random.bernoulli(which, _JITTERED, (1, batch, 1, 1, 1))
    brightness, contrast, saturation = jnp.where(jitter, drawn, 1)
    bright = pixels * brightness
    mean = _luma(bright).mean((1, 2), keepdims=True)
    contrasted = jnp.clip(mean + contrast * (bright - mean), 0, 1)
    grey = _luma(contrasted)
    return jnp.clip(grey + saturation * (contrasted - grey), 0, 1)


def _in_grey(pixels: Array, key: Array) -> Array:
    grey = jax.random.bernoulli(key, _GREY, (len(pixels), 1, 1, 1))
    return jnp.where(grey, _luma(pixels), pixels)


def _luma(pixels: Array) -> Array:
    return (pixels @ jnp.asarray(_LUMA, pixels.dtype))[..., None]


def vision_trainer(config: PictureConfig, model: VisionConfig, mesh: Mesh) -> PictureTrainer:
    """Makes the trainer of an image encoder from random weights."""
    return PictureTrainer(
        config, contrastive_loss, lambda rngs: Contrastive(model, rngs=rngs), mesh
    )


def write_vision(folder: Path, model: VisionConfig, trained: dict[str, np.ndarray]) -> None:
    """Writes the encoder of a trained `Contrastive` as transformers would, in bfloat16.

    Args:
        folder: A new folder.
        model: Sizes of the encoder.
        trained: Parameters of the `Contrastive` by path.
    """
    own = {
        path.removeprefix("vit."): tensor.astype(ml_dtypes.bfloat16)
        for path, tensor in trained.items()
        if path.startswith("vit.")
    }
    write_model(folder, model, own)
    half = [0.5, 0.5, 0.5]
    processor = {
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": half,
        "image_processor_type": "ViTImageProcessor",
        "image_std": half,
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"height": PANEL, "width": PANEL},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n")
