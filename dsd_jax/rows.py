"""Reads the rows of tables in many formats as a stream.

A row that cannot be read is still a row, with the reason, so that it can be counted and reported.
"""

import dataclasses
import decimal
import math
import re
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from dsd_jax.errors import UserError
from dsd_jax.inside import open_inside, open_regular
from dsd_jax.tables.arrow import arrow_columns, arrow_rows
from dsd_jax.tables.delimited import delimited_columns, delimited_rows
from dsd_jax.tables.find import BINARY, find_files
from dsd_jax.tables.json_rows import json_columns, json_rows
from dsd_jax.tables.parsed import Parsed, check_unpacked
from dsd_jax.tables.tar import tar_columns, tar_rows
from dsd_jax.text.plain import check_text

__all__ = ["Position", "Row", "Table", "lookup", "open_table", "plain_path", "plain_text"]

Position = tuple[int, int]
"""Number of a file in a table, and number of its rows."""


class _Format(NamedTuple):
    """The functions that read files of one format."""

    columns: Callable[[Path], tuple[str, ...]]
    rows: Callable[[Path], Iterator[Parsed]]


_DELIMITED = _Format(delimited_columns, delimited_rows)
_JSON = _Format(json_columns, json_rows)
_ARROW = _Format(arrow_columns, arrow_rows)
_FORMATS = {
    ".csv": _DELIMITED,
    ".tsv": _DELIMITED,
    ".json": _JSON,
    ".jsonl": _JSON,
    ".ndjson": _JSON,
    ".arrow": _ARROW,
    ".parquet": _ARROW,
    ".tar": _Format(tar_columns, tar_rows),
}


_LONGEST_PATH = 4096  # bytes, on Linux


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of a source.

    Attributes:
        fields: column -> value: text, bytes, numbers, None, mappings and lists. All text can be
            stored as UTF-8.
        file, number: the file, and the number of the row in it, from 1.
        folder: folder that its paths are relative to.
        position: number of the file, and number of its rows up to this one.
        size: its share of `Table.left`, for progress.
        error: reason why it cannot be read.
    """

    fields: Mapping[str, object]
    file: str
    number: int
    folder: Path
    position: Position
    size: float
    error: str | None = None


@dataclasses.dataclass(frozen=True)
class Table:
    """Files of rows with the same columns.

    Attributes:
        folder: folder that all files named in rows must lie in.
        files: in the order they are read.
        columns: names; members of structs as `column.member`, of lists as `column.0`.
    """

    folder: Path
    files: tuple[Path, ...]
    columns: tuple[str, ...]

    @property
    def unit(self) -> str:
        """The unit of `left`: rows of text, or the megabytes of other files."""
        return "MB" if self.files[0].suffix.lower() in BINARY else "rows"

    def has(self, column: str) -> bool:
        """Whether rows can have a column; a list may have more members than `columns` names."""
        return column in self.columns or re.sub(r"\.\d+(?=\.|$)", ".0", column) in self.columns

    def left(self, after: Position = (0, 0)) -> float:
        """Estimates how much there is to read after a position, in `unit`."""
        files = self.files[after[0] :]
        if self.unit == "MB":
            return sum(path.stat().st_size for path in files) / 1e6
        return max(0, sum(map(_count_lines, files)) - after[1])

    def rows(self, after: Position = (0, 0)) -> Iterator[Row]:
        """Yields the rows after a position.

        Raises:
            UserError: a file is damaged beyond its rows.
        """
        first, skipped = after
        for file in range(first, len(self.files)):
            path = self.files[file]
            folder = self.folder if path.suffix.lower() in BINARY else path.parent
            parsed = enumerate(_format(path).rows(path), start=1)
            for number, row in islice(parsed, skipped if file == first else 0, None):
                position = file, number
                yield Row(row.cells, path.name, number, folder, position, row.size, row.error)


def open_table(source: str | Path, split: str | None = None) -> Table:
    """Finds the rows in a file, or in a folder that holds one table.

    Args:
        source: a file, or a folder.
        split: split of a folder with several: `train`, `validation`, `test` or another name.

    Raises:
        UserError: there is no table, or more than one.
    """
    source = Path(source)
    files = tuple(find_files(source, split))
    folder = source if source.is_dir() else source.parent
    try:
        for path in files:
            check_text(path.name, f"the name of the file {path.name!a}")
            if source.is_dir():
                open_inside(folder, path.relative_to(folder)).close()
            check_unpacked(path)
        return Table(folder, files, _format(files[0]).columns(files[0]))
    except OSError as error:
        raise UserError(f"cannot read {files[0]}: {error.strerror}") from None


def lookup(fields: Mapping[str, object], column: str) -> object:
    """Finds the value of a column; None if it is missing or NaN, which pandas writes then.

    Args:
        fields: fields of a row.
        column: a name, `column.member` of a struct, or `column.0` of a list.
    """
    name, _, member = column.partition(".")
    value = fields[column] if column in fields else fields.get(name)
    if column not in fields and member:
        if isinstance(value, list):
            value = {str(i): item for i, item in enumerate(value)}
        return lookup(value, member) if isinstance(value, Mapping) else None
    return None if isinstance(value, float) and math.isnan(value) else value


def plain_text(value: object) -> str | None:
    """A cell as text; 1.0 becomes `1`, since tables write integers so in columns with gaps.

    Returns:
        None for a cell that holds neither text nor an integer.
    """
    if isinstance(value, float | decimal.Decimal) and math.isfinite(value) and value % 1 == 0:
        value = int(value)
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else None


def plain_path(value: str) -> str:
    """The path in a cell, also if it is a `file://` address or was written on Windows.

    Raises:
        UserError: it is an address on the web, or a picture spelled as text.
    """
    if value.startswith("data:") or len(value) > _LONGEST_PATH:
        raise UserError(
            f"a text of {len(value):,} characters is not a path; store pictures as files or as "
            "bytes"
        )
    if value.startswith("file://"):
        value = urllib.parse.unquote(value.removeprefix("file://"))
    if "://" in value:
        raise UserError(f"{value} is a URL; download the images and name their paths")
    return value.replace("\\", "/") if "/" not in value else value


def _format(path: Path) -> _Format:
    return _FORMATS[path.suffix.lower()]


def _count_lines(path: Path) -> int:
    """Lines that end as on Linux and Windows, or else as on old Macs."""
    feeds = returns = 0
    with open_regular(path) as file:
        while block := file.read(2**20):
            feeds += block.count(b"\n")
            returns += block.count(b"\r")
    return feeds or returns
