"""Runs: the images that one method made for the cases of a benchmark, and what is known of them.

A run is a folder:

    run.json         method, digest of the cases, settings
    cases.jsonl      the cases, with absolute paths
    images.jsonl     an image a line: case, sample, path, digest
    scores/          a file for each metric (`scores.py`)
    ratings.jsonl    answers of judges (`ratings.py`)
    masks/           CASE_SAMPLE.png, white where the subject is, for images whose mask is known
    tgt_image/ …     the images, if `generate` made them; `import` leaves images where they are
"""

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from dsd_jax.errors import UserError
from dsd_jax.files import write_file
from dsd_jax.infer.evaluate.cases import Case, cases_sha256, read_cases, write_cases
from dsd_jax.structured import build, built_lines, read_json

__all__ = [
    "Image",
    "Run",
    "check_folder",
    "open_run",
    "open_runs",
    "write_run",
]

SCHEMA = 1
_RUN, _CASES, _IMAGES = "run.json", "cases.jsonl", "images.jsonl"


@dataclasses.dataclass(frozen=True)
class Image:
    """An image of a run.

    Attributes:
        case: Id of its case.
        sample: Number of the image among those of its case, from 0.
        path: File. `open_run` makes it absolute.
        sha256: Digest of the file.
        seed: Seed of its noise, if known.
    """

    case: str
    sample: int
    path: Path
    sha256: str
    seed: int | None = None


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that was opened.

    Attributes:
        folder: Its folder.
        method: Name of the method, which tables show.
        cases: The cases, in the order of the benchmark.
        images: Images, in the order of the cases, then by sample.
        settings: Whatever is known of the making: model, digests of weights, sampler, revision.
    """

    folder: Path
    method: str
    cases: Sequence[Case]
    images: Sequence[Image]
    settings: Mapping[str, object] = dataclasses.field(default_factory=dict)

    @property
    def cases_sha256(self) -> str:
        """Digest of the cases; runs with the same one can stand in one table."""
        return cases_sha256(self.cases)

    @property
    def missing(self) -> list[str]:
        """Ids of the cases without an image."""
        there = {image.case for image in self.images}
        return [case.id for case in self.cases if case.id not in there]


@dataclasses.dataclass(frozen=True)
class _Head:
    """Contents of `run.json`."""

    schema: int
    method: str
    bench: str
    cases_sha256: str
    settings: Mapping[str, object]


def write_run(
    folder: Path,
    method: str,
    cases: Sequence[Case],
    images: Iterable[Image],
    settings: Mapping[str, object],
) -> Run:
    """Writes `run.json`, `cases.jsonl` and `images.jsonl`; scores and ratings stay as they are.

    Raises:
        UserError: The folder holds a run of another method or of other cases, or cannot be written.
    """
    check_folder(folder, method, cases)
    order = {case.id: number for number, case in enumerate(cases)}
    ordered = sorted(images, key=lambda image: (order[image.case], image.sample))
    write_cases(folder / _CASES, cases)
    lines = []
    for image in ordered:
        fields = dataclasses.asdict(image)
        path = image.path.absolute()
        inside = path.is_relative_to(folder.absolute())
        fields["path"] = os.fspath(path.relative_to(folder.absolute()) if inside else path)
        lines.append(json.dumps(fields, ensure_ascii=False) + "\n")
    write_file(folder / _IMAGES, "".join(lines))
    bench = cases[0].bench if cases else ""
    head = _Head(SCHEMA, method, bench, cases_sha256(cases), dict(settings))
    write_file(folder / _RUN, json.dumps(dataclasses.asdict(head), indent=1) + "\n")
    return open_run(folder)


def check_folder(folder: Path, method: str, cases: Sequence[Case]) -> None:
    """Checks that a folder is free for a run, or holds it already.

    Raises:
        UserError: It holds a run of another method or of other cases.
    """
    if (folder / _RUN).exists():
        head = _head(folder)
        if (head.method, head.cases_sha256) != (method, cases_sha256(cases)):
            raise UserError(
                f"{folder} holds a run of `{head.method}` on other cases; choose another folder"
                if head.method == method
                else f"{folder} holds a run of `{head.method}`; choose another folder"
            )


def open_run(folder: str | Path) -> Run:
    """Opens a run.

    Raises:
        UserError: It is no run, or one of its files is damaged or does not fit the others.
    """
    folder = Path(folder)
    head = _head(folder)
    cases = read_cases(folder / _CASES)
    if cases_sha256(cases) != head.cases_sha256:
        raise UserError(f"{folder / _CASES} has changed since the run was made; make the run again")
    known = {case.id for case in cases}
    images = []
    for where, image in built_lines(Image, folder / _IMAGES):
        if image.case not in known:
            raise UserError(f"{where}: there is no case {image.case}")
        images.append(dataclasses.replace(image, path=folder.absolute() / image.path))
    return Run(folder, head.method, cases, images, head.settings)


def open_runs(folders: Sequence[str | Path]) -> list[Run]:
    """Opens runs that are to be compared.

    Raises:
        UserError: See `open_run`; or two have the same method, or other cases.
    """
    runs = [open_run(folder) for folder in folders]
    for number, run in enumerate(runs):
        for other in runs[:number]:
            if other.method == run.method:
                raise UserError(f"{other.folder} and {run.folder} are both called `{run.method}`")
            if other.cases_sha256 != run.cases_sha256:
                raise UserError(
                    f"{other.folder} and {run.folder} have other cases, so they cannot be compared"
                )
    return runs


def _head(folder: Path) -> _Head:
    if not (folder / _RUN).exists():
        raise UserError(
            f"{folder} is no run: it has no {_RUN}; make one with `dsd evaluate generate` or "
            "`dsd evaluate import`"
        )
    head = build(_Head, read_json(folder / _RUN, dict), str(folder / _RUN))
    if head.schema != SCHEMA:
        raise UserError(f"{folder / _RUN} has schema {head.schema}, expected {SCHEMA}")
    return head
