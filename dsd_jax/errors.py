"""The error of a user's mistake, and the phrases that messages share."""

import difflib
import errno
import os
from collections.abc import Iterable, Iterator, Sequence

__all__ = ["UserError", "and_more", "did_you_mean", "explain", "nearest"]

_FULL = (errno.ENOSPC, errno.EDQUOT)


class UserError(ValueError):
    """A mistake of the user; the message says what was given, what was expected, what to do.

    The command line prints the message alone, without a traceback, and exits with status 2.
    """


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that `name` is most likely a misspelling of, if any is near."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1)), None)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or nothing where no known name is near."""
    close = nearest(name, known)
    return f"; did you mean {close!r}?" if close else ""


def and_more(names: Sequence[str], most: int = 8) -> str:
    """The first `most` names, comma-separated, and how many others there are."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def explain(error: BaseException) -> str | None:
    """Returns the message of an error that the user can correct; None if the error is a bug.

    The user can correct a `UserError`, a file or folder that the system refuses to open or write,
    and a full disk. Libraries wrap these in errors of their own, so causes are looked at too.
    """
    for cause in _causes(error):
        if isinstance(cause, UserError):
            return str(cause)
        if isinstance(cause, OSError) and (message := _of_system(cause)):
            return message
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    yield error
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _causes(inner)
    if error.__cause__ is not None:
        yield from _causes(error.__cause__)


def _of_system(error: OSError) -> str | None:
    named = isinstance(error.filename, str | bytes | os.PathLike)  # else a number or None
    path = os.fsdecode(error.filename) if named else None
    if error.errno in _FULL:
        place = "the output" if path is None else path
        return f"cannot write {place}: {error.strerror}; free some space and run the command again"
    if path is None or error.errno is None:
        return None
    if error.errno == errno.ENOENT:
        return f"there is no file or folder {path}; check the path"
    return f"cannot use {path}: {error.strerror}; check the path and its permissions"
