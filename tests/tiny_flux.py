"""A FLUX of toy size with random weights and inputs, for the tests of the core."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dsd_jax.config import FLOAT32, Execution, FluxConfig, Precision
from dsd_jax.flux import Flux
from dsd_jax.frames import Canvas, FluxInputs
from dsd_jax.lora import Adapter, add_factors
from dsd_jax.models import abstract
from dsd_jax.weights import TensorSource, materialise, param_shapes

__all__ = [
    "CANVAS",
    "TINY",
    "abstract_flux",
    "call",
    "flux_inputs",
    "make_flux",
    "random_adapter",
    "random_tensors",
    "randoms",
]

# Every size is divisible by 4, so that two mesh axes of 2 can share one.
TINY = FluxConfig(
    in_channels=16,
    out_channels=16,
    num_heads=4,
    head_dim=16,
    double_depth=2,
    single_depth=3,
    mlp_ratio=2.0,
    txt_width=24,
    vec_width=20,
    axes_dim=(4, 6, 6),
)
CANVAS = Canvas(8, 12)  # 24 tokens, not square


def randoms(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    """Float32 arrays, none of them zero or one: matrices keep the size of what they multiply."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for path, shape in shapes.items():
        noise = rng.standard_normal(shape, np.float32)
        match path.rpartition(".")[2]:
            case "bias":
                tensors[path] = 0.3 * noise
            case "scale":
                tensors[path] = 1 + 0.3 * noise
            case _:
                tensors[path] = noise * np.float32(8 / np.prod(shape) ** 0.5)
    return tensors


def abstract_flux(config: FluxConfig = TINY, **execution: Any) -> Flux:
    """The model without arrays, in float32."""
    return abstract(config, precision=FLOAT32, execution=Execution(**execution))


def random_tensors(config: FluxConfig = TINY, seed: int = 0) -> dict[str, np.ndarray]:
    """Every parameter under its per-layer path."""
    return randoms(param_shapes(abstract_flux(config)), seed)


def make_flux(
    config: FluxConfig = TINY, *, precision: Precision = FLOAT32, seed: int = 0, **execution: Any
) -> Flux:
    """The same weights for the same config and seed, whatever the execution."""
    model = abstract(config, precision=precision, execution=Execution(**execution))
    source = TensorSource(random_tensors(config, seed))
    return materialise(model, source, stacks=model.stacks)


def random_adapter(
    ranks: Mapping[str, int], config: FluxConfig = TINY, *, seed: int = 2, name: str = "adapter"
) -> Adapter:
    """Factors of the given ranks, by per-layer module path; B is not zero."""
    model = abstract_flux(config)
    add_factors(model, ranks)
    shapes = {path: shape for path, shape in param_shapes(model).items() if ".lora_" in path}
    return Adapter(randoms(shapes, seed), name=name)


def flux_inputs(config: FluxConfig = TINY, batch: int = 2, txt_length: int = 8) -> dict[str, Any]:
    """Keyword arguments of a call."""
    rng = np.random.default_rng(1)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape, np.float32))

    img = normal(batch, CANVAS.tokens, config.in_channels)
    txt = normal(batch, txt_length, config.txt_width)
    vec = normal(batch, config.vec_width)
    t = jnp.asarray(rng.uniform(0.1, 0.9, batch), jnp.float32)
    guidance = jnp.asarray(rng.uniform(1, 4, batch), jnp.float32)
    cond = normal(batch, CANVAS.tokens, config.in_channels) if config.condition_embed else None
    inputs = FluxInputs(txt, vec, guidance, cond)
    return {"img": img, "t": t, "inputs": inputs, "canvas": CANVAS}


def call(model: nnx.Module) -> Callable[..., Any]:
    """The model's call, compiled; parameters are an argument, not constants."""
    graphdef, state = nnx.split(model)
    run = jax.jit(lambda state, kwargs: nnx.merge(graphdef, state)(**kwargs))
    return lambda **kwargs: run(state, kwargs)
