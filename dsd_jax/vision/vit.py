"""One vision transformer for DINO, DINOv2, CLIP and SigLIP.

ViT (Dosovitskiy et al. 2021, section 3.1): square patches, each through one Linear, learned
positions, pre-norm blocks. `VisionConfig` says which parts a model adds: register tokens and layer
scale (DINOv2), a norm before the first block and a projection (CLIP), attention pooling (SigLIP).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from dsd_jax.attention import attention
from dsd_jax.config import Execution, Precision, VisionConfig
from dsd_jax.layers import Embedding, LayerNorm, Linear, Mlp
from dsd_jax.sharding import constrain
from dsd_jax.stack import build_stack, part_of_stack, run_stack
from dsd_jax.types import Array, Float, Float32
from dsd_jax.vision.positions import resize_positions

__all__ = ["Vit"]


class LayerScale(nnx.Module):
    """Multiplies every channel by a learned factor `[D]` (CaiT; Touvron et al. 2021)."""

    def __init__(self, width: int, *, precision: Precision) -> None:
        self.scale = nnx.Param(jnp.ones(width, precision.param_dtype))

    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        return x * self.scale[...].astype(x.dtype)[None, None]


class GatedMlp(nnx.Module):
    """SwiGLU (Shazeer 2020): `out(silu(gate) * value)`, gate and value from one Linear."""

    def __init__(self, width: int, mlp: int, *, precision: Precision, rngs: nnx.Rngs) -> None:
        self.in_layer = Linear((width,), (2, mlp), precision=precision, rngs=rngs)
        self.out_layer = Linear((mlp,), (width,), precision=precision, rngs=rngs)

    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        both = self.in_layer(x)
        return self.out_layer(jax.nn.silu(both[..., 0, :]) * both[..., 1, :])


def _mlp(config: VisionConfig, *, precision: Precision, rngs: nnx.Rngs) -> Mlp:
    return Mlp(
        config.width,
        config.mlp_width,
        activation=config.activation,
        precision=precision,
        rngs=rngs,
    )


class VitAttention(nnx.Module):
    """Self-attention of all tokens; q, k and v are one product."""

    def __init__(self, config: VisionConfig, *, precision: Precision, rngs: nnx.Rngs) -> None:
        width, heads = (config.width,), (config.num_heads, config.head_dim)
        self.qkv = Linear(width, (3, *heads), precision=precision, rngs=rngs, fused=3)
        self.proj = Linear(heads, width, precision=precision, rngs=rngs)

    def __call__(self, x: Float[Array, "B L D"], implementation: str) -> Float[Array, "B L D"]:
        qkv = self.qkv(x)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        return self.proj(attention(q, k, v, implementation=implementation))


class VitBlock(nnx.Module):
    """Norm and attention, norm and mlp, each scaled where the model does so, added to its input."""

    def __init__(self, config: VisionConfig, *, precision: Precision, rngs: nnx.Rngs) -> None:
        width = config.width
        self.norm1 = LayerNorm(width, eps=config.eps, precision=precision)
        self.attn = VitAttention(config, precision=precision, rngs=rngs)
        self.norm2 = LayerNorm(width, eps=config.eps, precision=precision)
        self.mlp: Mlp | GatedMlp
        if config.gated:
            self.mlp = GatedMlp(width, config.mlp_width, precision=precision, rngs=rngs)
        else:
            self.mlp = _mlp(config, precision=precision, rngs=rngs)
        self.scale1 = LayerScale(width, precision=precision) if config.layer_scale else None
        self.scale2 = LayerScale(width, precision=precision) if config.layer_scale else None

    def __call__(self, x: Float[Array, "B L D"], implementation: str) -> Float[Array, "B L D"]:
        branch = self.attn(self.norm1(x), implementation)
        x = x + (branch if self.scale1 is None else self.scale1(branch))
        branch = self.mlp(self.norm2(x))
        x = x + (branch if self.scale2 is None else self.scale2(branch))
        return constrain(x, "batch", None, None)


class AttentionPool(nnx.Module):
    """The feature of a picture by attention of one learned query over its patches (SigLIP)."""

    def __init__(self, config: VisionConfig, *, precision: Precision, rngs: nnx.Rngs) -> None:
        width, heads = (config.width,), (config.num_heads, config.head_dim)
        self.query = Embedding(1, config.width, precision=precision, rngs=rngs)
        self.q = Linear(width, heads, precision=precision, rngs=rngs)
        self.kv = Linear(width, (2, *heads), precision=precision, rngs=rngs, fused=2)
        self.proj = Linear(heads, width, precision=precision, rngs=rngs)
        self.norm = LayerNorm(config.width, eps=config.eps, precision=precision)
        self.mlp = _mlp(config, precision=precision, rngs=rngs)

    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B D"]:
        query = self.q(self.query(jnp.zeros((x.shape[0], 1), jnp.int32)))
        kv = self.kv(x)
        y = self.proj(attention(query, kv[:, :, 0], kv[:, :, 1]))
        return (y + self.mlp(self.norm(y)))[:, 0]


class Vit(nnx.Module):
    """Pictures to features. Pictures are preprocessed already, see `dsd_jax.vision.preprocess`."""

    def __init__(
        self,
        config: VisionConfig,
        *,
        precision: Precision,
        execution: Execution | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        self.config, self.precision = config, precision
        self.execution = execution or Execution()

        def table(rows: int) -> Embedding | None:
            return Embedding(rows, width, precision=precision, rngs=rngs) if rows else None

        def norm() -> LayerNorm:
            return LayerNorm(width, eps=config.eps, precision=precision)

        patch, width = config.patch, config.width
        self.patch_in = Linear(
            (patch, patch, 3), (width,), precision=precision, rngs=rngs, bias=not config.pre_norm
        )
        self.class_token = table(config.pool == "class")
        self.registers = table(config.registers)
        self.class_position = table(config.pool == "class")
        self.positions = Embedding(config.grid**2, width, precision=precision, rngs=rngs)
        self.pre_norm = norm() if config.pre_norm else None
        self.blocks = build_stack(
            lambda rngs: VitBlock(config, precision=precision, rngs=rngs),
            config.depth,
            scan=self.execution.scan_layers,
            rngs=rngs,
        )
        self.final_norm = norm()
        self.pool = (
            AttentionPool(config, precision=precision, rngs=rngs)
            if config.pool == "attention"
            else None
        )
        self.projection = (
            Linear((width,), (config.projection,), precision=precision, rngs=rngs, bias=False)
            if config.projection
            else None
        )

    @property
    def stacks(self) -> dict[str, int]:
        """Path and depth of the stack of blocks, for `dsd_jax.stack.layer_paths`."""
        return {"blocks": self.config.depth}

    def __call__(self, pixels: Float32[Array, "B H W 3"]) -> Float[Array, "B E"]:
        """The feature of every picture, as the released models define it; not normalised."""
        (last,) = self.hidden(pixels, [self.config.depth])
        return self.feature(last)

    def patches(self, pixels: Float32[Array, "B H W 3"]) -> Float[Array, "B h w D"]:
        """The last hidden state of every patch after the final norm."""
        rows, columns = (side // self.config.patch for side in pixels.shape[1:3])
        (last,) = self.hidden(pixels, [self.config.depth])
        normed = self.final_norm(last[:, self.config.first_patch :])
        return normed.reshape(len(normed), rows, columns, -1)

    def feature(self, last: Float[Array, "B L D"]) -> Float[Array, "B E"]:
        """The feature of every picture from its last hidden state."""
        if self.pool is not None:
            return self.pool(self.final_norm(last))
        first = self.final_norm(last[:, 0])
        return first if self.projection is None else self.projection(first)

    def hidden(
        self, pixels: Float32[Array, "B H W 3"], layers: Sequence[int]
    ) -> tuple[Float[Array, "B L D"], ...]:
        """The tokens after chosen blocks, before any further norm.

        Pixels on the right and below that do not fill a patch are left out.

        Args:
            pixels: Preprocessed pictures.
            layers: Numbers of blocks that the tokens have passed; 0 gives the embeddings, and
                `config.depth` the last hidden state.

        Returns:
            One array per entry of `layers`. Its tokens are the class token, the registers and the
            patches row by row, as far as the model has them.
        """
        depth = self.config.depth
        if not all(0 <= layer <= depth for layer in layers):
            raise ValueError(f"layers must lie in 0 ... {depth}, got {list(layers)}")
        implementation, done, found = self.execution.attention, 0, {}
        x = self._embed(pixels)
        for layer in sorted(set(layers)):
            if layer > done:
                part = part_of_stack(self.blocks, done, layer)
                x = run_stack(part, lambda block, x: block(x, implementation), x, self.execution)
            done, found[layer] = layer, x
        return tuple(found[layer] for layer in layers)

    def _embed(self, pixels: Float32[Array, "B H W 3"]) -> Float[Array, "B L D"]:
        config, patch = self.config, self.config.patch
        batch, rows, columns = len(pixels), pixels.shape[1] // patch, pixels.shape[2] // patch
        x = pixels[:, : rows * patch, : columns * patch]
        x = x.reshape(batch, rows, patch, columns, patch, 3).swapaxes(2, 3)
        x = self.patch_in(x.reshape(batch, rows * columns, patch, patch, 3))
        stored = self.positions.embedding[...].astype(jnp.float32)
        positions = resize_positions(stored, config.grid, rows, columns, antialias=config.antialias)
        x = x + positions.astype(x.dtype)[None]
        if self.class_token is not None and self.class_position is not None:
            first = self.class_token.embedding[...] + self.class_position.embedding[...]
            extra = [first.astype(x.dtype)]
            if self.registers is not None:
                extra.append(self.registers.embedding[...].astype(x.dtype))
            tokens = jnp.concatenate(extra)
            x = jnp.concatenate([jnp.broadcast_to(tokens, (batch, *tokens.shape)), x], axis=1)
        if self.pre_norm is not None:
            x = self.pre_norm(x)
        return constrain(x, "batch", None, None)
