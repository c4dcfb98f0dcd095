"""Times the search for near duplicates among captions, by number and similarity.

    python -m benchmarks.speed.near_captions

It uses two kinds of captions: random words, as on the web, and one sentence filled with few words,
as in the toy world, where every caption shares most of its letters with all others.
"""

import random
import time
from collections.abc import Callable
from typing import Any

from benchmarks.results import save
from dsd_jax.data.make.near import NearTexts

SECTIONS = {
    "": (
        "Near duplicates among captions",
        "Seconds on one core to add captions to the search for near duplicates.",
    ),
}

COLOURS = "red blue green pink white black grey brown amber violet".split()
THINGS = "fox otter robot kettle lantern bottle tractor horse violin teapot".split()
PLACES = "snow sand grass moss stone water wood brick slate clay".split()
SYLLABLES = "ba ce di fo gu ha ji ko lu me ni pa ra so ti vu we xa yo zu".split()


def web(rng: random.Random) -> str:
    """Twelve words of random syllables."""
    return " ".join("".join(rng.choices(SYLLABLES, k=rng.randint(1, 4))) for _ in range(12))


def templated(rng: random.Random) -> str:
    """One sentence, filled with words from short lists."""
    colour, spots, thing, place = map(rng.choice, (COLOURS, COLOURS, THINGS, PLACES))
    return f"a {colour} {thing} with {spots} dots on {place} number {rng.randrange(10**6)}"


def crowded(rng: random.Random) -> str:
    """One long sentence with one random word."""
    words = "a photo of a small red fox with a blue scarf on the old bridge in the snow".split()
    words[rng.randrange(len(words))] = f"{rng.getrandbits(32):x}"
    return " ".join(words)


def timed(make: Callable[[random.Random], str], count: int, similarity: float) -> dict[str, Any]:
    """A row of the table."""
    rng = random.Random(0)
    texts = [make(rng) for _ in range(count)]
    near = NearTexts(similarity)
    start = time.process_time()
    repeated = sum(near.add(str(n), text) is not None for n, text in enumerate(texts))
    seconds = time.process_time() - start
    return {
        "captions": make.__name__,
        "similarity": similarity,
        "count": count,
        "seconds": round(seconds, 2),
        "repeated": repeated,
    }


def main() -> None:
    """Prints and saves the table; fails if 100,000 captions take more than 60 s."""
    rows = [
        timed(make, count, similarity)
        for make, similarity in ((web, 0.7), (web, 1.0), (templated, 1.0))
        for count in (1_250, 5_000, 100_000)
    ]
    rows += [timed(templated, count, 0.7) for count in (1_250, 5_000)]
    rows += [timed(crowded, count, 0.9) for count in (1_250, 5_000)]
    save(__file__, rows)
    if slow := [row for row in rows if row["seconds"] > 60]:
        raise SystemExit(f"slower than 60 s: {slow}")


if __name__ == "__main__":
    main()
