"""The stages of a quickstart: plain `dsd` commands, and the few files that they need.

Every command can be stopped and goes on when it is run again, so the quickstart can too. Nothing
here knows how a stage works; what is read afterwards for the report are the files they write.
"""

import csv
import dataclasses
import json
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from dsd_jax.data.make.folder import begun_folder
from dsd_jax.data.make.ids import PairId
from dsd_jax.data.make.parts import Parts
from dsd_jax.data.make.stages import GRIDS, JUDGEMENTS, PAIRS, Judgement, Pair
from dsd_jax.errors import UserError
from dsd_jax.images import save_png
from dsd_jax.quickstart.report import Example, Findings, Shown, write_report
from dsd_jax.quickstart.torch_check import largest_difference
from dsd_jax.runs import steps_of
from dsd_jax.toy.folder import toy_flux_path
from dsd_jax.toy.score import Case, Interval, Score, make_cases, score, summarise
from dsd_jax.toy.words import describe
from dsd_jax.toy.world import BACKGROUNDS, Scene, subjects

__all__ = ["IMAGE_SCALE", "TEXT_TOKENS", "Budget", "quickstart", "student_commands"]

T = TypeVar("T")
Dsd = Callable[[Sequence[str]], int]
STUDENT, TEACHER = "student", "teacher"
IMAGE_SCALE = 2.0  # of true guidance: the student looks at the reference harder than it was trained
TEXT_TOKENS = 16  # of T5: texts of one picture are short, and what is not there costs no time


@dataclasses.dataclass(frozen=True)
class Budget:
    """How much of everything is made.

    Attributes:
        captions: reference captions, one grid each.
        train_steps: of the student.
        cases: held-out subjects in new scenes.
        steps: of sampling.
    """

    captions: int
    train_steps: int
    cases: int
    steps: int = 16

    @classmethod
    def of(cls, minutes: float) -> "Budget":
        """What two cores do in about so many minutes.

        Raises:
            UserError: no time at all.
        """
        if not 0 < minutes <= 600:
            raise UserError(f"minutes must be more than 0 and at most 600, got {minutes:g}")
        return cls(
            captions=max(16, round(30 * minutes)),
            train_steps=max(4, round(225 * minutes)),
            cases=max(4, round(12 * minutes)),
        )


