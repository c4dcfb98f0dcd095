"""Reads JSON and TOML of other people within limits; errors name file, place and reason.

Every reader of a structured file or text goes through here. A value that comes out is safe to walk,
to print and to write again: its depth is bounded, its numbers fit 64 bits, its texts fit UTF-8, and
no key was given twice. `build` then checks it against a dataclass.
"""

import dataclasses
import functools
import json
import math
import os
import re
import tomllib
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from dsd_jax.errors import UserError, and_more, did_you_mean
from dsd_jax.inside import open_regular

__all__ = [
    "JSON",
    "TOML",
    "Limits",
    "MalformedError",
    "build",
    "built_lines",
    "json_end",
    "json_lines",
    "json_value",
    "parse_json",
    "parse_toml",
    "placed",
    "read_bytes",
    "read_json",
    "read_toml",
]

T = TypeVar("T")
Source = str | bytes
PathLike = str | os.PathLike[str]

_MIB = 1 << 20
_DIGITS = 20  # of the longest number that 64 bits can hold
_LEAST, _MOST = -(2**63), 2**64 - 1
_SHOWN = 80  # characters of a foreign name that a message repeats
_SURROGATE = re.compile("[\ud800-\udfff]")
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
# A key or a table's name of TOML with dots between its parts. Each match begins at a whole word, so
# the search is linear.
_TOML_PART = r"""(?:(?<![\w-])[A-Za-z0-9_-]++|"[^"\n]*+"|'[^'\n]*+')"""
_COMPLAINTS = 20  # wrong fields that one message names
_SCANNER = json.JSONDecoder(parse_int=len, parse_float=len)  # numbers of any length


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bounds of a structure.

    Attributes:
        size: Bytes of its text.
        depth: Objects and arrays inside each other.
        lenient: Accept what JSON parsers differ about, for texts that must be read if at all
            possible, such as answers that were paid for: infinite and NaN numbers, long integers
            (they become floats), halves of surrogate pairs, repeated keys (the last one counts).
            The caller checks each value that it uses.
        gaps: Accept NaN and read it as null, for tables: pandas writes a missing value so.
    """

    size: int = 16 * _MIB
    depth: int = 64
    lenient: bool = False
    gaps: bool = False


JSON = Limits()
TOML = Limits(size=_MIB)


class MalformedError(UserError):
    """A structure that cannot be used.

    Attributes:
        where: The file, or what the text is called.
        reason: Place and reason, without `where`.
    """

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where}: {reason}")
        self.where, self.reason = where, reason


def parse_json(source: Source, where: str, kind: type[T], limits: Limits = JSON) -> T:
    """Reads a JSON text.

    Args:
        source: UTF-8 bytes (a byte order mark is passed over), or a str.
        where: Name of the source in messages: a file, or a file and a line.
        kind: Python type that the outermost value must have: dict, list, or object for any.
        limits: Bounds that are checked before and after parsing.

    Raises:
        MalformedError: It is not JSON, passes a limit, or is of another kind.
    """
    text = _decoded(source, where, limits)
    try:
        if limits.lenient:
            value = json.loads(text, parse_int=_integer_or_float)
        else:
            value = json.loads(
                text,
                parse_int=_integer,
                parse_constant=_gap if limits.gaps else _no_constant,
                object_pairs_hook=_without_repeats,
            )
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        if error.lineno == 1 and "\n" not in text:
            place = f"column {error.colno}"
        raise MalformedError(where, f"not JSON at {place}: {_lowered(error.msg)}") from None
    except _UnfitError as error:
        raise MalformedError(where, str(error)) from None
    except RecursionError:
        raise MalformedError(where, _too_deep(limits)) from None
    escaped = not limits.lenient and _ESCAPED_SURROGATE.search(text) is not None
    _check(value, where, limits, halves=escaped)
    if not isinstance(value, kind):
        raise MalformedError(where, f"expected {_kind_name(kind)}, got {_kind_name(type(value))}")
    return value


def parse_toml(source: Source, where: str, limits: Limits = TOML) -> dict[str, object]:
    """Reads a TOML text; arguments and errors are those of `parse_json`."""
    text = _decoded(source, where, limits)
    if found := _dotted(limits.depth).search(text):
        line = text.count("\n", 0, found.start()) + 1
        raise MalformedError(where, f"line {line}: a key of more than {limits.depth} parts")
    try:
        value = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise MalformedError(where, f"not TOML: {_lowered(str(error))}") from None
    except RecursionError:
        raise MalformedError(where, _too_deep(limits)) from None
    except ValueError:  # Python refuses to convert so many digits
        raise MalformedError(where, "a number has too many digits") from None
    _check(value, where, dataclasses.replace(limits, lenient=True), halves=False)
    return value


def read_json(path: PathLike, kind: type[T], limits: Limits = JSON) -> T:
    """Reads a JSON file, local or `gs://`; see `parse_json` and `read_bytes`."""
    return parse_json(read_bytes(path, limits.size), os.fspath(path), kind, limits)


def read_toml(path: PathLike, limits: Limits = TOML) -> dict[str, object]:
    """Reads a TOML file, local or `gs://`; see `parse_toml` and `read_bytes`."""
    return parse_toml(read_bytes(path, limits.size), os.fspath(path), limits)


def read_bytes(path: PathLike, most: int) -> bytes:
    """Reads a regular file of at most `most` bytes.

    Raises:
        UserError: It is missing, unreadable, too large, or a pipe, a device or a folder.
    """
    name = os.fspath(path)
    try:
        if "://" in name:
            from etils import epath  # noqa: PLC0415 - only for buckets

            remote = epath.Path(name)
            _check_size(name, remote.stat().length, most)
            return bytes(remote.read_bytes())
        with open_regular(name) as file:
            _check_size(name, os.fstat(file.fileno()).st_size, most)
            content = file.read(most + 1)
    except OSError as error:
        raise UserError(f"cannot read {name}: {error.strerror or error}") from None
    _check_size(name, len(content), most)  # it may have grown
    return content


def json_lines(path: PathLike, limits: Limits = JSON) -> Iterator[tuple[int, object]]:
    """Number (from 1) and value of each line that is not blank, of a local JSON Lines file.

    A line that cannot be used gives its `MalformedError` as the value, so one bad line costs one
    row. A caller that wants to stop there raises it.

    Raises:
        UserError: The file cannot be read.
    """
    name = os.fspath(path)
    try:
        with open_regular(name) as file:
            for number, line in enumerate(_bounded_lines(file, limits.size), start=1):
                if not line.strip():
                    continue
                value: Any
                try:
                    value = parse_json(
                        line.rstrip(b"\r\n"), f"{name} line {number}", object, limits
                    )
                except MalformedError as error:
                    value = error
                yield number, value
    except OSError as error:
        raise UserError(f"cannot read {name}: {error.strerror or error}") from None


def json_end(text: str, start: int) -> int:
    """Finds the end of the JSON value that begins at a place of a text; `parse_json` reads it.

    Raises:
        ValueError: There is no value, or it has no end.
        RecursionError: It is nested too deep to be read.
    """
    return _SCANNER.raw_decode(text, start)[1]


def json_value(
    value: object, default: Callable[..., object] | None = None, *, sort_keys: bool = False
) -> Any:
    """Turns a value of our own into what JSON gives back for it, such as lists for tuples.

    Args:
        value: A value that JSON can hold.
        default: Turns anything else into what JSON can hold.
        sort_keys: Sort the keys at every depth.
    """
    return json.loads(json.dumps(value, default=default, sort_keys=sort_keys))


def build(kind: type[T], table: Mapping[str, object], where: str) -> T:
    """Makes a dataclass from a parsed object or table, strictly.

    Dataclasses refuse unknown keys if they have `__pydantic_config__ = {"extra": "forbid"}`.

    Raises:
        UserError: An unknown key (with the nearest known one), a missing one, or a wrong value.
            Every mistake has a line.
    """
    import pydantic  # noqa: PLC0415 - it is slow to load

    try:
        made: T = _adapter(kind).validate_python(table)
    except pydantic.ValidationError as error:
        found = error.errors(include_url=False)
        lines = [f"{where}: {_complaint(kind, each)}" for each in found[:_COMPLAINTS]]
        if len(found) > _COMPLAINTS:
            lines.append(f"{where}: {len(found) - _COMPLAINTS} more mistakes")
        raise UserError("\n".join(lines)) from None
    return made


def placed(value: T, folder: Path) -> T:
    """A value whose relative paths begin in a folder, such as that of the file that held it.

    Dataclasses, tuples and mappings are walked.
    """
    made: Any = value
    if isinstance(value, Path):
        made = folder / value.expanduser()
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = (field.name for field in dataclasses.fields(value))
        made = dataclasses.replace(value, **{n: placed(getattr(value, n), folder) for n in names})
    elif isinstance(value, tuple):
        made = tuple(placed(each, folder) for each in value)
    elif isinstance(value, Mapping):
        made = {name: placed(each, folder) for name, each in value.items()}
    return cast("T", made)


def built_lines(kind: type[T], path: PathLike) -> Iterator[tuple[str, T]]:
    """Place (for messages) and dataclass of each line of a JSON Lines file of our own.

    Raises:
        UserError: The file cannot be read, or a line is damaged or does not fit; see `build`.
    """
    for number, value in json_lines(path):
        where = f"{os.fspath(path)} line {number}"
        if isinstance(value, MalformedError):
            raise value
        if not isinstance(value, dict):
            raise MalformedError(where, f"expected an object, got {_kind_name(type(value))}")
        yield where, build(kind, value, where)


# Text


def _decoded(source: Source, where: str, limits: Limits) -> str:
    if len(source) > limits.size:
        raise MalformedError(where, f"it has more than {_size(limits.size)}")
    if isinstance(source, str):
        if not limits.lenient and (found := _SURROGATE.search(source)):
            raise MalformedError(
                where, f"character {found.start() + 1} is half of a surrogate pair"
            )
        text = source.removeprefix("\ufeff")
    else:
        try:
            text = source.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            bad = source[error.start]
            raise MalformedError(
                where, f"byte {error.start + 1} (0x{bad:02x}) is not UTF-8"
            ) from None
    if not text.strip():
        raise MalformedError(where, "it is empty")
    return text


def _size(count: int) -> str:
    return f"{count // _MIB} MiB" if count % _MIB == 0 else f"{count} bytes"


def _lowered(message: str) -> str:
    return message[:1].lower() + message[1:]


@functools.cache
def _dotted(depth: int) -> re.Pattern[str]:
    return re.compile(rf"(?:{_TOML_PART}[ \t]*+\.[ \t]*+){{{depth},}}")


# Values


class _UnfitError(ValueError):
    """Raised while parsing at something that strict JSON does not allow."""


class _LongInteger:
    """Stands in the value for an integer with too many digits, until its place is known."""

    def __init__(self, digits: str) -> None:
        self.digits = digits


def _integer(text: str) -> object:
    return int(text) if len(text) <= _DIGITS else _LongInteger(text)


def _integer_or_float(text: str) -> int | float:
    return int(text) if len(text) <= _DIGITS else float(text)


def _no_constant(name: str) -> None:
    raise _UnfitError(f"{name} is not a number of JSON")


def _gap(name: str) -> None:
    if name != "NaN":
        _no_constant(name)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise _UnfitError(f"the key {name[:_SHOWN]!r} is given twice")
            seen.add(name)
    return made


def _too_deep(limits: Limits) -> str:
    return f"it is nested more than {limits.depth} deep"


def _check(value: object, where: str, limits: Limits, *, halves: bool) -> None:
    """Walks a parsed value without recursion and refuses what passes the limits."""
    # Every container with its depth and its place: (place of its parent, key in its parent).
    stack: list[tuple[object, int, tuple[Any, ...]]] = [([value], 0, ())]
    while stack:
        container, depth, place = stack.pop()
        if depth > limits.depth:
            raise MalformedError(where, _too_deep(limits))
        entries: Iterable[tuple[str | int, object]]
        if isinstance(container, dict):
            if halves and any(map(_SURROGATE.search, container)):
                raise MalformedError(where, f"{_path(place)}a key holds half of a surrogate pair")
            entries = container.items()
        else:
            assert isinstance(container, list)
            entries = enumerate(container)
        for key, each in entries:
            if isinstance(each, dict | list):
                stack.append((each, depth + 1, (place, key) if depth else ()))
            elif (reason := _unfit(each, limits, halves=halves)) is not None:
                raise MalformedError(where, f"{_path((place, key) if depth else ())}{reason}")


def _unfit(value: object, limits: Limits, *, halves: bool) -> str | None:
    """The reason to refuse a single value, or None."""
    if isinstance(value, _LongInteger):
        return f"a number of {len(value.digits)} digits, more than 64 bits hold"
    if type(value) is int and not _LEAST <= value <= _MOST:
        return "a number that 64 bits do not hold"
    if type(value) is float and not limits.lenient and not math.isfinite(value):
        return "a number that is too large"
    if halves and isinstance(value, str) and _SURROGATE.search(value):
        return "a text that holds half of a surrogate pair, which UTF-8 cannot hold"
    return None


def _path(place: tuple[Any, ...]) -> str:
    """The place of a value as `a.b[3]: `; empty for the outermost one."""
    parts: list[str] = []
    while place:
        place, key = place
        parts.append(f"[{key}]" if isinstance(key, int) else f".{key[:_SHOWN]}")
    text = "".join(reversed(parts)).removeprefix(".")
    text = text.encode(errors="replace").decode()
    return f"{text}: " if text else ""


def _kind_name(kind: type) -> str:
    names = {dict: "an object", list: "an array", str: "a text", bool: "true or false"}
    names |= {int: "a number", float: "a number", type(None): "null"}
    return names.get(kind, kind.__name__)


# Files


def _check_size(name: str, size: int, most: int) -> None:
    if size > most:
        raise MalformedError(name, f"it has {size} bytes, expected at most {_size(most)}")


def _bounded_lines(file: BinaryIO, most: int) -> Iterator[bytes]:
    """Yields the lines of a file; a line that is too long is cut just after the limit."""
    while line := file.readline(most + 2):
        yield line
        while not line.endswith(b"\n") and (line := file.readline(most + 2)):
            pass


# Dataclasses


_adapters: dict[Any, Any] = {}  # making one is slow


def _adapter(kind: Any) -> Any:
    import pydantic  # noqa: PLC0415

    if kind not in _adapters:
        _adapters[kind] = pydantic.TypeAdapter(kind)
    return _adapters[kind]


def _complaint(kind: Any, error: Any) -> str:
    *place, name = error["loc"] or ("",)
    path = ".".join(str(part)[:_SHOWN] for part in error["loc"])
    if error["type"] in {"unexpected_keyword_argument", "extra_forbidden"}:
        known = _fields(kind, place)
        near = did_you_mean(str(name), known) or f"; known are {and_more(known, len(known))}"
        return f"unknown key `{path}`{near}"
    if error["type"] == "missing":
        return f"`{path}` is missing"
    if error["type"] == "value_error":
        return f"{path}: {error['ctx']['error']}" if path else str(error["ctx"]["error"])
    return f"`{path}`: {_lowered(error['msg'])}"


def _fields(kind: Any, place: Sequence[Any]) -> list[str]:
    """Names of the fields at a place within a dataclass; empty if there is no dataclass there."""
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        return [name for each in typing.get_args(kind) for name in _fields(each, place)]
    if dataclasses.is_dataclass(kind) and not place:
        return [field.name for field in dataclasses.fields(kind) if field.init]
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        hints = typing.get_type_hints(kind)
        return _fields(hints.get(place[0]), place[1:])
    inner = [each for each in typing.get_args(kind) if each is not Ellipsis]
    return _fields(inner[-1], place[1:]) if inner and place else []
