"""Simulated people who answer a study of the toy world, so that its analysis can be tried.

They look at the pictures as the pixel judge does. A rater answers by the share of attributes that
are right, shifted by a leaning of the rater and by noise at every answer. Attention checks are
answered as an attentive rater does.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dsd_jax.files import write_file
from dsd_jax.images import open_image
from dsd_jax.infer.evaluate.cases import Case
from dsd_jax.infer.evaluate.runs import Run
from dsd_jax.infer.evaluate.study.answers import Answer
from dsd_jax.infer.evaluate.study.record import KeyItem, Question, read_key
from dsd_jax.toy.judge import SUBJECT, Seen, judge
from dsd_jax.toy.score import from_tags

__all__ = ["write_answers"]

LEANING, NOISE = 0.3, 0.5  # standard deviations, in steps of the scale
_SECONDS = 8


def write_answers(study: Path, runs: Sequence[Run], path: Path, seed: int = 0) -> None:
    """Writes the answers of one rater per list of a Likert study, as a page would send them.

    Args:
        study: Folder of the study.
        runs: The runs that it was built from.
        path: File of answers to write.
        seed: Seed of the raters.

    Raises:
        UserError: The study or an image cannot be read, or the file cannot be written.
    """
    key = read_key(study)
    cases = {case.id: case for case in runs[0].cases}
    images = {(run.method, image.case): image.path for run in runs for image in run.images}
    shares = {
        name: _shares(cases[item.case], images[item.shown[0].method, item.case])
        for name, item in key.items.items()
        if not item.expected
    }
    rng = np.random.default_rng(seed)
    leanings = rng.normal(0, LEANING, 1 + max(item.list for item in key.items.values()))
    lines = []
    for name, item in key.items.items():
        for question in key.questions:
            rater = f"simulated-{item.list:02d}"
            told = _answer(item, question, shares.get(name, {}), leanings[item.list], rng)
            answer = Answer(key.study, rater, rater, name, question.id, told, t_ms=_SECONDS * 1000)
            lines.append(json.dumps(dataclasses.asdict(answer)) + "\n")
    write_file(path, "".join(lines))


def _shares(case: Case, path: Path) -> Mapping[str, float]:
    """Shares of attributes that an image gets right, by question."""
    asked = from_tags(case.id, case.tags)
    seen = judge(np.asarray(open_image(path)))
    same = [getattr(seen, name) == getattr(asked.subject, name) for name in SUBJECT]
    return {
        "cp": float(np.mean(same)),
        "pf": _scene(seen, asked.after),
        "creativity": 1 - _scene(seen, asked.before),
    }


def _scene(seen: Seen, scene: object) -> float:
    return float(np.mean([getattr(seen, n) == getattr(scene, n) for n in ("background", "place")]))


def _answer(
    item: KeyItem,
    question: Question,
    shares: Mapping[str, float],
    leaning: float,
    rng: np.random.Generator,
) -> str:
    if item.expected:
        expected = item.expected.get(question.id)
        return expected[0] if expected else question.answers[0].value
    highest = len(question.answers) - 1
    felt = shares[question.id] * highest + leaning + rng.normal(0, NOISE)
    return question.answers[round(min(max(felt, 0), highest))].value
