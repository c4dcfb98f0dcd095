"""Text encoders of the toy FLUX: constructed instead of trained, so that no word is lost.

FLUX's text tokens all have the same position, so the embedding of a word must tell its neighbours.
This T5 finds them by kind. For every kind of word (colours, shapes, places, ...) one head looks
back and one looks ahead for the nearest word of that kind, up to seven tokens away, and writes it
where only that head writes. So the embedding of "star" in "a red star with blue dots" tells that
red stands before it, and blue and dots after it. A trained T5 resolves such roles too, and more.

CLIP's pooled embedding is the gist of a text. Its end token looks at the words of the subject
alone, in any order. A text without such words is averaged.
"""

import math

import numpy as np

from dsd_jax.config import FLOAT32, ClipConfig, T5Config
from dsd_jax.models import abstract
from dsd_jax.toy.making.tokenizers import clip_ids, t5_ids
from dsd_jax.toy.words import KINDS
from dsd_jax.toy.world import COLOURS, MARKINGS, SHAPES
from dsd_jax.weights import param_shapes

__all__ = ["encoder_tensors"]

_REACH = 7  # tokens; farther ones share buckets of the relative bias
_FOUND = 40.0  # logit of a word of the head's kind; a token itself has 0
_FARTHER = 3.0  # lower logit per token of distance, so that the nearest word is found
_ELSE = -10.0  # logit of other words in reach: a token that finds nothing looks at itself
_NEVER = -100.0  # logit of words out of reach
_FAINT = 0.02  # factor on CLIP's logits that would depend on content
_LOUD = 6.0  # first coordinate of the embeddings that CLIP looks at; other tokens have -1
_GIST = 2.0  # factor on the output of CLIP's attention at the end token


def encoder_tensors(config: T5Config | ClipConfig, seed: int) -> dict[str, np.ndarray]:
    """Makes the parameters by per-layer path, float32. A seed gives the same on every machine."""
    rng = np.random.default_rng(seed)
    shapes = param_shapes(abstract(config, precision=FLOAT32))
    if isinstance(config, T5Config):
        tensors = _nearest_words(rng, shapes, config)
    else:
        tensors = {path: _random(rng, path, shape) for path, shape in shapes.items()}
        _look_at_subjects(tensors)
    return {path: tensor.astype(np.float32) for path, tensor in tensors.items()}


def _nearest_words(
    rng: np.random.Generator, shapes: dict[str, tuple[int, ...]], config: T5Config
) -> dict[str, np.ndarray]:
    """Makes a T5 of one block.

    The coordinates of an embedding are a constant, the kind of the word, and its number among the
    words of that kind. Then come those that the heads write: the word of each kind that stands
    before it, and after it. The rest is a code for words of no kind.
    """
    tensors = {
        path: np.ones(shape) if path.endswith("norm.scale") else np.zeros(shape)
        for path, shape in shapes.items()
    }
    count = len(KINDS)
    own = 1 + count + np.cumsum([0, *map(len, KINDS)])  # where the words of a kind begin
    before, behind = own + (own[-1] - own[0]), own + 2 * (own[-1] - own[0])
    free = int(behind[-1])
    loud = math.sqrt(config.width / 3)  # three such coordinates have a root mean square of 1
    words = tensors["shared.embedding"]
    codes = rng.standard_normal((config.vocab, config.width - free))
    words[:, free:] = loud * codes / np.linalg.norm(codes, axis=1, keepdims=True)
    words[:, 0] = loud
    bias = tensors["relative_bias.embedding"]
    bias[:] = _NEVER
    bias[0] = 0.0
    far = np.arange(1, _REACH + 1)
    q, k, v, o = (tensors[f"blocks.0.attn.{name}.kernel"] for name in "qkvo")
    for kind, members in enumerate(KINDS):
        size, ids = len(members), t5_ids(members)
        words[ids, free:] = 0.0
        words[ids, 1 + kind] = loud
        words[ids, own[kind] + np.arange(size)] = loud
        for head, start, bucket in (
            (2 * kind, before[kind], far),
            (2 * kind + 1, behind[kind], far + config.relative_buckets // 2),
        ):
            bias[bucket, head] = _ELSE - _FARTHER * (far - 1)
            q[0, head, 0] = _FOUND / loud
            k[1 + kind, head, 0] = 1 / loud
            v[own[kind] + np.arange(size), head, np.arange(size)] = 1.0
            o[head, np.arange(size), start + np.arange(size)] = 1.0
    return tensors


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
