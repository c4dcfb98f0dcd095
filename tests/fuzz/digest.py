"""One digest for whatever a reader returns, so that two results can be compared."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["digest"]


def digest(value: object) -> str:
    """SHA-256 of a value: equal for equal content, whatever the order of keys."""
    found = hashlib.sha256()
    _feed(found, value)
    return found.hexdigest()


def _feed(found: Any, value: object) -> None:
    match value:
        case np.ndarray():
            found.update(f"array {value.dtype} {value.shape} ".encode())
            found.update(np.ascontiguousarray(value).tobytes())
        case bytes():
            found.update(b"bytes %d " % len(value))
            found.update(value)
        case Mapping():
            found.update(b"mapping %d " % len(value))
            for key in sorted(value, key=repr):
                _feed(found, key)
                _feed(found, value[key])
        case set() | frozenset():
            _feed(found, sorted(value, key=repr))
        case Sequence() if not isinstance(value, str):
            found.update(b"sequence %d " % len(value))
            for each in value:
                _feed(found, each)
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            found.update(f"{type(value).__name__} ".encode())
            _feed(found, {own.name: getattr(value, own.name) for own in dataclasses.fields(value)})
        case _:
            found.update(f"{type(value).__name__} {value!r} ".encode(errors="backslashreplace"))
