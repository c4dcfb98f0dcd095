"""The order of training data, as a function of the position: no state, no sequence of draws.

It has three parts. A *permutation* shuffles a set of records anew in every epoch. An *interleave*
mixes endless streams by weight, as evenly as whole numbers can. A *draw* is a pair of random
numbers for one record at one step. All are functions of keys and positions alone, so any position
can be computed, in any order, by any number of hosts.
"""

import dataclasses
import hashlib
import heapq
import math
from collections.abc import Iterator, Sequence
from fractions import Fraction

import numpy as np

from dsd_jax.types import Int

__all__ = ["Interleave", "draws", "key_of", "permute"]

_ROUNDS = 12


def key_of(*parts: object) -> int:
    """Hashes the `repr` of every part to 64 bits."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def draws(seed: int, step: int, name: str) -> tuple[float, float]:
    """Two independent uniform numbers in [0, 1) for a record at a step."""
    digest = hashlib.blake2b(f"{seed}:{step}:{name}".encode(), digest_size=16).digest()
    first, second = (int.from_bytes(digest[i : i + 8], "little") >> 11 for i in (0, 8))
    return first * 2.0**-53, second * 2.0**-53


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele et al. 2014): every bit in reaches every bit out."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def permute(positions: Int[np.ndarray, " n"], size: int, key: int) -> Int[np.ndarray, " n"]:
    """Maps positions by a pseudo-random permutation of `range(size)`.

    It is a balanced Feistel network over the next even number of bits. A result outside the range
    is mapped again until it falls inside, which keeps it a permutation (cycle walking, Black and
    Rogaway 2002). The arithmetic is our own, so that no library's next version changes the order.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    low = np.uint64(2**half - 1)
    shift = np.uint64(half)
    keys = [np.uint64(key_of("round", key, number)) for number in range(_ROUNDS)]
    values = positions.astype(np.uint64)
    inside = np.zeros(values.shape, bool)
    while not inside.all():
        left, right = values[~inside] >> shift, values[~inside] & low
        for own in keys:
            left, right = right, left ^ (_mix(right + own) & low)
        values[~inside] = (left << shift) | right
        inside = values < size
    return values.astype(np.int64)


@dataclasses.dataclass(frozen=True)
class Interleave:
    """Several endless streams as one, mixed by weight as evenly as possible.

    Item k of a stream of weight w is due at (k + 1/2) / w; items come in order of their due time,
    streams of the same due time in order of their number. The arithmetic is exact: with whole
    weights, the first sum(weights) items hold exactly `weights` of each, and so do the next.
    """

    weights: tuple[Fraction, ...]

    def counts(self, n: int) -> list[int]:
        """Number of items that each stream has among the first n."""
        total = sum(self.weights, Fraction())
        # All items due before n / total. They are n, give or take half an item per stream.
        counts = [math.ceil(n * weight / total - Fraction(1, 2)) for weight in self.weights]
        while sum(counts) > n:
            last = max(
                (stream for stream, count in enumerate(counts) if count),
                key=lambda stream: (self._due(stream, counts[stream] - 1), stream),
            )
            counts[last] -= 1
        while sum(counts) < n:
            counts[self._next(counts)] += 1
        return counts

    def run(self, start: int, length: int) -> Iterator[tuple[int, int]]:
        """(stream, position in it) of items `start` to `start + length - 1`."""
        counts = self.counts(start)
        due = [(self._due(stream, count), stream) for stream, count in enumerate(counts)]
        heapq.heapify(due)
        for _ in range(length):
            stream = due[0][1]
            yield stream, counts[stream]
            counts[stream] += 1
            heapq.heapreplace(due, (self._due(stream, counts[stream]), stream))

    def _due(self, stream: int, position: int) -> Fraction:
        return (position + Fraction(1, 2)) / self.weights[stream]

    def _next(self, counts: Sequence[int]) -> int:
        return min(
            range(len(counts)), key=lambda stream: (self._due(stream, counts[stream]), stream)
        )
