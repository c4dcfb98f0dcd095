"""Agreement against other libraries and closed forms; corrections against simulated judges."""

import math

import choix
import krippendorff
import numpy as np
import pytest
from scipy import stats

from dsd_jax.infer.evaluate.agreement import (
    Count,
    bradley_terry,
    cohen_kappa,
    entropy,
    krippendorff_alpha,
    mean_correlation,
    pearson,
    ppi_mean,
    ratio,
    rogan_gladen,
    unanimity,
    weighted_kappa,
    wilson,
)
from dsd_jax.infer.evaluate.resampling import Resampling

RNG = np.random.default_rng(0)
FEW = Resampling(draws=20)


def rated(raters: int, items: int, missing: float = 0.2) -> np.ndarray:
    """Ratings from 0 to 4 that agree to some extent; some are missing."""
    truth = RNG.integers(0, 5, items)
    found = np.clip(truth + RNG.integers(-1, 2, (raters, items)), 0, 4).astype(float)
    found[RNG.random(found.shape) < missing] = np.nan
    return found


class TestKappa:
    def test_by_hand(self):
        # The example of Cohen 1960: seen 0.7, by chance 0.5.
        a = ["yes"] * 25 + ["no"] * 25
        b = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
        found = cohen_kappa(a, b, FEW)
        assert found.value == pytest.approx(0.4)
        assert found.low < 0.4 < found.high

    def test_two_levels_weigh_as_labels(self):
        a, b = RNG.integers(0, 2, (2, 60))
        for weights in ("linear", "quadratic"):
            assert weighted_kappa(a, b, weights, FEW).value == pytest.approx(
                cohen_kappa(a, b, FEW).value
            )

    def test_quadratic_kappa_by_moments(self):
        a, b = rated(2, 80, 0)
        # 1 - E(a - b)^2 / (var a + var b + (mean a - mean b)^2), Fleiss and Cohen 1973.
        chance = a.var() + b.var() + (a.mean() - b.mean()) ** 2
        expected = 1 - ((a - b) ** 2).mean() / chance
        assert weighted_kappa(a, b, "quadratic", FEW).value == pytest.approx(expected)

    def test_linear_kappa_by_hand(self):
        assert weighted_kappa([0, 1, 3], [0, 3, 3], "linear", FEW).value == pytest.approx(
            1 - (2 / 3) / ((0 + 3 + 3 + 1 + 2 + 2 + 3 + 0 + 0) / 9)
        )

    def test_raters_who_say_one_thing_alone_have_no_kappa(self):
        assert math.isnan(cohen_kappa(["a", "a"], ["a", "a"], FEW).value)
        with pytest.raises(ValueError, match="two ratings of each item, got 2, 1"):
            cohen_kappa(["a", "a"], ["a"])

    def test_items_of_a_group_are_drawn_together(self):
        a = np.repeat(RNG.integers(0, 2, 20), 10)
        b = np.repeat(RNG.integers(0, 2, 20), 10)
        alone = cohen_kappa(a, b, Resampling(draws=300))
        together = cohen_kappa(a, b, Resampling((np.repeat(np.arange(20), 10),), draws=300))
        assert together.high - together.low > 2 * (alone.high - alone.low)


class TestKrippendorff:
    @pytest.mark.parametrize("level", ["nominal", "ordinal", "interval"])
    @pytest.mark.parametrize("raters", [2, 4])
    def test_it_is_the_librarys(self, level, raters: int):
        ratings = rated(raters, 50)
        expected = krippendorff.alpha(ratings, level_of_measurement=level)
        found = krippendorff_alpha(ratings, level, FEW)
        assert found.value == pytest.approx(expected)
        assert found.low <= found.value <= found.high

    @pytest.mark.parametrize("level", ["nominal", "ordinal", "interval"])
    def test_a_draw_is_the_alpha_of_its_items(self, level):
        ratings = rated(3, 30)
        resampling = Resampling(draws=1, seed=1)
        (weights,) = resampling.weights(30)
        items = np.repeat(np.arange(30), weights[0].astype(int))
        expected = krippendorff.alpha(ratings[:, items], level_of_measurement=level)
        assert krippendorff_alpha(ratings, level, resampling).low == pytest.approx(expected)

    def test_continuous_ratings(self):
        ratings = RNG.standard_normal(30) + 0.5 * RNG.standard_normal((2, 30))
        expected = krippendorff.alpha(ratings, level_of_measurement="interval")
        assert krippendorff_alpha(ratings, resampling=FEW).value == pytest.approx(expected)

    def test_equal_ratings_and_single_raters_have_no_alpha(self):
        for ratings in (np.ones((2, 3)), np.array([[1.0, np.nan], [np.nan, 2.0]])):
            for level in ("nominal", "ordinal", "interval"):
                assert math.isnan(krippendorff_alpha(ratings, level, FEW).value)


