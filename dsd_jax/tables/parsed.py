"""The output of every format reader: the cells of a row, or the reason why it cannot be read."""

import codecs
import io
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from dsd_jax.errors import UserError
from dsd_jax.inside import open_regular
from dsd_jax.text.plain import text_fault

__all__ = ["PROBED", "Parsed", "check_unpacked", "checked", "names_of", "open_text"]

PROBED = 100
"""Number of rows that give the column names, if a file does not list them."""
_MEMBERS = 16  # most members of a list that become columns
_PACKERS = {  # beginning of a file -> the program that compressed it
    rb"\x1f\x8b": "gzip",
    rb"PK\x03\x04": "zip",
    rb"BZh[1-9]1AY&SY": "bzip2",
    rb"\xfd7zXZ": "xz",
    rb"\x28\xb5\x2f\xfd": "zstd",
}
_WIDE = {
    "UTF-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE),
    "UTF-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE),
}


class Parsed(NamedTuple):
    """A row as it stands in a file.

    Attributes:
        cells: column -> value: text, bytes, numbers, None, mappings and lists.
        size: its share of the file, in rows or megabytes.
        error: reason why it cannot be read.
    """

    cells: Mapping[str, object]
    size: float
    error: str | None = None


def checked(cells: Mapping[str, object], size: float) -> Parsed:
    """A row whose text has been checked."""
    fault = text_fault(cells)
    return Parsed({}, size, fault) if fault else Parsed(cells, size)


def check_unpacked(path: Path) -> None:
    """Refuses a file that is compressed, whatever its ending says.

    Raises:
        UserError: it is compressed.
        OSError: it cannot be opened.
    """
    with open_regular(path) as file:
        head = file.read(16)
    for mark, packer in _PACKERS.items():
        if re.match(mark, head):
            raise UserError(f"{path} is compressed by {packer}; unpack it first")


def open_text(path: Path) -> io.TextIOWrapper:
    r"""Opens a file of UTF-8 text, with or without byte order mark.

    Bytes that are not UTF-8 become lone surrogates, which `checked` finds in their row. Lines end
    with `\n`, `\r` or `\r\n`, and keep their ends.

    Raises:
        UserError: the file is UTF-16, as some spreadsheets save text, or not a regular file.
    """
    file = open_regular(path)
    head = file.read(4)
    for name, marks in _WIDE.items():
        if head.startswith(marks):
            file.close()
            raise UserError(f"{path} is {name} text; save it as UTF-8")
    file.seek(0)
    return io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="")


def names_of(rows: Iterable[Parsed]) -> tuple[str, ...]:
    """Names of the columns that some rows have: `name`, `name.member`, `name.0` of a list."""
    names: dict[str, None] = {}
    for row in rows:
        names |= dict.fromkeys(_flat(row.cells))
    return tuple(names)


def _flat(cells: Mapping[str, object], prefix: str = "") -> Iterator[str]:
    for name, value in cells.items():
        yield f"{prefix}{name}"
        if isinstance(value, list):
            members = {str(i): item for i, item in enumerate(value[:_MEMBERS])}
            yield from _flat(members, f"{prefix}{name}.")
        elif isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
