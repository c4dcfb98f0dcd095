"""Figures of a study: what raters say of methods, how far they agree, and how far metrics do.

Raters who failed an attention check do not count; repeats and checks count for consistency alone.
Intervals draw raters and cases, each by itself, so they are about other people and other cases.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from dsd_jax.infer.evaluate.agreement import (
    Preferences,
    bradley_terry,
    krippendorff_alpha,
    unanimity,
    weighted_kappa,
    wilson,
)
from dsd_jax.infer.evaluate.resampling import Resampling
from dsd_jax.infer.evaluate.statistics import (
    bootstrap,
    detectable_difference,
    first_rank,
    rank_correlation,
)
from dsd_jax.infer.evaluate.study.answers import Answer, AnswerSet
from dsd_jax.infer.evaluate.study.record import Key, Question
from dsd_jax.interval import Interval

__all__ = ["Analysis", "Figure", "ImageKey", "Metrics", "analyse_study", "mean_ratings"]

ImageKey = tuple[str, str, int]
"""Method, case and number of an image."""
Metrics = Mapping[str, Mapping[ImageKey, float]]
"""Scores of images by the name of the metric."""

_LEAST_COMMON = 5  # answers that two raters must share for a kappa
_LEAST_METHODS = 3  # for a rank correlation over methods
_PRIOR = 0.1  # comparisons, where some methods never lost


@dataclasses.dataclass(frozen=True)
class Figure:
    """One figure of a study.

    Attributes:
        table: Title of its table.
        row, column: Place in the table: a method or a property, and a question.
        interval: The figure; its limits are NaN where it has no interval.
        count: Number of answers, images or methods that it is about.
    """

    table: str
    row: str
    column: str
    interval: Interval
    count: int


@dataclasses.dataclass(frozen=True)
class Analysis:
    """Figures of a study, and what a reader must know about them."""

    figures: Sequence[Figure]
    notes: Sequence[str]


class _Row(NamedTuple):
    """A rater's answer to one question about something rated.

    Attributes:
        item: The case and the pictures, whoever saw them on whatever side.
        value: The answer as a number. For a pair it is 1 if the first of the two methods, by
            name, was preferred, and -1 if the other was.
    """

    rater: str
    case: str
    item: tuple[ImageKey, ...]
    value: float


def analyse_study(
    answers: AnswerSet, metrics: Metrics, resampling: Resampling, *, include_failed: bool = False
) -> Analysis:
    """Computes all figures of a study.

    Args:
        answers: The answers.
        metrics: Scores of the images, to be compared with the answers.
        resampling: Number, seed and confidence of the draws.
        include_failed: Count raters who failed an attention check too.
    """
    key = answers.key
    raters = [rater for rater in answers.lists if include_failed or rater not in answers.failed]
    figures: list[Figure] = []
    notes = list(_notes(answers, raters))
    for question in key.questions:
        own = [row for row in answers.rows if row.rater in raters and row.question == question.id]
        rows = [_row(key, question, answer) for answer in own if answer.item in key.rated]
        if not rows:
            continue
        if key.mode == "pair":
            figures += _preferences(key, question, own, rows, resampling, notes)
        else:
            figures += _ratings(key, question, rows, resampling)
        figures += _agreement(key, question, rows, resampling)
        figures += _repeats(key, question, own)
        figures += _correlations(key, question, rows, metrics, resampling)
    return Analysis(figures, notes)


def mean_ratings(
    answers: AnswerSet, *, include_failed: bool = False
) -> dict[tuple[ImageKey, str], tuple[float, int]]:
    """Mean rating of every image for every question, from 0, and its number of raters."""
    key, failed = answers.key, set() if include_failed else answers.failed
    found: dict[tuple[ImageKey, str], list[int]] = {}
    for row in answers.rows:
        if row.item in key.rated and row.rater not in failed:
            shown = key.items[row.item].shown[0]
            place = (shown.method, shown.case, shown.sample), row.question
            found.setdefault(place, []).append(key.by_question[row.question].place(row.answer))
    return {place: (float(np.mean(values)), len(values)) for place, values in found.items()}


def _notes(answers: AnswerSet, raters: Sequence[str]) -> Iterator[str]:
    key = answers.key
    sizes: dict[int, int] = {}
    for item in key.items.values():
        sizes[item.list] = sizes.get(item.list, 0) + len(key.questions)
    given: dict[str, int] = {}
    for row in answers.rows:
        given[row.rater] = given.get(row.rater, 0) + 1
    partly = [rater for rater in raters if given[rater] < sizes[answers.lists[rater]]]
    left_out = sorted(set(answers.lists) - set(raters))
    yield f"raters who count: {len(raters)}, unfinished: {len(partly)}"
    if left_out:
        yield f"raters who failed an attention check and do not count: {', '.join(left_out)}"
    elif answers.failed:
        failed = ", ".join(sorted(answers.failed))
        yield f"raters who failed an attention check and count all the same: {failed}"
    if key.mode != "pair" and len(key.methods) > 2:
        yield "intervals of differences are not adjusted for the number of comparisons"
    if len(raters) == 1:
        yield "there is one rater, so intervals say nothing about other people"


def _row(key: Key, question: Question, answer: Answer) -> _Row:
    item = key.items[answer.item]
    images = [(shown.method, shown.case, shown.sample) for shown in item.shown]
    value = float(question.place(answer.answer))
    if key.mode == "pair":
        value = {"a": 1.0, "tie": 0.0, "b": -1.0}[answer.answer]
        value = value if images[0] < images[1] else -value
    elif key.mode == "likert":
        value += 1  # the scale starts at 1
    return _Row(answer.rater, item.case, tuple(sorted(images)), value)


def _crossed(rows: Sequence[_Row], resampling: Resampling) -> Resampling:
    levels = [row.rater for row in rows], [row.case for row in rows]
    return dataclasses.replace(resampling, levels=levels, crossed=True)


def _ratings(
    key: Key, question: Question, rows: Sequence[_Row], resampling: Resampling
) -> Iterator[Figure]:
    """Means of the methods, their differences, and what differences the study can show."""
    title = "Share of yes" if key.mode == "same" else "Means, from 1 to 5"
    top = len(question.answers) - 1
    methods = [method for method in key.methods if any(row.item[0][0] == method for row in rows)]
    values = np.full((len(rows), len(methods)), np.nan)
    for number, row in enumerate(rows):
        value = float(row.value == top) if key.mode == "same" else row.value
        values[number, methods.index(row.item[0][0])] = value
    means = bootstrap(values, _crossed(rows, resampling))
    counts = (~np.isnan(values)).sum(0)
    first = first_rank(means.draws[~np.isnan(means.draws).any(1)])
    for place, method in enumerate(methods):
        interval = means.interval(_column(place))
        yield Figure(title, method, question.id, interval, int(counts[place]))
    for place, method in enumerate(methods):
        alone = Interval(float(first[place]), math.nan, math.nan)
        yield Figure("Probability of the first rank", method, question.id, alone, len(rows))
    errors = []
    for one, other in itertools.combinations(range(len(methods)), 2):
        interval = means.interval(_difference(one, other))
        name = f"{methods[one]} − {methods[other]}"
        yield Figure("Differences", name, question.id, interval, len(rows))
        errors.append(float(np.nanstd(means.draws[:, one] - means.draws[:, other])))
    if errors:
        least = Interval(detectable_difference(float(np.median(errors))), math.nan, math.nan)
        yield Figure("Power", "detectable difference, power 0.8", question.id, least, len(rows))


def _column(place: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda means: means[:, place]


def _difference(one: int, other: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda means: means[:, one] - means[:, other]


def _preferences(
    key: Key,
    question: Question,
    answers: Sequence[Answer],
    rows: Sequence[_Row],
    resampling: Resampling,
    notes: list[str],
) -> Iterator[Figure]:
    """Strengths, wins of every pair, the pull of a side, and what the study can show."""
    found = _strengths(question, rows, resampling, notes)
    methods = [method for method in key.methods if method in found.strength]
    for method in methods:
        strength = found.strength[method]
        yield Figure("Log strength (Bradley-Terry)", method, question.id, strength, len(rows))
    for method in methods:
        alone = Interval(found.first[method], math.nan, math.nan)
        yield Figure("Probability of the first rank", method, question.id, alone, len(rows))
    pairs: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        pairs.setdefault((row.item[0][0], row.item[1][0]), []).append(row.value)
    for (one, other), values in sorted(pairs.items()):
        wins = wilson((sum((value + 1) / 2 for value in values), len(values)))
        name = f"{one} over {other}"
        yield Figure("Preference, a tie as half", name, question.id, wins, len(values))
    rated = [row for row in answers if row.item in key.rated]
    sided = [row.answer for row in rated if row.answer != "tie"]
    ties = wilson((len(rated) - len(sided), len(rated)))
    yield Figure("Habits", "ties", question.id, ties, len(rated))
    left = wilson((sided.count("a"), len(sided)))
    yield Figure("Habits", "left picture, of no ties", question.id, left, len(sided))
    size = float(np.median([len(values) for values in pairs.values()]))
    least = Interval(detectable_difference(0.5 / math.sqrt(size)), math.nan, math.nan)
    name = "detectable preference beyond 0.5, power 0.8"
    yield Figure("Power", name, question.id, least, len(rows))


def _strengths(
    question: Question, rows: Sequence[_Row], resampling: Resampling, notes: list[str]
) -> Preferences:
    crossed = dataclasses.replace(
        _crossed(rows, resampling), draws=min(resampling.draws, 1000)
    )  # each draw is a fit
    left, right = ([row.item[side][0] for row in rows] for side in (0, 1))
    outcome = [row.value for row in rows]
    try:
        return bradley_terry(left, right, outcome, crossed)
    except ValueError:
        notes.append(
            f"{question.id}: a method was never beaten by the others, so {_PRIOR:g} comparisons "
            "either way were added to each pair"
        )
        return bradley_terry(left, right, outcome, crossed, prior=_PRIOR)


def _agreement(
    key: Key, question: Question, rows: Sequence[_Row], resampling: Resampling
) -> Iterator[Figure]:
    """Krippendorff's alpha, and weighted kappa of every two raters."""
    raters = list(dict.fromkeys(row.rater for row in rows))
    items = list(dict.fromkeys(row.item for row in rows))
    places = {item: number for number, item in enumerate(items)}
    table = np.full((len(raters), len(items)), np.nan)
    for row in rows:
        table[raters.index(row.rater), places[row.item]] = row.value
    shared = int(((~np.isnan(table)).sum(0) > 1).sum())
    table, items_drawn = _both_ways(key, table, np.arange(len(items)))
    few = dataclasses.replace(resampling, draws=min(resampling.draws, 2000))
    levels: tuple[Literal["ordinal", "interval"], ...] = ("ordinal", "interval")
    for level in levels:
        alpha = krippendorff_alpha(table, level, dataclasses.replace(few, levels=(items_drawn,)))
        name = f"Krippendorff's alpha, {level}"
        yield Figure("Agreement of raters", name, question.id, alpha, shared)
    kappas = []
    for one, other in itertools.combinations(range(len(raters)), 2):
        both = ~np.isnan(table[one]) & ~np.isnan(table[other])
        drawn = items_drawn[both]
        if (common := len(set(drawn.tolist()))) < _LEAST_COMMON:
            continue
        kappa = weighted_kappa(
            table[one, both],
            table[other, both],
            resampling=dataclasses.replace(few, levels=(drawn,), draws=min(few.draws, 200)),
        )
        kappas.append(kappa.value)
        name = f"{raters[one]}, {raters[other]}"
        yield Figure("Weighted kappa of two raters", name, question.id, kappa, common)
    if defined := [value for value in kappas if not math.isnan(value)]:
        mean = Interval(float(np.mean(defined)), math.nan, math.nan)
        name = "weighted kappa, mean over pairs of raters"
        yield Figure("Agreement of raters", name, question.id, mean, len(defined))