def quickstart(folder: Path, budget: Budget, dsd: Dsd, show: Callable[[str], None]) -> str:
    """Runs the wheel and writes the report.

    Args:
        folder: for everything that is made.
        dsd: the command line.
        show: gets every command before it is run.

    Returns:
        The scores in a few lines.

    Raises:
        UserError: the folder was begun with another budget, or a stage refuses to run.
        SystemExit: a stage failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _begin(folder, budget)
    cases = make_cases(budget.cases)
    _write_captions(folder / "captions.csv", budget.captions)
    _write_making(folder / "making.toml", budget)
    _write_manifests(folder, cases, budget.steps)
    timed = []
    for words in _commands(folder, budget):
        shown = f"dsd {shlex.join(words)}"
        show(f"\n$ {shown}")
        start = time.monotonic()
        if status := dsd(words):
            raise SystemExit(status)
        timed.append((shown, time.monotonic() - start))
    worst = largest_difference(
        toy_flux_path(),
        folder / "export",
        cases[:2],
        steps=budget.steps,
        max_sequence_length=TEXT_TOKENS,
    )
    findings = dataclasses.replace(_findings(folder, cases, timed), notes=[_torch_words(worst)])
    write_report(findings, folder / "report.html", folder / "report.png")
    return "\n".join([*findings.notes, _summary(findings.scores, folder)])


def _torch_words(worst: int | None) -> str:
    if worst is None:
        return "PyTorch is not installed, so the export was not tried there (extra: torch)."
    return (
        "The export in PyTorch, with classes of diffusers and PEFT: images differ by at most "
        f"{worst} of 255 in any pixel."
    )


def _begin(folder: Path, budget: Budget) -> None:
    path = folder / "budget.json"
    content = json.dumps(dataclasses.asdict(budget))
    if path.exists() and path.read_text() != content:
        raise UserError(
            f"{folder} was begun with {path.read_text()}, now it is {content}; give the same "
            "--minutes, or another --output_dir"
        )
    path.write_text(content)


def _commands(folder: Path, budget: Budget) -> Iterator[list[str]]:
    base, making = str(toy_flux_path()), str(folder / "making.toml")
    sampling = ["--base_path", base, "--dtype", "float32"]
    yield ["data", "captions", making]
    yield ["data", "prompts", making]
    yield ["data", "grids", making, "--batch_size", "32"]
    for stage in ("pairs", "judge", "caption", "pack"):
        yield ["data", stage, making]
    yield ["data", "stats", str(folder / "making")]
    yield from student_commands(folder, budget.train_steps)
    yield ["batch", str(folder / "teacher.jsonl"), "--output_dir", str(folder / TEACHER), *sampling]
    yield [
        "batch", str(folder / "student.jsonl"), "--output_dir", str(folder / STUDENT), *sampling,
        "--lora_path", str(folder / "export"), "--max_sequence_length", str(TEXT_TOKENS),
    ]  # fmt: skip


def student_commands(folder: Path, steps: int) -> Iterator[list[str]]:
    """Encodes the dataset in `folder/making`, trains a student on it, and exports that.

    Raises:
        SystemExit: the training was stopped before its last step.
    """
    base, run = str(toy_flux_path()), str(folder / "run")
    dataset, encoded = str(folder / "making" / "dataset"), str(folder / "encoded")
    text = ["--max_sequence_length", str(TEXT_TOKENS)]
    yield [
        "data", "encode", dataset, encoded, "--base_path", base, "--sizes", "32", "32", "--text",
        *text, "--dtype", "float32", "--batch_size", "32",
    ]  # fmt: skip
    yield [
        "train", "toy_student", "--data", dataset, "--encoded", encoded, "--base_path", base,
        "--output_dir", run, "--steps", str(steps), "--instruction", "0.9", *text,
        "--no_tensorboard",
    ]  # fmt: skip
    # A training that was asked to stop ends well, too (SIGTERM).
    if steps not in steps_of(folder / "run" / "checkpoints"):
        raise SystemExit("the training was stopped; the same command goes on with it")
    shutil.rmtree(folder / "export", ignore_errors=True)  # `dsd convert` writes over nothing
    yield ["convert", "lora", run, str(folder / "export")]


# What the commands read


def _write_captions(path: Path, count: int) -> None:
    """Captions of subjects that are not held out, as a table such as LAION's."""
    rng = np.random.default_rng(0)
    pool = subjects(held_out=False)
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["TEXT"])
        for number in rng.choice(len(pool), count, replace=False):
            background = list(BACKGROUNDS)[rng.integers(len(BACKGROUNDS))]
            table.writerow([describe(pool[number], Scene(background, "northwest"))])


def _write_making(path: Path, budget: Budget) -> None:
    path.write_text(
        f"""# What `dsd data make` reads. With FLUX.1-dev as base_path, grids of 1024 x 1024
# pixels and a provider such as kind = "openai", model = "...", it makes pairs of real pictures.
root = "making"
base_path = {json.dumps(str(toy_flux_path()))}
parts = 4

[providers.toy]
kind = "toy"
model = "toy"

[captions]
source = ["captions.csv"]
count = {budget.captions}
similarity = 1.0  # the toy world has few words

[prompts]
provider = "toy"

[grids]
height = 64
width = 64
steps = {budget.steps}
dtype = "float32"

[pairs.check]
margin = 0.0  # panels touch, and nothing blurs between them

[judge]
provider = "toy"

[caption]
provider = "toy"

[pack]
size = [32, 32]
""",
        encoding="utf-8",
    )


