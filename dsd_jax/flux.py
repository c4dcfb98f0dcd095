"""FLUX.1, the rectified-flow MMDiT, with the condition embedding of Diffusion Self-Distillation.

The order of operations follows the released models: Black Forest Labs' `flux` for the transformer,
and for the condition the authors' `x_embedder(noisy tokens) + c_embedder(condition tokens)`, which
adds the condition token by token and leaves the sequence as long as it was.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from dsd_jax.attention import attention, shared_attention
from dsd_jax.blocks import DoubleBlock, SingleBlock
from dsd_jax.config import Execution, FluxConfig, Precision
from dsd_jax.frames import Canvas, FluxInputs, text_ids
from dsd_jax.layers import Linear, MlpEmbedder, modulate, timestep_embedding
from dsd_jax.rope import embed_positions
from dsd_jax.sharding import constrain
from dsd_jax.stack import build_stack, map_stack, part_of_stack, run_stack
from dsd_jax.types import Array, Float, PyTree

__all__ = ["FinalLayer", "Flux", "Modulations", "parted"]

TIME_WIDTH = 256  # sinusoids of the time and guidance embeddings, in every published FLUX

# They need time, guidance and pooled text alone: 3.25 of FLUX.1's 11.9 billion parameters.
_MODULATING = {"time_in", "vector_in", "guidance_in", "img_mod", "txt_mod", "modulation"}


class Modulations(NamedTuple):
    """Shifts, scales and gates of a forward pass, each `[B, D]`.

    Attributes:
        double, single: Those of the blocks, as `dsd_jax.stack.map_stack` returns them.
        final: Shift and scale of the last layer norm.
    """

    double: PyTree
    single: PyTree
    final: tuple[Array, Array]


def parted(state: nnx.State) -> tuple[nnx.State, nnx.State]:
    """Splits the state of a `Flux` into what makes the modulations and what uses them.

    Both merge with the graph of the whole model; None stands for each array of the other part.
    """
    making, using = [], []
    for path, variable in nnx.to_flat_state(state):
        makes, absent = not _MODULATING.isdisjoint(path), variable.replace(None)
        making.append((path, variable if makes else absent))
        using.append((path, absent if makes else variable))
    return nnx.from_flat_state(making), nnx.from_flat_state(using)


class FinalLayer(nnx.Module):
    """Modulated layer norm (shift, scale), then a Linear to the packed channels."""

    def __init__(self, config: FluxConfig, *, precision: Precision, rngs: nnx.Rngs) -> None:
        width = config.width
        self.modulation = Linear((width,), (2, width), precision=precision, rngs=rngs)
        self.linear = Linear((width,), (config.out_channels,), precision=precision, rngs=rngs)

    def modulations(self, vec: Float[Array, "B D"]) -> tuple[Array, Array]:
        """Shift and scale, each `[B, D]`."""
        shift, scale = jnp.moveaxis(self.modulation(jax.nn.silu(vec)), 1, 0)
        return shift, scale

    def __call__(self, x: Float[Array, "B L D"], modulations: tuple[Array, Array]) -> Array:
        return self.linear(modulate(x, *modulations))


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
        graphdef, state = nnx.split(self)
        making, using = (nnx.merge(graphdef, part) for part in parted(state))
        return using.velocity(img, making.modulations(t, inputs), inputs, canvas, panels)

    def modulations(self, t: Float[Array, "*S B"], inputs: FluxInputs) -> Modulations:
        """Computes the modulations, which depend on time, guidance and pooled text alone.

        Args:
            t: times `[B]`, or `[S, B]` for S steps. Then every array gets a leading axis S, and a
                layer's weights are brought to the device once for all steps.
            inputs: `vec` and `guidance` count.
        """
        steps = t.ndim == 2

        def over(of: Callable[[Array], PyTree], x: Array) -> PyTree:
            return lax.map(of, x) if steps else of(x)  # a step at a time, for the same sums

        vec = over(lambda t: self._conditioning(t, inputs), t)
        double, single = (
            map_stack(stack, lambda block: over(block.modulations, vec), self.execution)
            for stack in (self.double_blocks, self.single_blocks)
        )
        if steps and self.execution.scan_layers:
            double, single = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (double, single))
        return Modulations(double, single, over(self.final_layer.modulations, vec))

    def velocity(
        self,
        img: Float[Array, "B L C"],
        modulations: Modulations,
        inputs: FluxInputs,
        canvas: Canvas,
        panels: int = 1,
    ) -> Float[Array, "B L C_out"]:
        """Velocity under these modulations, in the compute dtype.

        Args:
            img: noisy packed latents x_t.
            modulations: those of the time of `img`.
            inputs: `txt` and `img_cond` count.
            canvas: canvas on which the tokens of `img` lie.
            panels: as for the whole model.
        """
        img, txt, step = self._entered(img, inputs, canvas, panels)
        img, txt = run_stack(
            self.double_blocks, step, (img, txt), self.execution, modulations.double
        )
        return self.final_layer(self._single(img, txt, step, modulations), modulations.final)

    def velocity_and_residual(
        self,
        img: Float[Array, "B L C"],
        modulations: Modulations,
        inputs: FluxInputs,
        canvas: Canvas,
    ) -> tuple[Float[Array, "B L C_out"], Float[Array, "B L D"]]:
        """Velocity, and what the blocks after the first have added to the image tokens.

        Arguments as for `velocity`.
        """
        img, txt, step = self._entered(img, inputs, canvas)
        is_first = jnp.arange(self.config.double_depth) == 0
        of_block = list(is_first) if isinstance(self.double_blocks, nnx.List) else is_first

        def noted(block: DoubleBlock, carry: PyTree, own: PyTree, is_first: Array) -> PyTree:
            img, txt = step(block, carry[:2], own)
            return img, txt, jnp.where(is_first, img, carry[2])

        start = img, txt, jnp.zeros_like(img)
        img, txt, first = run_stack(
            self.double_blocks, noted, start, self.execution, modulations.double, of_block
        )
        img = self._single(img, txt, step, modulations)
        return self.final_layer(img, modulations.final), img - first

    def velocity_reusing(
        self,
        residual: Float[Array, "B L D"],
        img: Float[Array, "B L C"],
        modulations: Modulations,
        inputs: FluxInputs,
        canvas: Canvas,
    ) -> Float[Array, "B L C_out"]:
        """Velocity by the first block alone, to which another time's residual is added.

        The other arguments are those of `velocity`.
        """
        img, txt, step = self._entered(img, inputs, canvas)
        blocks, own = part_of_stack(self.double_blocks, 0, 1), modulations.double
        own = own[:1] if isinstance(blocks, nnx.List) else jax.tree.map(lambda x: x[:1], own)
        img, _ = run_stack(blocks, step, (img, txt), self.execution, own)
        return self.final_layer(img + residual, modulations.final)

    def _entered(
        self, img: Float[Array, "B L C"], inputs: FluxInputs, canvas: Canvas, panels: int = 1
    ) -> tuple[Array, Array, Callable[..., Any]]:
        """Tokens of image and text before the first block, and the function that runs a block."""
        img = self.img_in(img)
        if inputs.img_cond is not None:
            if self.cond_in is None:
                raise ValueError("img_cond was given to a model without condition embedding")
            img = img + self.cond_in(inputs.img_cond)
        txt = self.txt_in(inputs.txt)
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

        def step(block: Callable[..., Any], carry: tuple[Array, ...], own: PyTree) -> Any:
            return block(*carry, own, pe, attend)

        return img, txt, step

    def _single(
        self, img: Array, txt: Array, step: Callable[..., Any], modulations: Modulations
    ) -> Float[Array, "B L D"]:
        """Image tokens after the single blocks."""
        x = run_stack(
            self.single_blocks,
            lambda block, x, own: step(block, (x,), own),
            constrain(jnp.concatenate([txt, img], axis=1), "batch", "length", None),
            self.execution,
            modulations.single,
        )
        return x[:, txt.shape[1] :]

    def _conditioning(self, t: Float[Array, " B"], inputs: FluxInputs) -> Float[Array, "B D"]:
        """The vector that all modulations are made from."""
        pooled = inputs.vec.astype(self.precision.compute_dtype)
        vec = self._embed(self.time_in, t) + self.vector_in(pooled)
        if self.guidance_in is not None:
            if inputs.guidance is None:
                raise ValueError("this model embeds the guidance scale, but guidance is None")
            vec = vec + self._embed(self.guidance_in, inputs.guidance)
        return vec

    def _embed(self, embedder: MlpEmbedder, scalar: Float[Array, " B"]) -> Array:
        compute = self.precision.compute_dtype
        return embedder(timestep_embedding(scalar.astype(compute), TIME_WIDTH).astype(compute))
