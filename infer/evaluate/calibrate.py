"""`dsd evaluate calibrate`: measures a judge on images that people and the old judge have rated.

The judge of DreamBench++ and of the paper, gpt-4o-2024-05-13, was shut down, so its numbers cannot
be asked for again. The archived ratings tie them to the judges of today: some of the archived
images, the anchors, are judged anew, and compared with what people and the old judge said.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from dsd_jax.errors import UserError
from dsd_jax.files import write_file
from dsd_jax.infer.evaluate.agreement import krippendorff_alpha, ppi_mean, weighted_kappa
from dsd_jax.infer.evaluate.archive import GPT
from dsd_jax.infer.evaluate.cases import Case
from dsd_jax.infer.evaluate.protocols import Protocol
from dsd_jax.infer.evaluate.queries import JudgeConfig, Query, queries, valid_ratings
from dsd_jax.infer.evaluate.ratings import Rating, read_ratings
from dsd_jax.infer.evaluate.resampling import Resampling
from dsd_jax.infer.evaluate.runs import Run
from dsd_jax.infer.evaluate.sampling import stratified
from dsd_jax.infer.evaluate.statistics import weighted_pearson
from dsd_jax.interval import Interval
from dsd_jax.structured import build, read_json
from dsd_jax.types import Float

__all__ = [
    "Agreement",
    "Anchor",
    "Calibration",
    "agreements",
    "anchor_queries",
    "calibration_of",
    "corrected_mean",
    "read_calibration",
    "write_calibration",
]

SCHEMA = 1
PEOPLE = "human/"
"""Beginning of the names of people among judges."""
_PROTOCOL = "dreambench++"
_DRAWS = 2000


@dataclasses.dataclass(frozen=True)
class Anchor:
    """An aspect of an archived image, and what everybody said about it.

    Attributes:
        method: Method that made the image.
        case: Id of its case.
        subject: Subject of the case.
        aspect: Aspect that was rated.
        judge: Scores by the judge, one for each round that has one.
        people: Scores by people, one for each group.
        published: Scores by the archived judge, one for each round.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    method: str
    case: str
    subject: str
    aspect: str
    judge: tuple[float, ...]
    people: tuple[float, ...]
    published: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Agreement of two sides about one aspect. Intervals are bootstraps over subjects.

    Attributes:
        aspect: The aspect.
        sides: Names of the two sides.
        items: Number of images that both sides rated.
        offset: Mean of the first side minus that of the second.
        slope: Rise of the first side per point of the second, by least squares.
        correlation: Pearson's correlation of the two sides' means.
        alpha: Krippendorff's alpha, with squared differences, over all pairs of one rating of
            either side.
        kappa: Cohen's kappa with quadratic weights over the same pairs.
    """

    aspect: str
    sides: tuple[str, str]
    items: int
    offset: Interval
    slope: Interval
    correlation: Interval
    alpha: Interval
    kappa: Interval


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Everything that is known of a judge from the anchors.

    Attributes:
        schema: Version of the file.
        judge: Name of the judge in ratings.
        rubric: Texts that asked; see `Protocol.rubric`.
        scale: Highest score.
        anchors: The anchors that the judge gave a score.
        unscored: Number of answers without a score, by state.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    schema: int
    judge: str
    rubric: str
    scale: float
    anchors: tuple[Anchor, ...]
    unscored: Mapping[str, int]


def anchor_queries(
    runs: Sequence[Run], protocol: Protocol, count: int, rounds: int, seed: int
) -> list[list[Query]]:
    """The questions about the anchors of each run.

    Anchors are drawn from the cases whose image people and the archived judge have rated for all
    aspects, evenly over the runs, and in each by category and class of prompts.

    Raises:
        UserError: The protocol is another one, a run has no archived ratings or no images, or there
            are fewer anchors than runs.
    """
    if protocol.protocol != _PROTOCOL:
        raise UserError(
            f"the archive was rated by {_PROTOCOL}, got the protocol {protocol.protocol}"
        )
    if count < len(runs):
        raise UserError(f"anchors must be at least one for each of {len(runs)} runs, got {count}")
    found = []
    for number, run in enumerate(runs):
        rated = _rated_cases(run, protocol)
        own = count // len(runs) + (number < count % len(runs))
        drawn = stratified(rated, own, seed + number)
        asked = queries(run, [protocol], rounds, cases=drawn)
        found.append([query for query in asked if query.image.sample == 0])
    return found


def _rated_cases(run: Run, protocol: Protocol) -> list[Case]:
    ratings = [each for each in read_ratings(run.folder) if each.published and each.state == "ok"]
    if not any(each.judge.startswith(PEOPLE) for each in ratings):
        raise UserError(
            f"{run.folder} has no archived ratings by people; make it with `dsd evaluate archive`"
        )
    if not run.images:
        raise UserError(
            f"{run.folder} has archived ratings and no images to judge; run `dsd evaluate import "
            f'"{run.method}"` on the archive\'s samples with this --output_dir'
        )
    sides = {
        name: {(each.case, each.aspect) for each in ratings if each.judge.startswith(judge)}
        for name, judge in (("people", PEOPLE), ("published", GPT))
    }
    there = {image.case for image in run.images if image.sample == 0}
    rated = [
        case
        for case in run.cases
        if case.id in there
        and all(
            (case.id, aspect) in side for side in sides.values() for aspect in protocol.questions
        )
    ]
    if not rated:
        raise UserError(f"{run.folder} has no image that both people and {GPT} have rated")
    return rated


def calibration_of(
    runs: Sequence[Run], asked: Sequence[Sequence[Query]], judge: JudgeConfig
) -> Calibration:
    """Puts the judge's ratings of the anchors beside the archived ones.

    Args:
        runs: Runs of the archive.
        asked: The questions about each, by `anchor_queries`.
        judge: The judge that has answered them.

    Raises:
        UserError: The judge has given fewer than two scores for an aspect.
    """
    protocol = asked[0][0].protocol
    anchors: list[Anchor] = []
    unscored: Counter[str] = Counter()
    for run, own in zip(runs, asked, strict=True):
        fresh = list(valid_ratings(run, own, judge).values())
        unscored.update(each.state for each in fresh if each.state != "ok")
        new = _by_place(fresh)
        old = _by_place([each for each in read_ratings(run.folder) if each.published])
        held = {case.id: case for case in run.cases}
        for place in dict.fromkeys((query.case.id, query.aspect) for query in own):
            case, aspect = place
            anchor = Anchor(
                run.method,
                case,
                held[case].subject,
                aspect,
                judge=_scores(new.get(place, ()), judge.name),
                people=_scores(old[place], PEOPLE),
                published=_scores(old[place], GPT),
            )
            if anchor.judge:
                anchors.append(anchor)
    for aspect in protocol.questions:
        if sum(anchor.aspect == aspect for anchor in anchors) < 2:
            states = ", ".join(f"{count} {state}" for state, count in unscored.items())
            raise UserError(
                f"{judge.name} gave fewer than two scores for {aspect} ({states or 'no answer'}); "
                "look at its answers in ratings.jsonl"
            )
    return Calibration(
        SCHEMA, judge.name, protocol.rubric, protocol.scale, tuple(anchors), dict(unscored)
    )


def _by_place(ratings: Iterable[Rating]) -> dict[tuple[str, str], list[Rating]]:
    """Ratings of first images by case and aspect."""
    found: dict[tuple[str, str], list[Rating]] = {}
    for rating in ratings:
        if rating.sample == 0:
            found.setdefault((rating.case, rating.aspect), []).append(rating)
    return found


def _scores(ratings: Iterable[Rating], judge: str) -> tuple[float, ...]:
    """Scores by the judges whose names begin so, in the order of judges and rounds."""
    own = [each for each in ratings if each.judge.startswith(judge)]
    own.sort(key=lambda each: (each.judge, each.round))
    return tuple(each.score for each in own if each.score is not None)


_Side = Callable[[Anchor], Sequence[float]]


def agreements(calibration: Calibration, seed: int = 0) -> list[Agreement]:
    """Agreement of the judge, people and the archived judge about every aspect.

    Two groups of people, compared with each other, show the most that a judge can reach.

    Args:
        calibration: The judge's calibration.
        seed: Seed of the bootstrap.
    """
    fresh: tuple[str, _Side] = (calibration.judge, lambda anchor: anchor.judge)
    people: tuple[str, _Side] = ("people", lambda anchor: anchor.people)
    old: tuple[str, _Side] = (GPT, lambda anchor: anchor.published)
    one: tuple[str, _Side] = ("one group", lambda anchor: anchor.people[:1])
    other: tuple[str, _Side] = ("another", lambda anchor: anchor.people[1:2])
    found = []
    for aspect in dict.fromkeys(anchor.aspect for anchor in calibration.anchors):
        own = [anchor for anchor in calibration.anchors if anchor.aspect == aspect]
        for first, second in ((fresh, people), (fresh, old), (old, people), (one, other)):
            both = [anchor for anchor in own if first[1](anchor) and second[1](anchor)]
            if len(both) >= 2:
                found.append(_agreement(aspect, both, first, second, seed))
    return found


def _agreement(
    aspect: str,
    anchors: Sequence[Anchor],
    first: tuple[str, _Side],
    second: tuple[str, _Side],
    seed: int,
) -> Agreement:
    sides = [
        [np.asarray(side(anchor), np.float64) for anchor in anchors] for _, side in (first, second)
    ]
    x, y = (np.asarray([own.mean() for own in side]) for side in sides)
    subjects = [anchor.subject for anchor in anchors]
    by_subject = Resampling((subjects,), draws=_DRAWS, seed=seed)
    pairs = [
        (a, b, subject)
        for left, right, subject in zip(*sides, subjects, strict=True)
        for a in left
        for b in right
    ]
    a, b, owners = (list(each) for each in zip(*pairs, strict=True))
    by_owner = Resampling((owners,), draws=_DRAWS, seed=seed)
    return Agreement(
        aspect,
        (first[0], second[0]),
        len(anchors),
        offset=by_subject.interval(lambda weights: _weighted_mean(weights, x - y), len(x)),
        slope=by_subject.interval(lambda weights: _slope(weights, x, y), len(x)),
        correlation=by_subject.interval(lambda weights: weighted_pearson(weights, x, y), len(x)),
        alpha=krippendorff_alpha(np.asarray([a, b]), resampling=by_owner),
        kappa=weighted_kappa(a, b, resampling=by_owner),
    )


def _weighted_mean(
    weights: Float[np.ndarray, "draws rows"], values: Float[np.ndarray, " rows"]
) -> Float[np.ndarray, " draws"]:
    return weights @ values / weights.sum(1)


def _slope(
    weights: Float[np.ndarray, "draws rows"], x: Float[np.ndarray, " rows"], y: np.ndarray
) -> Float[np.ndarray, " draws"]:
    """Rise of `x` per unit of `y` in every draw; NaN where `y` is constant."""
    away = y - _weighted_mean(weights, y)[:, None]
    across = (weights * away**2).sum(1)
    defined = across > 1e-12
    return np.where(defined, (weights * away * x).sum(1) / np.where(defined, across, 1), np.nan)


def corrected_mean(calibration: Calibration, aspect: str, judged: Sequence[float]) -> Interval:
    """Mean that people would give, from the judge's scores and its errors on the anchors.

    Prediction-powered inference; see `ppi_mean`. It assumes that the judge errs about these images
    as it does, on average, about the archived ones.

    Args:
        calibration: The judge's calibration.
        aspect: Aspect of the scores.
        judged: The judge's score of each image.

    Raises:
        ValueError: There are fewer than two anchors of the aspect, or two scores.
    """
    own = [anchor for anchor in calibration.anchors if anchor.aspect == aspect]
    human, judge = (
        np.asarray([np.mean(side) for side in sides], np.float64)
        for sides in ([each.people for each in own], [each.judge for each in own])
    )
    return ppi_mean(np.asarray(judged, np.float64), human, judge)


def write_calibration(path: Path, calibration: Calibration) -> None:
    """Writes a calibration, complete or not at all.

    Raises:
        UserError: It cannot be written.
    """
    content = dataclasses.asdict(calibration)
    write_file(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read_calibration(path: Path) -> Calibration:
    """Reads a calibration.

    Raises:
        UserError: The file is missing or damaged.
    """
    made = build(Calibration, read_json(path, dict), str(path))
    if made.schema != SCHEMA:
        raise UserError(f"{path} has schema {made.schema}, expected {SCHEMA}")
    return made
