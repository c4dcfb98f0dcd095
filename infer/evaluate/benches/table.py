"""Any table of cases as a benchmark: JSON Lines, CSV, Parquet and the other formats of `rows`."""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from dsd_jax.errors import UserError, did_you_mean
from dsd_jax.infer.evaluate.benches.source import Source, file_name, picture
from dsd_jax.infer.evaluate.cases import Case, Picture
from dsd_jax.rows import Row, lookup, open_table, plain_path, plain_text

__all__ = ["COLUMNS", "read_table"]

COLUMNS: Mapping[str, str] = {
    "prompt": "text that the image must follow",
    "reference": "path of the picture of the subject, or `references`, a list of them",
    "target": "path of another true picture of the subject, or `targets`, a list of them",
    "mask": "path of the mask of the first reference",
    "id": "unique name of the case; by default the subject and the number of the prompt",
    "subject": "name of the subject; by default the name of the reference file without its ending",
    "subject_text": "words for the subject",
    "category": "kind of subject",
    "prompt_index": "number of the prompt among those of its subject; by default its place there",
    "prompt_class": "kind of prompt",
    "samples": "number of images to ask a method for",
    "tags": "an object of further properties, as texts",
}
"""Columns of a table of cases. `prompt` and `reference` are needed. Paths are relative to it."""

_LISTS = {"references": "reference", "targets": "target"}
_WORDS = ("subject_text", "category", "prompt_class")
_MOST = 8  # faults that a message names


def read_table(source: Source) -> list[Case]:
    """Reads a table of cases; see `COLUMNS`. The benchmark is called after the file.

    Raises:
        UserError: There is no table, it has an unknown column, or a row cannot be used.
    """
    table = open_table(source.root)
    bench = table.files[0].stem
    known = (*COLUMNS, *_LISTS)
    for column in table.columns:
        if column.partition(".")[0] not in known:
            raise UserError(
                f"{table.files[0]} has the unknown column {column!r}; the columns of a table of "
                f"cases are {', '.join(known)}{did_you_mean(column, known)}"
            )
    prompts: Counter[str] = Counter()
    pictures: dict[tuple[Path, Path | None], Picture] = {}
    cases, faults = [], []
    for row in table.rows():
        try:
            cases.append(_case(row, bench, prompts, pictures))
        except UserError as error:
            faults.append(f"{row.file} row {row.number}: {error}")
    if faults:
        rest = [f"{len(faults) - _MOST} more rows cannot be used"] if len(faults) > _MOST else []
        raise UserError("\n".join([*faults[:_MOST], *rest]))
    return cases


def _case(
    row: Row,
    bench: str,
    prompts: "Counter[str]",
    pictures: dict[tuple[Path, Path | None], Picture],
) -> Case:
    if row.error:
        raise UserError(row.error)
    masks = _paths(row, "mask")

    def opened(path: Path, mask: Path | None = None) -> Picture:
        if (path, mask) not in pictures:
            pictures[path, mask] = picture(path, mask)
        return pictures[path, mask]

    references = _paths(row, "reference")
    if not references:
        raise UserError("it has no reference")
    prompt = _text(row, "prompt")
    if not prompt:
        raise UserError("it has no prompt")
    subject = _text(row, "subject") or file_name(references[0].stem)
    index = _number(row, "prompt_index", prompts[subject])
    prompts[subject] += 1
    tags = lookup(row.fields, "tags") or {}
    if not isinstance(tags, Mapping) or not all(isinstance(each, str) for each in tags.values()):
        raise UserError("its tags must be an object of texts")
    return Case(
        id=_text(row, "id") or f"{file_name(subject)}-{index}",
        bench=bench,
        subject=subject,
        prompt=prompt,
        references=(
            opened(references[0], masks[0] if masks else None),
            *map(opened, references[1:]),
        ),
        targets=tuple(map(opened, _paths(row, "target"))),
        prompt_index=index,
        samples=_number(row, "samples", 1),
        tags=tags,
        **{name: _text(row, name) for name in _WORDS},
    )


def _text(row: Row, column: str) -> str:
    value = lookup(row.fields, column)
    text = "" if value is None else plain_text(value)
    if text is None:
        raise UserError(f"its {column} must be text, got {type(value).__name__}")
    return text.strip()


def _number(row: Row, column: str, default: int) -> int:
    text = _text(row, column)
    if text and not re.fullmatch(r"\d{1,6}", text):
        raise UserError(f"its {column} must be a whole number from 0 on, got {text!r}")
    return int(text) if text else default


def _paths(row: Row, column: str) -> list[Path]:
    """Paths in a column, or in the list of the same name."""
    listed = next((name for name, one in _LISTS.items() if one == column), column)
    value = lookup(row.fields, column) or lookup(row.fields, listed) or []
    paths = []
    for each in value if isinstance(value, list) else [value]:
        if not isinstance(each, str):
            raise UserError(f"its {column} must be a path or a list of paths")
        paths.append(row.folder / plain_path(each))
    return paths
