"""Keeps a key out of everything that is stored or shown, however a server spells it.

A server can repeat the key that it was sent: as it is, with JSON escapes, in the quoting of
addresses, in base64 or hexadecimal digits, or in parts. A text is decoded and searched, and the key
is replaced wherever it is found. A text that still holds it afterwards is withheld as a whole.
"""

import base64
import bisect
import contextlib
import logging
import re
import traceback
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["WITHHELD", "Scrubber", "guard_logs"]

BLOT = "[key]"
WITHHELD = "[withheld: it repeats the key]"
_SHORTEST = 8  # a shorter key, such as `none` for a local server, is no secret but an ordinary word
_SHORTEST_HALVED = 16
_LEVELS = 4  # escapes inside escapes
# Escapes of JSON, Python, addresses and HTML, also when their own marks were escaped again; line
# breaks, which base64 may be wrapped at; zeros, which UTF-16 and UTF-32 put between letters.
_ESCAPE = re.compile(
    r"""\\+(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2})|[nr]|([^nr]))
    |%(?:25)*([0-9a-fA-F]{2})
    |&\#(?:[xX]([0-9a-fA-F]{1,6})|([0-9]{1,7}));?
    |[\r\n]+[\ \t]*
    |\0+""",
    re.VERBOSE | re.DOTALL,
)
_ASCII_LOWER = {code: code + 32 for code in range(ord("A"), ord("Z") + 1)}

Span = tuple[int, int]


