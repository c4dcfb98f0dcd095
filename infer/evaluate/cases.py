"""Cases of a benchmark: the reference that a method is given, and the prompt that it must follow.

A cases file is JSON Lines, one case a line, with paths relative to its folder or absolute. It is
the same for every benchmark, so nothing after `prepare` knows a benchmark.
"""

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from dsd_jax.errors import UserError
from dsd_jax.files import file_sha256, write_file
from dsd_jax.structured import built_lines
from dsd_jax.tasks import TASKS, Task

__all__ = [
    "TASK",
    "Case",
    "Picture",
    "cases_sha256",
    "check_references",
    "check_unchanged",
    "read_cases",
    "task_of",
    "write_cases",
]

TASK = "task"
"""Tag of a case that names its task; read it by `task_of`."""
_RESTORE = "restore it, or prepare the cases or make the run again"
_ID = re.compile(r"[A-Za-z0-9_.'-]{1,200}")


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture of a benchmark.

    Attributes:
        path: File. `read_cases` makes it absolute.
        sha256: Digest of the file, as `prepare` saw it.
        mask: File of a mask that is white where the subject is, or None.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    path: Path
    sha256: str
    mask: Path | None = None


@dataclasses.dataclass(frozen=True)
class Case:
    """One request of a benchmark.

    Attributes:
        id: Unique in its file, and a file name.
        bench: Name of the benchmark.
        subject: Id of the subject. All cases of a subject are resampled together.
        prompt: Text that the image must follow.
        references: Pictures of the subject. A method gets the first.
        targets: Other true pictures of the subject, which no method gets.
        category: Kind of subject, such as "animal"; empty where a benchmark has none.
        prompt_index: Number of the prompt among those of its subject.
        prompt_class: Kind of prompt, such as "photorealistic"; empty where there is none.
        subject_text: Words for the subject, such as "guitar".
        samples: Number of images that the benchmark asks a method for.
        tags: Further properties by which a report may split.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    id: str
    bench: str
    subject: str
    prompt: str
    references: tuple[Picture, ...]
    targets: tuple[Picture, ...] = ()
    category: str = ""
    prompt_index: int = 0
    prompt_class: str = ""
    subject_text: str = ""
    samples: int = 1
    tags: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not _ID.fullmatch(self.id) or self.id in {".", ".."}:
            raise UserError(
                "the id of a case is a file name of ASCII letters, digits and -_.', got "
                f"{self.id!r}"
            )
        if not self.references:
            raise UserError(f"case {self.id} has no reference picture")
        if self.samples < 1:
            raise UserError(f"case {self.id} asks for {self.samples} images; it must ask for some")

    @property
    def reference(self) -> Picture:
        """The picture that a method gets."""
        return self.references[0]


def read_cases(path: str | Path) -> list[Case]:
    """Reads a cases file; paths of the result are absolute.

    Raises:
        UserError: The file is missing or damaged, has no cases, or has an id twice.
    """
    path = Path(path)
    folder = path.absolute().parent
    cases: dict[str, Case] = {}
    for where, case in built_lines(Case, path):
        if case.id in cases:
            raise UserError(f"{where}: the id {case.id} is there twice")
        cases[case.id] = _moved(case, lambda place: folder / place)
    if not cases:
        raise UserError(f"{path} has no cases; make it with `dsd evaluate prepare`")
    return list(cases.values())


def write_cases(path: str | Path, cases: Iterable[Case]) -> None:
    """Writes a cases file, complete or not at all. Paths in its folder become relative to it.

    Raises:
        UserError: The file cannot be written.
    """
    folder = Path(path).absolute().parent

    def relative(place: Path) -> Path:
        place = place.absolute()
        return place.relative_to(folder) if place.is_relative_to(folder) else place

    lines = (
        json.dumps(
            dataclasses.asdict(_moved(case, relative)), default=os.fspath, ensure_ascii=False
        )
        for case in cases
    )
    write_file(path, "".join(f"{line}\n" for line in lines))


def cases_sha256(cases: Iterable[Case]) -> str:
    """Digest of what is asked: ids, prompts and the contents of references, wherever they lie."""
    digest = hashlib.sha256()
    for case in cases:
        asked = [case.id, case.prompt, [picture.sha256 for picture in case.references]]
        digest.update(json.dumps(asked).encode() + b"\n")
    return digest.hexdigest()


def check_references(cases: Iterable[Case]) -> None:
    """Checks that the pictures which methods get are those that were prepared.

    Raises:
        UserError: One is missing or has changed.
    """
    check_unchanged({case.reference.path: case.reference.sha256 for case in cases})


def task_of(case: Case) -> Task | None:
    """The task of a case. None if it has none of ours: a benchmark may tag tasks of its own."""
    return TASKS.get(case.tags.get(TASK, ""))


def check_unchanged(files: Mapping[Path, str]) -> None:
    """Compares pictures of cases and images of runs with their digests.

    Raises:
        UserError: One is missing or has changed.
    """
    for path, digest in files.items():
        if not path.is_file():
            raise UserError(f"there is no image at {path}; {_RESTORE}")
        if file_sha256(path) != digest:
            raise UserError(f"{path} has changed since it was recorded; {_RESTORE}")


def _moved(case: Case, move: Callable[[Path], Path]) -> Case:
    return dataclasses.replace(
        case,
        references=tuple(_moved_picture(each, move) for each in case.references),
        targets=tuple(_moved_picture(each, move) for each in case.targets),
    )


def _moved_picture(picture: Picture, move: Callable[[Path], Path]) -> Picture:
    mask = None if picture.mask is None else move(picture.mask)
    return dataclasses.replace(picture, path=move(picture.path), mask=mask)
