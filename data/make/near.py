"""Finds texts that nearly repeat an earlier one: MinHash with banding, then an exact comparison.

The signature of a text holds 64 hashes. Two texts agree in each of them with a probability equal to
the share of letter sequences that they have in common (Jaccard similarity). Signatures are cut into
bands, and only texts that agree in a whole band are compared. The bands are as wide as the
similarity allows, so that few different texts share one, and the time is linear in the number of
texts. Where thousands of texts are nearly, but not quite, similar enough, a text is compared with
the most similar of the latest ones; a text with the same letter sequences is always found.
"""

import hashlib
from array import array

import numpy as np
from jaxtyping import UInt32, UInt64

__all__ = ["NearTexts"]

_LETTERS = 5  # letters of a sequence
_HASHES = 64
_WIDTHS = (4, 8, 16, 32, 64)  # hashes in a band
_MISSED = 0.0125  # share of repeated texts that may share no band; 0.0123 at similarity 0.7
_CROWD = 2048  # latest texts of a band that are looked at
_COMPARED = 16  # most similar texts that are compared exactly
_DEVIATIONS = 3.5  # standard deviations by which the share of equal hashes may be too small


def _constants(name: str, count: int) -> UInt64[np.ndarray, " n"]:
    digests = (hashlib.sha256(f"{name} {i}".encode()).digest()[:8] for i in range(count))
    return np.asarray([int.from_bytes(digest) | 1 for digest in digests], np.uint64)


_POWERS = _constants("letters", _LETTERS)
_FACTORS = _constants("factors", _HASHES)
_OFFSETS = _constants("offsets", _HASHES)


class NearTexts:
    """A collection of texts that differ from each other.

    The result for a text depends only on the texts before it.
    """

    def __init__(self, similarity: float) -> None:
        """`similarity`: least share of common letter sequences for two texts to count as one."""
        self._similarity = similarity
        self._width = _width(similarity)
        self._held: list[tuple[str, str]] = []
        # Those of `_held`, and space for more.
        self._signatures = np.empty((64, _HASHES), np.uint32)
        deviation = (similarity * (1 - similarity) / _HASHES) ** 0.5
        self._least_equal = similarity - _DEVIATIONS * deviation
        self._same: dict[bytes, int] = {}  # number of the text with these letter sequences
        self._bands: list[dict[int, array]] = [{} for _ in range(_HASHES // self._width)]

    def add(self, name: str, text: str) -> str | None:
        """Adds a text. If it repeats an earlier one, returns the name of that one instead."""
        runs = _runs(text)
        signature = _signature(runs)
        keys = signature.reshape(-1, self._width).astype(np.uint64) @ _FACTORS[: self._width]
        buckets = [
            band.setdefault(key, array("q"))
            for band, key in zip(self._bands, keys.tolist(), strict=True)
        ]
        digest = hashlib.blake2b(runs.tobytes(), digest_size=16).digest()
        same = [self._same[digest]] if digest in self._same else []
        for number in sorted({*self._candidates(buckets, signature), *same}):
            other, known = self._held[number]
            theirs = _runs(known)
            common = len(np.intersect1d(runs, theirs, assume_unique=True))
            if common >= self._similarity * (len(runs) + len(theirs) - common):
                return other
        number = len(self._held)
        if number == len(self._signatures):
            self._signatures = np.concatenate([self._signatures, np.empty_like(self._signatures)])
        self._signatures[number] = signature
        self._held.append((name, text))
        self._same[digest] = number
        for bucket in buckets:
            bucket.append(number)
        return None

    def _candidates(self, buckets: list[array], signature: UInt32[np.ndarray, " h"]) -> list[int]:
        """Numbers of the texts that may be similar enough."""
        marks = np.zeros(len(self._held), bool)
        for bucket in buckets:
            marks[np.frombuffer(bucket, np.int64)[-_CROWD:]] = True
        met = np.flatnonzero(marks)
        equal = (self._signatures[met] == signature).mean(1)
        met, equal = met[equal >= self._least_equal], equal[equal >= self._least_equal]
        most_similar = np.argsort(-equal, kind="stable")[:_COMPARED]
        return [int(number) for number in met[most_similar]]


def _width(similarity: float) -> int:
    """The widest band that nearly all pairs of texts of a similarity share."""
    return max(
        (w for w in _WIDTHS if (1 - similarity**w) ** (_HASHES // w) <= _MISSED),
        default=min(_WIDTHS),
    )


def _signature(runs: UInt64[np.ndarray, " n"]) -> UInt32[np.ndarray, " h"]:
    """The smallest value of each hash over all runs."""
    mixed = runs[:, None] * _FACTORS + _OFFSETS
    return (mixed >> np.uint64(32)).min(0).astype(np.uint32)


def _runs(text: str) -> UInt64[np.ndarray, " n"]:
    """Hashes of all runs of five letters, each once; case and spaces do not count."""
    letters = " ".join(text.casefold().split()).ljust(_LETTERS)
    codes = np.frombuffer(letters.encode("utf-32-le", "replace"), np.uint32).astype(np.uint64)
    runs = np.lib.stride_tricks.sliding_window_view(codes, _LETTERS)
    return np.unique(runs @ _POWERS)
