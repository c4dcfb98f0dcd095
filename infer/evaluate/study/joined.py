"""Joins a study with its runs: their metrics beside the answers, and the answers as ratings."""

from collections.abc import Sequence

import numpy as np

from dsd_jax.errors import UserError, and_more
from dsd_jax.infer.evaluate.panels import HUMAN
from dsd_jax.infer.evaluate.ratings import Rating, add_ratings, read_ratings
from dsd_jax.infer.evaluate.runs import Run
from dsd_jax.infer.evaluate.scores import metrics_of, read_scores
from dsd_jax.infer.evaluate.study.analysis import ImageKey, Metrics, mean_ratings
from dsd_jax.infer.evaluate.study.answers import AnswerSet
from dsd_jax.infer.evaluate.study.record import Key

__all__ = ["PROTOCOL", "check_runs", "read_metrics", "store_ratings"]

PROTOCOL = "study"
"""Protocol of ratings that come from a study."""


def check_runs(key: Key, runs: Sequence[Run]) -> None:
    """Checks that runs are those of a study.

    Raises:
        UserError: A run has another method or other cases.
    """
    for run in runs:
        if run.method not in key.methods:
            raise UserError(
                f"{run.folder}: `{run.method}` is not in the study, which has "
                f"{and_more(key.methods)}"
            )
        if run.cases_sha256 != key.cases_sha256:
            raise UserError(f"{run.folder} has other cases than the study was built from")


def read_metrics(runs: Sequence[Run]) -> Metrics:
    """Reads all scores of images, and mean scores of judges that are no people.

    Raises:
        UserError: A file is damaged.
    """
    found: dict[str, dict[ImageKey, list[float]]] = {}
    for run in runs:
        digests = {(image.case, image.sample): image.sha256 for image in run.images}
        for metric in metrics_of(run.folder):
            for score in read_scores(run.folder, metric):
                place = score.case, score.sample
                if score.value is not None and digests.get(place) == score.sha256:
                    of_metric = found.setdefault(metric, {})
                    of_metric.setdefault((run.method, *place), []).append(score.value)
        for rating in read_ratings(run.folder):
            place = rating.case, rating.sample
            current = rating.sha256 in ("", digests.get(place))
            if rating.score is None or not current or rating.judge.startswith(f"{HUMAN}/"):
                continue
            name = f"{rating.judge}: {rating.protocol}, {rating.aspect}"
            found.setdefault(name, {}).setdefault((run.method, *place), []).append(
                rating.score / rating.scale
            )
    return {
        name: {place: float(np.mean(values)) for place, values in scores.items()}
        for name, scores in found.items()
    }


def store_ratings(answers: AnswerSet, runs: Sequence[Run], *, include_failed: bool = False) -> int:
    """Writes the mean rating of every image as a rating of the judge `human/STUDY` of its run.

    Returns:
        The number of ratings.

    Raises:
        UserError: The study compares pairs, or a file cannot be written.
    """
    key = answers.key
    if key.mode == "pair":
        raise UserError("a study of pairs has no ratings of single images; use --mode likert")
    means = mean_ratings(answers, include_failed=include_failed)
    count = 0
    for run in runs:
        digests = {(image.case, image.sample): image.sha256 for image in run.images}
        ratings = [
            Rating(
                case,
                sample,
                PROTOCOL,
                question,
                f"{HUMAN}/{key.study}",
                0,
                "ok",
                score,
                float(len(key.by_question[question].answers) - 1),
                digests.get((case, sample), ""),
                text=f"mean of {raters} raters",
            )
            for ((method, case, sample), question), (score, raters) in means.items()
            if method == run.method
        ]
        add_ratings(run.folder, ratings)
        count += len(ratings)
    return count
