"""Rows of other people's datasets: JSONL, CSV and Parquet files, read as a stream.

A row that cannot be read is still a row, with the reason, so that it can be counted and named.
"""

import csv
import dataclasses
import difflib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from dsd_jax.errors import UserError
from dsd_jax.extras import require

__all__ = ["Row", "Table", "lookup", "nearest", "open_table"]

MANIFESTS = (".jsonl", ".csv")
PARQUET = ".parquet"
_PARQUET_MAGIC = b"PAR1"
_PARQUET_ROWS = 8  # read together: a row may hold two large images
_PROBED = 100  # JSON lines whose keys are taken for the columns

Position = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of a source.

    Attributes:
        fields: column -> value; values of structs are mappings.
        file, number: where it is; the first row of a file is 1.
        position: number of the file, and of its rows up to and including this one.
        size: its part of `Table.left`, for progress.
        error: why it cannot be read.
    """

    fields: Mapping[str, Any]
    file: str
    number: int
    position: Position
    size: float
    error: str | None = None


@dataclasses.dataclass(frozen=True)
class Table:
    """Files of rows with the same columns.

    Attributes:
        folder: what paths in the rows are relative to.
        files: in the order they are read.
        columns: names; members of structs as `column.member`.
    """

    folder: Path
    files: tuple[Path, ...]
    columns: tuple[str, ...]

    @property
    def unit(self) -> str:
        """What `left` counts: lines of text, or the megabytes of Parquet files."""
        return "MB" if self.files[0].suffix == PARQUET else "rows"

    def left(self, after: Position = (0, 0)) -> float:
        """About how much there is to read behind a position, in `unit`."""
        if self.unit == "MB":
            return sum(path.stat().st_size for path in self.files[after[0] :]) / 1e6
        with _opened(self.files[0]) as file:
            return max(0, sum(1 for _ in file) - after[1])

    def rows(self, after: Position = (0, 0)) -> Iterator[Row]:
        """Rows behind a position.

        Raises:
            UserError: a file is damaged beyond its rows.
        """
        first, skipped = after
        for file in range(first, len(self.files)):
            path = self.files[file]
            begin = skipped if file == first else 0
            read = {".jsonl": _jsonl_rows, ".csv": _csv_rows, PARQUET: _parquet_rows}[path.suffix]
            numbered = enumerate(read(path), start=1)
            for number, (fields, size, error) in islice(numbered, begin, None):
                yield Row(fields, path.name, number, (file, number), size, error)


def open_table(source: str | Path) -> Table:
    """Finds the rows in a manifest, a Parquet file, or a folder that holds either.

    Raises:
        UserError: nothing there to read, or more than one thing.
    """
    source = Path(source)
    if source.is_file():
        if source.suffix not in (*MANIFESTS, PARQUET):
            raise UserError(
                f"{source} must end in .jsonl, .csv or .parquet, which tells its format"
            )
        return Table(source.parent, (source,), _columns(source))
    if not source.is_dir():
        raise UserError(f"there is no file or folder {source}")
    manifests = sorted(path for path in source.iterdir() if path.suffix in MANIFESTS)
    parquet = sorted(source.rglob(f"*{PARQUET}"))
    if len(manifests) + bool(parquet) > 1:
        found = ", ".join(path.name for path in [*manifests, *parquet[:1]][:4])
        raise UserError(f"{source} holds more than one table ({found}); give the path of one")
    if manifests:
        return Table(source, (manifests[0],), _columns(manifests[0]))
    if not parquet:
        raise UserError(f"{source} holds no .jsonl, .csv or .parquet file")
    return Table(source, tuple(parquet), _columns(parquet[0]))


def lookup(fields: Mapping[str, Any], column: str) -> Any:
    """A value by column name, or `column.member` of a struct; None where there is none."""
    if column in fields:
        return fields[column]
    name, _, member = column.partition(".")
    inner = fields.get(name)
    return lookup(inner, member) if member and isinstance(inner, Mapping) else None


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or nothing where no name is near."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _columns(path: Path) -> tuple[str, ...]:
    match path.suffix:
        case ".csv":
            with path.open("rb") as file:
                return tuple(_csv_header(_decoded(file, path), path))
        case ".jsonl":
            names: dict[str, None] = {}
            for fields, _, _ in islice(_jsonl_rows(path), _PROBED):
                names |= dict.fromkeys(_flat_names(fields))
            if not names:
                raise UserError(f"{path} has no rows: expected one JSON object a line")
            return tuple(names)
        case _:
            return tuple(_parquet_names(path))


def _flat_names(fields: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in fields.items():
        yield f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from _flat_names(value, f"{prefix}{name}.")


_Raw = tuple[Mapping[str, Any], float, str | None]


def _jsonl_rows(path: Path) -> Iterator[_Raw]:
    with _opened(path) as file:
        for line in file:
            if not line.strip():
                continue
            try:
                fields = json.loads(line)
            except ValueError as error:
                yield {}, 1, f"not JSON: {error}"
                continue
            if isinstance(fields, dict):
                yield fields, 1, None
            else:
                yield {}, 1, "not a JSON object"


def _opened(path: Path) -> Any:
    try:
        return path.open("rb")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def _decoded(lines: Iterable[bytes], path: Path) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise UserError(
                f"line {number} of {path} is not UTF-8; save the file as UTF-8"
            ) from None


def _csv_header(lines: Iterator[str], path: Path) -> list[str]:
    header = next(csv.reader(lines), None)
    if not header:
        raise UserError(f"{path} has no header line with the names of its columns")
    return header


def _csv_rows(path: Path) -> Iterator[_Raw]:
    with _opened(path) as file:
        lines = _decoded(file, path)
        header = _csv_header(lines, path)
        reader = csv.reader(lines)
        try:
            for cells in reader:
                if not cells:
                    continue
                if len(cells) != len(header):
                    yield {}, 1, f"{len(cells)} cells in a table of {len(header)} columns"
                else:
                    yield dict(zip(header, cells, strict=True)), 1, None
        except csv.Error as error:
            raise UserError(f"{path}, near line {reader.line_num + 1}: {error}") from None


def _open_parquet(path: Path) -> Any:
    require("parquet")
    from arro3.io import read_parquet  # noqa: PLC0415 - an extra

    broken = UserError(f"{path} is not a readable Parquet file: it is cut off or damaged")
    with _opened(path) as file:
        head, size = file.read(4), file.seek(0, 2)
        file.seek(max(0, size - 4))
        if (head, file.read(4)) != (_PARQUET_MAGIC, _PARQUET_MAGIC):
            raise broken
    try:
        return read_parquet(str(path), batch_size=_PARQUET_ROWS)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the reader is no Exception
        raise broken from error


def _parquet_names(path: Path) -> Iterator[str]:
    schema = _open_parquet(path).schema
    for name in schema.names:
        yield name
        yield from _member_names(schema.field(name), name)


def _member_names(field: Any, prefix: str) -> Iterator[str]:
    for member in field.type.fields or ():
        yield f"{prefix}.{member.name}"
        yield from _member_names(member, f"{prefix}.{member.name}")


def _parquet_rows(path: Path) -> Iterator[_Raw]:
    batches = _open_parquet(path)
    names: Sequence[str] = batches.schema.names
    try:
        for batch in batches:
            columns = [batch.column(name).to_pylist() for name in names]
            for values in zip(*columns, strict=True):
                fields = dict(zip(names, values, strict=True))
                yield fields, sum(map(_weight, values)) / 1e6, None
    except UserError:
        raise
    except Exception as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"{path} cannot be read to its end: {reason}") from error


def _weight(value: Any) -> int:
    if isinstance(value, Mapping):
        return sum(map(_weight, value.values()))
    return len(value) if isinstance(value, bytes | str) else 8
