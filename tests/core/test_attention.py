"""Attention: the same numbers from every implementation, alone and on a mesh."""

import contextlib
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsd_jax import attention as module
from dsd_jax.attention import attention, shared_attention
from dsd_jax.errors import UserError
from dsd_jax.sharding import MeshConfig, make_mesh

MESHES = {
    "data=8": MeshConfig(8, 1, 1, 1),
    "tensor=4": MeshConfig(2, 1, 4, 1),
    "context=4": MeshConfig(1, 2, 1, 4),
    "mixed": MeshConfig(2, 1, 2, 2),
}


def normal(*shape: int, seed: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def make_qkv(length: int = 24, keys: int | None = None, heads: int = 4) -> tuple[jax.Array, ...]:
    """Eight batch elements; scores are large enough for the softmax to have winners."""
    keys = length if keys is None else keys
    return (
        3 * normal(8, length, heads, 16, seed=0),
        normal(8, keys, heads, 16, seed=1),
        normal(8, keys, heads, 16, seed=2),
    )


def expected(q: jax.Array, k: jax.Array, v: jax.Array) -> np.ndarray:
    q64, k64, v64 = (np.asarray(x, np.float64) for x in (q, k, v))
    logits = np.einsum("blnh,bmnh->bnlm", q64, k64) / np.sqrt(q.shape[-1])
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return np.einsum("bnlm,bmnh->blnh", weights / weights.sum(-1, keepdims=True), v64)


def run(name: str) -> Callable[..., jax.Array]:
    return jax.jit(functools.partial(attention, implementation=name))


def gradients(name: str) -> Callable[..., tuple[jax.Array, ...]]:
    def loss(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return jnp.sin(attention(q, k, v, implementation=name)).sum()

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUERY_BLOCK", 10)


@pytest.mark.parametrize("name", ["xla", "mapped", "auto"])
@pytest.mark.parametrize(("length", "keys"), [(24, 24), (20, 20), (7, 7), (24, 9)], ids=str)
def test_is_softmax_attention(name: str, length: int, keys: int) -> None:
    """24 and 7 queries do not divide into blocks of 10."""
    qkv = make_qkv(length, keys)
    np.testing.assert_allclose(run(name)(*qkv), expected(*qkv), rtol=1e-5, atol=1e-5)


def test_mapped_has_the_gradient_of_xla() -> None:
    qkv = make_qkv()
    for ours, theirs in zip(gradients("mapped")(*qkv), gradients("xla")(*qkv), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
        assert np.abs(theirs).max() > 0.1


@pytest.mark.parametrize("name", ["xla", "mapped"])
@pytest.mark.parametrize("mesh", MESHES)
def test_on_a_mesh(name: str, mesh: str) -> None:
    qkv = make_qkv()
    with jax.set_mesh(make_mesh(MESHES[mesh])):
        out = run(name)(*qkv)
    np.testing.assert_allclose(out, expected(*qkv), rtol=1e-5, atol=1e-5)


def test_gradient_on_a_mesh() -> None:
    qkv = make_qkv()
    with jax.set_mesh(make_mesh(MESHES["mixed"])):
        sharded = gradients("mapped")(*qkv)
    for ours, theirs in zip(sharded, gradients("xla")(*qkv), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_heads_are_split_over_tensor_and_context() -> None:
    """No device computes what another does."""
    qkv = make_qkv()
    with jax.set_mesh(make_mesh(MESHES["mixed"])):
        out = run("xla")(*qkv)
    shard = next(iter(out.addressable_shards)).data.shape
    assert shard[0] * shard[2] == 8 * 4 // 8


def test_heads_that_the_mesh_does_not_divide() -> None:
    """Slower, but right: 3 heads on tensor=4."""
    qkv = make_qkv(heads=3)
    with jax.set_mesh(make_mesh(MESHES["tensor=4"])):
        np.testing.assert_allclose(run("xla")(*qkv), expected(*qkv), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["xla", "mapped"])
def test_softmax_is_float32_in_bfloat16_models(name: str) -> None:
    """The error is that of rounding inputs of the second product, not of rounding logits."""
    qkv = tuple(x.astype(jnp.bfloat16) for x in make_qkv())
    out = run(name)(*qkv)
    assert out.dtype == jnp.bfloat16
    error = np.abs(np.asarray(out, np.float64) - expected(*qkv)).max()
    assert error < 0.02


@pytest.mark.parametrize("mesh", [None, "data=8", "mixed"])
def test_shared_attention_is_masked_attention_of_panels_in_a_row(mesh: str | None) -> None:
    """Two groups of four panels with 6 text tokens and 18 image tokens each."""
    q, k, v = make_qkv()
    panels, text, length = 4, 6, 24
    shared = jax.jit(functools.partial(shared_attention, text=text, panels=panels))
    with jax.set_mesh(make_mesh(MESHES[mesh])) if mesh else contextlib.nullcontext():
        out = np.asarray(shared(q, k, v))
    rows = np.arange(panels * length)
    panel, is_img = rows // length, rows % length >= text
    mask = (panel[:, None] == panel) | (is_img[:, None] & is_img)
    rows_q, rows_k, rows_v = (
        np.asarray(x, np.float64).reshape(2, panels * length, 4, 16) for x in (q, k, v)
    )
    logits = np.where(mask, np.einsum("blnh,bmnh->bnlm", rows_q, rows_k) / 4, -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    dense = np.einsum("bnlm,bmnh->blnh", weights / weights.sum(-1, keepdims=True), rows_v)
    np.testing.assert_allclose(out, dense.reshape(out.shape), rtol=1e-5, atol=1e-5)


def test_unknown_implementation() -> None:
    with pytest.raises(UserError, match="unknown attention implementation 'flash'; choose one of"):
        attention(*make_qkv(), implementation="flash")


def test_splash_refuses_lengths_it_cannot_tile() -> None:
    with pytest.raises(UserError, match="multiples of 128, got 24 and 24; choose another image"):
        attention(*make_qkv(), implementation="splash")
