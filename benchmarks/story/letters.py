"""Random captions and balloons in random panels: does any letter leave its box?

python -m benchmarks.story.letters [--captions N]
"""

import argparse
import collections
import itertools

import numpy as np
from PIL import Image, ImageChops

from benchmarks.results import save
from dsd_jax.errors import UserError
from dsd_jax.infer.story.letters import Letters
from dsd_jax.infer.story.page import Picture, letter
from dsd_jax.infer.story.place import Words

SECTIONS = {
    "": (
        "Letters in their boxes",
        """Random texts of one to twenty words, with accents and long words, as captions or balloons
in panels of 160 to 640 pixels a side. *Outside* counts texts of which a line's ink leaves its box,
or a box its panel; for captions also those that changed a pixel outside of the box. A text that
does not fit is *refused* with a message. The command fails if a letter is outside.""",
    ),
}
ALPHABETS = {
    "Latin": "abcdefghijklmnopqrstuvwxyzàçéèêëîïñôöùûüßåøčřšžłÅÉÖABCDEFGHIJKLMNOPQRSTUVWXYZ",
    "Greek": "αβγδεζηθικλμνξοπρστυφχψωςάέήίόύώΑΒΓΔΕΖΗΘΙΚΛΜΝΞΟΠΡΣΤΥΦΧΨΩ",
    "Cyrillic": "абвгдежзийклмнопрстуфхцчшщъыьэюяёіїєАБВГДЕЖЗИЙКЛМНОПРСТУФХЦЧШЩЪЫЬЭЮЯ",
}
OUTCOMES = ("set", "refused", "outside")


def random_text(rng: np.random.Generator, script: str) -> str:
    """One to twenty words of one to fourteen letters."""
    letters = list(ALPHABETS[script])
    words = (
        "".join(rng.choice(letters, int(rng.integers(1, 15))))
        for _ in range(int(rng.integers(1, 21)))
    )
    return " ".join(words) + str(rng.choice(list(".!?,")))


def outcome(rng: np.random.Generator, script: str) -> str:
    """Letters one random panel: `set`, `refused`, or `outside` if ink lies outside of its box."""
    size = int(rng.integers(160, 640)), int(rng.integers(160, 640))
    corner = rng.uniform(0, 0.6, 2)
    left, top, right, bottom = map(float, (*corner, *(corner + 0.35)))
    colours = rng.integers(0, 256, (4, 4, 3)).astype(np.uint8)
    image = Image.fromarray(colours).resize((128, 128))
    kind = "caption" if rng.random() < 0.5 else "balloon"
    picture = Picture(image, (Words(kind, random_text(rng, script)),), (left, top, right, bottom))
    try:
        drawn = letter(picture, size, Letters(), "the panel")
    except UserError:
        return "refused"
    (placed,), (ink,) = drawn.placed, drawn.ink
    panel = Image.new("L", size)
    whole = placed.box.left >= 0 and placed.box.top >= 0
    whole &= placed.box.right <= panel.width and placed.box.bottom <= panel.height
    whole &= all(placed.inner.holds(line) for line in ink)
    # A panel drawn without its text differs in that box alone.
    plain = letter(Picture(image, (), picture.subject), size, Letters(), "the panel").image
    changed = ImageChops.difference(drawn.image, plain).convert("L").getbbox()
    if kind == "caption" and changed is not None:
        box = placed.box
        whole &= changed[0] >= box.left and changed[1] >= box.top
        whole &= changed[2] <= box.right and changed[3] <= box.bottom
    return "set" if whole else "outside"


def run(captions: int, seed: int = 0) -> dict[str, collections.Counter[str]]:
    """Counts the outcomes of each script; the scripts take turns."""
    rng = np.random.default_rng(seed)
    counts = {script: collections.Counter[str]() for script in ALPHABETS}
    for script, _ in zip(itertools.cycle(ALPHABETS), range(captions), strict=False):
        counts[script][outcome(rng, script)] += 1
    return counts


def main() -> None:
    """Prints and saves the counts; status 1 if a letter left its box."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--captions", type=int, default=1000)
    counts = run(parser.parse_args().captions)
    every = sum(counts.values(), collections.Counter[str]())
    rows = [
        {"script": script, "texts": count.total(), **{name: count[name] for name in OUTCOMES}}
        for script, count in {**counts, "all": every}.items()
    ]
    save(__file__, rows)
    raise SystemExit(every["outside"] > 0)


if __name__ == "__main__":
    main()
