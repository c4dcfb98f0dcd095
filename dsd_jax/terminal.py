"""Tables and facts as plain text that loses no cell, however narrow the terminal is.

The text has no colours. Letters that cannot be printed are replaced, since names come from files.
"""

import shutil
from collections.abc import Iterable, Sequence

from rich.cells import cell_len, chop_cells

__all__ = ["facts_text", "table_text"]

_GAP = "  "
_LEAST = 16  # cells of the first column, below which a table is not squeezed further


def table_text(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    title: str = "",
    width: int | None = None,
) -> str:
    """Writes a table; where it is too wide, every cell on a line of its own, after its column.

    Args:
        columns: Names of the columns. The first is left-aligned, the others right-aligned.
        rows: A cell for each column. Spaces in front of the first cell indent the row.
        title: A line above the table.
        width: Cells of a line. Default: the width of the terminal, or 80 where there is none.
    """
    width = width or _terminal()
    head, *body = ([_printable(cell) for cell in row] for row in (columns, *rows))
    sizes = [max(map(cell_len, column)) for column in zip(head, *body, strict=True)]
    left = width - sum(size + len(_GAP) for size in sizes[1:])
    lines = [*_folded(_printable(title), width)] if title else []
    if left < min(sizes[0], _LEAST):
        for row in body:
            lines += _stacked(head, row, width)
        return "\n".join(lines)
    sizes[0] = min(sizes[0], left)
    for row in (head, *body):
        lines += _line(row, sizes)
    return "\n".join(lines)


def facts_text(
    facts: Iterable[tuple[str, str]], *, indent: str = "", width: int | None = None
) -> str:
    """Writes names and what is known about each, whose lines stay to the right of the names.

    Args:
        facts: Names and texts.
        indent: Spaces in front of every name.
        width: Cells of a line. Default: the width of the terminal, or 80 where there is none.
    """
    width = width or _terminal()
    pairs = [(indent + _printable(name), _printable(text)) for name, text in facts]
    column = max((cell_len(name) for name, _ in pairs), default=0) + len(_GAP)
    lines = []
    for name, text in pairs:
        first, *more = _folded(text, max(width - column, _LEAST), hang="")
        lines += [f"{_padded(name, column)}{first}".rstrip()]
        lines += [" " * column + line for line in more]
    return "\n".join(lines)


def _terminal() -> int:
    return shutil.get_terminal_size().columns


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)


def _padded(text: str, size: int) -> str:
    return text + " " * (size - cell_len(text))


def _folded(text: str, width: int, hang: str = _GAP) -> list[str]:
    """Lines of at most `width` cells, broken at spaces where that is possible.

    Lines after the first are indented like the text, and by `hang`.
    """
    inner = text.lstrip()
    indent = text[: len(text) - len(inner)]
    lines = [indent]
    for word in inner.split():
        gap = " " if lines[-1].strip() else ""
        if cell_len(lines[-1] + gap + word) <= width:
            lines[-1] += gap + word
            continue
        pieces = chop_cells(indent + hang + word if gap else lines[-1] + word, width)
        lines[-1:] = [lines[-1], *pieces] if gap else pieces
    return lines


def _line(row: Sequence[str], sizes: Sequence[int]) -> list[str]:
    first, *more = _folded(row[0], sizes[0])
    others = (
        _GAP + " " * (size - cell_len(cell)) + cell
        for cell, size in zip(row[1:], sizes[1:], strict=True)
    )
    return [(_padded(first, sizes[0]) + "".join(others)).rstrip(), *more]


def _stacked(head: Sequence[str], row: Sequence[str], width: int) -> list[str]:
    indent = row[0][: len(row[0]) - len(row[0].lstrip())] + _GAP
    lines = _folded(row[0], width)
    for name, cell in zip(head[1:], row[1:], strict=True):
        if cell:
            lines += _folded(f"{indent}{name}: {cell}" if name else f"{indent}{cell}", width)
    return lines