class TestPearson:
    def test_it_is_scipys(self):
        x = RNG.standard_normal(30)
        y = x + RNG.standard_normal(30)
        expected = stats.pearsonr(x, y)
        limits = expected.confidence_interval()
        assert pearson(x, y) == pytest.approx((expected.statistic, limits.low, limits.high))

    def test_few_or_constant_values(self):
        assert pearson(np.array([1.0, 2, 3]), np.array([2.0, 4, 6])) == pytest.approx((1, -1, 1))
        assert math.isnan(pearson(np.ones(5), np.arange(5.0)).value)

    def test_the_mean_of_correlations_is_fishers(self):
        assert mean_correlation([0.5, 0.5]) == pytest.approx(0.5)
        assert mean_correlation([0.0, 0.9]) == pytest.approx(math.tanh(math.atanh(0.9) / 2))


def test_wilson_is_scipys():
    for successes, trials in ((0, 10), (10, 10), (7, 20), (380, 400)):
        limits = stats.binomtest(successes, trials).proportion_ci(method="wilson")
        assert wilson((successes, trials)) == pytest.approx(
            (successes / trials, limits.low, limits.high), abs=1e-12
        )
    assert wilson((0, 0))[1:] == (0, 1)


def test_a_ratio_of_shares_holds_the_truth_in_95_of_100_studies():
    rng = np.random.default_rng(0)
    held = []
    for first, second in rng.binomial(200, [0.05, 0.9], (400, 2)).tolist():
        found = ratio(wilson((first, 200)), wilson((second, 200)))
        held.append(found.low <= 0.05 / 0.9 <= found.high)
    assert 0.925 <= np.mean(held) <= 0.98
    nothing = ratio(wilson((0, 50)), wilson((50, 50)))
    assert (nothing.value, nothing.low) == (0, 0)
    assert 0.05 < nothing.high < 0.1
    assert ratio(wilson((5, 10)), wilson((0, 10))).high == math.inf


def test_repeated_answers():
    answers = [["yes", "yes"], ["yes", "no"], ["no"], ["no", "no"]]
    assert unanimity(answers).value == pytest.approx(2 / 3)
    assert entropy(answers) == pytest.approx(1 / 3)
    assert math.isnan(entropy([["no"]]))


class TestCorrections:
    def test_rogan_gladen_by_hand(self):
        found = rogan_gladen(Count(60, 100), Count(90, 100), Count(80, 100))
        assert found.value == pytest.approx((0.6 + 0.8 - 1) / (0.9 + 0.8 - 1))
        assert found.low < found.value < found.high
        perfect = rogan_gladen(Count(60, 100), Count(10**9, 10**9), Count(10**9, 10**9))
        assert perfect == pytest.approx(wilson((60, 100)), abs=1e-3)

    def test_a_share_stays_a_share(self):
        found = rogan_gladen(Count(1, 100), Count(90, 100), Count(80, 100))
        assert found.value == found.low == 0

    def test_a_judge_without_skill_says_nothing(self):
        for judge in ((Count(50, 100), Count(50, 100)), (Count(0, 0), Count(9, 10))):
            found = rogan_gladen(Count(60, 100), *judge)
            assert math.isnan(found.value)
            assert found[1:] == (0, 1)

    def test_rogan_gladen_holds_the_truth_in_95_of_100_studies(self):
        rng = np.random.default_rng(0)
        yes, sensitivity, specificity = 0.4, 0.9, 0.85
        seen = yes * sensitivity + (1 - yes) * (1 - specificity)
        held = []
        for _ in range(600):
            found = rogan_gladen(
                Count(rng.binomial(1000, seen), 1000),
                Count(rng.binomial(100, sensitivity), 100),
                Count(rng.binomial(100, specificity), 100),
            )
            held.append(found.low <= yes <= found.high)
        assert 0.925 <= np.mean(held) <= 0.98

    def test_ppi_is_unbiased_and_holds_the_truth(self):
        rng = np.random.default_rng(1)
        held, width, plain = [], [], []
        for _ in range(400):
            human = rng.normal(2, 1, 600)
            judge = human + 0.5 + 0.3 * rng.standard_normal(600)
            found = ppi_mean(judge, human[:60], judge[:60])
            held.append(found.low <= 2 <= found.high)
            width.append(found.high - found.low)
            plain.append(2 * 1.96 * human[:60].std(ddof=1) / math.sqrt(60))
        assert 0.925 <= np.mean(held) <= 0.98
        assert np.mean(width) < 0.6 * np.mean(plain)

    def test_ppi_weights_stand_for_items(self):
        judge = np.array([1.0, 1, 1, 0])
        found = ppi_mean(judge, np.array([1.0, 1]), np.array([1.0, 0]), np.array([3.0, 1]))
        assert found.value == pytest.approx(0.75 + 0.25)
        with pytest.raises(ValueError, match="two or more items, rated by people and by the judge"):
            ppi_mean(judge, np.ones(1), np.ones(1))


