"""Ranks methods of the toy world by judges and metrics, beside the exact truth.

    python -m benchmarks.evaluation.toy [FOLDER] [--cases 300]

The steps are those of `dsd evaluate demo`, and one more method: the student without true guidance,
which gets more subjects wrong. If it was stopped, start it again with the same folder to resume.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.results import save
from dsd_jax.cli import main as dsd
from dsd_jax.infer.evaluate.beside import beside_truth
from dsd_jax.infer.evaluate.metrics import mean_per_case
from dsd_jax.infer.evaluate.ratings import read_ratings
from dsd_jax.infer.evaluate.resampling import Resampling
from dsd_jax.infer.evaluate.runs import Run, open_runs
from dsd_jax.infer.evaluate.scores import read_scores
from dsd_jax.infer.evaluate.statistics import Means, bootstrap
from dsd_jax.interval import Interval
from dsd_jax.quickstart.demo import (
    Sizes,
    image_steps,
    judge_step,
    runs_of,
    score_step,
    student_words,
)
from dsd_jax.quickstart.steps import Step, run_steps

SECTIONS = {
    "": (
        "Judges beside the exact truth",
        """Five methods on the same held-out subjects of the toy world, rated by the toy judge in
three rounds (one score in eight is off by one). *Copies* returns the reference; *scene-only* draws
the right scene with another subject. The truth is what the pixel judge measures: *both* is the
share of images whose subject and scene are right. CP·PF is the product of means. *Lowest of three*
is the mean, over images, of the lowest of `split`'s identity, novelty and prompt. DINO is
`dino@toy-vit`, the similarity to the reference. All from 0 to 1, with 95 % bootstrap intervals over
subjects.""",
    ),
    "metrics": (
        "Metrics beside the exact truth",
        """Spearman's rank correlation of every metric with the truth, with 95 % bootstrap intervals
over subjects. *Identity*, *prompt* and *copied* are over the images of all five methods; *identity,
students* is over those of the two students alone, which all follow the prompt, so nothing but the
subject can be wrong. With so few of them wrong, a correlation of about 0.2 would be perfect.""",
    ),
}
WEAK = "student, unguided"


def values_of(run: Run, protocol: str, aspect: str) -> dict[str, float]:
    """Mean rating of every case over its rounds, from 0 to 1."""
    own = [
        (rating.case, rating.score / rating.scale)
        for rating in read_ratings(run.folder)
        if (rating.protocol, rating.aspect) == (protocol, aspect) and rating.score is not None
    ]
    return mean_per_case([case for case, _ in own], [value for _, value in own])


def means_of(run: Run, columns: Sequence[dict[str, float]]) -> Means:
    """Means of columns over the cases of a run, drawn by subjects."""
    table = [[column[case.id] for column in columns] for case in run.cases]
    subjects = [case.subject for case in run.cases]
    return bootstrap(np.asarray(table), Resampling(levels=(subjects,)))


def row_of(run: Run) -> dict[str, str]:
    """The truth, the judges and a metric about one method."""

    def scored(metric: str) -> dict[str, float]:
        return {own.case: own.value or 0.0 for own in read_scores(run.folder, metric)}

    def mean(column: dict[str, float]) -> str:
        return str(means_of(run, [column]).interval())

    row = {"method": run.method}
    row |= {
        f"truth: {name}": mean(scored(f"{name}@toy")) for name in ("identity", "prompt", "both")
    }
    for name, protocol in (("vanilla", "dreambench++"), ("debiased", "dsd-debiased")):
        both = [values_of(run, protocol, aspect) for aspect in ("cp", "pf")]
        product = means_of(run, both).interval(lambda means: means[:, 0] * means[:, 1])
        row |= {f"{name} CP": mean(both[0]), f"{name} CP·PF": str(product)}
    split = {name: values_of(run, "split", name) for name in ("identity", "novelty", "prompt")}
    row |= {f"split {name}": mean(column) for name, column in split.items()}
    lowest = {case.id: min(column[case.id] for column in split.values()) for case in run.cases}
    return row | {"lowest of three": mean(lowest), "DINO": mean(scored("dino@toy-vit"))}


def metric_rows(runs: Sequence[Run], students: Sequence[Run]) -> list[dict[str, str]]:
    """Every metric beside the truth about all images, and about those of the students."""
    within = {own.metric: own.correlations["identity@toy"] for own in beside_truth(students)}
    rows = []
    for own in beside_truth(runs):
        row = {"metric": own.metric, "images": str(own.rows)}
        for name in ("identity", "prompt", "copied"):
            row[name] = told(own.correlations[f"{name}@toy"])
        rows.append(row | {"identity, students": told(within.get(own.metric))})
    return rows


def told(found: Interval | None) -> str:
    """A correlation; a dash where all values are equal."""
    return "–" if found is None or math.isnan(found.value) else str(found)


def main() -> None:
    """Runs the steps and writes both tables; about five minutes on two quiet cores."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("outputs/evaluation_toy"))
    parser.add_argument("--cases", type=int, default=300)
    given = parser.parse_args()
    folder, sizes = given.folder, Sizes.of(given.cases)
    student, *others = runs_of(folder)
    weak = student.with_name("unguided")
    folders = [student, weak, *others]
    words = student_words(folder, sizes, WEAK, 1.0)
    words[words.index("--output_dir") + 1] = str(weak)
    generated = Step("Generate images of the student without true guidance", words)
    steps = [generated, score_step(folders), judge_step(folder, folders, sizes.rounds)]
    run_steps([*image_steps(folder, sizes), *steps], dsd, print)
    runs = open_runs(folders)
    settings = {"cases": sizes.cases, "rounds": sizes.rounds, "sampling_steps": sizes.steps}
    save(__file__, [row_of(run) for run in runs], **settings)
    save(__file__, metric_rows(runs, runs[:2]), "metrics", **settings)


if __name__ == "__main__":
    main()
