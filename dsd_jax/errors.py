"""The error of a user's mistake, and the phrases that messages share."""

import difflib
from collections.abc import Iterable, Sequence

__all__ = ["UserError", "and_more", "did_you_mean"]


class UserError(ValueError):
    """A mistake in what the user gave: says what was given, what was expected, what to do next.

    The command line prints the message alone, without a traceback, and exits with status 2.
    """


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or nothing where no known name is near."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def and_more(names: Sequence[str], most: int = 8) -> str:
    """The first `most` names, comma-separated, and how many others there are."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
