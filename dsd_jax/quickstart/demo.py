"""The steps of `dsd evaluate demo`: every command of an evaluation, on the toy world.

Four methods answer the same cases: the student and its teacher, which ship with the package, and
two that fail in opposite ways, the copies and the wrong subjects of
`dsd_jax.quickstart.baselines`. Exact truth stands beside every metric and every judge.
"""

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from dsd_jax.convert.hub import TOY
from dsd_jax.errors import UserError
from dsd_jax.files import begin_folder, write_file
from dsd_jax.infer.evaluate.cases import Case, read_cases
from dsd_jax.infer.evaluate.runs import open_run
from dsd_jax.infer.evaluate.scores import read_scores
from dsd_jax.quickstart.baselines import write_copies, write_scene_only
from dsd_jax.quickstart.inputs import IMAGE_SCALE, TEXT_TOKENS
from dsd_jax.quickstart.raters import write_answers
from dsd_jax.quickstart.steps import Dsd, Show, Step, run_steps
from dsd_jax.toy.world import PANEL

__all__ = [
    "BACKBONE", "PROTOCOLS", "Sizes", "demo", "image_steps", "judge_step", "runs_of", "score_step",
    "student_words",
]  # fmt: skip

BACKBONE = "toy-vit"
"""Name of the toy's image encoder in the names of metrics: `dino@toy-vit`."""
STUDENT, TEACHER, COPIES, SCENE_ONLY = "student", "teacher", "copies", "scene-only"
PROTOCOLS = ("dreambench++", "dsd-debiased", "split")
IDENTITY = "identity@toy"  # the exact truth, as a metric
LEAST, MOST = 2, 440  # cases; nearly all subjects that are held out
_SIZES, _JUDGE = "sizes.json", "judge.toml"
_JUDGE_TEXT = """# For photographs: kind = "openai" or "gemini", and the name of a model.
[provider]
kind = "toy"
model = "toy"
"""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The amounts of a demonstration.

    Attributes:
        cases: Held-out subjects in new scenes.
        steps: Sampling steps of an image.
        rounds: Rounds of every judge.
        rated: Cases of the study.
    """

    cases: int = 24
    steps: int = 16
    rounds: int = 3
    rated: int = 8

    @classmethod
    def of(cls, cases: int) -> "Sizes":
        """The amounts for so many cases.

        Raises:
            UserError: There are too few cases for a study, or absurdly many.
        """
        if not LEAST <= cases <= MOST:
            raise UserError(f"cases must be from {LEAST} to {MOST}, got {cases}")
        return cls(cases, rated=min(cases, cls.rated))


def runs_of(folder: Path) -> list[Path]:
    """The folders of the runs."""
    return [folder / "runs" / name for name in (STUDENT, TEACHER, COPIES, SCENE_ONLY)]


def demo(folder: Path, sizes: Sizes, dsd: Dsd, show: Show) -> Path:
    """Runs all steps.

    Args:
        folder: Folder for all files.
        sizes: The amounts.
        dsd: The command line.
        show: Gets a few lines before every step.

    Returns:
        The page of the report.

    Raises:
        UserError: The folder was begun with other sizes, holds something else, or cannot be
            written; or a step refuses to run.
        SystemExit: A step failed or was stopped.
    """
    other = "was begun with other sizes; give the same --cases, or another --output_dir"
    begin_folder(folder, _SIZES, json.dumps(dataclasses.asdict(sizes)), other)
    steps = [
        *image_steps(folder, sizes),
        score_step(runs_of(folder)),
        judge_step(folder, runs_of(folder), sizes.rounds),
        *_audit_steps(folder, sizes),
        *_study_steps(folder, sizes),
        Step(
            "Write the report",
            ["evaluate", "report", *map(str, runs_of(folder)), "--output_dir",
             str(folder / "report"), "--title",
             "The toy world, with simulated people"],
        ),
    ]  # fmt: skip
    run_steps(steps, dsd, show)
    return folder / "report" / "report.html"


def image_steps(folder: Path, sizes: Sizes) -> list[Step]:
    """Draws the cases, and makes or imports the images of the four methods."""
    cases = folder / "cases.jsonl"

    def imported(method: str) -> list[str]:
        return ["evaluate", "import", method, str(folder / method), "--cases", str(cases),
                "--output_dir", str(folder / "runs" / method)]  # fmt: skip

    def written(write: Callable[[Sequence[Case], Path], None], method: str) -> None:
        write(read_cases(cases), folder / method)

    return [
        Step(
            "Draw cases of subjects that nothing was trained on",
            ["evaluate", "prepare", "toy", "--output", str(cases), "--count", str(sizes.cases)],
        ),
        Step(
            "Generate images of the student, which sees reference and text",
            student_words(folder, sizes, STUDENT, IMAGE_SCALE),
        ),
        Step(
            "Generate images of its teacher, which sees the text alone",
            [*_generate(folder, sizes, TEACHER), "--no_reference", "--width", str(PANEL)],
        ),
        Step(
            "Import a method that returns the reference",
            imported(COPIES),
            prepare=lambda: written(write_copies, COPIES),
        ),
        Step(
            "Import a method that draws the right scene with a wrong subject",
            imported(SCENE_ONLY),
            prepare=lambda: written(write_scene_only, SCENE_ONLY),
        ),
    ]


def student_words(folder: Path, sizes: Sizes, method: str, image_scale: float) -> list[str]:
    """The command that generates images of the student.

    Args:
        folder: Folder of the demonstration.
        sizes: The amounts.
        method: Name of the run.
        image_scale: Scale of true image guidance; 1 turns it off.
    """
    guided = ["--i_guidance", str(image_scale), "--max_sequence_length", str(TEXT_TOKENS)]
    return [*_generate(folder, sizes, method), "--lora_path", TOY, "--width", str(2 * PANEL),
            *guided]  # fmt: skip


def _generate(folder: Path, sizes: Sizes, method: str) -> list[str]:
    run = str(folder / "runs" / method)
    return ["evaluate", "generate", str(folder / "cases.jsonl"), "--method", method,
            "--output_dir", run, "--base_path", TOY, "--dtype", "float32", "--steps",
            str(sizes.steps), "--height", str(PANEL), "--batch_size",
            str(min(sizes.cases, 8))]  # fmt: skip


def score_step(runs: Sequence[Path]) -> Step:
    """Measures all images by the exact truth and by every metric that needs no download."""
    return Step(
        "Score them: exact truth, and metrics on pixels and on features",
        ["evaluate", "score", *map(str, runs), "--backbone", f"{BACKBONE}={TOY}"],
    )


def judge_step(folder: Path, runs: Sequence[Path], rounds: int) -> Step:
    """Asks the toy judge about all images by three protocols."""
    return Step(
        "Judge them by three protocols, in several rounds",
        ["evaluate", "judge", *map(str, runs), "--protocol", *PROTOCOLS, *_judge(folder),
         "--rounds", str(rounds)],
        prepare=lambda: write_file(folder / _JUDGE, _JUDGE_TEXT),
    )  # fmt: skip


def _judge(folder: Path) -> list[str]:
    return ["--judge", str(folder / _JUDGE)]


def _audit_steps(folder: Path, sizes: Sizes) -> list[Step]:
    """Judges the judge: by pictures with known answers, and by labels, here the exact truth."""
    probes, labels = str(folder / "probes"), folder / "labels.jsonl"
    return [
        Step(
            "Make pictures with known answers",
            ["evaluate", "audit", "probes", str(folder / "cases.jsonl"), "--output_dir", probes,
             "--count", str(sizes.rated)],
        ),
        Step(
            "Ask the judge about them",
            ["evaluate", "judge", probes, "--protocol", "split", "--aspects", "identity",
             *_judge(folder), "--rounds", str(sizes.rounds)],
        ),
        Step(
            "Audit the judge",
            ["evaluate", "audit", *map(str, runs_of(folder)), probes, "--labels", str(labels),
             "--least", "1", "--output", str(folder / "audit.md")],
            prepare=lambda: _write_labels(folder, labels),
        ),
    ]  # fmt: skip


def _write_labels(folder: Path, path: Path) -> None:
    """Writes what people would say about the identity of every image, here by the exact truth."""
    lines = []
    for run in map(open_run, runs_of(folder)):
        for score in read_scores(run.folder, IDENTITY):
            label = "yes" if score.value else "no"
            row = {"id": score.case, "rater": "truth", "label": label, "method": run.method,
                   "sample": score.sample}  # fmt: skip
            lines.append(json.dumps(row) + "\n")
    write_file(path, "".join(lines))


def _study_steps(folder: Path, sizes: Sizes) -> list[Step]:
    """Builds a blinded study, which simulated people answer."""
    study, answers = folder / "study", folder / "answers.jsonl"

    def cleared() -> None:
        shutil.rmtree(study, ignore_errors=True)  # a study is built in a new folder

    return [
        Step(
            "Build a blinded study",
            ["evaluate", "study", "build", *map(str, runs_of(folder)), "--output_dir", str(study),
             "--cases", str(sizes.rated), "--side", "256"],
            prepare=cleared,
        ),
        Step(
            "Import the answers of simulated people",
            ["evaluate", "study", "import", str(study), str(answers)],
            prepare=lambda: write_answers(study, [*map(open_run, runs_of(folder))], answers),
        ),
        Step(
            "Analyse the answers, and give the runs their mean ratings",
            ["evaluate", "study", "analyse", str(study), "--runs", *map(str, runs_of(folder)),
             "--write_ratings", "--draws", "2000", "--output", str(folder / "study.md")],
        ),
    ]  # fmt: skip
