"""A report as Markdown, as LaTeX and as CSV. Foreign names and reasons are escaped."""

import csv
import dataclasses
import io
import re
from collections.abc import Iterable, Iterator, Sequence

from dsd_jax.infer.evaluate.gaps import Gap
from dsd_jax.infer.evaluate.report.parts import Report, Row, Section, Table

__all__ = ["csv_text", "latex_text", "markdown_text"]

_MARKDOWN = re.compile(r"([\\`*_\[\]<>|#])")
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "–": "--",
    "±": r"$\pm$",
    "·": r"$\cdot$",
    "→": r"$\to$",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
}
_FORMULA = ("=", "+", "-", "@", "\t")  # first letters that a spreadsheet runs


def markdown_text(title: str, report: Report) -> str:
    """Writes all sections as Markdown."""
    lines = [f"# {_plain(title)}", ""]
    for section in report.sections:
        lines += [f"## {_plain(section.title)}", ""]
        if section.words:
            lines += [_plain(section.words), ""]
        for table in section.tables:
            lines += _markdown_table(table)
        lines += [
            f"- {_plain(point.name)}: {section.axes[0]} {point.x.value:.3f}, "
            f"{section.axes[1]} {point.y.value:.3f}"
            for point in section.points
        ]
        lines += [""] * bool(section.points)
    return "\n".join(lines)


def latex_text(report: Report) -> str:
    """Writes the tables of all sections for LaTeX with the package booktabs."""
    lines = ["% Needs \\usepackage{booktabs}."]
    for section in report.sections:
        for table in section.tables:
            lines += ["", *_latex_table(section, table)]
    return "\n".join(lines) + "\n"


def csv_text(kind: type[Row] | type[Gap], rows: Sequence[Row] | Sequence[Gap]) -> str:
    """Writes rows as CSV, a column for each field."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([field.name for field in dataclasses.fields(kind)])
    for row in rows:
        writer.writerow([_cell(value) for value in dataclasses.astuple(row)])
    return file.getvalue()


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return f"'{value}" if value.startswith(_FORMULA) else value
    return str(value)


def _markdown_table(table: Table) -> Iterator[str]:
    if table.title:
        yield from (f"### {_plain(table.title)}", "")
    yield _markdown_line(_titled(table))
    yield _markdown_line(["---"] * len(table.columns))
    yield from map(_markdown_line, table.rows)
    yield ""
    for note in table.notes:
        yield from (_plain(note), "")


def _titled(table: Table) -> list[str]:
    """Columns with the title of their block, since Markdown has no cell over several columns."""
    titles = [title for title, count in table.blocks for _ in range(count)]
    titles = titles if len({*titles} - {""}) > 1 else [""] * len(table.columns)
    return [
        f"{title}: {name}" if title else name
        for title, name in zip(titles, table.columns, strict=True)
    ]


def _markdown_line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell if cell == '---' else _plain(cell) for cell in cells)} |"


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return _MARKDOWN.sub(r"\\\1", " ".join(_printable(text).split()))


def _latex_table(section: Section, table: Table) -> Iterator[str]:
    yield f"% {_printable(section.title)}: {_printable(table.title)}".rstrip(": ")
    yield f"\\begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}"
    yield "\\toprule"
    if table.blocks:
        cells = (
            f"\\multicolumn{{{count}}}{{c}}{{{_latex(title)}}}" for title, count in table.blocks
        )
        yield f"{' & '.join(cells)} \\\\"
    yield _latex_line(table.columns)
    yield "\\midrule"
    yield from map(_latex_line, table.rows)
    yield from ("\\bottomrule", "\\end{tabular}")


def _latex_line(cells: Iterable[str]) -> str:
    return f"{' & '.join(map(_latex, cells))} \\\\"


def _latex(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in " ".join(_printable(text).split()))


def _printable(text: str) -> str:
    return "".join(
        letter if letter.isprintable() or letter.isspace() else "\ufffd" for letter in text
    )
