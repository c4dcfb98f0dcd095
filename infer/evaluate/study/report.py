"""Figures of a study as tables: for a terminal, as Markdown and as JSON."""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from dsd_jax.errors import UserError
from dsd_jax.files import write_file
from dsd_jax.infer.evaluate.study.analysis import Analysis, Figure
from dsd_jax.interval import Interval
from dsd_jax.terminal import table_text

__all__ = ["analysis_text", "check_output", "write_analysis"]

_ENDINGS = (".md", ".json")
_MOST_ROWS = 30  # of a table on a terminal


def analysis_text(analysis: Analysis) -> str:
    """All tables and notes for a terminal."""
    tables = []
    for title, head, rows in _tables(analysis.figures):
        text = table_text(head, rows[:_MOST_ROWS], title=title)
        more = len(rows) - _MOST_ROWS
        tables.append(text + (f"\nmore rows: {more}; --output writes all" if more > 0 else ""))
    return "\n\n".join([*tables, "\n".join(analysis.notes)])


def check_output(path: Path) -> None:
    """Refuses an output of an unknown kind, before the work.

    Raises:
        UserError: It is neither Markdown nor JSON.
    """
    if path.suffix not in _ENDINGS:
        raise UserError(f"--output ends in {' or '.join(_ENDINGS)}, got {path}")


def write_analysis(analysis: Analysis, path: Path) -> None:
    """Writes all tables to a file, as Markdown or JSON by its ending.

    Raises:
        UserError: It cannot be written, or has another ending.
    """
    check_output(path)
    if path.suffix == ".json":
        content = {"figures": [_plain(each) for each in analysis.figures], "notes": analysis.notes}
        write_file(path, json.dumps(content, ensure_ascii=False, indent=1) + "\n")
        return
    lines: list[str] = []
    for title, head, rows in _tables(analysis.figures):
        lines += [f"## {title}", "", _line(head), "| --- |" + " ---: |" * (len(head) - 1)]
        lines += [*map(_line, rows), ""]
    write_file(path, "\n".join([*lines, *(f"- {note}" for note in analysis.notes)]) + "\n")


def _tables(figures: Sequence[Figure]) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Title, head and rows of every table; a row has a cell for each question."""
    for title in dict.fromkeys(figure.table for figure in figures):
        own = {(each.row, each.column): each for each in figures if each.table == title}
        columns = list(dict.fromkeys(column for _, column in own))
        counts = {
            column: {figure.count for (_, other), figure in own.items() if other == column}
            for column in columns
        }
        alike = all(len(each) == 1 for each in counts.values())
        head = [f"{column} (n={counts[column].pop()})" if alike else column for column in columns]
        rows = [
            [name, *(_cell(own.get((name, column)), counted=not alike) for column in columns)]
            for name in dict.fromkeys(row for row, _ in own)
        ]
        yield title, ["", *head], rows


def _cell(figure: Figure | None, *, counted: bool) -> str:
    if figure is None:
        return ""
    return _shown(figure.interval) + (f" n={figure.count}" if counted else "")


def _shown(interval: Interval) -> str:
    if math.isnan(interval.value):
        return "undefined"
    return f"{interval.value:.2f}" if math.isnan(interval.low) else str(interval)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _plain(figure: Figure) -> dict[str, object]:
    interval = figure.interval._asdict().items()
    return {
        "table": figure.table,
        "row": figure.row,
        "column": figure.column,
        **{name: None if math.isnan(value) else value for name, value in interval},
        "n": figure.count,
    }
