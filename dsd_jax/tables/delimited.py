"""CSV and TSV: cells between commas, semicolons, tabs or bars, with any system's line ends."""

import csv
import io
import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from dsd_jax.errors import UserError
from dsd_jax.tables.parsed import Parsed, checked, open_text

__all__ = ["delimited_columns", "delimited_rows"]

_DELIMITERS = ",;\t|"
_LINE = 2**24  # characters; a longer line is cut, and its pieces are damaged rows
# Spellings of a cell without a value, by pandas, R, Excel and SQL.
_MISSING = frozenset("NaN nan NA N/A <NA> #N/A NULL null None NaT".split())


def delimited_columns(path: Path) -> tuple[str, ...]:
    """Names in the header line.

    Raises:
        UserError: there is no header, or it is not UTF-8.
    """
    with open_text(path) as text:
        return tuple(_reader(text, path)[1])


def delimited_rows(path: Path) -> Iterator[Parsed]:
    """Rows after the header. A damaged row does not affect the others.

    Raises:
        UserError: there is no header.
    """
    with open_text(path) as text:
        reader, header = _reader(text, path)
        while True:
            try:
                cells = next(reader, None)
            except csv.Error as error:
                yield Parsed({}, 1, f"not CSV: {error}")
                continue
            if cells is None:
                return
            if len(cells) == len(header):
                held = (None if cell in _MISSING else cell for cell in cells)
                yield checked(dict(zip(header, held, strict=True)), 1)
            elif cells:
                count = f"{len(cells)} cells in a table of {len(header)} columns"
                quote = "; quote text that holds commas" if len(cells) > len(header) else ""
                yield Parsed({}, 1, count + quote)


def _reader(text: io.TextIOWrapper, path: Path) -> tuple[Iterator[list[str]], list[str]]:
    """A reader positioned after the header, and the names in the header."""
    lines = iter(lambda: text.readline(_LINE), "")
    first = next((line for line in lines if line.strip()), "")
    if first.startswith("sep="):  # Excel states its delimiter so
        delimiter, first = first[len("sep=") :][:1], next(lines, "")
    else:
        # A name may hold another delimiter: the right one gives the most columns.
        delimiter = max(_DELIMITERS, key=lambda each: len(_cells(first, each)))
    try:
        # Strict: a quote that is never closed must not hide the rows after it.
        reader = csv.reader(
            itertools.chain([first], lines), delimiter=delimiter, skipinitialspace=True, strict=True
        )
        header = [name.strip() for name in next(reader, [])]
    except (csv.Error, TypeError) as error:  # TypeError: what follows `sep=` is not a delimiter
        raise UserError(f"cannot read the header line of {path} as CSV: {error}") from None
    if not any(header):
        raise UserError(f"{path} has no header line with the names of its columns")
    if checked(dict.fromkeys(header), 1).error:
        raise UserError(f"line 1 of {path} is not UTF-8; save the file as UTF-8")
    twice = [name for name, count in Counter(header).items() if name and count > 1]
    if twice:
        raise UserError(f"{path} has several columns named {twice[0]!r}; give each its own name")
    return reader, header


def _cells(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:
        return []
