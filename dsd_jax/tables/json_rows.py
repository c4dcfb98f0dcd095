"""JSON: one object per line, or one list of objects, read without holding the file in memory.

The list may also be a member of an object, as in `{"info": {...}, "data": [...]}`.
"""

import dataclasses
import io
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from dsd_jax.errors import UserError, and_more
from dsd_jax.inside import open_regular
from dsd_jax.structured import JSON, MalformedError, json_end, json_lines, parse_json
from dsd_jax.tables.parsed import PROBED, Parsed, names_of, open_text

__all__ = ["ROW", "json_columns", "json_rows"]

ROW = dataclasses.replace(JSON, gaps=True)
"""Limits of a row."""
_BLOCK = 2**20
_BOM = b"\xef\xbb\xbf"
_SPACE = re.compile(r"[ \t\r\n]*")


def json_columns(path: Path) -> tuple[str, ...]:
    """Names in the first rows; members of objects and lists as `column.member`.

    Raises:
        UserError: there are no rows.
    """
    names = names_of(islice(json_rows(path), PROBED))
    if not names:
        raise UserError(f"{path} has no rows: expected one JSON object a line, or a list of them")
    return names


def json_rows(path: Path) -> Iterator[Parsed]:
    """Rows of a file. A damaged row does not affect the others.

    Raises:
        UserError: a list that is damaged between its rows, or an object over several lines that
            holds no list of rows, or several.
    """
    open_text(path).close()  # refuses UTF-16
    with open_regular(path) as file:
        first = file.readline(ROW.size).removeprefix(_BOM).strip()
        while not first and (line := file.readline(ROW.size)):
            first = line.strip()
        alone = not file.read(_BLOCK).strip()
    # A file of lines may begin with a damaged one, and a list may lie on one line or on many.
    if first[:1] == b"[" and (alone or not _is_json(first)):
        with open_text(path) as text:
            yield from _list(_Window(text), path)
        return
    if path.suffix.lower() == ".json" and (alone or not _is_json(first)):
        with open_text(path) as text:
            names = list(dict.fromkeys(name for name, _ in _members(_Window(text), path)))
        if len(names) > 1:
            raise UserError(
                f"{path} holds several lists of rows ({and_more(names)}); save one of them as a "
                "file of its own"
            )
        if names:
            with open_text(path) as text:
                yield from (row for _, row in _members(_Window(text), path))
            return
        if not alone:
            raise UserError(
                f"{path} holds neither a list of rows nor one row per line; write either (pandas "
                "does with to_json(orient='records'))"
            )
    for _, value in json_lines(path, ROW):
        yield _row(value)


def _is_json(text: bytes) -> bool:
    try:
        parse_json(text, "", object, ROW)
    except MalformedError:
        return False
    return True


def _row(value: object) -> Parsed:
    if isinstance(value, dict):
        return Parsed(value, 1)
    error = value.reason if isinstance(value, MalformedError) else "not a JSON object"
    return Parsed({}, 1, error)


def _list(text: "_Window", path: Path) -> Iterator[Parsed]:
    """Rows of a list; little more than one of them is in memory at a time."""
    text.skip("[")
    number = 0
    while not text.skip("]"):
        if number and not text.skip(","):
            raise UserError(f"{path}: the list of rows is damaged or cut off after row {number}")
        number += 1
        try:
            value = text.value()
        except (ValueError, RecursionError):
            raise UserError(
                f"{path}: row {number} of the list is damaged or cut off, or is larger than "
                f"{ROW.size:,} characters"
            ) from None
        try:
            yield _row(parse_json(value, "", object, ROW))
        except MalformedError as error:
            yield Parsed({}, 1, error.reason)


def _members(text: "_Window", path: Path) -> Iterator[tuple[str, Parsed]]:
    """Rows of every list of objects that is a member of the outer object, with its name.

    It ends where the object does, or without an error if the text is not such an object.
    """
    sign = "{"
    while text.skip(sign):
        sign = ","
        try:
            name = parse_json(text.value(), "", str, ROW)
            if not text.skip(":"):
                return
            rows = _enter(text)
        except (ValueError, RecursionError):
            return
        if rows:
            yield from ((name, row) for row in _list(text, path))


def _enter(text: "_Window") -> bool:
    """Enters the next value if it is a list of objects, else passes over it; returns which."""
    if not text.skip("["):
        text.value()
        return False
    if text.next() == "{":
        return True
    while not text.skip("]"):
        text.value()
        text.skip(",")
    return False


class _Window:
    """A part of a text file that is read further as needed."""

    def __init__(self, text: io.TextIOWrapper) -> None:
        self._text, self._held, self._at = text, "", 0

    def _more(self) -> bool:
        left = len(self._held) - self._at
        new = self._text.read(max(_BLOCK, left)) if left <= ROW.size else ""
        if new:
            self._held, self._at = self._held[self._at :] + new, 0
        return bool(new)

    def next(self) -> str:
        """The next character after spaces; empty at the end."""
        while True:
            space = _SPACE.match(self._held, self._at)
            self._at = space.end() if space else self._at
            if self._at < len(self._held):
                return self._held[self._at]
            if not self._more():
                return ""

    def skip(self, sign: str) -> bool:
        """Passes over spaces and this character; returns whether it was there."""
        found = self.next() == sign
        self._at += found
        return found

    def value(self) -> str:
        """Passes over the next value and returns its text.

        Raises:
            ValueError: it is not JSON, cut off, or too long.
            RecursionError: it is nested too deeply.
        """
        self.next()
        while True:
            try:
                end = json_end(self._held, self._at)
            except ValueError:
                if not self._more():
                    raise
                continue
            # A number may go on after the part that was read.
            if end == len(self._held) and self._more():
                continue
            start, self._at = self._at, end
            return self._held[start:end]
