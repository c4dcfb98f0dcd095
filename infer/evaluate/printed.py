"""Tables of figures as a file: Markdown for people, JSON for programs."""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from dsd_jax.errors import UserError
from dsd_jax.files import write_file
from dsd_jax.interval import Interval

__all__ = ["Printed", "check_output", "plain_interval", "write_tables"]

_ENDINGS = (".md", ".json")


@dataclasses.dataclass(frozen=True)
class Printed:
    """A table of words.

    Attributes:
        title: Its heading.
        columns: Names of the columns.
        rows: A cell for each column.
        numbers: Number of last columns that are right-aligned.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: int


def check_output(path: Path) -> None:
    """Refuses an output of an unknown kind, before the work.

    Raises:
        UserError: It is neither Markdown nor JSON.
    """
    if path.suffix not in _ENDINGS:
        raise UserError(f"--output ends in {' or '.join(_ENDINGS)}, got {path}")


def write_tables(
    path: Path,
    tables: Iterable[Printed],
    notes: Sequence[str],
    figures: Mapping[str, Sequence[Mapping[str, object]]],
) -> None:
    """Writes a file of Markdown or JSON, by its ending.

    Args:
        path: The file.
        tables: Tables of the Markdown.
        notes: Sentences below the tables.
        figures: Name of a list -> its figures, for JSON.

    Raises:
        UserError: It cannot be written, or has another ending.
    """
    check_output(path)
    if path.suffix == ".json":
        content = {**figures, "notes": notes}
        write_file(path, json.dumps(content, ensure_ascii=False, indent=1) + "\n")
        return
    lines: list[str] = []
    for table in tables:
        texts = len(table.columns) - table.numbers
        rule = "|" + " --- |" * texts + " ---: |" * table.numbers
        lines += [f"## {table.title}", "", _line(table.columns), rule]
        lines += [*map(_line, table.rows), ""]
    lines += [f"- {note}" for note in notes]
    write_file(path, "\n".join(lines).rstrip() + "\n")


def plain_interval(interval: Interval) -> dict[str, float | None]:
    """A figure with its interval for JSON, which knows no NaN."""
    figures = interval._asdict().items()
    return {name: None if math.isnan(value) else value for name, value in figures}


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