class Scrubber:
    """Finds and replaces one key. Without a key it changes nothing."""

    def __init__(self, secret: str | None) -> None:
        self._needles = () if secret is None or len(secret) < _SHORTEST else tuple(_needles(secret))

    def text(self, text: str) -> str:
        """A text without the key."""
        if not (spans := self._find(text)):
            return text
        parts, position = [], 0
        for start, end in spans:
            parts += [text[position:start], BLOT]
            position = end
        cleaned = "".join([*parts, text[position:]])
        return WITHHELD if self.holds(cleaned) else cleaned

    def body(self, body: bytes) -> bytes:
        """The body of an answer without the key; bytes that are not UTF-8 stay as they are."""
        if not self._needles:
            return body
        text = body.decode("utf-8", "surrogateescape")
        cleaned = self.text(text)
        return body if cleaned is text else cleaned.encode("utf-8", "surrogateescape")

    def holds(self, text: str) -> bool:
        """Whether the key, or half of it, is in a text."""
        return bool(self._find(text))

    def _find(self, text: str) -> list[Span]:
        """Spans of the key, in order and without overlaps."""
        if not self._needles:
            return []
        spans = list(self._direct(text))
        levels = [text]
        maps: list[_Map] = []
        while len(levels) <= _LEVELS and (decoded := _decoded(levels[-1])) != levels[-1]:
            if hits := list(self._direct(decoded)):
                maps += [_Map(level) for level in levels[len(maps) :]]
            for span in hits:
                for each in reversed(maps):
                    span = each.back(span)  # noqa: PLW2901 - level by level
                spans.append(span)
            levels.append(decoded)
        return _merged(spans)

    def _direct(self, text: str) -> Iterator[Span]:
        """Spans of a spelling of the key, or of enough of it, without escapes.

        A run of `window` characters of a needle holds at least one of its `anchors`; these are
        searched for, and extended as far as the needle goes on.
        """
        lowered = text.lower()
        if len(lowered) != len(text):
            lowered = text.translate(_ASCII_LOWER)
        for needle, window in self._needles:
            size = max(1, window // 2)
            for offset in (*range(0, len(needle) - size + 1, size), len(needle) - size):
                anchor = needle[offset : offset + size]
                position = lowered.find(anchor)
                while position >= 0:
                    start, first = position, offset
                    while first and start and lowered[start - 1] == needle[first - 1]:
                        start, first = start - 1, first - 1
                    end, last = position + size, offset + size
                    while last < len(needle) and lowered[end : end + 1] == needle[last]:
                        end, last = end + 1, last + 1
                    if end - start >= window:
                        yield start, end
                    position = lowered.find(anchor, end)


def _needles(secret: str) -> Iterator[tuple[str, int]]:
    """Spellings of a key in lower case, each with the number of characters that reveal it."""
    halved = len(secret) >= _SHORTEST_HALVED
    window = len(secret) // 2 if halved else len(secret)
    yield secret.lower(), window
    yield secret[::-1].lower(), window
    data = secret.encode()
    digits = data.hex()
    yield digits, 2 * window if halved else len(digits)
    # Base64 encodes groups of three bytes, so the key can start in three ways.
    for offset in range(3):
        encoded = base64.b64encode(b"\0" * offset + data).decode()
        # Without the letters that hold bits of what stands before and after.
        core = encoded[-(-8 * offset // 6) : 8 * (offset + len(data)) // 6]
        least = (8 * window - 10) // 6 if halved else len(core)
        for spelling in {core, core.replace("+", "-").replace("/", "_")}:
            yield spelling.lower(), least


class _Map:
    """Maps positions in a decoded text back to the text before decoding."""

    def __init__(self, text: str) -> None:
        self._decoded: list[int] = []  # where each piece starts in the decoded text
        self._before: list[Span] = []  # its span before decoding
        self._escaped: list[bool] = []
        length = before = 0
        for match in _ESCAPE.finditer(text):
            if match.start() > before:
                self._add(length, (before, match.start()), escaped=False)
                length += match.start() - before
            if _letter(match):
                self._add(length, match.span(), escaped=True)
                length += 1
            before = match.end()
        if before < len(text):
            self._add(length, (before, len(text)), escaped=False)

    def _add(self, decoded: int, before: Span, *, escaped: bool) -> None:
        self._decoded.append(decoded)
        self._before.append(before)
        self._escaped.append(escaped)

    def back(self, span: Span) -> Span:
        """The span in the text before decoding."""
        return self._at(span[0])[0], self._at(span[1] - 1)[1]

    def _at(self, position: int) -> Span:
        piece = bisect.bisect_right(self._decoded, position) - 1
        start, end = self._before[piece]
        if self._escaped[piece]:
            return start, end
        start += position - self._decoded[piece]
        return start, start + 1


def _decoded(text: str) -> str:
    """A text with its escapes replaced, once."""
    letters: dict[str, str] = {}  # an answer has thousands of escapes, and few different ones

    def letter(match: re.Match[str]) -> str:
        if (found := letters.get(match[0])) is None:
            found = letters[match[0]] = _letter(match)
        return found

    return _ESCAPE.sub(letter, text)


def _letter(match: re.Match[str]) -> str:
    wide, short, plain, quoted, hexadecimal, decimal = match.groups()
    if plain is not None:
        return str(plain)
    if decimal is not None:
        code = int(decimal)
    else:
        code = int(wide or short or quoted or hexadecimal or "110000", 16)
    return chr(code) if 0 < code < 0x110000 else ""


def _merged(spans: list[Span]) -> list[Span]:
    merged: list[Span] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((start, end))
    return merged


# Logs

_guarding: list[Scrubber] = []


def guard_logs(scrubber: Scrubber) -> None:
    """Scrubs all log records of this process from now on.

    The clients of OpenAI and Gemini, and the HTTP library below them, log headers and bodies at
    level DEBUG, and a server may repeat the key in any of them.
    """
    if not _guarding:
        logging.setLogRecordFactory(_scrubbing(logging.getLogRecordFactory()))
    if scrubber not in _guarding:
        _guarding.append(scrubber)


def _scrubbing(make: Callable[..., logging.LogRecord]) -> Callable[..., logging.LogRecord]:
    def scrubbed(*given: Any, **named: Any) -> logging.LogRecord:
        record = make(*given, **named)
        with contextlib.suppress(Exception):  # a record with a wrong format fails where it is shown
            _scrub(record)
        return record

    return scrubbed


def _scrub(record: logging.LogRecord) -> None:
    message = record.getMessage()
    if record.exc_info and record.exc_info[0] is not None:
        trace = "".join(traceback.format_exception(*record.exc_info)).rstrip()
    else:
        trace = ""
    for scrubber in _guarding:
        if scrubber.holds(message):
            message = scrubber.text(message)
            record.msg, record.args = message, ()
        if trace and scrubber.holds(trace):
            trace = scrubber.text(trace)
            record.exc_info, record.exc_text = None, trace
