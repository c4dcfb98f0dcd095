"""Scores a customiser on the toy world: cases, and the pixel judge's view of its images.

A case of the task `identity` shows a subject in one scene and asks for "this thing" in another,
with another background and another place. The words say nothing about the subject, so only the
reference can tell it. A case of `relight` asks for the same scene in another light. A case of
`depth` shows how near everything is, and the words tell what it is.

A case can be told in tags, which a cases file of an evaluation holds (`Case.tags`, `from_tags`):
`shape`, `body`, `mark` and `marking` of the subject, and `before` and `after`, the background,
place, size, tilt and light of the two scenes, such as `beach northwest big upright day`.
"""

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from dsd_jax.drift import measure_drift
from dsd_jax.errors import UserError, did_you_mean
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
    disparity,
    render,
    subjects,
)
from dsd_jax.types import UInt8

__all__ = [
    "METRICS",
    "METRICS_OF",
    "Case",
    "Guided",
    "Relit",
    "Score",
    "from_tags",
    "make_cases",
    "score",
    "score_seen",
    "summarise",
]

_RESAMPLES = 2000
_LIT = 0.3  # share of the relighting cases whose reference is not in the usual light


@dataclasses.dataclass(frozen=True)
class Case:
    """A subject as the reference shows it, and the scene that is asked for.

    Attributes:
        seed: Seed of the noise that its image is sampled from.
        task: `identity`, `relight` or `depth`.
    """

    id: str
    subject: Subject
    before: Scene
    after: Scene
    seed: int
    task: str = "identity"

    @property
    def text(self) -> str:
        """`this thing on snow at northwest`; of a depth case it names the subject."""
        return describe(self.subject if self.task == "depth" else None, self.after)

    @property
    def tags(self) -> dict[str, str]:
        """The case without its id, task and seed, for `from_tags`."""
        scenes = {"before": self.before, "after": self.after}
        words = {name: " ".join(dataclasses.astuple(own)) for name, own in scenes.items()}
        return {**dataclasses.asdict(self.subject), **words}

    def reference(self) -> UInt8[np.ndarray, "32 32 3"]:
        """The reference picture."""
        if self.task == "depth":
            grey = np.rint(255 * disparity(self.subject.shape, self.after)).astype(np.uint8)
            return np.repeat(grey[..., None], 3, axis=2)
        return render(self.subject, self.before)

    def ideal(self) -> UInt8[np.ndarray, "32 32 3"]:
        """One of many pictures that would be right."""
        return render(self.subject, self.after)


