"""A reader of files that strangers make, and how its sound files are made."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

__all__ = ["Reader", "written"]


class Reader(NamedTuple):
    """One reader.

    Attributes:
        make: writes sound files into a folder, and returns the file to damage, or a folder, of
            whose files each mutation damages one.
        read: reads that file or folder, wholly; it may raise `UserError` alone. What it returns is
            compared with what it returns for sound files.
        share: of the mutations that the others get, for readers that are slow.
        sealed: the format has digests, so that no damage may change what is read.
    """

    make: Callable[[Path], Path]
    read: Callable[[Path], object]
    share: float = 1.0
    sealed: bool = False


def written(name: str, data: bytes | str) -> Callable[[Path], Path]:
    """Makes one file."""

    def make(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        return path

    return make
