"""Pairs of our own that were held out of training: the folder that `dsd data export` writes.

The target of a case is the true other frame of its pair, so copying is told from making.
"""

from collections import Counter

from dsd_jax.errors import UserError
from dsd_jax.infer.evaluate.benches.source import Source, file_name, picture
from dsd_jax.infer.evaluate.cases import TASK, Case
from dsd_jax.rows import Row, lookup, open_table, plain_path, plain_text
from dsd_jax.structured import MalformedError, parse_json

__all__ = ["read_pairs"]

_IMAGES = ("reference_file_name", "target_file_name")


def read_pairs(source: Source) -> list[Case]:
    """Reads a case from every pair. Its prompt is the caption, or else the instruction.

    Pairs of one grid show one subject and are resampled together.

    Raises:
        UserError: The folder is no such export, or a row is damaged.
    """
    table = open_table(source.root)
    for column in _IMAGES:
        if not table.has(column):
            raise UserError(
                f"{table.files[0]} has no column {column}; export the pairs with `dsd data export "
                "PAIRS FOLDER --format folder`"
            )
    prompts: Counter[str] = Counter()
    return [_case(row, prompts) for row in table.rows()]


def _case(row: Row, prompts: "Counter[str]") -> Case:
    where = f"{row.file} row {row.number}"
    if row.error:
        raise UserError(f"{where}: {row.error}")
    names = [_text(row, column) for column in _IMAGES]
    name, prompt = _text(row, "id"), _text(row, "caption") or _text(row, "instruction")
    if not (all(names) and name and prompt):
        raise UserError(f"{where} lacks an image, an id, or both caption and instruction")
    reference, target = (picture(row.folder / plain_path(each)) for each in names)
    subject = file_name(_grid(row) or name)
    index = prompts[subject]
    prompts[subject] += 1
    task = _text(row, "task")
    return Case(
        id=file_name(name),
        bench="pairs",
        subject=subject,
        prompt=prompt,
        references=(reference,),
        targets=(target,),
        category=task,
        prompt_index=index,
        subject_text=_text(row, "subject"),
        tags={"pair": name} | ({TASK: task} if task else {}),
    )


def _grid(row: Row) -> str | None:
    """Id of the grid that both frames were cut from, if `dsd data make` made the pair."""
    try:
        provenance = parse_json(_text(row, "provenance") or "{}", "provenance", object)
    except MalformedError:
        return None
    return plain_text(lookup({"provenance": provenance}, "provenance.grid.id"))


def _text(row: Row, column: str) -> str:
    return plain_text(lookup(row.fields, column)) or ""