def duels(
    strengths: list[float], tie: float, answers: int
) -> tuple[list[str], list[str], list[int]]:
    rng = np.random.default_rng(2)
    left: list[str] = []
    right: list[str] = []
    outcome: list[int] = []
    for _ in range(answers):
        i, j = rng.permutation(len(strengths))[:2]
        a, b = math.exp(strengths[i]), math.exp(strengths[j])
        shares = np.array([a, b, tie * math.sqrt(a * b)])
        outcome.append([1, -1, 0][rng.choice(3, p=shares / shares.sum())])
        left.append("abcd"[i])
        right.append("abcd"[j])
    return left, right, outcome


class TestBradleyTerry:
    def test_without_ties_it_is_the_librarys(self):
        left, right, outcome = duels([0.8, 0.1, -0.3, -0.6], 0, 120)
        wins = [
            ("abcd".index(a), "abcd".index(b)) if side > 0 else ("abcd".index(b), "abcd".index(a))
            for a, b, side in zip(left, right, outcome, strict=True)
        ]
        expected = choix.ilsr_pairwise(4, wins)
        found = bradley_terry(left, right, outcome, FEW)
        np.testing.assert_allclose(
            [found.strength[name].value for name in "abcd"], expected, atol=1e-6
        )
        assert found.tie.value == 0

    def test_ties_are_davidsons(self):
        # Two methods: the likelihood has a closed form, shares are fitted exactly.
        outcome = [1] * 8 + [-1] * 2 + [0] * 6
        found = bradley_terry(["a"] * 16, ["b"] * 16, outcome, FEW)
        strength = {name: interval.value for name, interval in found.strength.items()}
        assert strength["a"] - strength["b"] == pytest.approx(math.log(8 / 2))
        assert found.tie.value == pytest.approx(6 / math.sqrt(8 * 2))

    def test_many_answers_give_the_true_strengths(self):
        truth = [0.8, 0.1, -0.3, -0.6]
        found = bradley_terry(*duels(truth, 0.7, 4000), Resampling(draws=100))
        for name, strength in zip("abcd", truth, strict=True):
            assert found.strength[name].value == pytest.approx(strength, abs=0.15)
            assert found.strength[name].high - found.strength[name].low < 0.25
        assert found.tie.value == pytest.approx(0.7, abs=0.08)
        assert found.first["a"] == 1
        assert sum(found.first.values()) == pytest.approx(1)

    def test_a_method_that_always_wins_needs_a_prior(self):
        answers = (["a", "a", "b"], ["b", "b", "a"], [1, 1, -1])
        with pytest.raises(ValueError, match="never beaten by the others"):
            bradley_terry(*answers)
        found = bradley_terry(*answers, FEW, prior=0.5)
        assert found.strength["a"].value - found.strength["b"].value == pytest.approx(
            math.log(3.5 / 0.5)
        )

    def test_what_does_not_fit_is_refused(self):
        with pytest.raises(ValueError, match=r"1 \(left\), -1 \(right\) or 0 \(tie\)"):
            bradley_terry(["a"], ["b"], [2])
        with pytest.raises(ValueError, match="two methods and an outcome"):
            bradley_terry(["a"], ["b"], [])
