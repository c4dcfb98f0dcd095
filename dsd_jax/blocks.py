"""The two kinds of FLUX block: two streams with joint attention, then one stream."""

import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from dsd_jax.attention import Attend
from dsd_jax.config import FluxConfig, Precision
from dsd_jax.layers import (
    JoinedLinear,
    Linear,
    Mlp,
    Modulation,
    ModulationOut,
    RMSNorm,
    gelu_tanh,
    gradient_apart,
    modulate,
)
from dsd_jax.rope import apply_rope
from dsd_jax.sharding import constrain
from dsd_jax.types import Array, Float, Float32

__all__ = ["DoubleBlock", "SelfAttention", "SingleBlock"]


def _qkv_linear(config: FluxConfig, precision: Precision, rngs: nnx.Rngs) -> Linear:
    out = (3, config.num_heads, config.head_dim)
    return Linear((config.width,), out, fused=3, precision=precision, rngs=rngs)


def _split_qkv(
    qkv: Float[Array, "B L 3 N H"], query_norm: RMSNorm, key_norm: RMSNorm
) -> tuple[Array, Array, Array]:
    # The gradient of a split joins its parts; that of three slices would pad each and add them up.
    parts = jnp.split(gradient_apart(checkpoint_name(qkv, "qkv")), 3, axis=2)
    q, k, v = (jnp.squeeze(part, axis=2) for part in parts)
    return query_norm(q), key_norm(k), v


class SelfAttention(nnx.Module):
    """The projections of one stream of a double block; the attention itself joins both streams."""

    def __init__(self, config: FluxConfig, *, precision: Precision, rngs: nnx.Rngs) -> None:
        heads = (config.num_heads, config.head_dim)
        self.qkv = _qkv_linear(config, precision, rngs)
        self.query_norm = RMSNorm(config.head_dim, precision=precision)
        self.key_norm = RMSNorm(config.head_dim, precision=precision)
        self.proj = Linear(heads, (config.width,), precision=precision, rngs=rngs)

    def split(self, x: Float[Array, "B L D"]) -> tuple[Array, Array, Array]:
        """Normalised queries, normalised keys and values, each `[B, L, N, H]`."""
        return _split_qkv(self.qkv(x), self.query_norm, self.key_norm)


class DoubleBlock(nnx.Module):
    """Image and text keep their own weights and meet in one attention, text tokens first."""

    def __init__(self, config: FluxConfig, *, precision: Precision, rngs: nnx.Rngs) -> None:
        width, mlp = config.width, config.mlp_width
        self.img_mod = Modulation(width, 2, precision=precision, rngs=rngs)
        self.txt_mod = Modulation(width, 2, precision=precision, rngs=rngs)
        self.img_attn = SelfAttention(config, precision=precision, rngs=rngs)
        self.txt_attn = SelfAttention(config, precision=precision, rngs=rngs)
        self.img_mlp = Mlp(width, mlp, precision=precision, rngs=rngs)
        self.txt_mlp = Mlp(width, mlp, precision=precision, rngs=rngs)

    def modulations(self, vec: Float[Array, "B D"]) -> list[list[ModulationOut]]:
        """Attention's and the mlp's modulation, of the image stream and of the text stream."""
        return [self.img_mod(vec), self.txt_mod(vec)]

    def __call__(
        self,
        img: Float[Array, "B Li D"],
        txt: Float[Array, "B Lt D"],
        modulations: list[list[ModulationOut]],
        pe: Float32[Array, "2 L H"],
        attend: Attend,
    ) -> tuple[Float[Array, "B Li D"], Float[Array, "B Lt D"]]:
        (img_mod1, img_mod2), (txt_mod1, txt_mod2) = modulations

        img_qkv = self.img_attn.split(modulate(img, img_mod1.shift, img_mod1.scale))
        txt_qkv = self.txt_attn.split(modulate(txt, txt_mod1.shift, txt_mod1.scale))
        q, k, v = (jnp.concatenate(pair, axis=1) for pair in zip(txt_qkv, img_qkv, strict=True))
        attn = attend(apply_rope(q, pe), apply_rope(k, pe), v)
        txt_attn, img_attn = jnp.split(attn, [txt.shape[1]], axis=1)

        img = img + img_mod1.gate[:, None] * self.img_attn.proj(img_attn)
        img = img + img_mod2.gate[:, None] * self.img_mlp(
            modulate(img, img_mod2.shift, img_mod2.scale)
        )
        txt = txt + txt_mod1.gate[:, None] * self.txt_attn.proj(txt_attn)
        txt = txt + txt_mod2.gate[:, None] * self.txt_mlp(
            modulate(txt, txt_mod2.shift, txt_mod2.scale)
        )
        return constrain(img, "batch", "length", None), constrain(txt, "batch", None, None)


class SingleBlock(nnx.Module):
    """One stream [text, image]; attention and mlp run side by side on the same input."""

    def __init__(self, config: FluxConfig, *, precision: Precision, rngs: nnx.Rngs) -> None:
        width, mlp = config.width, config.mlp_width
        self.modulation = Modulation(width, 1, precision=precision, rngs=rngs)
        self.qkv = _qkv_linear(config, precision, rngs)
        self.query_norm = RMSNorm(config.head_dim, precision=precision)
        self.key_norm = RMSNorm(config.head_dim, precision=precision)
        self.mlp_in = Linear((width,), (mlp,), precision=precision, rngs=rngs)
        self.linear2 = JoinedLinear(
            config.num_heads, config.head_dim, mlp, precision=precision, rngs=rngs
        )

    def modulations(self, vec: Float[Array, "B D"]) -> list[ModulationOut]:
        """The modulation of attention and mlp, which share it."""
        return self.modulation(vec)

    def __call__(
        self,
        x: Float[Array, "B L D"],
        modulations: list[ModulationOut],
        pe: Float32[Array, "2 L H"],
        attend: Attend,
    ) -> Float[Array, "B L D"]:
        (mod,) = modulations
        x_mod = modulate(x, mod.shift, mod.scale)
        q, k, v = _split_qkv(self.qkv(x_mod), self.query_norm, self.key_norm)
        attn = attend(apply_rope(q, pe), apply_rope(k, pe), v)
        mlp = gelu_tanh(self.mlp_in(x_mod))
        x = x + mod.gate[:, None] * self.linear2(attn, mlp)
        return constrain(x, "batch", "length", None)
