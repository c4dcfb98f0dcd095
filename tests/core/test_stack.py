"""Scanned or unrolled, rematerialised or not: the same numbers."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax._src.cudnn import fused_attention_stablehlo

from dsd_jax.attention import attention
from dsd_jax.blocks import SingleBlock
from dsd_jax.config import Execution
from dsd_jax.errors import UserError
from dsd_jax.rope import embed_positions
from dsd_jax.stack import REMAT_POLICIES, build_stack, layer_paths, run_stack
from dsd_jax.types import Shape
from dsd_jax.weights import param_shapes
from tests.tiny_flux import CANVAS, TINY, abstract_flux, call, flux_inputs, make_flux

STACKS = {"double_blocks": 2, "single_blocks": 3}


def make_single_blocks(*, scan: bool) -> SingleBlock | nnx.List[SingleBlock]:
    """The single blocks of the tiny model; the same weights in both layouts."""
    return make_flux(scan_layers=scan).single_blocks


@functools.cache
def gradients(*, scan: bool, remat: str = "none") -> tuple[jax.Array, dict[str, np.ndarray]]:
    """Loss over the output of a stack of single blocks, and its gradient by per-layer path."""
    graphdef, state = nnx.split(make_single_blocks(scan=scan))
    rng = np.random.default_rng(3)
    x = jnp.asarray(rng.standard_normal((2, 24, TINY.width), np.float32))
    vec = jnp.asarray(rng.standard_normal((2, TINY.width), np.float32))
    pe = embed_positions(CANVAS.image_ids, TINY.axes_dim, TINY.theta)

    def loss(state: nnx.State) -> jax.Array:
        out = run_stack(
            nnx.merge(graphdef, state),
            lambda block, x: block(x, block.modulations(vec), pe, attention),
            x,
            Execution(scan_layers=scan, remat=remat),
        )
        return jnp.sin(out).sum()

    value, grads = jax.jit(jax.value_and_grad(loss))(state)
    found: dict[str, np.ndarray] = {}
    for parts, variable in nnx.to_flat_state(grads):
        path = ".".join(map(str, parts))
        array = np.asarray(variable[...])
        if scan:
            found |= {f"{layer}.{path}": array[layer] for layer in range(TINY.single_depth)}
        else:
            found[path] = array
    return value, found


def assert_same(ours: Any, theirs: Any, bound: float = 1e-6) -> None:
    error = np.linalg.norm(np.asarray(ours) - np.asarray(theirs)) / np.linalg.norm(theirs)
    assert error < bound, error


def test_scanned_is_unrolled() -> None:
    scanned, unrolled = (
        call(make_flux(scan_layers=scan))(**flux_inputs()) for scan in (True, False)
    )
    assert_same(scanned, unrolled)


def test_gradients_of_scanned_and_unrolled() -> None:
    (value, scanned), (expected, unrolled) = gradients(scan=True), gradients(scan=False)
    assert_same(value, expected)
    assert scanned.keys() == unrolled.keys()
    for path, theirs in unrolled.items():
        assert np.abs(theirs).max() > 0, path
        assert_same(scanned[path], theirs, 1e-4)


@pytest.mark.parametrize(
    ("scan", "remat"),
    [*((True, name) for name in REMAT_POLICIES if name != "none"), (False, "full")],
)
def test_rematerialisation_changes_nothing(scan: bool, remat: str) -> None:
    (value, recomputed), (expected, kept) = gradients(scan=scan, remat=remat), gradients(scan=scan)
    assert_same(value, expected)
    for path, theirs in kept.items():
        assert_same(recomputed[path], theirs, 1e-4)


def test_policies_keep_less() -> None:
    """Memory kept for the backward pass: none > dots, attention+qkv > attention > full."""

    def residuals(remat: str) -> int:
        graphdef, state = nnx.split(abstract_flux(scan_layers=True, remat=remat))
        _, backward = jax.eval_shape(
            lambda state: jax.vjp(lambda s: nnx.merge(graphdef, s)(**flux_inputs()), state), state
        )
        return sum(leaf.size for leaf in jax.tree.leaves(backward))

    sizes = {remat: residuals(remat) for remat in REMAT_POLICIES}
    assert sizes["none"] > sizes["dots"] > sizes["full"]
    assert sizes["none"] > sizes["attention+qkv"] > sizes["attention"] > sizes["full"]


def test_unknown_policy() -> None:
    with pytest.raises(UserError, match="unknown rematerialisation policy 'some'; choose one of"):
        gradients(scan=True, remat="some")


@pytest.mark.parametrize("scan", [False, True])
def test_every_new_block_has_its_own_weights(scan: bool) -> None:
    def make(rngs: nnx.Rngs) -> nnx.Linear:
        return nnx.Linear(4, 4, rngs=rngs)

    stack = build_stack(make, 3, scan=scan, rngs=nnx.Rngs(0))
    kernels = stack.kernel[...] if scan else [block.kernel[...] for block in stack]
    assert len(kernels) == 3
    assert np.abs(np.diff(np.asarray(kernels), axis=0)).max() > 0.1


@pytest.mark.parametrize("scan", [False, True])
def test_blocks_run_in_order(scan: bool) -> None:
    stack = build_stack(
        lambda rngs: nnx.Linear(4, 4, use_bias=False, rngs=rngs), 3, scan=scan, rngs=nnx.Rngs(0)
    )
    kernels = stack.kernel[...] if scan else [block.kernel[...] for block in stack]
    x = jnp.asarray([[1.0, 2.0, 3.0, 4.0]])
    out = run_stack(stack, lambda block, x: block(x), x, Execution(scan_layers=scan))
    np.testing.assert_allclose(out, x @ kernels[0] @ kernels[1] @ kernels[2], rtol=1e-5)


def test_layer_paths() -> None:
    path = "double_blocks.img_mod.lin.kernel"
    expected = ["double_blocks.0.img_mod.lin.kernel", "double_blocks.1.img_mod.lin.kernel"]
    assert layer_paths(path, STACKS) == expected
    for own in ("double_blocks.1.img_mod.lin.kernel", "img_in.kernel", "double_blocks_x.kernel"):
        assert layer_paths(own, STACKS) == [own]


def test_both_layouts_hold_the_same_parameters() -> None:
    scanned, unrolled = (param_shapes(abstract_flux(scan_layers=scan)) for scan in (True, False))
    per_layer: dict[str, Shape] = {}
    for path, shape in scanned.items():
        layers = layer_paths(path, STACKS)
        own = shape if layers == [path] else shape[1:]
        per_layer |= dict.fromkeys(layers, own)
    assert per_layer == unrolled
    assert unrolled["double_blocks.1.txt_attn.qkv.kernel"] == (TINY.width, 3, 4, 16)


@pytest.mark.parametrize(
    ("implementation", "platform", "kernel"),
    [("splash", "tpu", r'"splash_mha_fwd_\w+"'), ("cudnn", "cuda", r"__cudnn\$fmhaSoftmax\b")],
)
def test_attention_that_is_kept_is_not_run_again(
    implementation: str, platform: str, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its gradient needs the sums of its rows too: without them the kernel would run twice."""
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(fused_attention_stablehlo, "check_compute_capability", lambda _: True)
    x = jax.ShapeDtypeStruct((1, 128, 1, 128), jnp.bfloat16)

    def runs(remat: str) -> int:
        def attend(x: jax.Array) -> jax.Array:
            return jnp.sin(attention(x, x, x, implementation=implementation))

        def loss(x: jax.Array) -> jax.Array:
            return jax.checkpoint(attend, policy=REMAT_POLICIES[remat])(x).astype("float32").sum()

        program = jax.jit(jax.value_and_grad(loss)).trace(x)
        return len(re.findall(kernel, program.lower(lowering_platforms=(platform,)).as_text()))

    assert runs("full") == 2
    assert runs("attention") == 1
