"""Labels of people: whether an image shows the subject of its reference."""

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias, cast

from dsd_jax.errors import UserError, and_more, did_you_mean
from dsd_jax.infer.evaluate.runs import Run
from dsd_jax.infer.evaluate.study.answers import read_answers
from dsd_jax.infer.evaluate.study.record import is_study
from dsd_jax.rows import Row, lookup, open_table, plain_text

__all__ = ["LABELS", "Label", "Place", "places_of", "read_labels"]

Answer: TypeAlias = Literal["yes", "no", "unsure"]
LABELS: tuple[Answer, ...] = ("yes", "no", "unsure")
_COLUMNS = ("id", "rater", "label", "method", "sample")


class Place(NamedTuple):
    """An image of a run."""

    method: str
    case: str
    sample: int


@dataclasses.dataclass(frozen=True)
class Label:
    """A person's answer about an image.

    Attributes:
        place: The image.
        rater: Id of the person.
        label: Whether it shows the subject of the reference.
    """

    place: Place
    rater: str
    label: Answer


def places_of(runs: Collection[Run]) -> list[Place]:
    """All images of runs."""
    return [Place(run.method, each.case, each.sample) for run in runs for each in run.images]


def read_labels(path: Path, places: Collection[Place]) -> list[Label]:
    """Reads labels: the answers of a study of mode same, or a table.

    A table (CSV, JSON Lines and other formats of `dsd data import`) has the columns `id` (of the
    case), `rater` and `label` (yes, no or unsure), and where it needs them `method` and `sample`.
    Of a study, raters who failed an attention check, checks and repeats do not count.

    Args:
        path: Folder of the study, or the table.
        places: Images that can have labels.

    Raises:
        UserError: It cannot be read, the study has another mode, a rater labelled an image twice,
            or a label is about an unknown image.
    """
    labels = _of_study(path) if is_study(path) else _of_table(path, places)
    if not labels:
        raise UserError(f"{path} has no labels; collect answers first")
    known = set(places)
    unknown = [label.place for label in labels if label.place not in known]
    if unknown:
        names = [f"{place.case}/{place.sample}" for place in dict.fromkeys(unknown)]
        raise UserError(
            f"{path}: {len(unknown)} labels are about images that the runs do not have "
            f"({and_more(names)}); give the runs that were shown to the raters"
        )
    return labels


def _of_study(path: Path) -> list[Label]:
    answers = read_answers(path)
    key = answers.key
    if key.mode != "same":
        raise UserError(f"{path} is a study of mode {key.mode}; an audit needs --mode same")
    failed, rated = answers.failed, key.rated
    return [
        Label(
            Place(*dataclasses.astuple(rated[row.item].shown[0])[:3]),
            row.rater,
            cast("Answer", row.answer),
        )
        for row in answers.rows
        if row.item in rated and row.rater not in failed
    ]


def _of_table(path: Path, places: Collection[Place]) -> list[Label]:
    table = open_table(path)
    for column in table.columns:
        if column not in _COLUMNS:
            raise UserError(
                f"{path} has the unknown column {column!r}; the columns of labels are "
                f"{', '.join(_COLUMNS)}{did_you_mean(column, _COLUMNS)}"
            )
    methods = {place.method for place in places}
    method = methods.pop() if len(methods) == 1 else ""
    seen: dict[tuple[Place, str], tuple[str, Answer]] = {}
    for row in table.rows():
        where = f"{path} row {row.number}"
        label = _label(row, where, method)
        place = label.place, label.rater
        if place in seen:
            raise UserError(
                f"{where}: rater {label.rater} labelled {label.place.case} before, in "
                f"{seen[place][0]}; remove one label, or give two people two ids"
            )
        seen[place] = f"row {row.number}", label.label
    return [Label(place, rater, label) for (place, rater), (_, label) in seen.items()]


def _label(row: Row, where: str, method: str) -> Label:
    if row.error:
        raise UserError(f"{where}: {row.error}")
    texts = {name: plain_text(lookup(row.fields, name)) or "" for name in _COLUMNS}
    for name in ("id", "rater", "label"):
        if not texts[name]:
            raise UserError(f"{where} has no {name}")
    method = texts["method"] or method
    if not method:
        raise UserError(f"{where} has no method, which labels of several runs need")
    label, sample = texts["label"].strip().lower(), texts["sample"] or "0"
    if label not in LABELS:
        raise UserError(f"{where}: label is yes, no or unsure, got {texts['label'][:40]!r}")
    if not sample.isdecimal():
        raise UserError(f"{where}: sample is the number of an image, got {sample[:40]!r}")
    return Label(Place(method, texts["id"], int(sample)), texts["rater"], label)
