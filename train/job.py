"""The training step as a job to plan: abstract weights, real program, arithmetic of the rest."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from dsd_jax.aot import Job, bytes_per_chip
from dsd_jax.config import (
    BFLOAT16,
    AutoencoderConfig,
    ClipConfig,
    Execution,
    FluxConfig,
    Precision,
    T5Config,
)
from dsd_jax.flow import Schedule
from dsd_jax.frames import Canvas
from dsd_jax.lora import add_factors, select
from dsd_jax.models import abstract, abstract_state
from dsd_jax.sharding import activation_spec, batch_ways
from dsd_jax.train.config import TrainConfig
from dsd_jax.train.flops import step_flops, teacher_flops
from dsd_jax.train.model import train_state_shapes
from dsd_jax.train.objective import EncodedBatch, method_of
from dsd_jax.train.optimizer import make_optimizer
from dsd_jax.train.state import split_model
from dsd_jax.train.step import make_step
from dsd_jax.weights import param_shapes

__all__ = ["abstract_batch", "attention_for", "canvas_of", "forward_flops", "train_job"]


def canvas_of(config: TrainConfig) -> Canvas:
    """The canvas of a config with the published VAE."""
    return Canvas.from_pixels(config.height, config.width, AutoencoderConfig().downscale)


def train_job(config: TrainConfig, flux: FluxConfig, mesh: Mesh, *, encoded: bool = False) -> Job:
    """Builds the training step of a config over a mesh, with abstract arguments.

    Args:
        encoded: the data brings latents and embeddings, so that no encoder is in memory.
    """
    execution = Execution(
        scan_layers=config.scan_layers, attention=attention_for(mesh), remat=config.remat
    )
    precision = Precision(param_dtype=jnp.dtype(config.base_dtype), compute_dtype=jnp.bfloat16)
    model = abstract(flux, precision=precision, execution=execution, weights=config.weights)
    if config.lora is not None:
        rank = config.lora.rank
        add_factors(model, dict.fromkeys(select(model, config.lora.targets), rank))
    placed = nnx.merge(nnx.graphdef(model), abstract_state(model, mesh, trained_lora=True))
    split = split_model(placed, full=config.lora is None)
    optimizer = make_optimizer(config.optimizer, config.steps)
    state = train_state_shapes(split, optimizer, mesh, ema=config.optimizer.ema > 0)
    batch = abstract_batch(config, flux, mesh)
    objective = method_of(config)(config.flow, Schedule(), canvas_of(config))
    paths = frozenset(".".join(map(str, path)) for path, _ in nnx.to_flat_state(split.trained))
    flops = step_flops(param_shapes(model), paths, flux, batch.x_0.shape[1], batch.txt.shape[1])
    teacher = None if config.distill is None else split.trained
    return Job(
        run=make_step(split.graphdef, optimizer, objective, config),
        arguments=(state, split.frozen, batch, teacher),
        kinds={
            "base": split.frozen,
            "trained": (state.params, state.ema, teacher),
            "moments": state.opt_state,
            "batch": batch,
            "encoders": () if encoded else _encoders(config, mesh),
        },
        flops=(flops.total + teacher_flops(config, flops)) * config.batch_size,
        activations=_saved(config, flux, mesh),
        # Gradients, as large as what is trained, and the block that is being computed again; or a
        # block of the teacher, which takes the three passes of every sample at once.
        working=bytes_per_chip(state.params)
        + (1 if teacher is None else 3) * _WHOLE_BLOCK * _stream(config, flux, mesh),
        donate=(0,),
    )


def _encoders(config: TrainConfig, mesh: Mesh) -> list[nnx.State]:
    """Abstract weights of VAE, T5-XXL and CLIP-L, which stay in memory beside the step."""
    execution = Execution(scan_layers=config.scan_layers)
    t5 = abstract(
        T5Config(),
        precision=BFLOAT16,
        execution=execution,
        weights=config.weights and "int8",
    )
    clip = abstract(ClipConfig(), precision=BFLOAT16, execution=execution)
    vae = abstract(AutoencoderConfig(), precision=BFLOAT16)
    return [abstract_state(model, mesh) for model in (vae, t5, clip)]


def abstract_batch(config: TrainConfig, flux: FluxConfig, mesh: Mesh) -> EncodedBatch:
    """Makes an encoded batch of shapes and shardings only."""
    size, text = config.batch_size, config.max_sequence_length
    tokens = canvas_of(config).tokens

    def array(*shape: int, dtype: Any = jnp.bfloat16, batched: bool = True) -> Any:
        axes = ("batch" if batched else None, *(None,) * (len(shape) - 1))
        sharding = NamedSharding(mesh, activation_spec(mesh, shape, axes))
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    latents = array(size, tokens, flux.in_channels, dtype=jnp.float32)
    mask = array(size, dtype=jnp.bool_)
    return EncodedBatch(
        x_0=latents,
        img_cond=latents if flux.condition_embed else None,
        txt=array(size, text, flux.txt_width),
        vec=array(size, flux.vec_width),
        drop_text=mask,
        drop_image=mask,
        null_txt=array(text, flux.txt_width, batched=False),
        null_vec=array(flux.vec_width, batched=False),
    )


def attention_for(mesh: Mesh) -> str:
    """Attention implementation that the devices of a topology can compile."""
    return {"tpu": "splash", "cpu": "xla"}.get(mesh.devices.flat[0].platform, "cudnn")


_WHOLE_BLOCK = 20  # approximate number of arrays of the stream's size that a block makes


def _stream(config: TrainConfig, flux: FluxConfig, mesh: Mesh) -> int:
    """Bytes per chip of one activation of all tokens, for the samples that go at once."""
    tokens = canvas_of(config).tokens + config.max_sequence_length
    samples = -(-config.batch_size // config.optimizer.accumulate // batch_ways(mesh))
    return samples * tokens * flux.width * 2 // mesh.shape["context"]


def _saved(config: TrainConfig, flux: FluxConfig, mesh: Mesh) -> int:
    """Bytes per chip kept between forward and backward: the stream at every block's border.

    Policies that keep more (attention outputs, q/k/v) add that; "none" keeps everything.
    """
    kept = {"full": 1, "attention": 2, "attention+qkv": 5, "dots": 12, "none": _WHOLE_BLOCK}
    depth = flux.double_depth + flux.single_depth
    return depth * kept[config.remat] * _stream(config, flux, mesh)


def forward_flops(flux: FluxConfig, image: int, text: int) -> float:
    """Matrix-product FLOPs of one sample's forward pass, by its numbers of tokens."""
    shapes = param_shapes(abstract(flux, precision=BFLOAT16))
    flops = step_flops(shapes, frozenset(), flux, image, text)
    return flops.frozen + flops.attention
