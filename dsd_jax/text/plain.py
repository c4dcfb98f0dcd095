"""The one check of text from outside: files, answers and arguments.

JSON can spell half an emoji as an escape, and a command line or a file name can hold bytes that are
not UTF-8. Python keeps both as lone surrogates, which no UTF-8 file can hold. Every entrance calls
this check, so that no writer meets such text later.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from dsd_jax.errors import UserError

__all__ = ["check_text", "text_fault"]


def text_fault(value: object) -> str | None:
    """Names the text in a value that UTF-8 cannot hold, and its place; None if there is none.

    Args:
        value: a text, or mappings and lists of texts at any depth; other values are never at fault.
    """
    stack: list[tuple[object, _Place | None]] = [(value, None)]
    while stack:
        item, place = stack.pop()
        match item:
            case str():
                if not _storable(item):
                    return f"{_path(place)} holds {_shown(item)}" if place else _shown(item)
            case Mapping():
                for name, member in item.items():
                    if isinstance(name, str) and not _storable(name):
                        return (
                            f"a name {f'in {_path(place)} ' if place else ''}holds {_shown(name)}"
                        )
                    stack.append((member, _Place(place, str(name))))
            case Sequence() if not isinstance(item, bytes | bytearray):
                stack += [(member, _Place(place, str(i))) for i, member in enumerate(item)]
    return None


class _Place(NamedTuple):
    """The place of a value: its name or number in the value that holds it."""

    outer: "_Place | None"
    name: str


def _path(place: _Place) -> str:
    names: list[str] = []
    inner: _Place | None = place
    while inner is not None:
        names.append(inner.name)
        inner = inner.outer
    return ".".join(reversed(names))


def check_text(text: str, name: str) -> str:
    """Returns a text from outside as it is, if it can be stored.

    Args:
        text: text as given.
        name: name of the place where the user gave it, such as `--text`.

    Raises:
        UserError: UTF-8 cannot hold it.
    """
    fault = text_fault(text)
    if fault:
        raise UserError(f"{name} holds {fault}; give it as valid UTF-8")
    return text


def _storable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(text: str) -> str:
    """Names the first lone surrogate of a text."""
    code = next(ord(x) for x in text if 0xD800 <= ord(x) < 0xE000)
    if 0xDC80 <= code < 0xDD00:  # Python keeps a byte of an argument or a file name so
        return f"the byte {code - 0xDC00:#04x}, which is not UTF-8"
    return f"the half character \\u{code:04x}, which UTF-8 cannot hold"
