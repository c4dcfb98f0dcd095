"""FLUX.1, the rectified-flow MMDiT, with the condition embedding of Diffusion Self-Distillation.

The order of operations follows the released models: Black Forest Labs' `flux` for the transformer,
and for the condition the authors' `x_embedder(noisy tokens) + c_embedder(condition tokens)`, which
adds the condition token by token and leaves the sequence as long as it was.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from dsd_jax.attention import attention, shared_attention
from dsd_jax.blocks import DoubleBlock, SingleBlock
from dsd_jax.config import Execution, FluxConfig, Precision
from dsd_jax.frames import Canvas, FluxInputs, text_ids
from dsd_jax.layers import Linear, MlpEmbedder, layer_norm, timestep_embedding
from dsd_jax.rope import embed_positions
from dsd_jax.sharding import constrain
from dsd_jax.stack import build_stack, run_stack
from dsd_jax.types import Array, Float

__all__ = ["FinalLayer", "Flux"]

TIME_WIDTH = 256  # sinusoids of the time and guidance embeddings, in every published FLUX


class FinalLayer(nnx.Module):
    """Modulated layer norm (shift, scale), then a Linear to the packed channels."""

    def __init__(self, config: FluxConfig, *, precision: Precision, rngs: nnx.Rngs) -> None:
        width = config.width
        self.modulation = Linear((width,), (2, width), precision=precision, rngs=rngs)
        self.linear = Linear((width,), (config.out_channels,), precision=precision, rngs=rngs)

    def __call__(self, x: Float[Array, "B L D"], vec: Float[Array, "B D"]) -> Array:
        shift, scale = jnp.moveaxis(self.modulation(jax.nn.silu(vec)), 1, 0).astype(jnp.float32)
        x32 = (1 + scale[:, None]) * layer_norm(x) + shift[:, None]
        return self.linear(x32.astype(x.dtype))


class Flux(nnx.Module):
    """Predicts the velocity `noise - x_0` of packed image tokens."""

    def __init__(
        self,
        config: FluxConfig,
        *,
        precision: Precision,
        execution: Execution | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        self.config, self.precision = config, precision
        self.execution = execution or Execution()
        width = config.width

        def embedder(in_width: int) -> MlpEmbedder:
            return MlpEmbedder(in_width, width, precision=precision, rngs=rngs)

        def linear(in_width: int, *, zero: bool = False) -> Linear:
            return Linear((in_width,), (width,), zero=zero, precision=precision, rngs=rngs)

        self.img_in = linear(config.in_channels)
        # Zero before training: the conditional model starts as its unconditional teacher.
        self.cond_in = linear(config.in_channels, zero=True) if config.condition_embed else None
        self.txt_in = linear(config.txt_width)
        self.time_in = embedder(TIME_WIDTH)
        self.vector_in = embedder(config.vec_width)
        self.guidance_in = embedder(TIME_WIDTH) if config.guidance_embed else None
        scan = self.execution.scan_layers
        self.double_blocks = build_stack(
            lambda rngs: DoubleBlock(config, precision=precision, rngs=rngs),
            config.double_depth,
            scan=scan,
            rngs=rngs,
        )
        self.single_blocks = build_stack(
            lambda rngs: SingleBlock(config, precision=precision, rngs=rngs),
            config.single_depth,
            scan=scan,
            rngs=rngs,
        )
        self.final_layer = FinalLayer(config, precision=precision, rngs=rngs)

    @property
    def stacks(self) -> dict[str, int]:
        """Path and depth of each stack of blocks, for `dsd_jax.stack.layer_paths`."""
        return {
            "double_blocks": self.config.double_depth,
            "single_blocks": self.config.single_depth,
        }

    def __call__(
        self,
        img: Float[Array, "B L C"],
        t: Float[Array, " B"],
        inputs: FluxInputs,
        canvas: Canvas,
        panels: int = 1,
    ) -> Float[Array, "B L C_out"]:
        """Velocity at time `t`, in the compute dtype.

        Args:
            img: noisy packed latents x_t.
            t: time in [0, 1]; 1 is noise.
            inputs: text, distilled guidance scale and condition.
            canvas: canvas on which the tokens of `img` lie.
            panels: pictures, neighbours in the batch, that see each other's image tokens; see
                `shared_attention`.
        """
        compute = self.precision.compute_dtype
        img = self.img_in(img)
        if inputs.img_cond is not None:
            if self.cond_in is None:
                raise ValueError("img_cond was given to a model without condition embedding")
            img = img + self.cond_in(inputs.img_cond)
        txt = self.txt_in(inputs.txt)
        vec = self._embed(self.time_in, t) + self.vector_in(inputs.vec.astype(compute))
        if self.guidance_in is not None:
            if inputs.guidance is None:
                raise ValueError("this model embeds the guidance scale, but guidance is None")
            vec = vec + self._embed(self.guidance_in, inputs.guidance)
        ids = jnp.concatenate([text_ids(txt.shape[1]), canvas.image_ids])
        pe = embed_positions(ids, self.config.axes_dim, self.config.theta)
        img, txt = constrain(img, "batch", "length", None), constrain(txt, "batch", None, None)

        attend = functools.partial(attention, implementation=self.execution.attention)
        if panels > 1:
            attend = functools.partial(
                shared_attention,
                text=txt.shape[1],
                panels=panels,
                implementation=self.execution.attention,
            )
        img, txt = run_stack(
            self.double_blocks,
            lambda block, carry: block(*carry, vec, pe, attend),
            (img, txt),
            self.execution,
        )
        x = run_stack(
            self.single_blocks,
            lambda block, x: block(x, vec, pe, attend),
            constrain(jnp.concatenate([txt, img], axis=1), "batch", "length", None),
            self.execution,
        )
        return self.final_layer(x[:, txt.shape[1] :], vec)

    def _embed(self, embedder: MlpEmbedder, scalar: Float[Array, " B"]) -> Array:
        compute = self.precision.compute_dtype
        return embedder(timestep_embedding(scalar.astype(compute), TIME_WIDTH).astype(compute))