def _write_manifests(folder: Path, cases: Sequence[Case], steps: int) -> None:
    """The cases for `dsd batch`: for the student with its reference, for the teacher without."""
    with_reference, without = [], []
    for case in cases:
        reference = folder / "references" / f"{case.id}.png"
        if not reference.exists():
            save_png(Image.fromarray(case.reference()), reference)
        row = {"id": case.id, "text": case.text, "seed": case.seed, "steps": steps, "height": 32}
        image = str(reference.relative_to(folder))
        with_reference.append(row | {"image": image, "width": 64, "i_guidance": IMAGE_SCALE})
        without.append(row | {"width": 32})
    for name, rows in ((STUDENT, with_reference), (TEACHER, without)):
        lines = [json.dumps(row) + "\n" for row in rows]
        (folder / f"{name}.jsonl").write_text("".join(lines))


# What they have made


def _findings(folder: Path, cases: Sequence[Case], timed: Sequence[tuple[str, float]]) -> Findings:
    made = {
        name: [_open(folder / name / f"{case.id}.png") for case in cases]
        for name in (TEACHER, STUDENT)
    }
    scored: dict[str, list[Score]] = {
        name: [score(case, np.asarray(image)) for case, image in zip(cases, images, strict=True)]
        for name, images in made.items()
    }
    parts = begun_folder(folder / "making")
    grids = list(parts.rows(GRIDS))
    pairs = {row.id: row for row in parts.rows(PAIRS) if isinstance(row, Pair)}
    judged = list(parts.rows(JUDGEMENTS))
    examples = [
        Example(case.text, Image.fromarray(case.reference()), before, after, scores.both)
        for case, before, after, scores in zip(
            cases, made[TEACHER], made[STUDENT], scored[STUDENT], strict=True
        )
    ]
    return Findings(
        scores={
            "teacher, text alone": summarise(scored[TEACHER]),
            "student, text and reference": summarise(scored[STUDENT]),
        },
        cases=len(cases),
        examples=examples[:12],
        grids=[Shown([_open(parts.picture(row.id))], row.prompt) for row in grids[:6]],
        kept=[
            _shown(parts, pairs[row.id], _said(row))
            for row in _spread([row for row in judged if row.kept], 6)
        ],
        rejected=_rejected(parts, pairs, judged),
        losses=_losses(folder / "run" / "metrics.jsonl"),
        counts={
            "grids": len(grids),
            "pairs that were judged": len(judged),
            "pairs that were kept": sum(row.kept for row in judged),
            "undecided": sum(row.status == "undecided" for row in judged),
        },
        commands=timed,
    )


def _rejected(
    parts: Parts, pairs: Mapping[PairId, Pair], judged: Sequence[Judgement]
) -> list[Shown]:
    """A few pairs that the judge refused, and a few that the filters before it refused."""
    by_judge = [row for row in judged if not row.kept]
    before = [row for row in pairs.values() if not row.kept]
    return [
        *(_shown(parts, pairs[row.id], _said(row)) for row in _spread(by_judge, 4)),
        *(_shown(parts, row, f"before the judge: {row.reason}") for row in _spread(before, 2)),
    ]


def _spread(rows: Sequence[T], count: int) -> Sequence[T]:
    """So many rows from all over the run; neighbours are of one grid."""
    return rows[:: max(1, len(rows) // count)][:count]


def _said(row: Judgement) -> str:
    """The judge's last words about a pair."""
    return f"the judge: {row.turns[-1].answer if row.turns else row.reason}"


def _shown(parts: Parts, pair: Pair, words: str) -> Shown:
    grid = _open(parts.picture(pair.grid_id))
    return Shown([grid.crop(pair.reference_box), grid.crop(pair.target_box)], words)


def _open(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def _losses(path: Path) -> list[tuple[int, float]]:
    rows = map(json.loads, path.read_text().splitlines())
    return [(row["step"], row["loss"]) for row in rows if "loss" in row]


def _summary(scores: Mapping[str, Mapping[str, Interval]], folder: Path) -> str:
    def line(name: str, intervals: Mapping[str, Interval]) -> str:
        return f"  {name:28}" + "".join(f"{x!s:>24}" for x in intervals.values())

    head = f"  {'':28}" + "".join(f"{name:>24}" for name in Score._fields)
    lines = [head, *(line(name, intervals) for name, intervals in scores.items())]
    return "\n".join([*lines, f"report: {folder / 'report.html'} and {folder / 'report.png'}"])
