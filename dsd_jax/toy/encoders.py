"""Text encoders of the toy FLUX: random, never trained, made so that no word is lost.

FLUX's text tokens all have the same position, so what stands beside a word must be in its
embedding. In this T5 every head looks at one distance, by its relative bias, and passes a random
projection of the token there: an embedding is a word and its seven neighbours on each side, each
turned its own way. That is a window, not language; the transformer learns to read it.

CLIP's pooled embedding is the gist of a text: its end token looks at the words of the subject
alone, whatever their order, and a text without such words is averaged as it is.
"""

import math

import numpy as np

from dsd_jax.config import FLOAT32, ClipConfig, T5Config
from dsd_jax.models import abstract
from dsd_jax.toy.tokenizers import clip_ids
from dsd_jax.toy.world import COLOURS, MARKINGS, SHAPES
from dsd_jax.weights import param_shapes

__all__ = ["encoder_tensors"]

_SHARP = 12.0  # bias of the distance that a head looks at; other tokens share e^-12 each
_FAINT = 0.02  # of logits that would depend on content
_LOUD = 6.0  # first coordinate of the embeddings that CLIP looks at; other tokens have -1
_GIST = 2.0  # of what CLIP's attention adds to its end token


def encoder_tensors(config: T5Config | ClipConfig, seed: int) -> dict[str, np.ndarray]:
    """Parameters by per-layer path, float32; the same for a seed on every machine."""
    rng = np.random.default_rng(seed)
    shapes = param_shapes(abstract(config, precision=FLOAT32))
    tensors = {path: _random(rng, path, shape) for path, shape in shapes.items()}
    if isinstance(config, T5Config):
        tensors["relative_bias.embedding"] = _window(config)
    else:
        _look_at_subjects(tensors)
    return {path: tensor.astype(np.float32) for path, tensor in tensors.items()}


def _random(rng: np.random.Generator, path: str, shape: tuple[int, ...]) -> np.ndarray:
    *_, module, leaf = path.split(".")
    if leaf == "scale":
        return np.ones(shape)
    if leaf == "bias":
        return np.zeros(shape)
    if leaf == "embedding":
        return rng.standard_normal(shape) * (0.1 if module == "position_embedding" else 1.0)
    outputs = 2 if module in ("q", "k", "v") else 1
    fan_in = math.prod(shape[: len(shape) - outputs])
    gain = _FAINT if module in ("q", "k") else 1.0
    return gain * rng.standard_normal(shape) / math.sqrt(fan_in)


def _window(config: T5Config) -> np.ndarray:
    """`[buckets, heads]`: head by head the distances -1, 1, -2, 2, and so on."""
    bias = np.zeros((config.relative_buckets, config.num_heads))
    behind = config.relative_buckets // 2  # first bucket of tokens that follow
    for head in range(config.num_heads):
        distance = 1 + head // 2
        bias[distance + (behind if head % 2 else 0), head] = _SHARP
    return bias


def _look_at_subjects(tensors: dict[str, np.ndarray]) -> None:
    """Gives subject words a coordinate of their own, which every query of CLIP asks for."""
    words = tensors["token_embedding.embedding"]
    words[:, 0] = -1.0
    words[clip_ids((*COLOURS, *SHAPES, *MARKINGS)), 0] = _LOUD
    tensors["position_embedding.embedding"][:, 0] = 0.0
    for path in [path for path in tensors if path.endswith("attn.q.bias")]:
        block = path.removesuffix("q.bias")
        tensors[path][:, 0] = 5.0
        tensors[block + "k.kernel"][0, :, 0] = 1.0
        tensors[block + "proj.kernel"] *= _GIST
