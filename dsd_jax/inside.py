"""Opening files of folders that strangers made: regular files inside the folder, and no others.

A dataset or a model from elsewhere may name any path, and its folder may hold links, devices and
named pipes. A link to a private file must not be read, and a pipe must not be waited for.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from dsd_jax.errors import UserError

__all__ = ["OutsideError", "open_inside", "open_regular", "read_inside", "real_inside"]


class OutsideError(UserError):
    """A path leads out of the folder that it must lie in."""


def open_regular(path: str | Path, name: str | Path | None = None) -> BinaryIO:
    """Opens a file for reading if it is a regular one; links are followed.

    Args:
        path: path of the file.
        name: name of the file in messages; by default `path`.

    Raises:
        UserError: it is a folder, a device, a named pipe or a socket.
        OSError: it cannot be opened.
    """
    # Without O_NONBLOCK, opening a named pipe would wait for whoever writes to it.
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(number).st_mode):
            raise UserError(f"cannot read {name or path}: it is not a regular file")
        return os.fdopen(number, "rb")
    except BaseException:
        os.close(number)
        raise


def real_inside(folder: Path, path: str | Path) -> Path:
    """The real path of a file that lies in a folder, with all links resolved; it may be missing.

    Files of a snapshot in the Hugging Face cache are links into the `blobs` folder beside it, which
    counts as inside.

    Args:
        folder: folder that the file must lie in; may itself be a link.
        path: relative to `folder`, or absolute.

    Raises:
        OutsideError: the file lies elsewhere.
    """
    real = Path(os.path.realpath(folder / str(path).replace("\0", "")))
    if not any(real.is_relative_to(allowed) for allowed in _allowed(folder)):
        raise OutsideError(f"{path} is outside of the folder {folder}")
    return real


def open_inside(folder: Path, path: str | Path) -> BinaryIO:
    """Opens a regular file that lies in a folder (see `real_inside`).

    Raises:
        OutsideError: the file lies elsewhere.
        UserError: it is not a regular file.
        OSError: it cannot be opened.
    """
    return open_regular(real_inside(folder, path), path)


def read_inside(folder: Path, path: str | Path, most: int) -> bytes:
    """Reads a regular file of a folder (see `open_inside`) that has at most `most` bytes.

    Raises:
        OutsideError: the file lies elsewhere.
        UserError: it is not a regular file, or has more bytes.
        OSError: it cannot be read.
    """
    with open_inside(folder, path) as file:
        if os.fstat(file.fileno()).st_size > most:
            raise UserError(f"{path} has more than {most:,} bytes")
        return file.read(most)


def _allowed(folder: Path) -> Iterator[Path]:
    real = Path(os.path.realpath(folder))
    yield real
    for above in (real, *real.parents):
        if above.parent.name == "snapshots":
            yield above.parent.parent / "blobs"
