"""Reads what a quickstart has made, and scores it."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from dsd_jax.data.make.folder import begun_folder
from dsd_jax.data.make.parts import Parts
from dsd_jax.data.make.stages import GRIDS, JUDGEMENTS, PAIRS, Judgement, Pair
from dsd_jax.images import open_image
from dsd_jax.interval import Interval
from dsd_jax.quickstart.inputs import MAKING, STUDENT, TEACHER, Cases
from dsd_jax.tasks import IDENTITY, RELIGHT
from dsd_jax.toy.score import Case, Guided, Relit, Score, score, summarise
from dsd_jax.train.metrics import read_metrics

__all__ = ["NAMES", "Example", "Findings", "Scored", "Shown", "findings"]

NAMES = {TEACHER: "teacher, text alone", STUDENT: "student, text and reference"}
_EXAMPLES, _GRIDS, _KEPT = 12, 8, 8
# Numbers of pairs to show: rejected by the judge, and by a filter before it.
_REFUSED, _FILTERED = 5, 3


@dataclasses.dataclass(frozen=True)
class Shown:
    """A grid or a pair of the dataset, and the words about it."""

    pictures: Sequence[Image.Image]
    words: str


@dataclasses.dataclass(frozen=True)
class Example:
    """A case with its images.

    Attributes:
        text: The prompt.
        reference: The picture that shows the subject, or the depth map.
        before: The teacher's image, made from the text alone. None where it has no such image.
        after: The student's image.
        right: Whether `after` is right in everything that its task asks for.
    """

    text: str
    reference: Image.Image
    before: Image.Image | None
    after: Image.Image
    right: bool


@dataclasses.dataclass(frozen=True)
class Scored:
    """The result in one task.

    Attributes:
        task: `identity`, `relight` or `depth`.
        cases: Number of cases.
        scores: Intervals by model and metric.
        examples: The first cases.
    """

    task: str
    cases: int
    scores: Mapping[str, Mapping[str, Interval]]
    examples: Sequence[Example]


@dataclasses.dataclass(frozen=True)
class Findings:
    """The contents of a report.

    Attributes:
        scored: The result in every task.
        grids: Some grids of the teacher.
        kept, rejected: Some pairs that the judge kept, and some that it or a filter rejected.
        losses: Steps and losses of the training.
        counts: Yields of the dataset, in the order of the stages.
        commands: The commands, and the seconds that each took.
        notes: Sentences at the end.
    """

    scored: Sequence[Scored]
    grids: Sequence[Shown]
    kept: Sequence[Shown]
    rejected: Sequence[Shown]
    losses: Sequence[tuple[int, float]]
    counts: Mapping[str, int]
    commands: Sequence[tuple[str, float]]
    notes: Sequence[str] = ()


def findings(
    folder: Path,
    cases: Cases,
    commands: Sequence[tuple[str, float]],
    notes: Sequence[str] = (),
) -> Findings:
    """Reads and scores a finished quickstart.

    Args:
        folder: Its folder.
        cases: The cases of each task that it has images of.
        commands: The commands, and the seconds that each took.
        notes: Sentences for the end of the report.

    Raises:
        UserError: A file is missing or damaged.
    """
    parts = begun_folder(folder / MAKING)
    grids = list(parts.rows(GRIDS))
    pairs = {row.id: row for row in parts.rows(PAIRS) if isinstance(row, Pair)}
    judged = list(parts.rows(JUDGEMENTS))
    kept = [row for row in judged if row.kept]
    refused = [row for row in judged if not row.kept]
    filtered = [pair for pair in pairs.values() if not pair.kept]
    return Findings(
        scored=[_scored(folder, task, own) for task, own in cases.items()],
        grids=[Shown([open_image(parts.picture(g.id))], g.prompt) for g in grids[:_GRIDS]],
        kept=[_shown(parts, pairs[row.id], _said(row)) for row in _spread(kept, _KEPT)],
        rejected=[
            *(_shown(parts, pairs[row.id], _said(row)) for row in _spread(refused, _REFUSED)),
            *(
                _shown(parts, pair, f"rejected before the judge: {pair.reason}")
                for pair in _spread(filtered, _FILTERED)
            ),
        ],
        losses=_losses(folder / "run"),
        counts={
            "grids": len(grids),
            "pairs that were judged": len(judged),
            "pairs that were kept": len(kept),
            "pairs that stayed undecided": sum(row.status == "undecided" for row in judged),
        },
        commands=commands,
        notes=notes,
    )


def _scored(folder: Path, task: str, cases: Sequence[Case]) -> Scored:
    """Scores the student, and the teacher where it was asked."""
    names = list(NAMES) if task == IDENTITY.name else [STUDENT]
    made = {name: [open_image(folder / name / f"{c.id}.png") for c in cases] for name in names}
    scores = {
        name: [score(case, np.asarray(image)) for case, image in zip(cases, images, strict=True)]
        for name, images in made.items()
    }
    examples = [
        Example(
            text=case.text,
            reference=Image.fromarray(case.reference()),
            before=made[TEACHER][number] if TEACHER in made else None,
            after=made[STUDENT][number],
            right=_is_right(scores[STUDENT][number]),
        )
        for number, case in enumerate(cases[:_EXAMPLES])
    ]
    intervals = {NAMES[name]: summarise(own) for name, own in scores.items()}
    return Scored(task, len(cases), intervals, examples)


def _is_right(scores: Score | Relit | Guided) -> bool:
    """Whether an image is right in everything; a drift that cannot be told is not."""
    match scores:
        case Score():
            return scores.both
        case Relit(identity, light, colours, drift):
            return identity and light and colours and drift <= (RELIGHT.max_drift or 0)
        case Guided(order, prompt):
            return order and prompt


def _spread(rows: Sequence, count: int) -> Sequence:
    """Takes rows from all over the run, since adjacent rows are of one grid."""
    return rows[:: max(1, len(rows) // count)][:count]


def _said(row: Judgement) -> str:
    """The judge's marks of a pair, or else its last words about it."""
    if row.scores:
        marks = (f"{aspect.replace('_', ' ')} {mark}" for aspect, mark in row.scores.items())
        return f"the judge's marks, of 10: {', '.join(marks)}"
    return f"the judge: {row.turns[-1].answer if row.turns else row.reason}"


def _shown(parts: Parts, pair: Pair, words: str) -> Shown:
    grid = open_image(parts.picture(pair.grid_id))
    return Shown([grid.crop(box) for box in (pair.reference_box, pair.target_box)], words)


def _losses(run: Path) -> list[tuple[int, float]]:
    rows = read_metrics(run)
    return [(int(row["step"]), row["loss"]) for row in rows if "loss" in row]
