"""Makes the images of a run: `dsd batch` over the cases, into the tree of DreamBench++.

    tgt_image/SUBJECT/PROMPT_K.png    image K of a prompt
    src_image/SUBJECT/PROMPT_K.jpg    the reference that it was made from
    text/SUBJECT/PROMPT_K.txt         the text that it was made from
    results.jsonl, sheet.jpg          outcomes and an overview, as `dsd batch` writes them

A run that was stopped goes on where it was. Several workers may make their shares of one run.
"""

import dataclasses
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dsd_jax import __version__
from dsd_jax.errors import UserError
from dsd_jax.files import explained, file_sha256, write_file
from dsd_jax.infer.batch import Row, Summary, run_batch
from dsd_jax.infer.evaluate.cases import Case, check_references
from dsd_jax.infer.evaluate.enhancing import Enriched
from dsd_jax.infer.evaluate.runs import Image, write_run
from dsd_jax.infer.pipeline import Pipeline
from dsd_jax.infer.settings import Settings, check_seed
from dsd_jax.progress import phase
from dsd_jax.shares import ALL, WorkerShare
from dsd_jax.structured import json_lines

__all__ = ["Making", "generate"]


@dataclasses.dataclass(frozen=True)
class Making:
    """Settings by which the images of every case are made.

    Attributes:
        method: Name of the method in tables.
        settings: Settings of sampling.
        seeds: Seeds of the images of a case. None gives as many as the benchmark asks for, from 0.
        reference: Give the reference of a case to the model. Otherwise it gets the text alone.
        enriched: Enriched prompts, which the model gets in place of those of the cases.
    """

    method: str
    settings: Settings = dataclasses.field(default_factory=Settings)
    seeds: Sequence[int] | None = None
    reference: bool = True
    enriched: Enriched | None = None

    def seeds_of(self, case: Case) -> Sequence[int]:
        """Seeds of the images of a case."""
        return range(case.samples) if self.seeds is None else self.seeds


@dataclasses.dataclass(frozen=True)
class _Planned:
    """An image to make."""

    case: Case
    sample: int
    row: Row


def generate(
    pipeline: Pipeline,
    cases: Sequence[Case],
    output_dir: Path,
    making: Making,
    *,
    batch_size: int | None = None,
    share: WorkerShare = ALL,
    retry_failed: bool = False,
    on_result: Callable[[dict[str, Any]], None] | None = None,
) -> Summary:
    """Makes the images of a run, or of a worker's share, and writes the run.

    Args:
        pipeline: The model.
        cases: The cases.
        output_dir: Folder of the run, new or of the same method and cases.
        making: What is made.
        batch_size, share, retry_failed, on_result: As for `run_batch`.

    Raises:
        UserError: The model cannot take a reference, a reference has changed, two cases would have
            the same image file, or see `run_batch` and `write_run`.
    """
    check_references(cases)
    checked = pipeline.check(making.settings, two_frames=making.reference)
    planned = _plan(cases, making)
    settings: dict[str, object] = {
        "made_by": "generate",
        "program": f"dsd-jax {__version__}",
        "model": pipeline.identity,
        "sampling": checked.stated(),
        "seeds": None if making.seeds is None else list(making.seeds),
        "reference": making.reference,
        "prompts": _about(making.enriched),
    }
    write_run(output_dir, making.method, cases, _made(planned, output_dir, pipeline), settings)
    summary = run_batch(
        pipeline,
        [each.row for each in planned],
        output_dir,
        batch_size=batch_size,
        share=share,
        retry_failed=retry_failed,
        on_result=on_result,
    )
    if not summary.stopped:
        with phase("hashing the weights"):
            settings["weights"] = pipeline.weights_sha256()
    while True:
        images = _made(planned, output_dir, pipeline)
        _write_origins(planned, output_dir, images)
        write_run(output_dir, making.method, cases, images, settings)
        # Another worker may have listed its images a moment later, without some of these. Whoever
        # has written the list looks again, so the last list has all.
        if _made(planned, output_dir, pipeline) == images:
            return summary


def _about(enriched: Enriched | None) -> dict[str, object]:
    """Describes the prompts of a run, for its settings."""
    if enriched is None:
        return {"kind": "original"}
    about = {"model": enriched.model, "wording": enriched.wording, "failed": dict(enriched.failed)}
    return {"kind": "enhanced", **about}


def _plan(cases: Sequence[Case], making: Making) -> list[_Planned]:
    for seed in making.seeds or ():
        check_seed(seed)
    if making.seeds is not None and len(set(making.seeds)) < max(1, len(making.seeds)):
        raise UserError(f"seeds must differ, got {' '.join(map(str, making.seeds))}")
    planned: dict[str, _Planned] = {}
    for case in cases:
        if Path(case.subject).name != case.subject:
            raise UserError(f"the subject of case {case.id} must be a file name: {case.subject!r}")
        reference = case.reference.path
        for sample, seed in enumerate(making.seeds_of(case)):
            row = Row(
                f"{case.id}_{sample}",
                text=making.enriched.texts[case.id] if making.enriched else case.prompt,
                image=reference.name if making.reference else None,
                seed=seed,
                settings=making.settings,
                folder=reference.parent,
                place=f"tgt_image/{case.subject}/{case.prompt_index}_{sample}",
            )
            if (other := planned.get(row.place)) is not None:
                raise UserError(
                    f"cases {other.case.id} and {case.id} are both prompt {case.prompt_index} of "
                    f"{case.subject}; number the prompts of a subject"
                )
            planned[row.place] = _Planned(case, sample, row)
    return list(planned.values())


def _made(planned: Sequence[_Planned], folder: Path, pipeline: Pipeline) -> list[Image]:
    """Images that are there and were made as planned, by any worker."""
    done: set[tuple[str, str]] = set()
    for path in sorted(folder.glob("results*.jsonl")):
        for _, line in json_lines(path):
            if isinstance(line, dict) and line.get("status") == "ok":
                done.add((str(line.get("id")), str(line.get("digest"))))
    images = []
    for each in planned:
        path = folder / each.row.output
        if (each.row.id, each.row.digest(pipeline.identity)) in done and path.exists():
            own = Image(each.case.id, each.sample, path, file_sha256(path), each.row.seed)
            images.append(own)
    return images


def _write_origins(planned: Sequence[_Planned], folder: Path, images: Sequence[Image]) -> None:
    """Puts reference and text of every image beside it, as the tree of DreamBench++ has them."""
    there = {(image.case, image.sample) for image in images}
    for each in planned:
        if (each.case.id, each.sample) not in there:
            continue
        stem = f"{each.case.subject}/{each.case.prompt_index}_{each.sample}"
        text, content = folder / "text" / f"{stem}.txt", f"{each.row.text}\n"
        if not text.exists() or text.read_text(encoding="utf-8") != content:
            write_file(text, content)
        if each.row.image is not None:
            reference = each.case.reference.path
            _link(reference, folder / "src_image" / f"{stem}{reference.suffix.lower()}")


def _link(source: Path, target: Path) -> None:
    """Gives a file another name, or copies it where the disk cannot or both are on two disks."""
    with explained(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, target)
        except FileExistsError:  # from an earlier run, or by another worker
            return
        except OSError:
            shutil.copyfile(source, target)
