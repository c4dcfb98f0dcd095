"""An audit as tables: for a terminal, as Markdown and as JSON."""

import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from dsd_jax.infer.evaluate.audit import Finding
from dsd_jax.infer.evaluate.printed import Printed, plain_interval, write_tables
from dsd_jax.interval import Interval
from dsd_jax.terminal import table_text

__all__ = ["audit_text", "write_audit"]

_TITLES = {
    "labels": "Against labels of people",
    "itself": "Against itself, over rounds",
    "order": "With reference and image exchanged",
    "judges": "Against other judges",
    "probes": "On pictures with known answers",
}
_COLUMNS = ("", "figure", "95 % interval", "n")


def audit_text(findings: Sequence[Finding]) -> str:
    """All tables for a terminal."""
    return "\n\n".join(
        table_text(own.columns, own.rows, title=own.title) for own in _tables(findings)
    )


def write_audit(findings: Sequence[Finding], notes: Sequence[str], path: Path) -> None:
    """Writes all tables to a file, as Markdown or JSON by its ending.

    Raises:
        UserError: It cannot be written, or has another ending.
    """
    write_tables(path, _tables(findings), notes, {"findings": [_plain(each) for each in findings]})


def _tables(findings: Sequence[Finding]) -> Iterator[Printed]:
    for (table, judge), own in itertools.groupby(findings, lambda each: (each.table, each.judge)):
        rows = [
            (each.group or "all", each.name, _figure(each.interval), f"{each.count:,.0f}")
            for each in own
        ]
        yield Printed(f"{_TITLES[table]}: {judge}", _COLUMNS, rows, numbers=1)


def _figure(interval: Interval) -> str:
    value, low, high = interval
    if math.isnan(value):
        return "undefined"
    return f"{value:.3f}" if math.isnan(low) else f"{value:.3f} ({low:.3f} to {high:.3f})"


def _plain(finding: Finding) -> dict[str, object]:
    return {
        "table": finding.table,
        "judge": finding.judge,
        "group": finding.group,
        "name": finding.name,
        **plain_interval(finding.interval),
        "n": finding.count,
    }
