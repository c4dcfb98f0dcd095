"""Leaves of a state by per-layer name, as checkpoints store them for any layout in memory."""

import re
from collections.abc import Mapping
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from dsd_jax.types import PyTree

__all__ = ["join_layers", "names_of", "split_layers", "split_shapes"]

T = TypeVar("T")


def names_of(tree: PyTree) -> list[str]:
    """Names of the leaves in order, such as `opt_state.1.0.mu.single_blocks.qkv.lora_a`."""

    def name(key: object) -> str:
        return str(
            next(getattr(key, part) for part in ("key", "name", "idx") if hasattr(key, part))
        )

    paths = (path for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0])
    return [".".join(map(name, path)).removesuffix(".value") for path in paths]


def _layers(name: str, shape: tuple[int, ...], stacks: Mapping[str, int]) -> list[str]:
    """Per-layer names of a leaf; `[name]` where it has no layer axis."""
    for stack, depth in stacks.items():
        found = re.fullmatch(rf"(.*\.{stack})\.(?!\d)(.*)", name)
        if found and shape[:1] == (depth,):
            return [f"{found[1]}.{layer}.{found[2]}" for layer in range(depth)]
    return [name]


def split_layers(tree: PyTree, stacks: Mapping[str, int]) -> dict[str, jax.Array]:
    """Copies the leaves under per-layer names; the next step reuses the memory of the originals."""
    flat: dict[str, jax.Array] = {}
    for name, leaf in zip(names_of(tree), jax.tree.leaves(tree), strict=True):
        layers = _layers(name, leaf.shape, stacks)
        if layers == [name]:
            flat[name] = jnp.copy(leaf)
        else:
            flat |= {layer: leaf[i] for i, layer in enumerate(layers)}
    return flat


def join_layers(flat: Mapping[str, jax.Array], like: T, stacks: Mapping[str, int]) -> T:
    """The inverse of `split_layers`, with the structure of `like`."""
    leaves = []
    for name, leaf in zip(names_of(like), jax.tree.leaves(like), strict=True):
        layers = _layers(name, leaf.shape, stacks)
        own = [flat[layer] for layer in layers]
        leaves.append(own[0] if layers == [name] else jnp.stack(own))
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def split_shapes(like: PyTree, stacks: Mapping[str, int]) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and shardings of the result of `split_layers` for `like`."""
    flat: dict[str, jax.ShapeDtypeStruct] = {}
    for name, leaf in zip(names_of(like), jax.tree.leaves(like), strict=True):
        layers = _layers(name, leaf.shape, stacks)
        shape, where = leaf.shape, leaf.sharding
        if layers != [name]:
            shape = shape[1:]
            if isinstance(where, NamedSharding):
                where = NamedSharding(where.mesh, PartitionSpec(*where.spec[1:]))
        own = jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=where)
        flat |= dict.fromkeys(layers, own)
    return flat
