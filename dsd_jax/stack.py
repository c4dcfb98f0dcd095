"""Stacks of equal blocks: how they are built and run, and the names of their two layouts.

Unrolled, the stack is a list and a parameter's path is `double_blocks.3.img_mod.lin.kernel`.
Scanned, it is one block whose arrays have a leading layer axis, at
`double_blocks.img_mod.lin.kernel`: one block to trace and compile, at the price of a copy out of
the stacked array in every layer. Files and conversion tables know the first form only.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
from flax import nnx
from jax.extend.core import Primitive

from dsd_jax.config import Execution
from dsd_jax.errors import UserError
from dsd_jax.types import PyTree

__all__ = [
    "REMAT_POLICIES",
    "SCALE",
    "build_stack",
    "kernel_of_scale",
    "layer_paths",
    "map_stack",
    "part_of_stack",
    "run_stack",
    "without_layers",
]

SCALE = "_scale"
"""Suffix that makes the name of a quantised kernel's scale from that of the kernel."""

Block = TypeVar("Block", bound=nnx.Module)
Carry = TypeVar("Carry")
Out = TypeVar("Out")

_POLICIES = jax.checkpoint_policies
_CUDNN = "dot_product_attention_fwd_wrapper"


def _keeping(*names: str) -> Callable[..., Any]:
    """Keeps arrays of these names, and what cuDNN's attention returns, which bears no name.

    The gradient of a kernel needs the kernel's output and the sums of its rows. If one of them is
    missing, the kernel runs again.
    """

    def by_cudnn(primitive: Primitive, *_: object, **__: object) -> bool:
        return primitive.name == _CUDNN

    return _POLICIES.save_from_both_policies(_POLICIES.save_only_these_names(*names), by_cudnn)


# "none" keeps everything; the others name what survives to the backward pass.
REMAT_POLICIES: dict[str, Callable[..., Any] | None] = {
    "none": None,
    "full": _POLICIES.nothing_saveable,
    "dots": _POLICIES.dots_with_no_batch_dims_saveable,
    "attention": _keeping("attention"),
    "attention+qkv": _keeping("attention", "qkv"),
}


def build_stack(
    make: Callable[[nnx.Rngs], Block], depth: int, *, scan: bool, rngs: nnx.Rngs
) -> Any:
    """Builds `depth` blocks, each from its own key.

    Returns:
        Unrolled, an `nnx.List` of blocks; scanned, one block with stacked arrays. Callers know
        which they asked for.
    """
    if not scan:
        return nnx.List([make(rngs) for _ in range(depth)])
    keys = jax.random.split(rngs.params(), depth)
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
    return nnx.merge(graphdef, jax.vmap(lambda key: nnx.state(make(nnx.Rngs(key))))(keys))


def map_stack(
    stack: nnx.List[Block] | Block, of: Callable[[Block], Out], execution: Execution
) -> list[Out] | Out:
    """Computes `of(block)` for every block.

    Returns:
        Unrolled, a list; scanned, a tree of arrays with a leading layer axis.
    """

    def apply(graphdef: nnx.GraphDef[Block], state: nnx.State) -> Out:
        return of(nnx.merge(graphdef, _on_device(state, execution)))

    if isinstance(stack, nnx.List):
        return [apply(*nnx.split(block)) for block in stack]
    graphdef, state = nnx.split(stack)
    return jax.lax.map(lambda layer: apply(graphdef, layer), state)


def run_stack(
    stack: nnx.List[Block] | Block,
    step: Callable[..., Carry],
    carry: Carry,
    execution: Execution,
    *each: PyTree,
) -> Carry:
    """Applies `carry = step(block, carry, *own)` for every block in order.

    Args:
        stack: The blocks.
        step: Runs a block.
        carry: Input of the first block.
        execution: Rematerialisation, and where the weights lie.
        each: Further inputs of the blocks, in the form that `map_stack` returns.

    Raises:
        UserError: `execution.remat` is not a key of `REMAT_POLICIES`.
    """
    remat = execution.remat
    if remat not in REMAT_POLICIES:
        raise UserError(
            f"unknown rematerialisation policy {remat!r}; choose one of {', '.join(REMAT_POLICIES)}"
        )

    def apply(graphdef: nnx.GraphDef[Block], state: nnx.State, carry: Carry, *own: PyTree) -> Carry:
        return step(nnx.merge(graphdef, _on_device(state, execution)), carry, *own)

    if remat != "none":
        # A scan keeps forward and backward apart by itself, without the barriers of prevent_cse.
        apply = jax.checkpoint(
            apply,
            policy=REMAT_POLICIES[remat],
            static_argnums=0,
            prevent_cse=isinstance(stack, nnx.List),
        )

    if isinstance(stack, nnx.List):
        for block, *own in zip(stack, *each, strict=True):
            carry = apply(*nnx.split(block), carry, *own)
        return carry
    graphdef, state = nnx.split(stack)

    def layer(carry: Carry, inputs: tuple[nnx.State, tuple[PyTree, ...]]) -> tuple[Carry, None]:
        state, own = inputs
        return apply(graphdef, state, carry, *own), None

    return jax.lax.scan(layer, carry, (state, each))[0]


def _on_device(state: nnx.State, execution: Execution) -> nnx.State:
    """The weights of one block, brought from host memory if they lie there."""
    if execution.stream_layers:
        state = jax.device_put(state, jax.memory.Space.Device)
    return state


def part_of_stack(stack: Any, first: int, last: int) -> Any:
    """Blocks `first` to `last - 1` of a stack of either kind, as a stack of the same kind."""
    if isinstance(stack, nnx.List):
        return nnx.List([stack[i] for i in range(first, last)])
    graphdef, state = nnx.split(stack)
    return nnx.merge(graphdef, jax.tree.map(lambda x: x[first:last], state))


def layer_paths(path: str, stacks: Mapping[str, int]) -> list[str]:
    """Per-layer paths of a parameter of a scanned model; `[path]` if it is not in a stack.

    `stacks` maps the path of each stack to its depth: `{"double_blocks": 19}` turns
    `double_blocks.img_mod.lin.kernel` into `double_blocks.0.img_mod.lin.kernel` and 18 more.
    """
    for prefix, depth in stacks.items():
        rest = path.removeprefix(prefix + ".")
        if rest != path:
            if rest.split(".", 1)[0].isdigit():
                return [path]
            return [f"{prefix}.{layer}.{rest}" for layer in range(depth)]
    return [path]


def kernel_of_scale(path: str) -> str | None:
    """Path of the kernel that a scale belongs to; None for a parameter that is no such scale."""
    kernel = path.removesuffix(SCALE)
    return kernel if kernel != path and kernel.endswith("kernel") else None


def without_layers(path: str) -> str:
    """Removes the layer numbers from a path, as patterns of paths expect."""
    return re.sub(r"\.\d+(?=\.|$)", "", path)
