"""WebDataset: a tar archive in which adjacent files of the same name are the cells of a row.

`0001.reference.jpg`, `0001.target.jpg` and `0001.json` are one row. Its columns are the endings
`reference.jpg`, `target.jpg` and `json`; also `reference` and `target`, and the members of the JSON
object where those names are free. `__key__` is the name without ending. Endings are compared in
lower case; hidden files, which macOS adds, are passed over.
"""

import tarfile
from collections.abc import Iterator
from itertools import groupby, islice
from pathlib import Path

from dsd_jax.errors import UserError
from dsd_jax.inside import open_regular
from dsd_jax.structured import parse_json
from dsd_jax.tables.json_rows import ROW
from dsd_jax.tables.parsed import Parsed, checked, names_of

__all__ = ["KEY", "tar_columns", "tar_rows"]

KEY = "__key__"
_PROBED = 8  # rows whose names are taken for the columns
_MOST = 2**28  # bytes of a file in the archive that is not text
_APART = "the files of its row lie apart; sort the archive, as `tar --sort=name` does"
_TEXT = {"txt", "text", "caption", "cls", "transcript"}
_JSON = {"json", "jsn"}


def tar_columns(path: Path) -> tuple[str, ...]:
    """Names in the first rows.

    Raises:
        UserError: the archive is damaged or has no rows.
    """
    names = names_of(islice(tar_rows(path), _PROBED))
    if not names:
        raise UserError(f"{path} has no rows: expected files such as 0001.jpg and 0001.txt")
    return names


def tar_rows(path: Path) -> Iterator[Parsed]:
    """Rows of an archive, in its order. Nothing is unpacked to disk.

    Raises:
        UserError: the archive is damaged.
    """
    with open_regular(path) as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                files = (member for member in archive if not _is_beside(member))
                seen: set[str] = set()
                for key, members in groupby(files, lambda member: _split(member.name)[0]):
                    row = _row(archive, key, list(members))
                    yield row._replace(error=_APART) if key in seen else row
                    seen.add(key)
        except (tarfile.TarError, OSError, ValueError, OverflowError, EOFError) as error:
            raise UserError(f"{path} cannot be read to its end: {error}") from None


def _is_beside(member: tarfile.TarInfo) -> bool:
    """Whether a member is not a file of a row: a folder, or a file that macOS adds."""
    name = member.name.rpartition("/")[2]
    return member.isdir() or name.startswith(".") or "__MACOSX/" in member.name


def _split(name: str) -> tuple[str, str]:
    """Splits a path at the first dot after its folder into name and lower-case ending."""
    folder, slash, own = name.rpartition("/")
    key, _, ending = own.partition(".")
    return f"{folder}{slash}{key}", ending.lower()


def _row(archive: tarfile.TarFile, key: str, members: list[tarfile.TarInfo]) -> Parsed:
    size = sum(member.size for member in members) / 1e6
    cells: dict[str, object] = {KEY: key}
    try:
        for member in members:
            ending = _split(member.name)[1]
            if ending in cells:
                raise UserError(f"{member.name} is there twice")
            cells[ending] = _cell(archive, member, ending.rpartition(".")[2])
    except UserError as error:
        return Parsed({}, size, str(error))
    for ending, value in list(cells.items()):
        name = ending.rpartition(".")[0]
        if name:
            cells.setdefault(name, value)
    for ending in _JSON & set(cells):
        inner = cells[ending]
        if isinstance(inner, dict):
            cells = {**inner, **cells}
    return checked(cells, size)


def _cell(archive: tarfile.TarFile, member: tarfile.TarInfo, kind: str) -> object:
    most = ROW.size if kind in _TEXT | _JSON else _MOST
    if member.size > most:
        raise UserError(f"{member.name} has more than {most:,} bytes")
    file = archive.extractfile(member) if member.isreg() else None
    if file is None:
        raise UserError(f"{member.name} is a link or a device, not a file")
    data = file.read()
    if kind in _TEXT:
        return data.decode(errors="surrogateescape")
    if kind in _JSON:
        return parse_json(data, member.name, object, ROW)
    return data
