"""Layouts in which methods leave their images: the case that every file belongs to.

    dreambench++     tgt_image/SUBJECT/PROMPT_K.jpg, with text/… .txt and src_image/… beside it
    subject-prompt   SUBJECT/PROMPT.png or SUBJECT/PROMPT_K.png; PROMPT is its number or its words
    omnicontext      [fullset/]TASK/KEY.png, or KEY_K.png
    multiid          ID/out.jpg, or ID/output_K.jpg
    flat             CASE.png or CASE_K.png; for XVerseBench also INDEX_PROMPT.png
    jsonl            a table with the columns case and image, and perhaps sample, seed and prompt

K is the number of the image among those of its case, from 0.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from dsd_jax.errors import UserError
from dsd_jax.infer.evaluate.benches.names import subject_key
from dsd_jax.infer.evaluate.benches.source import ENDINGS, visible
from dsd_jax.infer.evaluate.cases import Case
from dsd_jax.rows import lookup, open_table, plain_path, plain_text

__all__ = ["LAYOUTS", "Found", "Layout", "find_images"]

Layout = Literal[
    "auto", "dreambench++", "subject-prompt", "omnicontext", "multiid", "flat", "jsonl"
]

_NUMBERED = re.compile(r"(?P<name>.+?)(?:_(?P<sample>\d{1,4}))?", re.DOTALL)
_OUTPUT = re.compile(r"(?:out|output)(?:_(?P<sample>\d{1,4}))?")
_MULTIID_INPUTS = re.compile(r"ori|ref_\d+")
_OTHER = re.compile(r"[\W_]+")


@dataclasses.dataclass(frozen=True)
class Found:
    """A picture in the folder of a method.

    Attributes:
        path: The file.
        case: Id of its case. None if no case has this name.
        sample: Number of the image among those of its case.
        seed: Seed of its noise, if the layout tells it.
        source: Reference that the method says it was given.
        text: Prompt that the method says it was given, or the file that holds it.
    """

    path: Path
    case: str | None
    sample: int = 0
    seed: int | None = None
    source: Path | None = None
    text: str | Path | None = None


class _Names:
    """Cases by the names that layouts have for them."""

    def __init__(self, cases: Sequence[Case]) -> None:
        self.ids = {case.id for case in cases}
        self.numbers = {case.tags["index"]: case.id for case in cases if case.bench == "xverse"}
        self.entries = {case.tags.get("entry", case.id): case.id for case in cases}
        self.tasks = {(case.tags.get("task"), case.tags.get("key")): case.id for case in cases}
        self._prompts: dict[tuple[str, int], str] = {}
        self._words: dict[tuple[str, str], str] = {}
        self._subjects: dict[object, str] = {}
        for case in cases:
            self._prompts[case.subject, case.prompt_index] = case.id
            self._words[case.subject, _slug(case.prompt)] = case.id
            self._subjects[case.subject] = case.subject
            if case.bench == "dreambench++" and (key := subject_key(case.subject)):
                self._subjects[key] = case.subject

    def of_prompt(self, subject: str, prompt: str) -> str | None:
        """The case of a subject and of the number, or the words, of a prompt."""
        own = self._subjects.get(subject) or self._subjects.get(subject_key(subject))
        if own is None:
            return None
        if prompt.isdecimal():
            return self._prompts.get((own, int(prompt)))
        return self._words.get((own, _slug(prompt)))


def _slug(text: str) -> str:
    return _OTHER.sub("_", text.casefold()).strip("_")


def find_images(folder: Path, cases: Sequence[Case], layout: Layout) -> tuple[Layout, list[Found]]:
    """Lists the pictures of a method.

    Args:
        folder: Its folder, or a table.
        cases: The cases that it made images of.
        layout: Layout of the folder. auto takes the one by which most cases have an image.

    Returns:
        The layout, and the pictures in the order of their names.

    Raises:
        UserError: No picture belongs to any case.
    """
    names = _Names(cases)
    found: dict[Layout, list[Found]] = {}
    for own in LAYOUTS if layout == "auto" else (layout,):
        try:
            found[own] = list(LAYOUTS[own](folder, names))
        except UserError:  # there is no table
            if layout != "auto":
                raise
            found[own] = []
    best = max(found, key=lambda own: len({each.case for each in found[own]} - {None}))
    if all(each.case is None for each in found[best]):
        example = next(iter(cases))
        raise UserError(
            f"{folder} has no image of any case in the layout {layout}; case {example.id} is "
            f"prompt {example.prompt_index} of {example.subject}, such as "
            f"tgt_image/{example.subject}/{example.prompt_index}_0.jpg or {example.id}.png"
        )
    return best, found[best]


def _dreambench_plus(folder: Path, names: _Names) -> Iterator[Found]:
    for subject in _folders(folder / "tgt_image"):
        given = {path.stem: path for path in visible(folder / "src_image" / subject.name, *ENDINGS)}
        for path in visible(subject, *ENDINGS):
            prompt, sample = _numbered(path.stem)
            text = folder / "text" / subject.name / f"{path.stem}.txt"
            yield Found(
                path,
                names.of_prompt(subject.name, prompt),
                sample,
                source=given.get(path.stem),
                text=text if text.is_file() else None,
            )


def _subject_prompt(folder: Path, names: _Names) -> Iterator[Found]:
    for subject in _folders(folder):
        for path in visible(subject, *ENDINGS):
            whole = names.of_prompt(subject.name, path.stem)
            prompt, sample = (path.stem, 0) if whole else _numbered(path.stem)
            yield Found(path, whole or names.of_prompt(subject.name, prompt), sample)


def _omnicontext(folder: Path, names: _Names) -> Iterator[Found]:
    inner = folder / "fullset"
    for task in _folders(inner if inner.is_dir() else folder):
        paths = list(visible(task, *ENDINGS))
        stems = {path.stem for path in paths}
        for path in paths:
            case, (key, sample) = names.tasks.get((task.name, path.stem)), _numbered(path.stem)
            if case is None:
                yield Found(path, names.tasks.get((task.name, key)), sample)
            elif f"{path.stem}_0" in stems:  # the official script puts several images side by side
                yield Found(path, None)
            else:
                yield Found(path, case)


def _multiid(folder: Path, names: _Names) -> Iterator[Found]:
    for entry in _folders(folder):
        for path in visible(entry, *ENDINGS):
            if _MULTIID_INPUTS.fullmatch(path.stem):
                continue
            output = _OUTPUT.fullmatch(path.stem)
            case = names.entries.get(entry.name) if output else None
            yield Found(path, case, int(output["sample"] or 0) if output else 0)


def _flat(folder: Path, names: _Names) -> Iterator[Found]:
    for path in visible(folder, *ENDINGS):
        name, sample = (path.stem, 0) if path.stem in names.ids else _numbered(path.stem)
        if name in names.ids:
            yield Found(path, name, sample)
        else:
            yield Found(path, names.numbers.get(path.stem.partition("_")[0]))


def _jsonl(folder: Path, names: _Names) -> Iterator[Found]:
    table = open_table(folder)
    for column in ("case", "image"):
        if not table.has(column):
            raise UserError(
                f"{table.files[0]} has no column {column!r}; a table of images has the columns "
                "case and image, and perhaps sample, seed and prompt"
            )
    for row in table.rows():
        where = f"{row.file} row {row.number}"
        if row.error:
            raise UserError(f"{where}: {row.error}")
        case, image, sample, seed, prompt = (
            plain_text(lookup(row.fields, column)) or ""
            for column in ("case", "image", "sample", "seed", "prompt")
        )
        if not image:
            raise UserError(f"{where}: it names no image")
        for column, value in (("sample", sample), ("seed", seed)):
            if value and not value.isdecimal():
                raise UserError(f"{where}: {column} must be a whole number, got {value!r}")
        yield Found(
            row.folder / plain_path(image),
            case if case in names.ids else None,
            int(sample or 0),
            seed=int(seed) if seed else None,
            text=prompt or None,
        )


LAYOUTS: Mapping[Layout, Callable[[Path, _Names], Iterator[Found]]] = {
    "jsonl": _jsonl,
    "dreambench++": _dreambench_plus,
    "subject-prompt": _subject_prompt,
    "omnicontext": _omnicontext,
    "multiid": _multiid,
    "flat": _flat,
}
"""Readers by layout; of two that fit equally well, auto takes the first."""


def _folders(folder: Path) -> Iterator[Path]:
    """Folders in a folder, without hidden ones."""
    if folder.is_dir():
        yield from (
            path
            for path in sorted(folder.iterdir())
            if path.is_dir() and not path.name.startswith((".", "__"))
        )


def _numbered(stem: str) -> tuple[str, int]:
    """Name and number of `name_3`; number 0 where there is none."""
    found = _NUMBERED.fullmatch(stem)
    assert found
    return found["name"], int(found["sample"] or 0)
