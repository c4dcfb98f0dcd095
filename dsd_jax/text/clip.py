"""The text encoder of CLIP: FLUX takes one vector of it, at the end-of-text token.

CLIP (Radford et al. 2021, section 2.4): a causal transformer with learned positions, so that the
last token of a text is the one that has seen all of it.
"""

from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx

from dsd_jax.config import ClipConfig, Execution, Precision
from dsd_jax.layers import Embedding, LayerNorm, Linear, Mlp
from dsd_jax.sharding import constrain
from dsd_jax.stack import build_stack, run_stack
from dsd_jax.text.attention import biased_attention
from dsd_jax.types import Array, Float, Float32, Int

__all__ = ["ClipBlock", "ClipOutput", "ClipTextEncoder"]

LEGACY_EOS_TOKEN_ID = 2


class ClipOutput(NamedTuple):
    """Last hidden state of every token, and that of the end-of-text token; compute dtype."""

    hidden: Float[Array, "B L D"]
    pooled: Float[Array, "B D"]


class ClipAttention(nnx.Module):
    """Causal self-attention, all Linears with bias."""

    def __init__(self, config: ClipConfig, *, precision: Precision, rngs: nnx.Rngs) -> None:
        width, heads = (config.width,), (config.num_heads, config.head_dim)
        self.q = Linear(width, heads, precision=precision, rngs=rngs)
        self.k = Linear(width, heads, precision=precision, rngs=rngs)
        self.v = Linear(width, heads, precision=precision, rngs=rngs)
        self.proj = Linear(heads, width, precision=precision, rngs=rngs)
        self.scale = config.head_dim**-0.5

    def __call__(self, x: Float[Array, "B L D"], mask: Float32[Array, "1 L L"]) -> Array:
        attn = biased_attention(self.q(x), self.k(x), self.v(x), mask, scale=self.scale)
        return self.proj(attn)


class ClipBlock(nnx.Module):
    """Norm and attention, norm and mlp, each added to its input."""

    def __init__(self, config: ClipConfig, *, precision: Precision, rngs: nnx.Rngs) -> None:
        self.norm1 = LayerNorm(config.width, eps=config.eps, precision=precision)
        self.attn = ClipAttention(config, precision=precision, rngs=rngs)
        self.norm2 = LayerNorm(config.width, eps=config.eps, precision=precision)
        self.mlp = Mlp(
            config.width,
            config.mlp_width,
            activation=config.activation,
            precision=precision,
            rngs=rngs,
        )

    def __call__(
        self, x: Float[Array, "B L D"], mask: Float32[Array, "1 L L"]
    ) -> Float[Array, "B L D"]:
        x = x + self.attn(self.norm1(x), mask)
        x = x + self.mlp(self.norm2(x))
        return constrain(x, "batch", None, None)


class ClipTextEncoder(nnx.Module):
    """Token ids to hidden states and the pooled embedding."""

    def __init__(
        self,
        config: ClipConfig,
        *,
        precision: Precision,
        execution: Execution | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        self.config, self.precision = config, precision
        self.execution = execution or Execution()
        self.token_embedding = Embedding(config.vocab, config.width, precision=precision, rngs=rngs)
        self.position_embedding = Embedding(
            config.max_length, config.width, precision=precision, rngs=rngs
        )
        self.blocks = build_stack(
            lambda rngs: ClipBlock(config, precision=precision, rngs=rngs),
            config.depth,
            scan=self.execution.scan_layers,
            rngs=rngs,
        )
        self.final_norm = LayerNorm(config.width, eps=config.eps, precision=precision)
        self.projection = (
            Linear(
                (config.width,), (config.projection,), precision=precision, rngs=rngs, bias=False
            )
            if config.projection
            else None
        )

    @property
    def stacks(self) -> dict[str, int]:
        """Path and depth of the stack of blocks, for `dsd_jax.stack.layer_paths`."""
        return {"blocks": self.config.depth}

    def __call__(self, ids: Int[Array, "B L"]) -> ClipOutput:
        """Encodes ids of at most `config.max_length` tokens, start and end included."""
        length = ids.shape[1]
        position = jnp.arange(length)
        x = self.token_embedding(ids) + self.position_embedding(position)[None]
        future = position[None, None, :] > position[None, :, None]
        mask = jnp.where(future, jnp.float32(-jnp.inf), jnp.float32(0))
        x = run_stack(
            self.blocks,
            lambda block, x: block(x, mask),
            constrain(x, "batch", None, None),
            self.execution,
        )
        hidden = self.final_norm(x)
        end = self._end_of_text(ids)
        pooled = jnp.take_along_axis(hidden, end[:, None, None], axis=1)[:, 0]
        return ClipOutput(hidden, pooled)

    def feature(self, ids: Int[Array, "B L"]) -> Float[Array, "B E"]:
        """The feature of every text in the space that it shares with pictures; not normalised.

        Raises:
            ValueError: The model has no projection to that space.
        """
        if self.projection is None:
            raise ValueError("this CLIP text encoder has no projection")
        return self.projection(self(ids).pooled)

    def _end_of_text(self, ids: Int[Array, "B L"]) -> Int[Array, " B"]:
        """Position of the end-of-text token.

        The released CLIP-L states `eos_token_id` 2 although its tokeniser uses the largest id of
        the vocabulary; such configurations mean the first occurrence of the largest id.
        """
        if self.config.eos_token_id == LEGACY_EOS_TOKEN_ID:
            return jnp.argmax(ids, axis=1)
        return jnp.argmax(ids == self.config.eos_token_id, axis=1)
