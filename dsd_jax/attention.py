"""Softmax attention without mask, one function over several implementations.

| name     | runs on    | what it is                                                           |
| -------- | ---------- | -------------------------------------------------------------------- |
| `xla`    | everywhere | two einsums and a softmax; the [L, L] weights of all heads in memory |
| `mapped` | everywhere | one head and one block of queries at a time: fast on CPU             |
| `cudnn`  | NVIDIA     | cuDNN's fused kernel; bfloat16 or float16                            |
| `splash` | TPU        | Pallas splash attention; L a multiple of 128                         |
| `auto`   | everywhere | the fastest of these that fits backend, dtype and shape              |

Logits and softmax are float32 in all of them. Under a mesh, every implementation runs in a
`shard_map` over batch and heads (sequence shards are exchanged for heads on the way in and back on
the way out, as in DeepSpeed-Ulysses), so that no kernel has to know about partitioning.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from dsd_jax.errors import UserError
from dsd_jax.sharding import activation_spec, current_mesh
from dsd_jax.types import Array, Float

if TYPE_CHECKING:
    from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_kernel import BlockSizes

__all__ = ["IMPLEMENTATIONS", "Attend", "attention", "shared_attention", "splash_blocks"]

Attend: TypeAlias = Callable[[Array, Array, Array], Array]
"""Attention of queries `[B, L, N, H]` to keys and values `[B, M, N, H]`, text tokens first."""

KEPT = "attention"  # name in `dsd_jax.stack.REMAT_POLICIES`
QUERY_BLOCK = 256  # queries of one head at a time in `mapped`: 2.4 MB of weights at 2,304 keys
FEW_WEIGHTS = 2**22  # elements of all heads: this many stay in a CPU's cache and need no loop
# Blocks of splash attention. More of any of these does not fit into a core's fast memory at some
# size of canvas, or is slower.
SPLASH_TILE = 128
SPLASH_KEYS, SPLASH_KEYS_AT_ONCE = 5632, 1536
SPLASH_QUERIES, SPLASH_WEIGHTS = 640, 900_000  # weights: queries times keys at once
SPLASH_GRADIENT_KEYS, SPLASH_GRADIENT = 2560, 1024


def _precision(x: Array) -> str:
    return "highest" if x.dtype == jnp.float32 else "default"


def _xla(q: Array, k: Array, v: Array) -> Array:
    logits = jnp.einsum(
        "blnh,bmnh->bnlm",
        q,
        k,
        precision=_precision(q),
        preferred_element_type=jnp.float32,
    )
    weights = jax.nn.softmax(logits * q.shape[-1] ** -0.5, axis=-1).astype(v.dtype)
    return jnp.einsum("bnlm,bmnh->blnh", weights, v, precision=_precision(v))


def _mapped(q: Array, k: Array, v: Array) -> Array:
    batch, length, heads, dim = q.shape
    count = -(-length // QUERY_BLOCK)

    def fold(x: Array) -> Array:
        return x.swapaxes(1, 2).reshape(batch * heads, x.shape[1], dim)

    def one_head(qkv: tuple[Array, Array, Array]) -> Array:
        q, k, v = qkv
        if count == 1:  # too few weights to gain anything from
            return _xla(q[None, :, None], k[None, :, None], v[None, :, None])[0, :, 0]

        def one_block(q: Array) -> Array:
            logits = jnp.einsum(
                "lh,mh->lm", q, k, precision=_precision(q), preferred_element_type=jnp.float32
            )
            highest = lax.stop_gradient(logits.max(-1, keepdims=True))
            weights = jnp.exp((logits - highest) * dim**-0.5)
            # Divided after the product: the values are fewer than the weights.
            out = jnp.einsum(
                "lm,mh->lh", weights.astype(v.dtype), v,
                precision=_precision(v), preferred_element_type=jnp.float32,
            )  # fmt: skip
            return (out / weights.sum(-1, keepdims=True)).astype(v.dtype)

        # Rematerialised, or the backward pass would keep what the loops are there to avoid.
        return lax.map(jax.checkpoint(one_block), q.reshape(count, QUERY_BLOCK, dim))

    if count > 1:
        q = jnp.pad(q, ((0, 0), (0, count * QUERY_BLOCK - length), (0, 0), (0, 0)))
    # A head of several blocks is rematerialised block by block.
    run = one_head if count > 1 else jax.checkpoint(one_head)
    out = lax.map(run, (fold(q), fold(k), fold(v)))
    return out.reshape(batch, heads, -1, dim)[:, :, :length].swapaxes(1, 2)


def _cudnn(q: Array, k: Array, v: Array) -> Array:
    return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")


def splash_blocks(queries: int, keys: int) -> "BlockSizes":
    """Sizes of the blocks that the splash kernel works on.

    The largest block of keys that fits comes first: with all keys in one block, the kernel need not
    rescale what it has summed, which saves a fifth to a third of its cycles
    (`benchmarks/speed/tpu_cycles.py`). The kernel of the gradient writes a gradient of all queries
    for every block of keys, to be added up afterwards; with one block there is nothing to add.

    Args:
        queries, keys: Tokens, multiples of `SPLASH_TILE`.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import (  # noqa: PLC0415 (TPU only)
        splash_attention_kernel,
    )

    def block(size: int, most: int) -> int:
        tiles = range(SPLASH_TILE, min(size, most) + 1, SPLASH_TILE)
        return max(tile for tile in tiles if size % tile == 0)

    at_once = block(keys_block := block(keys, SPLASH_KEYS), SPLASH_KEYS_AT_ONCE)
    gradient_at_once = block(keys, SPLASH_GRADIENT)
    return splash_attention_kernel.BlockSizes(
        block_q=block(queries, min(SPLASH_QUERIES, SPLASH_WEIGHTS // at_once)),
        block_kv=keys_block,
        block_kv_compute=at_once,
        block_q_dkv=block(queries, SPLASH_GRADIENT),
        block_kv_dkv=keys if keys <= SPLASH_GRADIENT_KEYS else gradient_at_once,
        block_kv_dkv_compute=gradient_at_once,
        use_fused_bwd_kernel=True,
    )


def _splash(q: Array, k: Array, v: Array) -> Array:
    from jax.experimental.pallas.ops.tpu.splash_attention import (  # noqa: PLC0415 (TPU only)
        splash_attention_kernel,
        splash_attention_mask,
    )

    length, heads = q.shape[1], q.shape[2]
    if length % SPLASH_TILE or k.shape[1] % SPLASH_TILE:
        raise UserError(
            f"splash attention needs sequence lengths that are multiples of {SPLASH_TILE}, got "
            f"{length} and {k.shape[1]}; choose another image size or attention=xla"
        )
    mask = splash_attention_mask.FullMask((length, k.shape[1]))
    kernel = splash_attention_kernel.make_splash_mha(
        splash_attention_mask.MultiHeadMask([mask] * heads),
        block_sizes=splash_blocks(length, k.shape[1]),
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=KEPT,  # the kernel's gradient also needs the sums of its rows
    )
    q = q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype)
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    return jax.vmap(kernel)(q, k, v).swapaxes(1, 2)


def _kept(run: Attend) -> Attend:
    """Names the output of an implementation whose gradient needs nothing else of it."""
    return lambda q, k, v: checkpoint_name(run(q, k, v), KEPT)


IMPLEMENTATIONS: dict[str, Attend] = {
    "xla": _kept(_xla),
    "mapped": _kept(_mapped),
    "cudnn": _cudnn,
    "splash": _splash,
}


def _choose(q: Array, k: Array) -> str:
    backend = jax.default_backend()
    if backend == "gpu" and q.dtype in (jnp.bfloat16, jnp.float16) and q.shape[-1] % 8 == 0:
        return "cudnn"
    tiled = q.shape[1] % SPLASH_TILE == 0 and k.shape[1] % SPLASH_TILE == 0
    if backend == "tpu" and tiled and q.shape[-1] == 128:
        return "splash"
    weights = q.shape[0] * q.shape[2] * q.shape[1] * k.shape[1]
    return "mapped" if backend == "cpu" and weights > FEW_WEIGHTS else "xla"


def attention(
    q: Float[Array, "B L N H"],
    k: Float[Array, "B M N H"],
    v: Float[Array, "B M N H"],
    *,
    implementation: str = "auto",
) -> Float[Array, "B L N H"]:
    """`softmax(q k^T / sqrt(H)) v` per head, every query to every key.

    Raises:
        UserError: unknown implementation, or a shape it cannot take.
    """
    name = _choose(q, k) if implementation == "auto" else implementation
    if name not in IMPLEMENTATIONS:
        raise UserError(
            f"unknown attention implementation {name!r}; choose one of "
            f"auto, {', '.join(IMPLEMENTATIONS)}"
        )
    run = IMPLEMENTATIONS[name]
    mesh = current_mesh()
    if mesh is not None:
        spec = activation_spec(mesh, q.shape, ("batch", None, "attention_heads", None))
        run = jax.shard_map(run, in_specs=(spec, spec, spec), out_specs=spec, check_vma=False)
    return run(q, k, v)


def shared_attention(
    q: Float[Array, "B L N H"],
    k: Float[Array, "B L N H"],
    v: Float[Array, "B L N H"],
    *,
    text: int,
    panels: int,
    implementation: str = "auto",
) -> Float[Array, "B L N H"]:
    """Attention in which the panels of a group see each other's image tokens.

    The image tokens of a panel attend to its own text and to the image tokens of all panels of the
    group; its text tokens attend to their own panel alone, as ever. This is the shared attention of
    SynCD (arXiv 2502.01720) without its masks of the subject. With no mask at all, every
    implementation serves.

    Args:
        q, k, v: Text tokens, then image tokens; keys have their positions already.
        text: Number of text tokens.
        panels: Number of panels of a group. They are neighbours in the batch, which it divides.
        implementation: As for `attention`.
    """

    def joined(x: Array) -> Array:
        own, img = x[:, :text], x[:, text:]
        group = img.reshape(-1, panels * img.shape[1], *img.shape[2:])
        return jnp.concatenate([own, jnp.repeat(group, panels, axis=0)], axis=1)

    txt = attention(q[:, :text], k, v, implementation=implementation)
    img = attention(q[:, text:], joined(k), joined(v), implementation=implementation)
    return jnp.concatenate([txt, img], axis=1)
