"""Files that appear complete or not at all: written under a temporary name, flushed, renamed."""

import contextlib
import fcntl
import hashlib
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from etils import epath

from dsd_jax.errors import UserError

__all__ = [
    "PARTIAL",
    "begin_folder",
    "explained",
    "file_sha256",
    "locked",
    "partial_of",
    "publish",
    "remove_tree",
    "replacing",
    "write_file",
    "write_object",
]

PARTIAL = ".part"
"""Ending of a file that is being written. Its name starts with a dot."""
# Attempts and seconds between them, while others may write in the folder.
_REMOVALS, _REMOVAL_S = 20, 0.1


@contextlib.contextmanager
def explained(path: str | Path, *others: type[Exception]) -> Iterator[None]:
    """Turns errors of the operating system in the block into one message about `path`.

    Args:
        path: file or folder that is being written.
        others: further exceptions with which a library reports such an error.

    Raises:
        UserError: the operating system refuses.
    """
    try:
        yield
    except (OSError, *others) as error:  # type: ignore[misc]
        reason = getattr(error, "strerror", None) or str(error).partition(";")[0]
        raise UserError(
            f"cannot write {path}: {reason}; make room or choose another place"
        ) from error


def file_sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def partial_of(path: Path, *, shared: bool = False) -> Path:
    """The temporary name of a file or folder that is being written, beside `path`.

    Args:
        path: its name when it is complete.
        shared: several processes may write it at a time; every call gives another name.
    """
    token = f".{secrets.token_hex(4)}" if shared else ""
    return path.with_name(f".{path.name}{token}{PARTIAL}")


def _is_partial(path: Path) -> bool:
    return path.name.startswith(".") and path.name.endswith(PARTIAL)


def locked(file: IO[Any]) -> bool:
    """Locks an open file until it is closed; False if another process has locked it.

    A file system without locks cannot tell; the file then counts as locked by this process.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def publish(partial: Path, path: Path) -> None:
    """Flushes a written file to disk and gives it its name.

    Raises:
        OSError: the operating system refuses.
    """
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # or a power cut could undo the rename
    finally:
        os.close(folder)


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path`, which becomes `path` when the block has ended well.

    The folder is made if it does not exist. Several processes may write the same path at a time:
    each has a temporary name of its own, and the last one to finish wins.

    Raises:
        UserError: the operating system refuses; nothing is left behind.
    """
    path = Path(path)
    partial = partial_of(path, shared=True)
    try:
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            publish(partial, path)
    finally:
        with contextlib.suppress(OSError):  # renamed by now, or not even a folder
            partial.unlink()


def write_file(path: str | Path, content: bytes | str) -> None:
    """Writes a small file; text as UTF-8.

    Raises:
        UserError: the operating system refuses; nothing is left behind.
    """
    data = content.encode() if isinstance(content, str) else content
    with replacing(path) as partial:
        partial.write_bytes(data)


def write_object(path: epath.Path, content: str) -> None:
    """Writes a small text file to a disk or a bucket; a bucket replaces an object in one step.

    Raises:
        UserError: the operating system refuses; nothing is left behind.
    """
    if "://" in str(path):
        path.write_text(content)
    else:
        write_file(Path(path), content)


def begin_folder(folder: Path, mark: str, content: str, other: str) -> None:
    """Takes a new folder for a job, or one that the same job has begun; workers may start at once.

    Args:
        folder: made if it does not exist.
        mark: name of the file in it that describes the job.
        content: the description.
        other: the message about a folder of another job, without the folder's name.

    Raises:
        UserError: the folder holds other files, belongs to another job, or cannot be written.
    """
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        # Another worker of the job may begin now. Its first file is the mark, so whatever else this
        # list holds of that worker, the mark is there afterwards.
        held = [path for path in folder.iterdir() if not _is_partial(path)]
        begun = None
        with contextlib.suppress(FileNotFoundError):
            begun = (folder / mark).read_text(encoding="utf-8")
    if begun is None and held:
        raise UserError(f"{folder} holds other files; choose a new folder")
    if begun is not None and begun != content:
        raise UserError(f"{folder} {other}")
    if begun is None:
        write_file(folder / mark, content)


def remove_tree(root: epath.Path) -> None:
    """Removes a folder, if it exists, in which a library's threads may still be writing.

    After an error, the threads of TensorStore go on for a moment with what they have begun.
    """
    for _ in range(_REMOVALS):
        if not root.exists():
            return
        with contextlib.suppress(OSError):
            root.rmtree()
        time.sleep(_REMOVAL_S)
