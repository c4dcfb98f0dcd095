"""Intervals, differences and ranks against closed forms, SciPy and simulated data."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from dsd_jax.infer.evaluate.resampling import Resampling, interval_of
from dsd_jax.infer.evaluate.statistics import (
    bootstrap,
    clustered_error,
    detectable_difference,
    first_rank,
    holm,
    paired_difference,
    rank_correlation,
    sample_size,
    variance_components,
)

RNG = np.random.default_rng(0)


def nested(subjects: int, cases: int, rounds: int) -> tuple[np.ndarray, ...]:
    """Labels of subject, case within the subject, and round within the case."""
    grids = np.meshgrid(np.arange(subjects), np.arange(cases), np.arange(rounds), indexing="ij")
    return tuple(grid.ravel() for grid in grids)


def drawn(resampling: Resampling, rows: int) -> np.ndarray:
    return np.concatenate(list(resampling.weights(rows)))


class TestResampling:
    def test_rows_of_a_group_stay_together(self):
        subjects = ["b", "a", "b", "c"]
        weights = drawn(Resampling((subjects,), draws=500), 4)
        assert (weights[:, 0] == weights[:, 2]).all()
        groups = weights[:, [0, 1, 3]]
        assert (groups.sum(1) == 3).all()
        np.testing.assert_allclose(groups.mean(0), 1, atol=0.15)

    def test_strata_keep_their_sizes(self):
        weights = drawn(Resampling(strata=[0, 0, 0, 1, 1], draws=50), 5)
        assert (weights[:, :3].sum(1) == 3).all()
        assert (weights[:, 3:].sum(1) == 2).all()

    def test_inner_levels_are_drawn_within_each_drawn_group(self):
        # Case labels repeat over subjects: case 0 of one subject is not case 0 of another.
        subjects, cases, _ = nested(5, 4, 3)
        weights = drawn(Resampling((subjects, cases), draws=400), 60).reshape(-1, 5, 4, 3)
        assert (weights == weights[..., :1]).all()  # rounds stay together
        per_subject = weights[..., 0].sum(2)
        assert (per_subject % 4 == 0).all()  # a subject that is drawn k times has 4 k cases
        assert (per_subject.sum(1) == 20).all()
        assert np.ptp(weights[..., 0], axis=2).max() > 1

    def test_groups_of_different_sizes(self):
        subjects = np.repeat(np.arange(4), [1, 2, 3, 4])
        weights = drawn(Resampling((subjects, np.arange(10)), draws=300), 10)
        for subject, size in enumerate([1, 2, 3, 4]):
            assert (weights[:, subjects == subject].sum(1) % size == 0).all()

    def test_crossed_levels_multiply(self):
        raters, items, _ = nested(3, 4, 1)
        weights = drawn(Resampling((raters, items), crossed=True, draws=50), 12).reshape(-1, 3, 4)
        rank_one = weights.sum(2, keepdims=True) * weights.sum(1, keepdims=True)
        np.testing.assert_allclose(weights * weights.sum((1, 2), keepdims=True), rank_one)
        assert (weights.sum((1, 2)) == 12).all()

    def test_a_seed_gives_the_same_draws_in_any_order_of_rows(self):
        labels = RNG.permutation(20)
        one, other = (drawn(Resampling((each,), draws=9, seed=3), 20) for each in (labels, labels))
        np.testing.assert_array_equal(one, other)
        order = RNG.permutation(20)
        moved = drawn(Resampling((labels[order],), draws=9, seed=3), 20)
        np.testing.assert_array_equal(moved, one[:, order])
        assert (drawn(Resampling((labels,), draws=9, seed=4), 20) != one).any()

    def test_what_does_not_fit_is_refused(self):
        with pytest.raises(ValueError, match="a label for each of 3 rows, got 2"):
            drawn(Resampling((["a", "b"],)), 3)
        with pytest.raises(ValueError, match="crossed levels have no strata"):
            drawn(Resampling(([0, 1],), strata=[0, 0], crossed=True), 2)

    def test_undefined_draws_are_left_out_of_an_interval(self):
        draws = np.array([np.nan, *range(101)])
        assert interval_of(50.0, draws, 0.9) == pytest.approx((50, 5, 95))
        none = interval_of(1.0, np.array([np.nan]))
        assert none.value == 1
        assert math.isnan(none.low)


class TestBootstrap:
    def test_the_error_of_a_mean_is_that_of_its_formula(self):
        values = RNG.standard_normal(200)
        draws = bootstrap(values, Resampling(draws=4000)).draws
        assert draws.std() == pytest.approx(values.std() / math.sqrt(200), rel=0.05)
        subjects = np.repeat(np.arange(40), 5)
        values = RNG.standard_normal(40)[subjects] + values
        draws = bootstrap(values, Resampling((subjects,), draws=4000)).draws
        assert draws.std() == pytest.approx(clustered_error(values, subjects), rel=0.05)

    def test_intervals_of_nested_data_hold_the_mean_in_95_of_100_studies(self):
        # 400 studies at once, as columns: 40 subjects x 3 cases x 2 rounds.
        subjects, cases, _ = nested(40, 3, 2)
        case = subjects * 3 + cases
        rng = np.random.default_rng(1)
        table = (
            rng.standard_normal((40, 400))[subjects]
            + rng.standard_normal((120, 400))[case]
            + rng.standard_normal((240, 400))
        )

        def coverage(resampling: Resampling) -> float:
            low, high = np.quantile(bootstrap(table, resampling).draws, [0.025, 0.975], axis=0)
            return float(((low <= 0) & (high >= 0)).mean())

        assert 0.92 <= coverage(Resampling((subjects,), draws=800)) <= 0.975
        assert coverage(Resampling((subjects, cases), draws=400)) > 0.95
        assert coverage(Resampling(draws=400)) < 0.85  # nobody may take rows for independent

    def test_a_product_of_means_is_not_a_mean_of_products(self):
        table = np.array([[4.0, 0.0], [0.0, 4.0]])
        means = bootstrap(table, Resampling(draws=200))
        found = means.interval(lambda m: m[:, 0] * m[:, 1])
        assert found == (4, 0, 4)

    def test_a_missing_value_does_not_count(self):
        table = np.array([[1.0, np.nan], [3.0, np.nan], [np.nan, 5.0]])
        means = bootstrap(table, Resampling(strata=[0, 0, 1], draws=50))
        np.testing.assert_allclose(means.estimate, [2, 5])
        assert means.interval(lambda m: m[:, 1]) == (5, 5, 5)
        # Undefined for a draw without any value.
        alone = bootstrap(table[:, 1], Resampling(draws=50))
        assert np.isnan(alone.draws).any()
        assert alone.interval() == (5, 5, 5)

    def test_axes_of_the_table_stay(self):
        table = RNG.standard_normal((7, 3, 2))
        means = bootstrap(table, Resampling(draws=5))
        np.testing.assert_allclose(means.estimate, table.mean(0))
        assert means.draws.shape == (5, 3, 2)
        with pytest.raises(ValueError, match="one number for each draw"):
            means.interval()


class TestPairedDifference:
    def test_two_equal_methods_do_not_differ(self):
        first = RNG.standard_normal(12)
        found = paired_difference(first, first, Resampling(draws=100))
        assert found.p == 1
        assert found.rows == 12
        assert found.interval == (0, 0, 0)

    def test_p_is_that_of_all_sign_flips(self):
        first, second = RNG.standard_normal((2, 8))
        differences = first - second + 0.4
        flips = np.array(list(itertools.product([-1, 1], repeat=8)))
        exact = (np.abs(flips @ differences) >= abs(differences.sum()) - 1e-12).mean()
        found = paired_difference(first + 0.4, second, Resampling(draws=20_000))
        assert found.p == pytest.approx(exact, abs=0.01)
        assert found.interval.value == pytest.approx(differences.mean())

    def test_subjects_are_swapped_as_a_whole(self):
        subjects = np.repeat(np.arange(4), 50)
        first, second = np.ones(200), np.zeros(200)
        alone = paired_difference(first, second, Resampling(draws=2000))
        together = paired_difference(first, second, Resampling((subjects,), draws=2000))
        assert alone.p < 0.001
        assert together.p == pytest.approx(2 / 2**4, abs=0.03)  # four subjects show no more

    def test_rows_that_one_method_lacks_count_for_neither(self):
        first = np.array([1.0, 2.0, np.nan, 9.0])
        second = np.array([0.0, 0.0, 5.0, np.nan])
        resampling = Resampling((["a", "b", "c", "d"],), strata=[0, 0, 1, 1], draws=100)
        found = paired_difference(first, second, resampling)
        assert found.rows == 2
        assert found.interval.value == 1.5
        with pytest.raises(ValueError, match="no common row"):
            paired_difference(first[2:], second[2:])

    def test_products_of_aspects(self):
        first = np.array([[2.0, 3.0], [4.0, 5.0]])
        second = np.array([[1.0, 1.0], [1.0, 3.0]])
        found = paired_difference(
            first, second, Resampling(draws=100), lambda means: means[:, 0] * means[:, 1]
        )
        assert found.interval.value == 3 * 4 - 1 * 2
        assert found.p == pytest.approx(0.5, abs=0.15)  # two of four swaps are as large


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.6]) == [1, 1]
    assert holm([]) == []


def test_clustered_error_of_independent_rows_is_the_usual_one():
    values = RNG.standard_normal(30)
    usual = values.std() / math.sqrt(30)
    assert clustered_error(values, np.arange(30)) == pytest.approx(usual)
    # Copies of a row carry no information.
    assert clustered_error(np.repeat(values, 4), np.repeat(np.arange(30), 4)) == pytest.approx(
        usual
    )
    assert clustered_error(np.append(values, np.nan), np.arange(31)) == pytest.approx(usual)


def test_the_first_rank_is_shared_in_a_tie():
    draws = np.array([[1, 0, 0], [2, 2, 1], [np.nan, 0, 0]])
    np.testing.assert_allclose(first_rank(draws), [0.75, 0.25, 0])
    assert np.isnan(first_rank(draws[2:])).all()


class TestRankCorrelation:
    @pytest.mark.parametrize("ties", [False, True])
    def test_it_is_scipys(self, ties: bool):
        x = RNG.standard_normal(40)
        y = x + RNG.standard_normal(40)
        if ties:
            x, y = np.round(x), np.round(y)
        few = Resampling(draws=20)
        rho = rank_correlation(x, y, "spearman", few)
        assert rho.value == pytest.approx(stats.spearmanr(x, y).statistic)
        tau = rank_correlation(x, y, "kendall", few)
        assert tau.value == pytest.approx(stats.kendalltau(x, y).statistic)

    @pytest.mark.parametrize("kind", ["spearman", "kendall"])
    def test_a_draw_is_the_correlation_of_its_rows(self, kind):
        x, y = np.round(RNG.standard_normal((2, 15)), 1)
        resampling = Resampling(draws=1, seed=5)
        (weights,) = resampling.weights(15)
        rows = np.repeat(np.arange(15), weights[0].astype(int))
        scipys = stats.spearmanr if kind == "spearman" else stats.kendalltau
        found = rank_correlation(x, y, kind, resampling)
        assert found.low == pytest.approx(scipys(x[rows], y[rows]).statistic)

    def test_a_constant_side_has_no_correlation(self):
        found = rank_correlation(np.ones(5), np.arange(5.0), resampling=Resampling(draws=5))
        assert math.isnan(found.value)
        with pytest.raises(ValueError, match="without NaN"):
            rank_correlation(np.array([np.nan]), np.ones(1))


class TestVarianceComponents:
    def test_balanced_by_hand(self):
        # Two subjects of two rounds: within 0.5, between 12.5 - 0.5 / 2.
        found = variance_components(np.array([0.0, 1, 5, 6]), [[0, 0, 1, 1]])
        np.testing.assert_allclose(found, [12.5 - 0.25, 0.5])

    def test_unbalanced_data_gives_what_they_were_made_with(self):
        rng = np.random.default_rng(2)
        subjects = np.repeat(np.arange(3000), rng.integers(1, 7, 3000))
        cases = np.arange(len(subjects)) % 2
        values = (
            2 * rng.standard_normal(3000)[subjects]
            + rng.standard_normal(6000)[subjects * 2 + cases]
            + 0.5 * rng.standard_normal(len(subjects))
        )
        found = variance_components(values, [subjects, cases])
        np.testing.assert_allclose(found, [4, 1, 0.25], rtol=0.1)

    def test_without_repetition_there_is_no_variance_within(self):
        found = variance_components(np.array([1.0, 2, 3]), [[0, 1, 2]])
        assert math.isnan(found[-1])


def test_what_a_sample_can_show():
    # Half a standard error for the other side of the test and z = 0.84 for the power.
    assert detectable_difference(1.0) == pytest.approx(1.959964 + 0.841621, abs=1e-5)
    assert sample_size(0.95, 0.02) == 457
