"""Rotary embeddings: what makes them rotary."""

import jax
import jax.numpy as jnp
import numpy as np

from dsd_jax.frames import Canvas, text_ids
from dsd_jax.rope import apply_rope, embed_positions, rotated_by_product

AXES = (4, 6, 6)


def normal(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def test_one_pair_turns_by_its_angle() -> None:
    """Position 3 on an axis of two channels turns by 3 radians."""
    pe = embed_positions(jnp.asarray([[3]]), (2,), 10_000)
    out = apply_rope(jnp.asarray([[[[1.0, 0.5]]]]), pe)[0, 0, 0]
    cos, sin = np.cos(3.0), np.sin(3.0)
    np.testing.assert_allclose(out, [cos - 0.5 * sin, sin + 0.5 * cos], atol=1e-6)


def test_scores_depend_on_differences_of_positions_alone() -> None:
    q, k = normal(1, 15, 2, 16), normal(1, 15, 2, 16, seed=1)
    ids = Canvas(6, 10).image_ids

    def scores(ids: jax.Array) -> np.ndarray:
        pe = embed_positions(ids, AXES, 10_000)
        return np.einsum("blnh,bmnh->bnlm", apply_rope(q, pe), apply_rope(k, pe))

    moved = ids + jnp.asarray([[0, 7, 11]])
    np.testing.assert_allclose(scores(ids), scores(moved), atol=1e-4)
    stretched = ids * jnp.asarray([[1, 1, 2]])
    assert np.abs(scores(ids) - scores(stretched)).max() > 0.1


def test_text_at_position_zero_is_left_alone() -> None:
    x = normal(2, 5, 3, 16)
    np.testing.assert_array_equal(apply_rope(x, embed_positions(text_ids(5), AXES, 10_000)), x)


def test_bfloat16_in_and_out_with_float32_inside() -> None:
    x = normal(1, 15, 2, 16).astype(jnp.bfloat16)
    pe = embed_positions(Canvas(6, 10).image_ids, AXES, 10_000)
    assert pe.dtype == jnp.float32
    out = apply_rope(x, pe)
    assert out.dtype == jnp.bfloat16
    exact = apply_rope(x.astype(jnp.float32), pe).astype(jnp.bfloat16)
    np.testing.assert_array_equal(out.astype(np.float32), exact.astype(np.float32))


def test_the_swap_of_tpus_changes_no_bit_of_result_and_gradient() -> None:
    """It multiplies by a permutation, and turns the gradient back by the opposite angle."""
    x, gradient = (normal(2, 15, 2, 16, seed=seed).astype(jnp.bfloat16) for seed in (0, 1))
    pe = embed_positions(Canvas(6, 10).image_ids, AXES, 10_000)
    found = []
    for rotate in (apply_rope, rotated_by_product):
        out, back = jax.vjp(jax.jit(lambda x, rotate=rotate: rotate(x, pe)), x)
        found.append([np.asarray(each).view(np.uint16) for each in (out, *back(gradient))])
    np.testing.assert_array_equal(found[0], found[1])
