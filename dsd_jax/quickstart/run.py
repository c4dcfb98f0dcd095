"""The steps of a quickstart: plain `dsd` commands, one after another.

Every command resumes when it is run again after a stop, and so does the quickstart. Nothing here
knows how a command works; the report reads the files that the commands write.
"""

import functools
import shutil
from collections.abc import Sequence
from pathlib import Path

from dsd_jax.convert.hub import TOY
from dsd_jax.quickstart.depths import DEPTHS, depth_table, write_depths
from dsd_jax.quickstart.findings import Scored, findings
from dsd_jax.quickstart.inputs import MAKING, STUDENT, TEACHER, TEXT_TOKENS, Budget, write_inputs
from dsd_jax.quickstart.picture import write_picture
from dsd_jax.quickstart.report import METRIC_NAMES, write_report
from dsd_jax.quickstart.steps import Dsd, Show, Step, run_steps
from dsd_jax.quickstart.torch_check import largest_difference
from dsd_jax.runs import steps_of
from dsd_jax.tasks import DEPTH, IDENTITY
from dsd_jax.terminal import table_text
from dsd_jax.toy.folder import toy_flux_path
from dsd_jax.toy.world import PANEL

__all__ = ["quickstart", "student_steps"]


def quickstart(folder: Path, budget: Budget, dsd: Dsd, show: Show) -> str:
    """Runs all steps and writes the report.

    Args:
        folder: Folder for all files of the run.
        budget: The amounts that a quickstart makes.
        dsd: The command line.
        show: Gets a few lines before every step.

    Returns:
        The scores and where the report lies, in lines of at most 80 characters.

    Raises:
        UserError: The folder was begun with another budget, holds something else, or cannot be
            written; or a step refuses to run.
        SystemExit: A step failed or was stopped.
    """
    cases = budget.make_cases()
    write_inputs(folder, budget, cases)
    timed = run_steps(_steps(folder, budget), dsd, show)
    show("\nCheck the exported weights in PyTorch")
    worst = largest_difference(
        toy_flux_path(),
        folder / "export",
        [own[0] for own in cases.values()],
        steps=budget.steps,
        max_sequence_length=TEXT_TOKENS,
    )
    # The report is shared, and the place of the folder is nobody else's business.
    commands = [(words.replace(str(folder), folder.resolve().name), took) for words, took in timed]
    found = findings(folder, cases, commands, [_torch_words(worst)])
    page, picture = folder / "report.html", folder / "report.png"
    write_report(found, page, folder / f"{MAKING}.html")
    write_picture(found, picture)
    return "\n\n".join([*found.notes, *map(_summary, found.scored), f"report: {page}"])


def _steps(folder: Path, budget: Budget) -> list[Step]:
    making = str(folder / f"{MAKING}.toml")
    view = str(folder / f"{MAKING}.html")
    sampling = ["--base_path", TOY, "--dtype", "float32"]
    return [
        Step("Sample captions that name subjects", ["data", "captions", making]),
        Step("Write one four-panel grid prompt per caption", ["data", "prompts", making]),
        Step("Paint the grids", ["data", "grids", making, "--batch_size", "32"]),
        Step("Cut the grids into pairs of panels", ["data", "pairs", making]),
        Step("Judge whether each pair fits its task", ["data", "judge", making]),
        Step("Describe the pairs in words", ["data", "caption", making]),
        Step("Pack the pairs into a dataset", ["data", "pack", making]),
        Step("Show all of it on a web page", ["data", "view", making, "--output_path", view]),
        *student_steps(folder, budget),
        *_teacher_steps(folder, budget, sampling),
        Step(
            f"Try it on subjects that it has never seen: {', '.join(budget.tasks)}",
            ["batch", str(folder / f"{STUDENT}.jsonl"), "--output_dir", str(folder / STUDENT),
             *sampling, "--model_path", str(folder / "export" / "transformer"), "--lora_path",
             str(folder / "export"), "--max_sequence_length", str(TEXT_TOKENS)],
        ),
    ]  # fmt: skip


def student_steps(folder: Path, budget: Budget, flags: Sequence[str] = ()) -> list[Step]:
    """Encodes the datasets of a quickstart, trains a student on them, and exports that.

    Args:
        folder: Folder with `making`, and with `depths` if depth is among the tasks.
        budget: Tasks and training steps.
        flags: Further flags of the training.
    """
    run, export = folder / "run", folder / "export"
    depths = folder / DEPTHS / "dataset"
    datasets = {folder / MAKING / "dataset": folder / "encoded"}
    titles = ["Encode the pictures and texts once", "Encode the depth pairs, too"]
    steps = []
    if DEPTH.name in budget.tasks:
        datasets[depths] = folder / f"encoded-{DEPTHS}"
        steps.append(
            Step(
                "Import depth maps of the panels",
                ["data", "import", str(depth_table(folder)), str(depths)],
                prepare=functools.partial(write_depths, folder, budget.maps),
            )
        )
    text = ["--max_sequence_length", str(TEXT_TOKENS)]
    shares = [f"{name}={share:g}" for name, share in budget.tasks.items()]

    def clear_export() -> None:
        # A training that was asked to stop (SIGTERM) ends with status 0 too.
        if budget.train_steps not in steps_of(run / "checkpoints"):
            raise SystemExit("the training was stopped; the same command goes on with it")
        shutil.rmtree(export, ignore_errors=True)  # `dsd convert` never overwrites

    return [
        *steps,
        *(
            Step(
                title,
                ["data", "encode", str(dataset), str(encoded), "--base_path", TOY, "--sizes",
                 str(PANEL), str(PANEL), "--text", *text, "--dtype", "float32", "--batch_size",
                 "32"],
            )
            for title, (dataset, encoded) in zip(titles, datasets.items(), strict=False)
        ),
        Step(
            "Train the customiser",
            ["train", "toy_student", "--data", *map(str, datasets), "--encoded",
             *map(str, datasets.values()), "--tasks", *shares, "--output_dir", str(run), "--steps",
             str(budget.train_steps), "--instruction", "0.9", *text, *flags],
        ),
        Step(
            "Export it for PyTorch",
            ["convert", "lora", str(run), str(export)],
            prepare=clear_export,
        ),
    ]  # fmt: skip


def _teacher_steps(folder: Path, budget: Budget, sampling: Sequence[str]) -> list[Step]:
    """Asks the teacher for the identity cases. It can take no picture to relight, and no map."""
    if IDENTITY.name not in budget.tasks:
        return []
    return [
        Step(
            "Paint new scenes without the reference, for comparison",
            ["batch", str(folder / f"{TEACHER}.jsonl"), "--output_dir", str(folder / TEACHER),
             *sampling],
        )
    ]  # fmt: skip


def _torch_words(worst: int | None) -> str:
    if worst is None:
        return "PyTorch is not installed, so the export was not tried there (extra: torch)."
    return f"Images of diffusers and PEFT differ from ours by at most {worst} of 255 in any pixel."


def _summary(scored: Scored) -> str:
    """The scores of a task as a table, a column for each model."""
    rows = [
        (name, *(str(intervals[metric]) for intervals in scored.scores.values()))
        for metric, name in METRIC_NAMES[scored.task].items()
    ]
    title = f"{scored.task}: {scored.cases} images of subjects that nothing was trained on"
    return table_text(("", *scored.scores), rows, title=title)
