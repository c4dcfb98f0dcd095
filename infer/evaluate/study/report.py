"""Figures of a study as tables: for a terminal, as Markdown and as JSON."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from dsd_jax.infer.evaluate.printed import Printed, plain_interval, write_tables
from dsd_jax.infer.evaluate.study.analysis import Analysis, Figure
from dsd_jax.interval import Interval
from dsd_jax.terminal import table_text

__all__ = ["analysis_text", "write_analysis"]

_MOST_ROWS = 30  # of a table on a terminal


def analysis_text(analysis: Analysis) -> str:
    """All tables and notes for a terminal."""
    tables = []
    for own in _tables(analysis.figures):
        text = table_text(own.columns, own.rows[:_MOST_ROWS], title=own.title)
        more = len(own.rows) - _MOST_ROWS
        tables.append(text + (f"\nmore rows: {more}; --output writes all" if more > 0 else ""))
    return "\n\n".join([*tables, "\n".join(analysis.notes)])


def write_analysis(analysis: Analysis, path: Path) -> None:
    """Writes all tables to a file, as Markdown or JSON by its ending.

    Raises:
        UserError: It cannot be written, or has another ending.
    """
    figures = {"figures": [_plain(each) for each in analysis.figures]}
    write_tables(path, _tables(analysis.figures), analysis.notes, figures)


def _tables(figures: Sequence[Figure]) -> Iterator[Printed]:
    """All tables; a row has a cell for each question."""
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
        yield Printed(title, ["", *head], rows, numbers=len(head))


def _cell(figure: Figure | None, *, counted: bool) -> str:
    if figure is None:
        return ""
    return _shown(figure.interval) + (f" n={figure.count}" if counted else "")


def _shown(interval: Interval) -> str:
    if math.isnan(interval.value):
        return "undefined"
    return f"{interval.value:.2f}" if math.isnan(interval.low) else str(interval)


def _plain(figure: Figure) -> dict[str, object]:
    return {
        "table": figure.table,
        "row": figure.row,
        "column": figure.column,
        **plain_interval(figure.interval),
        "n": figure.count,
    }