class Score(NamedTuple):
    """The correct attributes of one image of an identity case.

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


class Relit(NamedTuple):
    """The correct attributes of one image of a relighting case.

    Attributes:
        identity: Shape, both colours and the marking are the reference's.
        light: Tint, side and strength of the light are those of the text.
        colours: The albedo of body, marking and background is the reference's.
        drift: Shift in pixels of the picture against the reference; NaN if it cannot be told.
    """

    identity: bool
    light: bool
    colours: bool
    drift: float


class Guided(NamedTuple):
    """The correct attributes of one image of a depth case.

    Attributes:
        order: Subject, ground and background lie where the map has them: shape, place, size and
            tilt of the subject, and the horizon.
        prompt: Background, body, marking and its colour are those of the text.
    """

    order: bool
    prompt: bool


METRICS = Score._fields
METRICS_OF = {"identity": METRICS, "relight": Relit._fields, "depth": Guided._fields}
"""Fields of the scores of each task."""


def make_cases(
    count: int, *, task: str = "identity", seed: int = 0, held_out: bool = True
) -> list[Case]:
    """Draws cases. Subjects repeat only when there are not enough.

    Args:
        count: Number of cases.
        task: `identity`, `relight` or `depth`.
        seed: Seed of the choice. A seed gives the same first cases for every count.
        held_out: Take held-out subjects; otherwise those that models are trained on.

    Raises:
        UserError: The toy world has no cases of this task.
    """
    if task not in _SCENES:
        raise UserError(
            f"the toy world has no cases of the task {task!r}; expected {', '.join(_SCENES)}"
            f"{did_you_mean(task, _SCENES)}"
        )
    pool = subjects(held_out=held_out)
    order = np.random.default_rng([seed, len(pool)]).permutation(len(pool))
    prefix = "" if task == "identity" else f"{task}-"
    made = []
    for number in range(count):
        before, after = _SCENES[task](np.random.default_rng([seed, number, held_out]))
        made.append(
            Case(
                id=f"{prefix}{'held' if held_out else 'seen'}-{number:04d}",
                subject=pool[order[number % len(pool)]],
                before=before,
                after=after,
                seed=number,
                task=task,
            )
        )
    return made


def _moved(rng: np.random.Generator) -> tuple[Scene, Scene]:
    """Two scenes with different backgrounds and places."""
    backgrounds = rng.permutation(list(BACKGROUNDS))[:2].tolist()
    places = rng.permutation(list(PLACES))[:2].tolist()
    before, after = (Scene(b, p) for b, p in zip(backgrounds, places, strict=True))
    return before, after


def _relit(rng: np.random.Generator) -> tuple[Scene, Scene]:
    """A scene in two lights. Most pictures that people bring are in the usual one."""
    size = list(SIZES)[int(rng.integers(len(SIZES)))]
    scene = dataclasses.replace(Scene.draw(rng), size=size, light=Scene.light)
    before = scene.relit(rng) if rng.random() < _LIT else scene
    return before, before.relit(rng)


def _mapped(rng: np.random.Generator) -> tuple[Scene, Scene]:
    """A scene in the usual light, twice: the map is made from it."""
    scene = dataclasses.replace(Scene.draw(rng), light=Scene.light)
    return scene, scene


_SCENES: Mapping[str, Callable[[np.random.Generator], tuple[Scene, Scene]]] = {
    "identity": _moved,
    "relight": _relit,
    "depth": _mapped,
}

_KNOWN: Mapping[str, Collection[str]] = {
    "shape": SHAPES, "body": COLOURS, "mark": COLOURS, "marking": MARKINGS
}  # fmt: skip
_SCENE: Sequence[Collection[str]] = (BACKGROUNDS, PLACES, SIZES, TILTS, LIGHTS)
_BEFORE_LIGHT = len(_SCENE) - 1  # words of one word each; a light may have three
_EXAMPLE = "expected a scene such as `beach northwest big upright warm left hard`"


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
        given = tags.get(tag, "").split()
        words = [*given[:_BEFORE_LIGHT], " ".join(given[_BEFORE_LIGHT:])]
        if len(words) != len(_SCENE) or not all(
            word in known for word, known in zip(words, _SCENE, strict=True)
        ):
            raise UserError(_wrong(name, tag, tags, _EXAMPLE))
        scenes.append(Scene(*words))
    subject = Subject(*(tags[tag] for tag in _KNOWN))
    before, after = scenes
    return Case(name, subject, before, after, seed)


def _wrong(case: str, tag: str, tags: Mapping[str, str], expected: str) -> str:
    given = f"is `{tags[tag]}`" if tag in tags else "is missing"
    return f"case {case}: the tag `{tag}` of a toy case {given}; {expected}"


def score(case: Case, picture: UInt8[np.ndarray, "32 32 3"]) -> Score | Relit | Guided:
    """Scores an image by the pixel judge. What is unclear counts as wrong."""
    seen = judge(picture)
    if case.task == "relight":
        return _score_relit(case, seen, picture)
    if case.task == "depth":
        return _score_guided(case, seen)
    return score_seen(case, seen)


def score_seen(case: Case, seen: Seen) -> Score:
    """Scores an image of an identity case by what the pixel judge has seen in it."""
    identity, prompt = seen.subject == case.subject, seen.shows(case.after)
    return Score(identity, prompt, identity and prompt, seen.shows(case.before))


def _score_relit(case: Case, seen: Seen, picture: np.ndarray) -> Relit:
    shift = measure_drift(Image.fromarray(case.reference()), Image.fromarray(picture)).shift_px
    return Relit(
        seen.subject == case.subject,
        seen.light == case.after.light,
        _colours(seen) == (case.subject.body, case.subject.mark, case.after.background),
        math.nan if shift is None else math.hypot(*shift),
    )


def _score_guided(case: Case, seen: Seen) -> Guided:
    subject, scene = case.subject, case.after
    told = (seen.shape, seen.place, seen.size, seen.tilt, _horizon(seen.background))
    order = (subject.shape, scene.place, scene.size, scene.tilt, _horizon(scene.background))
    named = (subject.body, subject.mark, scene.background)
    return Guided(told == order, (*_colours(seen), seen.marking) == (*named, subject.marking))


def _colours(seen: Seen) -> tuple[str | None, str | None, str | None]:
    return seen.body, seen.mark, seen.background


def _horizon(background: str | None) -> int | None:
    return None if background is None else BACKGROUNDS[background][2]


def summarise(scores: Sequence[Score | Relit | Guided], *, seed: int = 0) -> Mapping[str, Interval]:
    """Computes mean and 95 % interval of every metric of a task, by a bootstrap over cases.

    Of `drift` it is the median over the cases where it can be told.
    """
    table = np.asarray(scores, float)
    rng = np.random.default_rng(seed)
    rows = rng.integers(len(table), size=(_RESAMPLES, len(table)))
    found = {}
    for name, values in zip(scores[0]._fields, table.T, strict=True):
        if name == "drift":
            told = values[~np.isnan(values)]
            drawn = (
                told[rng.integers(len(told), size=(_RESAMPLES, len(told)))] if len(told) else told
            )
            found[name] = _interval(np.median, told, drawn)
        else:
            found[name] = _interval(np.mean, values, values[rows])
    return found


def _interval(middle: Callable[..., Any], values: np.ndarray, drawn: np.ndarray) -> Interval:
    """The mean or median of values, and 95 % of those of their resamples."""
    if not len(values):
        return Interval(math.nan, math.nan, math.nan)
    low, high = np.quantile(middle(drawn, axis=1), [0.025, 0.975])
    return Interval(float(middle(values)), float(low), float(high))