def _both_ways(key: Key, values: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values along the last axis and their labels; preferences also as the other method sees them.

    Which of two methods counts as the first is arbitrary. Without its mirror image, a set of
    preferences for methods with early names would look like raters who always say the same.
    """
    if key.mode != "pair":
        return values, labels
    return np.concatenate([values, -values], -1), np.concatenate([labels, labels])


def _repeats(key: Key, question: Question, answers: Sequence[Answer]) -> Iterator[Figure]:
    """Consistency of raters with themselves, where an item came twice."""
    given = {(row.rater, row.item): row for row in answers}
    pairs = [
        (_row(key, question, given[rater, key.items[name].repeats]), _row(key, question, again))
        for (rater, name), again in given.items()
        if (rater, key.items[name].repeats) in given
    ]
    if not pairs:
        return
    same = unanimity([[str(first.value), str(again.value)] for first, again in pairs])
    yield Figure("Consistency", "the same answer twice", question.id, same, len(pairs))
    near = sum(abs(first.value - again.value) <= 1 for first, again in pairs)
    if len(question.answers) > 3:
        share = wilson((near, len(pairs)))
        yield Figure("Consistency", "at most one step apart", question.id, share, len(pairs))


def _correlations(
    key: Key,
    question: Question,
    rows: Sequence[_Row],
    metrics: Metrics,
    resampling: Resampling,
) -> Iterator[Figure]:
    """Rank correlation of the answers with metrics: over items, and over methods."""
    answered: dict[tuple[ImageKey, ...], list[float]] = {}
    for row in rows:
        answered.setdefault(row.item, []).append(row.value)
    title = "Rank correlation with metrics"
    for name, scores in metrics.items():
        items = [item for item in answered if all(image in scores for image in item)]
        if len(items) < 2:
            continue
        people = np.array([np.mean(answered[item]) for item in items])
        machine = np.array(
            [scores[item[0]] - (scores[item[1]] if key.mode == "pair" else 0.0) for item in items]
        )
        sides, cases = _both_ways(
            key, np.stack([people, machine]), np.array([item[0][1] for item in items])
        )
        drawn = dataclasses.replace(resampling, levels=(cases,), draws=min(resampling.draws, 2000))
        over_items = rank_correlation(sides[0], sides[1], resampling=drawn)
        yield Figure(title, f"{name}, over items", question.id, over_items, len(items))
        levels = _levels(items, people, machine)
        if len(levels) >= _LEAST_METHODS:
            ours, theirs = (np.array(side) for side in zip(*levels.values(), strict=True))
            rho = rank_correlation(ours, theirs, resampling=Resampling(draws=2))
            alone = Interval(rho.value, math.nan, math.nan)
            yield Figure(title, f"{name}, over methods", question.id, alone, len(levels))


def _levels(
    items: Sequence[tuple[ImageKey, ...]], people: np.ndarray, machine: np.ndarray
) -> dict[str, tuple[float, float]]:
    """Mean of either side for each method. In a pair, what one method gains the other loses."""
    sums: dict[str, list[tuple[float, float]]] = {}
    for item, ours, theirs in zip(items, people, machine, strict=True):
        for image, sign in zip(item, (1, -1), strict=False):
            sums.setdefault(image[0], []).append((sign * ours, sign * theirs))
    return {
        method: (float(np.mean([x for x, _ in own])), float(np.mean([y for _, y in own])))
        for method, own in sums.items()
    }
