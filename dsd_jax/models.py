"""Makes models on devices from a config and a source of weights, by the same steps for all."""

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias, TypeVar, overload

import jax
from flax import nnx
from jax.sharding import Mesh, Sharding, SingleDeviceSharding

from dsd_jax.autoencoder import Autoencoder
from dsd_jax.config import (
    AutoencoderConfig,
    ClipConfig,
    DepthConfig,
    Execution,
    FluxConfig,
    Precision,
    T5Config,
    VisionConfig,
)
from dsd_jax.flux import Flux
from dsd_jax.lora import Adapter, add_factors, combine
from dsd_jax.quantise import WeightKind, quantise_model, quantised
from dsd_jax.sharding import (
    AUTOENCODER_RULES,
    CLIP_RULES,
    FLUX_RULES,
    LARGE,
    LORA_RULES,
    T5_RULES,
    TRAINED_LORA_RULES,
    VISION_RULES,
    Rules,
    param_shardings,
)
from dsd_jax.text.clip import ClipTextEncoder
from dsd_jax.text.t5 import T5Encoder
from dsd_jax.vision.depth import Depth
from dsd_jax.vision.vit import Vit
from dsd_jax.weights import Layered, TensorSource, WeightSource, materialise, param_shapes

__all__ = ["Config", "Model", "abstract", "abstract_state", "load", "model_shardings", "stacks_of"]

Config: TypeAlias = (
    FluxConfig | T5Config | ClipConfig | AutoencoderConfig | VisionConfig | DepthConfig
)
Model: TypeAlias = Flux | T5Encoder | ClipTextEncoder | Autoencoder | Vit | Depth
AnyModel = TypeVar("AnyModel", bound=Model)

_RULES: dict[type, Rules] = {
    FluxConfig: FLUX_RULES,
    T5Config: T5_RULES,
    ClipConfig: CLIP_RULES,
    AutoencoderConfig: AUTOENCODER_RULES,
    VisionConfig: VISION_RULES,
    DepthConfig: VISION_RULES,
}


def stacks_of(model: Model) -> dict[str, int]:
    """Path and depth of the stacks of blocks in a model."""
    return {} if isinstance(model, Autoencoder) else model.stacks


@overload
def abstract(
    config: FluxConfig,
    *,
    precision: Precision,
    execution: Execution | None = None,
    weights: WeightKind | None = None,
) -> Flux: ...
@overload
def abstract(
    config: T5Config,
    *,
    precision: Precision,
    execution: Execution | None = None,
    weights: WeightKind | None = None,
) -> T5Encoder: ...
@overload
def abstract(
    config: ClipConfig, *, precision: Precision, execution: Execution | None = None
) -> ClipTextEncoder: ...
@overload
def abstract(
    config: AutoencoderConfig, *, precision: Precision, execution: Execution | None = None
) -> Autoencoder: ...
@overload
def abstract(
    config: VisionConfig, *, precision: Precision, execution: Execution | None = None
) -> Vit: ...
@overload
def abstract(
    config: DepthConfig, *, precision: Precision, execution: Execution | None = None
) -> Depth: ...
def abstract(
    config: Config,
    *,
    precision: Precision,
    execution: Execution | None = None,
    weights: WeightKind | None = None,
) -> Model:
    """The model with shapes and dtypes but no arrays.

    Args:
        config: size of the model.
        precision: dtypes of parameters and computation.
        execution: implementations.
        weights: hold the kernels of blocks in few bits, see `dsd_jax.quantise`.

    Raises:
        UserError: groups of int4 do not divide the inputs of a kernel.
    """

    def make() -> Model:
        rngs = nnx.Rngs(0)
        match config:
            case FluxConfig():
                return Flux(config, precision=precision, execution=execution, rngs=rngs)
            case T5Config():
                return T5Encoder(config, precision=precision, execution=execution, rngs=rngs)
            case ClipConfig():
                return ClipTextEncoder(config, precision=precision, execution=execution, rngs=rngs)
            case AutoencoderConfig():
                return Autoencoder(config, precision=precision, rngs=rngs)
            case VisionConfig():
                return Vit(config, precision=precision, execution=execution, rngs=rngs)
            case DepthConfig():
                return Depth(config, precision=precision, execution=execution, rngs=rngs)

    model: Model = nnx.eval_shape(make)
    if weights is not None:
        quantise_model(model, stacks_of(model), weights)
    return model


def load(
    model: AnyModel,
    source: WeightSource,
    *,
    mesh: Mesh | None = None,
    adapters: Sequence[tuple[Adapter, float]] = (),
    reuse: Mapping[str, jax.Array] | None = None,
) -> AnyModel:
    """Fills an abstract model with weights and adapters, sharded over a mesh by the model's rules.

    Args:
        model: result of `abstract`.
        source: base weights. Kernels that the model holds in few bits are quantised while they are
            read, unless they are kept so.
        mesh: devices that hold the model; by default the first device.
        adapters: each with its scale; their factors stay apart from the kernels.
        reuse: arrays to take instead of reading them, see `dsd_jax.weights.materialise`.

    Raises:
        UserError: weights or adapters do not fit the model, or the mesh does not divide it.
    """
    source = quantised(source, model, stacks_of(model))
    if adapters:
        ranks, factors = combine(model, adapters, stacks_of(model))
        add_factors(model, ranks)
        full = [TensorSource(adapter.full) for adapter, _ in reversed(adapters)]
        source = Layered(factors, *full, source)
    shardings = model_shardings(model, mesh)
    return materialise(model, source, stacks=stacks_of(model), shardings=shardings, reuse=reuse)


def model_shardings(
    model: Model, mesh: Mesh | None, *, trained_lora: bool = False
) -> dict[str, Sharding]:
    """The sharding of every parameter of a model, factors of adapters included.

    With `stream_layers`, the large parameters of blocks lie in pinned host memory.

    Args:
        model: with or without arrays.
        mesh: devices that hold the model; None for the first device.
        trained_lora: shard the factors over every device of the batch axes, as training does.

    Raises:
        UserError: the mesh does not divide the model.
    """
    shapes, stacks = param_shapes(model), stacks_of(model)
    shardings: dict[str, Sharding]
    if mesh is None:
        shardings = dict.fromkeys(shapes, SingleDeviceSharding(jax.devices()[0]))
    else:
        spare = TRAINED_LORA_RULES if trained_lora else LORA_RULES
        shardings = dict(
            param_shardings(shapes, _RULES[type(model.config)], mesh, tuple(stacks), spare=spare)
        )
    if not isinstance(model, Autoencoder) and model.execution.stream_layers:
        for path, shape in shapes.items():
            in_stack = path.startswith(tuple(f"{stack}." for stack in stacks))
            if in_stack and math.prod(shape[1:]) >= LARGE:
                shardings[path] = shardings[path].with_memory_kind("pinned_host")
    return shardings


def abstract_state(model: Model, mesh: Mesh, *, trained_lora: bool = False) -> nnx.State:
    """The state of an abstract model with its shardings, for compiling ahead of time."""
    shardings = model_shardings(model, mesh, trained_lora=trained_lora)
    flat = nnx.to_flat_state(nnx.state(model))
    return nnx.from_flat_state(
        [
            (
                path,
                variable.replace(
                    jax.ShapeDtypeStruct(
                        variable.shape, variable.dtype, sharding=shardings[".".join(map(str, path))]
                    )
                ),
            )
            for path, variable in flat
        ]
    )
