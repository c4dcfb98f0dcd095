"""Permutations, interleaving and draws: functions of positions that nothing else can change."""

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest

from dsd_jax.data.load.order import Interleave, draws, key_of, permute


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 17, 1000, 4097])
def test_a_permutation_has_every_position_once(size: int):
    found = permute(np.arange(size), size, key_of("a", size))
    assert sorted(found) == list(range(size))


def test_a_permutation_can_be_asked_for_anywhere():
    whole = permute(np.arange(1000), 1000, 7)
    some = np.asarray([999, 3, 3, 500])
    np.testing.assert_array_equal(permute(some, 1000, 7), whole[some])


def test_permutations_are_as_good_as_random():
    size, trials = 8, 1500
    counts = np.zeros((size, size))
    for trial in range(trials):
        counts[np.arange(size), permute(np.arange(size), size, key_of(trial))] += 1
    chi_square = ((counts - trials / size) ** 2 / (trials / size)).sum()
    assert chi_square < 85.4  # 49 degrees of freedom, p = 0.001
    large = permute(np.arange(10_000), 10_000, 1)
    assert abs(np.corrcoef(large[:-1], large[1:])[0, 1]) < 0.03


def test_the_order_never_changes():
    """A run is resumed by a later version, on another machine: these numbers are a promise."""
    assert permute(np.arange(12), 12, 5).tolist() == [0, 10, 3, 1, 9, 11, 5, 2, 7, 8, 4, 6]
    assert key_of(1, "a", [2]) == 1_855_870_061_761_875_673
    assert draws(1, 2, "pair") == (0.6796404684133343, 0.6816467066431622)


@pytest.mark.parametrize(
    "weights",
    [["1"], ["1", "1"], ["3", "1"], ["7", "2", "5"], ["0.1", "0.7", "0.2"], ["1/3", "5", "2/7"]],
)
def test_an_interleave_is_one_sequence_wherever_it_is_entered(weights: list[str]):
    streams = Interleave(tuple(map(Fraction, weights)))
    sequence = list(streams.run(0, 300))
    counts = [0] * len(weights)
    total = sum(streams.weights)
    for n, (stream, position) in enumerate(sequence):
        assert streams.counts(n) == counts
        assert position == counts[stream]
        counts[stream] += 1
        for count, weight in zip(counts, streams.weights, strict=True):
            assert abs(count - (n + 1) * weight / total) <= 1
    for start in (1, 17, 123, 299):
        assert list(streams.run(start, 300 - start)) == sequence[start:]


def test_whole_weights_are_met_exactly():
    weights = (40, 1, 1, 1, 1, 1, 1, 1, 7)
    streams = Interleave(tuple(map(Fraction, weights)))
    for period in (0, 1, 2, 1_000_003):
        items = streams.run(period * sum(weights), sum(weights))
        found = Counter(stream for stream, _ in items)
        assert [found[stream] for stream in range(len(weights))] == list(weights)


def test_draws_are_uniform_and_differ_by_seed_step_and_record():
    drawn = np.asarray([draws(1, step, f"pair-{i}") for step in range(40) for i in range(50)])
    assert drawn.min() >= 0
    assert drawn.max() < 1
    np.testing.assert_allclose(drawn.mean(0), 0.5, atol=0.03)
    assert abs(np.corrcoef(drawn.T)[0, 1]) < 0.07
    assert len({draws(1, 2, "a"), draws(2, 1, "a"), draws(1, 2, "b"), draws(12, 2, "a")}) == 4
