"""OmniContext (Wu et al., 2025), the tasks with one subject.

Its dataset is a table with the columns `key`, `task_type`, `instruction`, `instruction_language`
and `input_images`. The numbers of its cases are not published, so none is checked.
"""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from dsd_jax.errors import UserError
from dsd_jax.files import write_file
from dsd_jax.images import open_image, save_image
from dsd_jax.infer.evaluate.benches.source import Source, file_name, picture
from dsd_jax.infer.evaluate.cases import Case, Picture
from dsd_jax.rows import Row, lookup, open_table, plain_text

__all__ = ["read_omnicontext"]

_TASK = re.compile(r"(single|scene)_(character|object)")
_ENDINGS = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpg"}


def read_omnicontext(source: Source) -> list[Case]:
    """Reads the English cases of `single_*` and `scene_*` with one subject.

    A case has all pictures as references, and a method with one reference gets the first: in a
    `scene` task it does not see the scene. Instructions in other languages are left out, as the
    official statistics leave them out.

    Raises:
        UserError: There is no table, it has no such task, or a row is damaged.
    """
    cases, tasks = [], Counter[str]()
    for row in open_table(source.root).rows():
        if row.error:
            raise UserError(f"{row.file} row {row.number}: {row.error}")
        task, language = _text(row, "task_type"), _text(row, "instruction_language")
        tasks[task] += 1
        if _TASK.fullmatch(task) and language in ("", "en"):
            cases.append(_case(row, task, source.pictures))
    if not cases:
        raise UserError(
            f"{source.root} has no row of a task such as single_object; its tasks are "
            f"{', '.join(tasks) or 'none'}"
        )
    return cases


def _case(row: Row, task: str, pictures: Path) -> Case:
    key, prompt = _text(row, "key"), _text(row, "instruction")
    given = lookup(row.fields, "input_images")
    if not (key and prompt and isinstance(given, list) and given):
        raise UserError(f"{row.file} row {row.number} lacks a key, an instruction or input_images")
    name = f"{task}-{file_name(key)}"
    references = tuple(
        _written(each, row, pictures / f"{name}-{number}") for number, each in enumerate(given)
    )
    return Case(
        id=name,
        bench="omnicontext",
        subject=name,
        prompt=prompt,
        references=references,
        category=task,
        tags={"task": task, "key": key},
    )


def _written(given: object, row: Row, stem: Path) -> Picture:
    """A picture of the table as a file."""
    if isinstance(given, Mapping):
        given = given.get("bytes") or given.get("path")
    if isinstance(given, str):
        return picture(row.folder / given)
    if not isinstance(given, bytes):
        raise UserError(f"{row.file} row {row.number}: an input image is neither bytes nor a path")
    ending = next((name for start, name in _ENDINGS.items() if given.startswith(start)), None)
    path = stem.with_name(f"{stem.name}.{ending or 'png'}")
    try:
        image = open_image(given)
    except UserError as error:
        raise UserError(f"{row.file} row {row.number}: {error}") from None
    if ending:
        write_file(path, given)
    else:
        save_image(image, path)
    return picture(path)


def _text(row: Row, column: str) -> str:
    return plain_text(lookup(row.fields, column)) or ""
