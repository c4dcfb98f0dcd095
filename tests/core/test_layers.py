"""The parts of the model, against their definitions (parity with PyTorch is in tests/parity)."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from dsd_jax.config import BFLOAT16, FLOAT32
from dsd_jax.layers import (
    Embedding,
    JoinedLinear,
    LayerNorm,
    Linear,
    LoraParam,
    RMSNorm,
    layer_norm,
    modulate,
    timestep_embedding,
)

RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape, np.float32)


def randomised(module: nnx.Module) -> nnx.Module:
    for _, variable in nnx.to_flat_state(nnx.state(module, nnx.Param)):
        variable.set_value(jnp.asarray(normal(*variable.shape), variable.dtype))
    return module


@pytest.mark.parametrize(
    ("in_shape", "out_shape"), [((12,), (6,)), ((12,), (3, 2, 5)), ((4, 3), (6,))]
)
def test_linear_maps_trailing_axes(in_shape: tuple[int, ...], out_shape: tuple[int, ...]) -> None:
    linear = Linear(in_shape, out_shape, precision=FLOAT32, rngs=nnx.Rngs(0))
    kernel, bias = normal(*in_shape, *out_shape), normal(*out_shape)
    linear.kernel, linear.bias = nnx.Param(jnp.asarray(kernel)), nnx.Param(jnp.asarray(bias))
    x = normal(2, 7, *in_shape)
    expected = np.tensordot(x, kernel, len(in_shape)) + bias
    np.testing.assert_allclose(linear(jnp.asarray(x)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("in_shape", "out_shape", "fused"),
    [((12,), (6,), 1), ((4, 3), (6,), 1), ((12,), (6, 2), 1), ((12,), (3, 2, 5), 3)],
)
@pytest.mark.parametrize("backend", ["cpu", "tpu"])  # the axes of products are flat or kept
def test_adapter_adds_scaled_product(
    in_shape: tuple[int, ...],
    out_shape: tuple[int, ...],
    fused: int,
    backend: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """y = x W + bias + scale * (x A) B, with one pair of factors per fused part."""
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    rank, scale = 5, 0.7
    linear = Linear(in_shape, out_shape, fused=fused, precision=FLOAT32, rngs=nnx.Rngs(0))
    x = normal(2, 7, *in_shape)
    base = np.asarray(linear(jnp.asarray(x)))
    if fused == 1:
        a, b = normal(*in_shape, rank), normal(rank, *out_shape)
        delta = np.tensordot(np.tensordot(x, a, len(in_shape)), b, 1)
    else:
        a, b = normal(*in_shape, fused, rank), normal(fused, rank, *out_shape[1:])
        delta = np.stack([x @ a[:, i] @ b[i].reshape(rank, -1) for i in range(fused)], axis=2)
        delta = delta.reshape(2, 7, *out_shape)
    linear.lora_a, linear.lora_b = LoraParam(jnp.asarray(a)), LoraParam(jnp.asarray(b))
    linear.lora_scale = scale
    np.testing.assert_allclose(linear(jnp.asarray(x)), base + scale * delta, rtol=1e-4, atol=1e-4)
    linear.lora_merged = True
    np.testing.assert_array_equal(linear(jnp.asarray(x)), base)


def test_joined_linear_is_a_linear_over_the_concatenation() -> None:
    heads, dim, mlp, rank, width = 3, 4, 10, 5, 12
    joined = JoinedLinear(heads, dim, mlp, precision=FLOAT32, rngs=nnx.Rngs(0))
    randomised(joined)
    attn, channels = normal(2, 7, heads, dim), normal(2, 7, mlp)
    x = np.concatenate([attn.reshape(2, 7, width), channels], axis=-1)
    kernel = np.concatenate([joined.attn_kernel[...].reshape(width, width), joined.mlp_kernel[...]])
    expected = x @ kernel + np.asarray(joined.bias[...])
    np.testing.assert_allclose(
        joined(jnp.asarray(attn), jnp.asarray(channels)), expected, rtol=1e-4, atol=1e-4
    )

    a, b = normal(width + mlp, rank), normal(rank, width)
    joined.lora_a_attn = LoraParam(jnp.asarray(a[:width].reshape(heads, dim, rank)))
    joined.lora_a_mlp = LoraParam(jnp.asarray(a[width:]))
    joined.lora_b, joined.lora_scale = LoraParam(jnp.asarray(b)), 0.7
    expected += 0.7 * (x @ a @ b)
    np.testing.assert_allclose(
        joined(jnp.asarray(attn), jnp.asarray(channels)), expected, rtol=1e-4, atol=2e-4
    )


def test_new_kernels_keep_the_size_of_activations() -> None:
    x = jnp.asarray(normal(64, 400))
    out = Linear((400,), (300,), precision=FLOAT32, rngs=nnx.Rngs(0))(x)
    assert 0.9 < out.std() < 1.1
    zero = Linear((400,), (300,), zero=True, precision=FLOAT32, rngs=nnx.Rngs(0))
    assert not zero.kernel[...].any()
    joined = JoinedLinear(4, 25, 300, precision=FLOAT32, rngs=nnx.Rngs(0))
    attn, channels = jnp.asarray(normal(64, 1, 4, 25)), jnp.asarray(normal(64, 1, 300))
    assert 0.9 < joined(attn, channels).std() < 1.1


def test_statistics_are_float32_whatever_runs() -> None:
    """bfloat16 in and out, but the only rounding is that of the result."""
    x = (1000 + 3 * normal(4, 6, 512)).astype(ml_dtypes.bfloat16)
    wide = x.astype(np.float64)
    norms = {
        RMSNorm(512, precision=BFLOAT16): wide / np.sqrt((wide**2).mean(-1, keepdims=True)),
        LayerNorm(512, eps=1e-6, precision=BFLOAT16): (wide - wide.mean(-1, keepdims=True))
        / np.sqrt(wide.var(-1, keepdims=True) + 1e-6),
    }
    for norm, expected in norms.items():
        out = norm(jnp.asarray(x))
        assert out.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(out, np.float64), expected, rtol=2**-8, atol=1e-4)


def test_modulate_is_float32_inside() -> None:
    x, shift, scale = (
        normal(*shape).astype(ml_dtypes.bfloat16) for shape in ((2, 5, 64), (2, 64), (2, 64))
    )
    wide, wide_shift, wide_scale = (part.astype(np.float64) for part in (x, shift, scale))
    normed = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-6)
    expected = (1 + wide_scale[:, None]) * normed + wide_shift[:, None]
    out = modulate(jnp.asarray(x), jnp.asarray(shift), jnp.asarray(scale))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(out, np.float64), expected, rtol=2**-8, atol=1e-4)


def test_layer_norm_of_a_constant_is_zero() -> None:
    assert not layer_norm(jnp.full((2, 3, 8), 7.0)).any()


def test_timestep_embedding_is_cosines_then_sines_of_a_thousand_t() -> None:
    t = jnp.asarray([0.0, 0.001, 0.5], jnp.float32)
    out = timestep_embedding(t, 8)
    angles = np.array([0.0, 1.0, 500.0])[:, None] * 10_000.0 ** -np.arange(0, 1, 0.25)
    expected = np.concatenate([np.cos(angles), np.sin(angles)], axis=-1)
    np.testing.assert_allclose(out, expected, atol=1e-4)


def test_embedding_looks_up_rows_in_the_compute_dtype() -> None:
    table = Embedding(11, 6, precision=FLOAT32, rngs=nnx.Rngs(0))
    ids = np.array([[3, 10, 3]])
    np.testing.assert_array_equal(table(jnp.asarray(ids)), np.asarray(table.embedding[...])[ids])
    low = Embedding(11, 6, precision=BFLOAT16, rngs=nnx.Rngs(0))
    assert low(jnp.asarray(ids)).dtype == jnp.bfloat16


def test_float32_products_are_not_rounded_to_tf32() -> None:
    """On accelerators the default precision of float32 is lower."""
    linear = Linear((8,), (8,), precision=FLOAT32, rngs=nnx.Rngs(0))
    joined = JoinedLinear(2, 4, 8, precision=FLOAT32, rngs=nnx.Rngs(0))
    for jaxpr in (
        jax.make_jaxpr(linear)(jnp.asarray(normal(2, 8))),
        jax.make_jaxpr(joined)(jnp.ones((2, 1, 2, 4)), jnp.ones((2, 1, 8))),
    ):
        products = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "dot_general"]
        assert products
        for eqn in products:
            assert set(eqn.params["precision"]) == {jax.lax.Precision.HIGHEST}
