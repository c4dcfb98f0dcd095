"""Seeded damage to files: the same number gives the same bytes on every machine."""

import random

__all__ = ["mutated"]

_HEAD = 2_048  # bytes, where most formats say what follows
_TOKENS = (
    b"[" * 100_000,
    b'{"a":' * 50_000,
    b"1e999",
    b"-1",
    b"9" * 5_000,
    b"NaN",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\0" * 64,
    b"\xff" * 8,
    b"\x7f\xff\xff\xff",
    b'"\\ud83d"',
    b"../../../etc/passwd",
    b"../outside",
    b"/dev/zero",
    b'"' * 3,
    b"\r",
    b"=" * 1_000,
)


def mutated(data: bytes, seed: int) -> bytes:
    """A copy of a file with one to four kinds of damage, half of it near the beginning."""
    rng = random.Random(seed)
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        reach = len(changed) if rng.random() < 0.5 else min(len(changed), _HEAD)
        place = rng.randrange(reach + 1)
        match rng.randrange(6):
            case 0 if changed:  # a flipped bit
                changed[min(place, len(changed) - 1)] ^= 1 << rng.randrange(8)
            case 1:  # some other bytes
                changed[place : place + rng.randint(1, 8)] = rng.randbytes(rng.randint(1, 8))
            case 2:  # the end is missing
                del changed[place:]
            case 3:  # a piece is missing
                del changed[place : place + rng.randint(1, 64)]
            case 4:  # a piece is there twice
                piece = changed[place : place + rng.randint(1, 256)]
                changed[place:place] = piece * rng.choice((1, 2, 50))
            case _:  # what readers stumble over
                changed[place:place] = rng.choice(_TOKENS)
    return bytes(changed)
