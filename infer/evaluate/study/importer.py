"""Imports answers that reached us as files, and lists all that do not count."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from dsd_jax.errors import UserError
from dsd_jax.infer.evaluate.study.answers import Answer, AnswerFile, AnswerSet, RefusedError
from dsd_jax.infer.evaluate.study.platforms import (
    Parsed,
    is_participants,
    read_answer_file,
    read_participants,
)

__all__ = ["Imported", "import_answers"]

_SHOWN = 20


@dataclasses.dataclass(frozen=True)
class Imported:
    """Result of an import.

    Attributes:
        new: Answers that were added.
        repeated: Answers that were there before.
        refused: Reasons, and the number of answers refused for each.
        raters: Raters of the files whose answers count.
        failed: Those among them who failed an attention check.
    """

    new: int
    repeated: int
    refused: Mapping[str, int]
    raters: Sequence[str]
    failed: Sequence[str]


def import_answers(folder: Path, files: Sequence[Path], *, partial: bool) -> Imported:
    """Adds the answers of files to a study.

    Args:
        folder: Folder of the study.
        files: Answers from the page (JSON Lines) or from Mechanical Turk (CSV), and Prolific's
            table of participants (CSV), which says whose answers count.
        partial: Add the good answers although others are refused.

    Raises:
        UserError: A file cannot be read; or answers are refused and `partial` is off. Nothing is
            added then.
    """
    if not files:
        raise UserError("give the files with the answers")
    participants = {path: read_participants(path) for path in files if is_participants(path)}
    with AnswerFile(folder) as file:
        trial = AnswerSet(file.answers.key, file.answers.rows)
        good: list[Answer] = []
        refused: Counter[str] = Counter()
        repeated = 0
        for where, answer in _answers(path for path in files if path not in participants):
            reason = _reason(answer, participants)
            if reason is None:
                assert isinstance(answer, Answer)
                try:
                    added = trial.add(answer)
                except RefusedError as error:
                    reason = f"{where.rpartition(' ')[0].rpartition(' ')[0]}: {error}"
                else:
                    repeated += added is None
                    good += [] if added is None else [added]
            if reason is not None:
                refused[reason] += 1
        if refused and not partial:
            raise UserError(_complaint(refused))
        file.append(good)
        raters = list(dict.fromkeys(answer.rater for answer in good))
        failed = [rater for rater in raters if rater in file.answers.failed]
    return Imported(len(good), repeated, refused, raters, failed)


def _answers(files: Iterable[Path]) -> Iterable[Parsed]:
    for path in files:
        yield from read_answer_file(path)


def _reason(
    answer: Answer | UserError, participants: Mapping[Path, Mapping[str, str]]
) -> str | None:
    """The reason to refuse an answer before it is compared with others."""
    if isinstance(answer, UserError):
        return str(answer)
    for path, listed in participants.items():
        if answer.rater not in listed:
            return f"{path}: rater {answer.rater} is not among the participants"
        if listed[answer.rater]:
            return f"{path}: the submission of rater {answer.rater} is {listed[answer.rater]}"
    return None


def _complaint(refused: Mapping[str, int]) -> str:
    total = sum(refused.values())
    lines = [f"{total} answers are refused, so none was imported; --partial imports the others"]
    lines += [f"  {count} x {reason}" for reason, count in list(refused.items())[:_SHOWN]]
    if len(refused) > _SHOWN:
        lines.append(f"  and {len(refused) - _SHOWN} more reasons")
    return "\n".join(lines)
