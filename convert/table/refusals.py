"""The five reasons to refuse a conversion, all listed in one message.

Unknown tensors (no rule speaks of such a name), unexpected ones (a rule does, but not in this size
of model), duplicates (two spellings of one tensor), missing ones, and wrong shapes or dtypes.
"""

import collections
import dataclasses
import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import ml_dtypes
import numpy as np

from dsd_jax.errors import UserError
from dsd_jax.types import Shape

__all__ = ["Expected", "Tensors", "family", "inspect"]

_FLOATS = {
    np.dtype(kind)
    for kind in (
        np.float64,
        np.float32,
        np.float16,
        ml_dtypes.bfloat16,
        ml_dtypes.float8_e4m3fn,
        ml_dtypes.float8_e5m2,
    )
}
_HEADINGS = {
    "unknown": "unknown",
    "unexpected": "unexpected in a model of this size",
    "duplicate": "given twice",
    "missing": "missing",
    "wrong": "of wrong shape or dtype",
}
_SHOWN = 8  # names listed per refusal
_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


@runtime_checkable
class _Spec(Protocol):
    @property
    def shape(self) -> Shape: ...
    @property
    def dtype(self) -> np.dtype: ...


@runtime_checkable
class Tensors(Protocol):
    """Named tensors to read from: `io.Weights`, or anything like it."""

    @property
    def tensors(self) -> Mapping[str, _Spec]: ...
    def read(self, name: str, rows: slice | None = None) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class Expected:
    """The weights that a table expects; `engine.Table` explains the last three.

    Attributes:
        title: name of the format, for messages.
        shapes: each of their tensors with its shape.
        parts: the tensors that make up each of our parameters.
        families: families of all names the format has, for any size of model.
    """

    title: str
    shapes: Mapping[str, Shape]
    parts: Mapping[str, Sequence[str]]
    families: frozenset[str]
    ignored: Sequence[tuple[str, str]]
    tied: Mapping[str, str]
    respell: Callable[[str], str]


def family(name: str) -> str:
    """The name with its numbers blotted out: blocks of one stack share it."""
    return _NUMBER.sub("{i}", name)


def inspect(
    expected: Expected, weights: Tensors, dtype: np.dtype | None
) -> tuple[dict[str, str], list[str]]:
    """Finds every expected tensor in the weights.

    Args:
        dtype: the dtype all tensors must have, or None for any floating-point ones.

    Returns:
        Their names in the table -> their names in the weights, and notices for the user.

    Raises:
        UserError: the weights do not fit; lists everything that is wrong.
    """
    found, refusals, ignored = _match_names(expected, weights)
    notices = [f"{count} tensors left aside: {what}" for what, count in ignored.items()]
    for extra, name in expected.tied.items():
        if extra in found:
            second = found.pop(extra)
            if found.setdefault(name, second) != second:
                _compare_tied(weights, found[name], second, refusals)
    if not found and refusals["unknown"]:
        given, known = (", ".join(list(names)[:3]) for names in (weights.tensors, expected.shapes))
        raise UserError(
            f"these are not the weights of a {expected.title}: they have names such as {given}, "
            f"expected {known}; check that this is the right file"
        )

    refusals["missing"] = [name for name in expected.shapes if name not in found]
    for name, actual in found.items():
        _check_spec(actual, expected.shapes[name], weights, dtype, refusals)
    for path, names in expected.parts.items():
        dtypes = {weights.tensors[found[name]].dtype for name in names if name in found}
        if len(dtypes) > 1:
            parts = " and ".join(sorted(map(str, dtypes)))
            refusals["wrong"].append(f"{path} would be made of parts in {parts}")
    if any(refusals.values()):
        raise UserError(_message(expected, refusals))

    return found, notices


_Refusals = dict[str, list[str]]


def _match_names(
    expected: Expected, weights: Tensors
) -> tuple[dict[str, str], _Refusals, collections.Counter[str]]:
    found: dict[str, str] = {}
    refusals: _Refusals = {kind: [] for kind in _HEADINGS}
    ignored: collections.Counter[str] = collections.Counter()
    for actual in weights.tensors:
        reason = next((what for rule, what in expected.ignored if re.search(rule, actual)), None)
        name = expected.respell(actual)
        if reason is not None:
            ignored[reason] += 1
        elif name in found:
            refusals["duplicate"].append(f"{actual} and {found[name]}")
        elif name in expected.shapes or name in expected.tied:
            found[name] = actual
        else:
            kind = "unexpected" if family(name) in expected.families else "unknown"
            refusals[kind].append(actual)
    return found, refusals, ignored


def _compare_tied(weights: Tensors, one: str, other: str, refusals: _Refusals) -> None:
    """Compares two names of one tensor, which must agree in every bit, a few rows at a time."""
    first, second = weights.tensors[one], weights.tensors[other]
    same = first.shape == second.shape and first.dtype == second.dtype
    for start in range(0, first.shape[0], 1024) if same else ():
        rows = slice(start, start + 1024)
        a, b = weights.read(one, rows), weights.read(other, rows)
        if not np.array_equal(a.view(np.uint8), b.view(np.uint8)):
            same = False
            break
    if not same:
        refusals["duplicate"].append(f"{one} and {other}, which should be equal but differ")


def _check_spec(
    actual: str,
    shape: Shape,
    weights: Tensors,
    dtype: np.dtype | None,
    refusals: _Refusals,
) -> None:
    spec = weights.tensors[actual]
    if tuple(spec.shape) != shape:
        refusals["wrong"].append(f"{actual} has shape {list(spec.shape)}, expected {list(shape)}")
    elif spec.dtype not in _FLOATS if dtype is None else spec.dtype != dtype:
        wanted = dtype or "a floating-point dtype"
        refusals["wrong"].append(f"{actual} is {spec.dtype}, expected {wanted}")


def _message(expected: Expected, refusals: _Refusals) -> str:
    missing = refusals["missing"]
    shown = {}
    for kind, names in refusals.items():
        lines = names[:_SHOWN]
        if kind == "unknown":
            lines = [_with_hint(name, missing or list(expected.shapes)) for name in lines]
        shown[kind] = lines + ([f"and {len(names) - _SHOWN} more"] if len(names) > _SHOWN else [])
    text = [f"these weights do not fit the {expected.title}; check that both are of the same model"]
    for kind, heading in _HEADINGS.items():
        if refusals[kind]:
            text.append(f"  {len(refusals[kind])} {heading}: {'; '.join(shown[kind])}")
    return "\n".join(text)


def _with_hint(name: str, candidates: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, candidates, n=1, cutoff=0.75)
    return f"{name} (did you mean {close[0]}?)" if close else name
