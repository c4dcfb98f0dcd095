"""The encoder of T5 v1.1: FLUX takes its last hidden state as the text tokens.

T5 (Raffel et al. 2020) with the changes of version 1.1: gated GELU and no tied output. No layer has
a bias term; norms only scale; logits are not divided by sqrt(H). The only position information is a
learned bias by distance, one table for all layers.
"""

import math

import jax.numpy as jnp
import numpy as np
from flax import nnx

from dsd_jax.config import Execution, Precision, T5Config
from dsd_jax.layers import Embedding, Linear, RMSNorm, gelu_tanh
from dsd_jax.sharding import constrain
from dsd_jax.stack import build_stack, run_stack
from dsd_jax.text.attention import biased_attention
from dsd_jax.types import Array, Float, Float32, Int

__all__ = ["T5Block", "T5Encoder", "relative_buckets"]


def relative_buckets(length: int, buckets: int, max_distance: int) -> Int[np.ndarray, "L L"]:
    """Bucket of every (query, key) pair by the signed distance from query to key.

    Half of the buckets for keys that follow the query, half for the others. In each half, the
    first half holds one distance each, the rest grow logarithmically up to `max_distance`, and the
    last one takes all that is farther (T5, section 2.1).
    """
    # On the host, in float32, as the reference: at 16, 32 and 64 tokens the logarithm falls on the
    # border of two buckets, and an accelerator's own logarithm could fall on the other side.
    position = np.arange(length)
    offset = position[None, :] - position[:, None]
    half, distance = buckets // 2, np.abs(offset)
    exact = half // 2
    log = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact))
    growth = log / np.float32(math.log(max_distance / exact)) * np.float32(half - exact)
    far = np.minimum(exact + growth.astype(np.int32), half - 1)
    return np.where(offset > 0, half, 0) + np.where(distance < exact, distance, far)


class T5Attention(nnx.Module):
    """Self-attention without scale, mask or bias terms in its projections."""

    def __init__(self, config: T5Config, *, precision: Precision, rngs: nnx.Rngs) -> None:
        width, heads = (config.width,), (config.num_heads, config.head_dim)

        def linear(in_shape: tuple[int, ...], out_shape: tuple[int, ...]) -> Linear:
            return Linear(in_shape, out_shape, bias=False, precision=precision, rngs=rngs)

        self.q, self.k, self.v = linear(width, heads), linear(width, heads), linear(width, heads)
        self.o = linear(heads, width)

    def __call__(self, x: Float[Array, "B L D"], bias: Float32[Array, "N L L"]) -> Array:
        return self.o(biased_attention(self.q(x), self.k(x), self.v(x), bias, scale=1.0))


class T5Mlp(nnx.Module):
    """`wo(gelu(wi_0 x) * wi_1 x)` with the tanh form of GELU."""

    def __init__(self, config: T5Config, *, precision: Precision, rngs: nnx.Rngs) -> None:
        width, mlp = (config.width,), (config.mlp_width,)
        self.wi_0 = Linear(width, mlp, bias=False, precision=precision, rngs=rngs)
        self.wi_1 = Linear(width, mlp, bias=False, precision=precision, rngs=rngs)
        self.wo = Linear(mlp, width, bias=False, precision=precision, rngs=rngs)

    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        return self.wo(gelu_tanh(self.wi_0(x)) * self.wi_1(x))


class T5Block(nnx.Module):
    """Norm and attention, norm and mlp, each added to its input."""

    def __init__(self, config: T5Config, *, precision: Precision, rngs: nnx.Rngs) -> None:
        self.attn_norm = RMSNorm(config.width, eps=config.eps, precision=precision)
        self.attn = T5Attention(config, precision=precision, rngs=rngs)
        self.mlp_norm = RMSNorm(config.width, eps=config.eps, precision=precision)
        self.mlp = T5Mlp(config, precision=precision, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B L D"], bias: Float32[Array, "N L L"]
    ) -> Float[Array, "B L D"]:
        x = x + self.attn(self.attn_norm(x), bias)
        x = x + self.mlp(self.mlp_norm(x))
        return constrain(x, "batch", None, None)


class T5Encoder(nnx.Module):
    """Token ids to token embeddings. Padding is attended to like any token: FLUX masks nothing."""

    def __init__(
        self,
        config: T5Config,
        *,
        precision: Precision,
        execution: Execution | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        self.config, self.precision = config, precision
        self.execution = execution or Execution()
        self.shared = Embedding(config.vocab, config.width, precision=precision, rngs=rngs)
        self.relative_bias = Embedding(
            config.relative_buckets, config.num_heads, precision=precision, rngs=rngs
        )
        self.blocks = build_stack(
            lambda rngs: T5Block(config, precision=precision, rngs=rngs),
            config.depth,
            scan=self.execution.scan_layers,
            rngs=rngs,
        )
        self.final_norm = RMSNorm(config.width, eps=config.eps, precision=precision)

    @property
    def stacks(self) -> dict[str, int]:
        """Path and depth of the stack of blocks, for `dsd_jax.stack.layer_paths`."""
        return {"blocks": self.config.depth}

    def __call__(self, ids: Int[Array, "B L"]) -> Float[Array, "B L D"]:
        """Last hidden state of every token, in the compute dtype; any length is taken."""
        bias = self.position_bias(ids.shape[1])
        x = run_stack(
            self.blocks,
            lambda block, x: block(x, bias),
            constrain(self.shared(ids), "batch", None, None),
            self.execution,
        )
        return self.final_norm(x)

    def position_bias(self, length: int) -> Float32[Array, "N L L"]:
        """The bias that every layer adds to its logits, by the distance from query to key."""
        buckets = relative_buckets(
            length, self.config.relative_buckets, self.config.relative_max_distance
        )
        return jnp.moveaxis(self.relative_bias(jnp.asarray(buckets)), -1, 0).astype(jnp.float32)
