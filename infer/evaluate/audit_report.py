"""An audit as tables: for a terminal, as Markdown and as JSON."""

import itertools
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from dsd_jax.errors import UserError
from dsd_jax.files import write_file
from dsd_jax.infer.evaluate.audit import Finding
from dsd_jax.interval import Interval
from dsd_jax.terminal import table_text

__all__ = ["audit_text", "check_output", "write_audit"]

_TITLES = {
    "labels": "Against labels of people",
    "itself": "Against itself, over rounds",
    "order": "With reference and image exchanged",
    "judges": "Against other judges",
    "probes": "On pictures with known answers",
}
_COLUMNS = ("", "figure", "95 % interval", "n")
_SUFFIXES = (".md", ".json")

Rows = list[tuple[str, str, str, str]]


def audit_text(findings: Sequence[Finding]) -> str:
    """All tables for a terminal."""
    return "\n\n".join(table_text(_COLUMNS, rows, title=title) for title, rows in _tables(findings))


def check_output(path: Path) -> None:
    """Refuses an output of an unknown kind, before the work.

    Raises:
        UserError: It is neither Markdown nor JSON.
    """
    if path.suffix not in _SUFFIXES:
        raise UserError(f"--output is a file .md or .json, got {path}")


def write_audit(findings: Sequence[Finding], notes: Sequence[str], path: Path) -> None:
    """Writes all tables to a file, as Markdown or JSON by its ending.

    Raises:
        UserError: It cannot be written, or has another ending.
    """
    check_output(path)
    if path.suffix == ".json":
        content = {"findings": [_plain(each) for each in findings], "notes": list(notes)}
        write_file(path, json.dumps(content, ensure_ascii=False, indent=1) + "\n")
        return
    lines = []
    for title, rows in _tables(findings):
        lines += [f"## {title}", "", _row(_COLUMNS), "| --- | --- | --- | ---: |"]
        lines += [*map(_row, rows), ""]
    lines += [f"- {note}" for note in notes]
    write_file(path, "\n".join(lines).rstrip() + "\n")


def _tables(findings: Sequence[Finding]) -> Iterator[tuple[str, Rows]]:
    for (table, judge), own in itertools.groupby(findings, lambda each: (each.table, each.judge)):
        rows = [
            (each.group or "all", each.name, _figure(each.interval), f"{each.count:,.0f}")
            for each in own
        ]
        yield f"{_TITLES[table]}: {judge}", rows


def _figure(interval: Interval) -> str:
    value, low, high = interval
    if math.isnan(value):
        return "undefined"
    return f"{value:.3f}" if math.isnan(low) else f"{value:.3f} ({low:.3f} to {high:.3f})"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _plain(finding: Finding) -> dict[str, object]:
    figures = finding.interval._asdict().items()
    return {
        "table": finding.table,
        "judge": finding.judge,
        "group": finding.group,
        "name": finding.name,
        **{name: None if math.isnan(value) else value for name, value in figures},
        "n": finding.count,
    }
