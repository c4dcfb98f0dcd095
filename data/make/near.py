"""Texts that are nearly the same as one seen before: MinHash with banding, exact in the end."""

import hashlib
from collections import defaultdict

import numpy as np
from jaxtyping import UInt64

__all__ = ["NearTexts"]

_LETTERS = 5  # of a shingle
_BANDS, _ROWS = 16, 4  # texts that share 0.7 of their shingles meet in a band with 98.8 %


def _constants(name: str, count: int) -> UInt64[np.ndarray, " n"]:
    digests = (hashlib.sha256(f"{name} {i}".encode()).digest()[:8] for i in range(count))
    return np.asarray([int.from_bytes(digest) | 1 for digest in digests], np.uint64)


_POWERS = _constants("letters", _LETTERS)
_FACTORS = _constants("factors", _BANDS * _ROWS)
_OFFSETS = _constants("offsets", _BANDS * _ROWS)


class NearTexts:
    """Texts taken in, and which of them a new one repeats.

    The answer depends on nothing but the texts and their order.
    """

    def __init__(self, similarity: float) -> None:
        """`similarity`: share of common shingles (Jaccard) from which two texts count as one."""
        self.similarity = similarity
        self._held: list[tuple[str, str]] = []
        self._bands: list[dict[int, int]] = [{} for _ in range(_BANDS)]
        self._more: dict[tuple[int, int], list[int]] = defaultdict(list)  # few: same band, unlike

    def add(self, name: str, text: str) -> str | None:
        """Takes a text in, unless it repeats another; then the name of that one."""
        shingles = _shingles(text)
        mixed = shingles[:, None] * _FACTORS + _OFFSETS
        smallest = (mixed >> np.uint64(32)).min(0).astype(np.uint32).reshape(_BANDS, _ROWS)
        keys = [int(key) for key in smallest.astype(np.uint64) @ _FACTORS[:_ROWS]]
        met: set[int] = set()
        for place in enumerate(keys):
            if (held := self._bands[place[0]].get(place[1])) is not None:
                met |= {held, *self._more.get(place, ())}
        for number in sorted(met):
            other, known = self._held[number]
            theirs = _shingles(known)
            common = len(np.intersect1d(shingles, theirs, assume_unique=True))
            if common >= self.similarity * (len(shingles) + len(theirs) - common):
                return other
        number = len(self._held)
        for place in enumerate(keys):
            if self._bands[place[0]].setdefault(place[1], number) != number:
                self._more[place].append(number)
        self._held.append((name, text))
        return None


def _shingles(text: str) -> UInt64[np.ndarray, " n"]:
    """Hashes of all runs of five letters, each once; case and spaces do not count."""
    letters = " ".join(text.casefold().split()).ljust(_LETTERS)
    codes = np.frombuffer(letters.encode("utf-32-le", "replace"), np.uint32).astype(np.uint64)
    runs = np.lib.stride_tricks.sliding_window_view(codes, _LETTERS)
    return np.unique(runs @ _POWERS)
