"""Attention with an additive bias, for the short sequences of the text encoders."""

import jax
import jax.numpy as jnp

from dsd_jax.sharding import constrain
from dsd_jax.types import Array, Float, Float32

__all__ = ["biased_attention"]


def biased_attention(
    q: Float[Array, "B L N H"],
    k: Float[Array, "B L N H"],
    v: Float[Array, "B L N H"],
    bias: Float32[Array, "N_or_1 L L"],
    *,
    scale: float,
) -> Float[Array, "B L N H"]:
    """`softmax(scale * q k^T + bias) v` per head; logits and softmax in float32."""
    q, k, v = (constrain(x, "batch", None, "heads", None) for x in (q, k, v))
    precision = "highest" if q.dtype == jnp.float32 else "default"
    logits = jnp.einsum(
        "blnh,bmnh->bnlm", q, k, precision=precision, preferred_element_type=jnp.float32
    )
    weights = jax.nn.softmax(logits * scale + bias[None], axis=-1).astype(v.dtype)
    out = jnp.einsum("bnlm,bmnh->blnh", weights, v, precision=precision)
    return constrain(out, "batch", None, "heads", None)
