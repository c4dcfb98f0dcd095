"""A tiny model with a random adapter and a random batch, for the tests of training."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from dsd_jax.config import FluxConfig
from dsd_jax.lora import Adapter, LoraConfig, add_factors, select
from dsd_jax.parts import Component
from dsd_jax.sharding import MeshConfig, make_mesh
from dsd_jax.train.config import OptimizerConfig, TrainConfig
from dsd_jax.train.model import Start, Trainee, make_trainee
from dsd_jax.train.objective import EncodedBatch
from dsd_jax.weights import TensorSource, WeightSource, param_shapes
from tests.tiny_flux import CANVAS, TINY, abstract_flux, random_tensors, randoms

__all__ = ["RECIPE", "flat", "in_memory", "make_batch", "one_device", "trainee"]

RECIPE = TrainConfig(
    steps=20,
    batch_size=8,
    seed=3,
    lora=LoraConfig(rank=8),
    optimizer=OptimizerConfig(learning_rate=1e-3, ema=0.9),
    base_dtype="float32",
    remat="none",
)


def in_memory(config: FluxConfig, source: WeightSource) -> Component[FluxConfig]:
    """Opened weights that lie on no disk."""
    return Component("nowhere", config, source, "diffusers")


def one_device() -> Mesh:
    """The mesh of a run on a single device."""
    return make_mesh(MeshConfig(), jax.devices()[:1])


@functools.cache
def random_adapter(lora: LoraConfig) -> Adapter:
    """No factor is zero, B included."""
    model = abstract_flux()
    add_factors(model, dict.fromkeys(select(model, lora.targets), lora.rank))
    shapes = {path: s for path, s in param_shapes(model).items() if ".lora_" in path}
    return Adapter(randoms(shapes, seed=7))


def trainee(config: TrainConfig = RECIPE, mesh: Mesh | None = None) -> Trainee:
    """The same numbers for every mesh and layout."""
    adapter = None if config.lora is None else random_adapter(config.lora)
    weights = in_memory(TINY, TensorSource(random_tensors()))
    return make_trainee(config, weights, mesh or one_device(), Start(adapter))


def make_batch(
    size: int = 8,
    config: FluxConfig = TINY,
    *,
    txt_length: int = 8,
    seed: int = 0,
    condition: bool = True,
) -> EncodedBatch:
    """Four samples: one without text, one without image, one without both, one complete."""
    rng = np.random.default_rng(seed)
    tokens = CANVAS.tokens

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape, np.float32))

    return EncodedBatch(
        x_0=normal(size, tokens, config.in_channels),
        img_cond=normal(size, tokens, config.in_channels) if condition else None,
        txt=normal(size, txt_length, config.txt_width),
        vec=normal(size, config.vec_width),
        drop_text=jnp.arange(size) % 4 >= 2,
        drop_image=jnp.arange(size) % 2 == 1,
        null_txt=normal(txt_length, config.txt_width),
        null_vec=normal(config.vec_width),
    )


def flat(state: Any) -> dict[str, np.ndarray]:
    """Path -> array on the host."""
    return {
        ".".join(map(str, path)): np.asarray(variable[...])
        for path, variable in nnx.to_flat_state(state)
    }
