"""Scores a customiser on the toy world: cases, and the pixel judge's view of its images.

A case shows a subject in one scene and asks for "this thing" in another, with another background
and another place. The words say nothing about the subject, so only the reference can tell it.

A case can be told in tags, which a cases file of an evaluation holds (`Case.tags`, `from_tags`):
`shape`, `body`, `mark` and `marking` of the subject, and `before` and `after`, the background,
place, size, tilt and light of the two scenes, such as `beach northwest big upright day`.
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from dsd_jax.errors import UserError
from dsd_jax.interval import Interval
from dsd_jax.toy.judge import Seen, judge
from dsd_jax.toy.words import describe
from dsd_jax.toy.world import (
    BACKGROUNDS,
    COLOURS,
    LIGHTS,
    MARKINGS,
    PLACES,
    SHAPES,
    SIZES,
    TILTS,
    Scene,
    Subject,
    render,
    subjects,
)
from dsd_jax.types import UInt8

__all__ = ["METRICS", "Case", "Score", "from_tags", "make_cases", "score", "summarise"]

_RESAMPLES = 2000


@dataclasses.dataclass(frozen=True)
class Case:
    """A subject as the reference shows it, and the scene that is asked for.

    Attributes:
        seed: Seed of the noise that its image is sampled from.
    """

    id: str
    subject: Subject
    before: Scene
    after: Scene
    seed: int

    @property
    def text(self) -> str:
        """`this thing on snow at northwest`."""
        return describe(None, self.after)

    @property
    def tags(self) -> dict[str, str]:
        """The case without its id and seed, for `from_tags`."""
        scenes = {"before": self.before, "after": self.after}
        words = {name: " ".join(dataclasses.astuple(own)) for name, own in scenes.items()}
        return {**dataclasses.asdict(self.subject), **words}

    def reference(self) -> UInt8[np.ndarray, "32 32 3"]:
        """The reference picture."""
        return render(self.subject, self.before)

    def ideal(self) -> UInt8[np.ndarray, "32 32 3"]:
        """One of many pictures that would be right."""
        return render(self.subject, self.after)


class Score(NamedTuple):
    """The correct attributes of one image.

    Attributes:
        identity: Shape, both colours and the marking are the reference's.
        prompt: Background and place are those of the text.
        both: Identity and prompt are both right.
        copied: Background and place are the reference's.
    """

    identity: bool
    prompt: bool
    both: bool
    copied: bool


METRICS = Score._fields


def make_cases(count: int, *, seed: int = 0, held_out: bool = True) -> list[Case]:
    """Draws cases. Subjects repeat only when there are not enough.

    Args:
        count: Number of cases.
        seed: Seed of the choice. A seed gives the same first cases for every count.
        held_out: Take held-out subjects; otherwise those that models are trained on.
    """
    pool = subjects(held_out=held_out)
    order = np.random.default_rng([seed, len(pool)]).permutation(len(pool))
    made = []
    for number in range(count):
        rng = np.random.default_rng([seed, number, held_out])
        backgrounds = rng.permutation(list(BACKGROUNDS))[:2].tolist()
        places = rng.permutation(list(PLACES))[:2].tolist()
        before, after = (Scene(b, p) for b, p in zip(backgrounds, places, strict=True))
        made.append(
            Case(
                id=f"{'held' if held_out else 'seen'}-{number:04d}",
                subject=pool[order[number % len(pool)]],
                before=before,
                after=after,
                seed=number,
            )
        )
    return made


_KNOWN: Mapping[str, Collection[str]] = {
    "shape": SHAPES, "body": COLOURS, "mark": COLOURS, "marking": MARKINGS
}  # fmt: skip
_SCENE: Sequence[Collection[str]] = (BACKGROUNDS, PLACES, SIZES, TILTS, LIGHTS)


def from_tags(name: str, tags: Mapping[str, str], *, seed: int = 0) -> Case:
    """Makes a case from its tags; further tags are passed over.

    Args:
        name: Id of the case.
        tags: What `Case.tags` gave.
        seed: Seed of the noise that its image is sampled from.

    Raises:
        UserError: A tag is missing, or names nothing of the toy world.
    """
    for tag, known in _KNOWN.items():
        if tags.get(tag) not in known:
            raise UserError(_wrong(name, tag, tags, f"expected one of {', '.join(known)}"))
    scenes = []
    for tag in ("before", "after"):
        words = tags.get(tag, "").split()
        if len(words) != len(_SCENE) or not all(
            word in known for word, known in zip(words, _SCENE, strict=True)
        ):
            raise UserError(
                _wrong(
                    name, tag, tags, "expected a scene such as `beach northwest big upright day`"
                )
            )
        scenes.append(Scene(*words))
    subject = Subject(*(tags[tag] for tag in _KNOWN))
    before, after = scenes
    return Case(name, subject, before, after, seed)


def _wrong(case: str, tag: str, tags: Mapping[str, str], expected: str) -> str:
    given = f"is `{tags[tag]}`" if tag in tags else "is missing"
    return f"case {case}: the tag `{tag}` of a toy case {given}; {expected}"


def score(case: Case, picture: UInt8[np.ndarray, "32 32 3"]) -> Score:
    """Scores an image by the pixel judge. What is unclear counts as wrong."""
    return score_seen(case, judge(picture))


def score_seen(case: Case, seen: Seen) -> Score:
    """Scores an image by what the pixel judge has seen in it."""
    identity, prompt = seen.subject == case.subject, seen.shows(case.after)
    return Score(identity, prompt, identity and prompt, seen.shows(case.before))


def summarise(scores: Sequence[Score], *, seed: int = 0) -> Mapping[str, Interval]:
    """Computes mean and 95 % interval of every metric, by a bootstrap over cases."""
    table = np.asarray(scores, float)
    rng = np.random.default_rng(seed)
    drawn = table[rng.integers(len(table), size=(_RESAMPLES, len(table)))].mean(1)
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    return {
        name: Interval(float(table[:, i].mean()), float(low[i]), float(high[i]))
        for i, name in enumerate(METRICS)
    }
