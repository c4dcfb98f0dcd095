"""A tiny FLUX with random weights in diffusers and in ours, for comparing adapters."""

import functools
from collections.abc import Sequence

import jax
import numpy as np
import torch
from diffusers import (
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
)
from diffusers.loaders import SD3LoraLoaderMixin
from flax import nnx

from dsd_jax.config import FLOAT32
from dsd_jax.convert.flux.diffusers import flux_diffusers
from dsd_jax.flux import Flux
from dsd_jax.frames import Canvas, FluxInputs
from dsd_jax.lora import Adapter, MergedSource
from dsd_jax.models import abstract, load
from dsd_jax.weights import WeightSource
from tests.lora_dialects import TINY
from tests.parity.compare import StateDict, randomise

__all__ = ["AuthorsPipeline", "make_pipeline", "make_transformer", "run_ours", "run_theirs"]

SIDE, TEXT, BATCH = 4, 3, 2  # image tokens per side, text tokens


def make_transformer() -> FluxTransformer2DModel:
    """The same random weights every time."""
    model = FluxTransformer2DModel(
        patch_size=1,
        in_channels=TINY.in_channels,
        num_layers=TINY.double_depth,
        num_single_layers=TINY.single_depth,
        attention_head_dim=TINY.head_dim,
        num_attention_heads=TINY.num_heads,
        joint_attention_dim=TINY.txt_width,
        pooled_projection_dim=TINY.vec_width,
        guidance_embeds=TINY.guidance_embed,
        axes_dims_rope=TINY.axes_dim,
    )
    randomise(model)
    return model.eval()


def make_pipeline(transformer: FluxTransformer2DModel) -> FluxPipeline:
    """Enough of a pipeline to load LoRA files with."""
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=None,
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=transformer,
    )


class AuthorsPipeline(DiffusionPipeline, SD3LoraLoaderMixin):
    """A pipeline that loads LoRA files as the authors' and that of ComfyUI's DSD nodes do."""

    text_encoder = text_encoder_2 = None

    def __init__(self, transformer: FluxTransformer2DModel) -> None:
        super().__init__()
        self.register_modules(transformer=transformer)


@functools.cache
def _inputs() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    rows, columns = np.divmod(np.arange(SIDE**2), SIDE)
    return {
        "img": rng.standard_normal((BATCH, SIDE**2, TINY.in_channels)).astype(np.float32),
        "img_ids": np.stack([0 * rows, rows, columns], 1).astype(np.int32),
        "txt": rng.standard_normal((BATCH, TEXT, TINY.txt_width)).astype(np.float32),
        "txt_ids": np.zeros((TEXT, 3), np.int32),
        "vec": rng.standard_normal((BATCH, TINY.vec_width)).astype(np.float32),
        "t": np.array([0.9, 0.3], np.float32),
        "guidance": np.array([3.5, 1.0], np.float32),
    }


@torch.no_grad()
def run_theirs(model: FluxTransformer2DModel) -> np.ndarray:
    """Velocity of the model as it is, with whatever adapters it has."""
    given = {name: torch.from_numpy(array) for name, array in _inputs().items()}
    return model(
        hidden_states=given["img"],
        encoder_hidden_states=given["txt"],
        pooled_projections=given["vec"],
        timestep=given["t"],
        img_ids=given["img_ids"].float(),
        txt_ids=given["txt_ids"].float(),
        guidance=given["guidance"],
        return_dict=False,
    )[0].numpy()


# Compiling takes longer than running: quickly, and once for all adapters of the same ranks.
@functools.partial(
    jax.jit, static_argnums=0, compiler_options={"xla_backend_optimization_level": 0}
)
def _run(graphdef: nnx.GraphDef[Flux], state: nnx.State, given: dict[str, jax.Array]) -> jax.Array:
    inputs = FluxInputs(given["txt"], given["vec"], given["guidance"])
    return nnx.merge(graphdef, state)(given["img"], given["t"], inputs, Canvas(2 * SIDE, 2 * SIDE))


def run_ours(adapters: Sequence[tuple[Adapter, float]] = (), *, merged: bool = False) -> np.ndarray:
    """Velocity of our model with adapters beside the weights, or merged into them."""
    source: WeightSource = flux_diffusers(TINY).check(StateDict(make_transformer()))
    if merged:
        source, adapters = MergedSource(source, adapters), ()
    model = load(abstract(TINY, precision=FLOAT32), source, adapters=adapters)
    return np.asarray(_run(*nnx.split(model), _inputs()))
