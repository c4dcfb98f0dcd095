"""Columnar files: Parquet, and Arrow as `save_to_disk` of `datasets` writes it."""

import functools
import os
import resource
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from dsd_jax.errors import UserError
from dsd_jax.extras import require
from dsd_jax.inside import open_regular
from dsd_jax.tables.parsed import Parsed, checked

__all__ = ["arrow_columns", "arrow_rows"]

_ROWS = 8  # turned into Python objects together: a row may hold two large images
_PARQUET, _ARROW = b"PAR1", b"ARROW1"
# Limits of the process that reads a file for the first time: bytes, seconds, bytes a second.
_MEMORY, _CPU_SECONDS, _BYTES_A_SECOND = 800_000_000, 4, 2_000_000
_PACKED = 100  # as many times longer for each byte of Parquet, which is compressed


def arrow_columns(path: Path) -> tuple[str, ...]:
    """Names in the schema; members of structs as `column.member`, of lists as `column.0`.

    Raises:
        UserError: the file is damaged.
    """
    with _opened(path) as file:
        schema = _reader(file, path).schema
        own: Sequence[str] = schema.names
        return tuple(name for each in own for name in _names(schema.field(each), each))


def _names(field: Any, name: str) -> Iterator[str]:
    yield name
    kind = field.type
    if kind.value_field is not None:
        yield from _names(kind.value_field, f"{name}.0")
    else:
        for member in kind.fields or ():
            yield from _names(member, f"{name}.{member.name}")


def arrow_rows(path: Path) -> Iterator[Parsed]:
    """Rows of a file.

    Raises:
        UserError: the file is damaged.
    """
    with _opened(path) as file:
        yield from _rows(file, path)


def _opened(path: Path) -> BinaryIO:
    require("parquet")
    now = path.stat()
    _check_apart(path, now.st_mtime_ns, now.st_ino)
    return open_regular(path)


@functools.cache
def _check_apart(path: Path, _changed: int, _number: int) -> None:
    """Reads a file once in a process of its own, since damage can abort the reader.

    Raises:
        UserError: the file is damaged.
    """
    command = [sys.executable, "-m", __name__, str(path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(  # noqa: S603 - this module, on a path
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    if done.returncode:
        raise UserError(done.stdout.decode(errors="replace").strip() or str(_broken(path)))


def _is_parquet(path: Path) -> bool:
    return path.suffix.lower() == ".parquet"


def _broken(path: Path) -> UserError:
    kind = "Parquet" if _is_parquet(path) else "Arrow"
    return UserError(f"{path} is not a readable {kind} file: it is cut off or damaged")


def _reader(file: BinaryIO, path: Path) -> Any:
    from arro3.io import read_ipc, read_ipc_stream, read_parquet  # noqa: PLC0415 - an extra

    head, size = file.read(len(_ARROW)), file.seek(0, os.SEEK_END)
    file.seek(max(0, size - len(_PARQUET)))
    tail = file.read()
    file.seek(0)
    if _is_parquet(path) and not (head[: len(tail)] == tail == _PARQUET):
        raise _broken(path)
    try:
        if _is_parquet(path):
            return read_parquet(file, batch_size=_ROWS)
        return read_ipc(file) if head == _ARROW else read_ipc_stream(file)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the reader is not an Exception
        raise _broken(path) from error


def _rows(file: BinaryIO, path: Path) -> Iterator[Parsed]:
    batches = _reader(file, path)
    names: Sequence[str] = batches.schema.names
    try:
        for batch in batches:
            for start in range(0, batch.num_rows, _ROWS):
                part = batch.slice(start, min(_ROWS, batch.num_rows - start))
                columns = [part.column(name).to_pylist() for name in names]
                for values in zip(*columns, strict=True):
                    cells = dict(zip(names, values, strict=True))
                    yield checked(cells, sum(map(_weight, values)) / 1e6)
    except (KeyboardInterrupt, SystemExit, GeneratorExit, UserError):
        raise
    except BaseException as error:  # a panic of the reader is not an Exception
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path} cannot be read to its end: {reason}") from error


def _weight(value: object) -> int:
    if isinstance(value, Mapping):
        return sum(map(_weight, value.values()))
    if isinstance(value, list):
        return sum(map(_weight, value))
    return len(value) if isinstance(value, bytes | str) else 8


def _limit(kind: int, most: int) -> None:
    """Ends this process where it takes more of something; a lower limit stays."""
    for own in resource.getrlimit(kind):
        most = most if own == resource.RLIM_INFINITY else min(most, own)
    resource.setrlimit(kind, (most, most))


def _main(path: Path) -> int:
    """Reads a file to its end, says what is wrong with it, and returns the exit status."""
    try:
        with open_regular(path) as file:
            # A damaged length asks for far more memory and time than the file is worth.
            size = os.fstat(file.fileno()).st_size
            _limit(resource.RLIMIT_DATA, _MEMORY + 4 * size)
            packed = _PACKED if _is_parquet(path) else 1
            _limit(resource.RLIMIT_CPU, _CPU_SECONDS + packed * size // _BYTES_A_SECOND)
            for _ in _rows(file, path):
                pass
    except UserError as error:
        sys.stdout.write(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main(Path(sys.argv[1])))
