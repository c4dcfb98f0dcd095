"""Splits opened weights into trained and frozen parameters, both on the mesh."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, Sharding

from dsd_jax.config import Execution, FluxConfig, Precision
from dsd_jax.errors import UserError
from dsd_jax.flux import Flux
from dsd_jax.layers import JoinedLinear, Linear, LoraParam
from dsd_jax.lora import Adapter, LoraConfig, add_factors, initialise, select
from dsd_jax.models import abstract, load, model_shardings
from dsd_jax.parts import Component
from dsd_jax.train.config import TrainConfig
from dsd_jax.train.state import Split, TrainState, init_state, split_model, state_shardings

__all__ = [
    "BASE",
    "Start",
    "Trainee",
    "first_state",
    "make_trainee",
    "train_state_shapes",
]


@dataclasses.dataclass(frozen=True)
class Start:
    """Origin of the parameters beside the base.

    Attributes:
        adapter: adapter that the factors start from instead of random values; its full tensors
            replace the base's.
        from_scratch: random weights instead of the base's, of which only the size is used.
    """

    adapter: Adapter | None = None
    from_scratch: bool = False


BASE = Start()  # the base as it is, with a new adapter


class Trainee(NamedTuple):
    """A split model on the mesh.

    `stacks` holds path and depth of its stacks of blocks; checkpoints use per-layer paths.
    """

    split: Split
    stacks: Mapping[str, int]
    config: FluxConfig


def _precision(config: TrainConfig) -> Precision:
    """Precision of the transformer: masters in float32, the rest in the dtype of the base."""
    base = jnp.dtype(config.base_dtype)
    return Precision(jnp.float32 if config.lora is None else base, base)


def make_trainee(
    config: TrainConfig,
    transformer: Component[FluxConfig],
    mesh: Mesh,
    start: Start = BASE,
) -> Trainee:
    """Loads the transformer and gives it an adapter.

    Args:
        config: settings of the adapter and the precision.
        transformer: the base.
        mesh: devices; base weights are sharded as for inference, factors over the batch axes.
        start: start of the parameters.

    Raises:
        UserError: the base does not fit the mesh, or the adapter does not fit the config.
    """
    flux = transformer.config
    if config.condition and not flux.condition_embed:
        raise UserError("the base has no condition embedding; open it with one")
    execution = Execution(scan_layers=config.scan_layers, remat=config.remat)
    weights = transformer.settle(config.weights)
    if weights is not None and (config.lora is None or start.from_scratch):
        raise UserError(
            f"{weights} weights stay as they are: they are a base for a LoRA, not for a training "
            "of all parameters or from scratch"
        )
    empty = abstract(flux, precision=_precision(config), execution=execution, weights=weights)
    adapter = start.adapter
    if adapter is not None:
        _check_adapter(adapter, config.lora)
        model = load(empty, transformer.source, mesh=mesh, adapters=[(adapter, 1.0)])
        _check_targets(model, config.lora)
    elif start.from_scratch:
        model = _random(empty, config, mesh)
    else:
        model = load(empty, transformer.source, mesh=mesh)
    if config.condition_init == "image" and adapter is None:
        _start_condition(model)
    if config.lora is not None:
        if adapter is None:
            _add_fresh(model, config.lora, config.seed, mesh)
        _spread(model, mesh)
    return Trainee(split_model(model, full=config.lora is None), model.stacks, flux)


def _check_adapter(adapter: Adapter, lora: LoraConfig | None) -> None:
    if lora is None:
        raise UserError(f"{adapter.name} cannot start a training of all parameters; merge it first")
    ranks = set(adapter.ranks.values())
    if ranks != {lora.rank}:
        held = ", ".join(map(str, sorted(ranks))) or "none"
        raise UserError(
            f"{adapter.name} has rank {held}, the run rank {lora.rank}; give "
            f"--lora.rank {max(ranks, default=lora.rank)}"
        )
    if lora.scale != 1:
        raise UserError(
            f"{adapter.name} has its alpha folded in, so alpha must be the rank; leave out "
            "--lora.alpha"
        )


def _check_targets(model: Flux, lora: LoraConfig | None) -> None:
    assert lora is not None  # checked together with the adapter
    flat = nnx.to_flat_state(nnx.state(model, LoraParam))
    held = {".".join(map(str, path[:-1])) for path, _ in flat}
    wanted = set(select(model, lora.targets))
    if held != wanted:
        odd = min(held ^ wanted)
        raise UserError(
            f"the adapter to start from and lora.targets {lora.targets!r} disagree about {odd}; "
            "give the targets it was trained with"
        )


def _start_condition(model: Flux) -> None:
    """Copies the kernel that embeds the canvas to a condition embedding that is zero."""
    assert model.cond_in is not None  # checked by the config
    kernel = model.cond_in.kernel
    if not jnp.any(kernel[...]):
        # Always a copy: this one is trained, and its memory is donated.
        kernel[...] = jnp.array(model.img_in.kernel[...], kernel.dtype)


_ZERO = {"img_mod", "txt_mod", "modulation", "final_layer"}


def _random(empty: Flux, config: TrainConfig, mesh: Mesh) -> Flux:
    """Draws weights that make every block start as the identity (adaLN-Zero; DiT, section 3.2).

    The kernels of all modulations and of the last Linear are zero, and so are all biases.
    """
    graphdef, _ = nnx.split(empty)

    def make() -> nnx.State:
        rngs = nnx.Rngs(config.seed)
        model = Flux(empty.config, precision=empty.precision, execution=empty.execution, rngs=rngs)
        return nnx.map_state(zeroed, nnx.state(model))

    def zeroed(path: tuple[object, ...], param: nnx.Variable) -> nnx.Variable:
        zero = not _ZERO.isdisjoint(path)
        return jax.tree.map(jnp.zeros_like, param) if zero else param

    where = _by_path(jax.eval_shape(make), model_shardings(empty, mesh))
    return nnx.merge(graphdef, jax.jit(make, out_shardings=where)())


def _add_fresh(model: Flux, lora: LoraConfig, seed: int, mesh: Mesh) -> None:
    """Draws new factors on the devices that keep them; they are the same on any mesh."""
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), nnx.state(model))
    graphdef = nnx.graphdef(model)

    def make() -> nnx.State:
        empty = nnx.merge(graphdef, shapes)
        initialise(empty, lora, nnx.Rngs(params=seed))
        return nnx.state(empty, LoraParam)

    add_factors(model, dict.fromkeys(select(model, lora.targets), lora.rank))
    where = _by_path(jax.eval_shape(make), model_shardings(model, mesh, trained_lora=True))
    nnx.update(model, jax.jit(make, out_shardings=where)())
    for _, part in nnx.iter_modules(model):
        if isinstance(part, Linear | JoinedLinear) and part.lora_b is not None:
            part.lora_scale = lora.scale


def _spread(model: Flux, mesh: Mesh) -> None:
    """Moves the factors to the devices that train them."""
    factors = nnx.state(model, LoraParam)
    where = _by_path(factors, model_shardings(model, mesh, trained_lora=True))
    nnx.update(model, jax.device_put(factors, where))


def _by_path(state: nnx.State, shardings: Mapping[str, Sharding]) -> nnx.State:
    """Arranges shardings as a tree of the structure of `state`."""
    return nnx.from_flat_state(
        [
            (path, variable.replace(shardings[".".join(map(str, path))]))
            for path, variable in nnx.to_flat_state(state)
        ]
    )


def train_state_shapes(
    split: Split, optimizer: optax.GradientTransformation, mesh: Mesh, *, ema: bool
) -> TrainState:
    """Shapes, dtypes and shardings of the training state."""
    init = functools.partial(init_state, optimizer=optimizer, ema=ema)
    where = jax.tree.map(lambda x: x.sharding, split.trained)
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        jax.eval_shape(init, split.trained),
        state_shardings(split.trained, where, optimizer, mesh, ema=ema),
    )


def first_state(
    split: Split, optimizer: optax.GradientTransformation, mesh: Mesh, *, ema: bool
) -> TrainState:
    """Makes the state before the first step; takes over the arrays of `split.trained`."""
    shapes = train_state_shapes(split, optimizer, mesh, ema=ema)
    where = jax.tree.map(lambda x: x.sharding, shapes)
    init = functools.partial(init_state, optimizer=optimizer, ema=ema)
    return jax.jit(init, out_shardings=where, donate_argnums=0)(split.trained)
