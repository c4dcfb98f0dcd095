"""Scores of a run: a file for each metric, a line for each image or subject that it measures."""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from dsd_jax.files import write_file
from dsd_jax.structured import built_lines

__all__ = ["Score", "metrics_of", "read_scores", "write_scores"]

_FOLDER = "scores"


@dataclasses.dataclass(frozen=True)
class Score:
    """Score of an image by one metric.

    Attributes:
        case: Id of the case; for a metric of a whole subject (diversity), the subject.
        sample: Number of the image among those of its case.
        sha256: Digest of the image, or of all images that the metric measured together. A score of
            an image that has changed counts no more.
        state: "ok"; "undefined" where the metric says nothing about it (no second true picture, no
            mask); "error" where the image cannot be read.
        value: The score where the state is "ok".
        reason: Reason for another state.
        key: Digest of everything that it depends on: pictures, texts, masks, model and formula. A
            score under another key is computed again.
    """

    case: str
    sample: int
    sha256: str
    state: Literal["ok", "undefined", "error"]
    value: float | None = None
    reason: str = ""
    key: str = ""


def write_scores(run: Path, metric: str, scores: Iterable[Score]) -> None:
    """Writes the scores of one metric, complete or not at all.

    Raises:
        UserError: The file cannot be written.
    """
    lines = (json.dumps(dataclasses.asdict(score)) + "\n" for score in scores)
    write_file(run / _FOLDER / f"{metric}.jsonl", "".join(lines))


def read_scores(run: Path, metric: str) -> list[Score]:
    """Reads the scores of one metric; none if it was never computed.

    Raises:
        UserError: The file is damaged.
    """
    path = run / _FOLDER / f"{metric}.jsonl"
    if not path.exists():
        return []
    return [score for _, score in built_lines(Score, path)]


def metrics_of(run: Path) -> list[str]:
    """Names of the metrics that a run has scores of, such as `dino@dino-vits8`, sorted."""
    return sorted(path.name.removesuffix(".jsonl") for path in run.glob(f"{_FOLDER}/*.jsonl"))
