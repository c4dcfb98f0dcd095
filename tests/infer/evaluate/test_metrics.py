"""Metrics on features against values that are computed by hand."""

import math

import numpy as np
import pytest

from dsd_jax.infer.evaluate.metrics import (
    copy_angle,
    cosine,
    diversity,
    mean_per_case,
    mean_similarity,
    structure_novelty,
    vendi,
)

X, Y = np.array([1.0, 0.0]), np.array([0.0, 1.0])


def at(degrees: float) -> np.ndarray:
    """A feature at an angle from X towards Y, of length 3."""
    return 3 * np.array([math.cos(math.radians(degrees)), math.sin(math.radians(degrees))])


def test_cosine_of_pairs():
    a = np.stack([X, X, X]).astype(np.float32)
    b = np.stack([at(0), at(60), at(180)]).astype(np.float32)
    np.testing.assert_allclose(cosine(a, b), [1, 0.5, -1], atol=1e-7)


def test_mean_similarity_takes_every_output_with_every_picture():
    generated, real = np.stack([X, at(60)]), np.stack([X, Y, at(60)])
    expected = (1 + 0 + 0.5 + 0.5 + math.sqrt(3) / 2 + 1) / 6
    assert mean_similarity(generated, real) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("generated", "expected"), [(0, 1), (80, -1), (40, 0), (20, 0.5), (-40, 1), (120, -1)]
)
def test_copy_angle_is_1_at_the_reference_and_minus_1_at_the_target(
    generated: float, expected: float
):
    (found,) = copy_angle(at(generated)[None], X[None], at(80)[None])
    assert found == pytest.approx(expected)


def test_copy_angle_of_a_batch_and_of_one_picture_twice():
    found = copy_angle(np.stack([at(0), at(30)]), np.stack([X, X]), np.stack([Y, X]))
    np.testing.assert_allclose(found, [1, 0], atol=1e-7)


def test_a_copy_in_another_style_has_no_structure_novelty():
    rng = np.random.default_rng(0)
    reference = rng.standard_normal((4, 5, 8))
    turn = np.linalg.qr(rng.standard_normal((8, 8)))[0]  # keeps all angles among patches
    assert structure_novelty(reference @ turn, reference) == pytest.approx(0)
    assert structure_novelty(rng.standard_normal((4, 5, 8)), reference) > 0.5


def test_structure_novelty_by_hand():
    # Cosines of the pairs (0,1), (0,2), (1,2): 0, -1, 0 and 0.5, -0.5, 0.5.
    generated = np.stack([at(0), at(90), at(180)])[None]
    reference = np.stack([at(0), at(60), at(120)])[None]
    assert structure_novelty(generated, reference) == pytest.approx(0)
    # 0.5, -0.5, 0.5 against 0.5, 0.5, -0.5: r = -0.5.
    other = np.stack([at(60), at(0), at(120)])[None]
    assert structure_novelty(other, reference) == pytest.approx(1.5)


def test_structure_novelty_looks_inside_the_mask():
    rng = np.random.default_rng(0)
    reference = rng.standard_normal((4, 4, 6))
    generated = reference.copy()
    generated[2:] = rng.standard_normal((2, 4, 6))
    mask = np.zeros((4, 4), bool)
    mask[:2] = True
    assert structure_novelty(generated, reference, mask) == pytest.approx(0)
    assert structure_novelty(generated, reference) > 0.1
    flat = np.ones((4, 4, 6))
    assert math.isnan(structure_novelty(flat, reference))


def test_diversity_and_the_number_of_different_outputs():
    assert diversity(np.stack([X, X, X])) == pytest.approx(0)
    assert diversity(np.stack([X, Y, at(60)])) == pytest.approx(1 - (0.5 + math.sqrt(3) / 2) / 3)
    assert vendi(np.stack([X, X, X])) == pytest.approx(1)
    assert vendi(np.eye(5)) == pytest.approx(5)
    assert vendi(np.stack([X, X, Y, Y])) == pytest.approx(2)


def test_every_case_counts_once_whatever_its_number_of_outputs():
    means = mean_per_case(["b", "a", "b", "b"], [1.0, 5.0, 2.0, 6.0])
    assert means == {"b": 3.0, "a": 5.0}
    assert list(means) == ["b", "a"]
    assert mean_per_case([], []) == {}


def test_what_has_no_answer_is_refused():
    for wrong in (np.zeros(2), np.array([np.nan, 1]), np.array([np.inf, 1])):
        with pytest.raises(ValueError, match="a feature is zero or not finite"):
            cosine(X[None], wrong[None])
    with pytest.raises(ValueError, match="grids differ"):
        structure_novelty(np.ones((2, 2, 2)), np.ones((2, 3, 2)))
    with pytest.raises(ValueError, match="the mask leaves 0 patches"):
        structure_novelty(np.ones((2, 2, 2)), np.ones((2, 2, 2)), np.zeros((2, 2), bool))
    with pytest.raises(ValueError, match="at least two outputs"):
        diversity(X[None])
    with pytest.raises(ValueError, match="at least one output"):
        vendi(np.zeros((0, 2)))
    with pytest.raises(ValueError, match="argument 2 is longer"):
        mean_per_case(["a"], [1.0, 2.0])
