"""Sets random captions and balloons in random panels: does any letter leave its box?

    python -m benchmarks.story.letters --captions 1000

Texts are of three scripts (Latin, Greek, Cyrillic), with accents and long words. A text that does
not fit must be refused with a message, which is counted.
"""

import argparse
import collections

import numpy as np
from PIL import Image, ImageChops

from dsd_jax.errors import UserError
from dsd_jax.infer.story.letters import Letters
from dsd_jax.infer.story.page import Picture, letter
from dsd_jax.infer.story.place import Words

ALPHABETS = {
    "Latin": "abcdefghijklmnopqrstuvwxyzàçéèêëîïñôöùûüßåøčřšžłÅÉÖABCDEFGHIJKLMNOPQRSTUVWXYZ",
    "Greek": "αβγδεζηθικλμνξοπρστυφχψωςάέήίόύώΑΒΓΔΕΖΗΘΙΚΛΜΝΞΟΠΡΣΤΥΦΧΨΩ",
    "Cyrillic": "абвгдежзийклмнопрстуфхцчшщъыьэюяёіїєАБВГДЕЖЗИЙКЛМНОПРСТУФХЦЧШЩЪЫЬЭЮЯ",
}


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
    # What was really drawn: the panel without its text differs from it in that box alone.
    plain = letter(Picture(image, (), picture.subject), size, Letters(), "the panel").image
    changed = ImageChops.difference(drawn.image, plain).convert("L").getbbox()
    if kind == "caption" and changed is not None:
        box = placed.box
        whole &= changed[0] >= box.left and changed[1] >= box.top
        whole &= changed[2] <= box.right and changed[3] <= box.bottom
    return "set" if whole else "outside"


def run(captions: int, seed: int = 0) -> collections.Counter[str]:
    """Counts outcomes, the scripts in turn."""
    rng = np.random.default_rng(seed)
    scripts = list(ALPHABETS)
    return collections.Counter(outcome(rng, scripts[i % len(scripts)]) for i in range(captions))


def main() -> None:
    """Prints the counts; status 1 if a letter left its box."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--captions", type=int, default=1000)
    counts = run(parser.parse_args().captions)
    print(", ".join(f"{counts[name]} {name}" for name in ("set", "refused", "outside")))
    raise SystemExit(counts["outside"] > 0)


if __name__ == "__main__":
    main()
