"""Reading sizes with checks: from the JSON of a config, and from the shapes of named tensors.

Reading refuses every setting that our models do not have, rather than compute something else.
"""

import re
from collections.abc import Mapping
from typing import Any, TypeVar

from dsd_jax.convert.table.refusals import Tensors
from dsd_jax.errors import UserError
from dsd_jax.types import Shape

T = TypeVar("T")

__all__ = ["Fields", "Json", "Sizes", "check_depth"]

Json = Mapping[str, Any]
_LONGEST = 64  # numbers in a list
_SHOWN = 100  # characters of a wrong value that a message repeats
_LARGEST = 1e30  # bound of any number in a config; also refuses infinity and NaN


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


class Fields:
    """Takes values out of a JSON config, checks them, and keeps track of the rest."""

    def __init__(self, title: str, data: Json) -> None:
        self.title = title
        self._data = data
        self._used: set[str] = set()

    def _get(self, key: str, default: Any) -> Any:
        self._used.add(key)
        value = self._data.get(key)
        return default if value is None else value

    def one_of(self, key: str, *allowed: T, default: T | None = None) -> T:
        value = self._get(key, default)
        if value not in allowed:
            expected = " or ".join(map(repr, allowed))
            raise UserError(
                f"{self.title}: {key} is {_shown(value)}, this program supports {expected}"
            )
        return value

    def number(self, key: str, default: int, least: int = 1) -> int:
        value = self._get(key, default)
        if type(value) is not int or value < least:
            kind = "a whole number" if least == 0 else f"a whole number from {least} on"
            raise UserError(f"{self.title}: {key} is {_shown(value)}, expected {kind}")
        return value

    def real(self, key: str, default: float) -> float:
        value = self._get(key, default)
        if type(value) not in (int, float) or not abs(value) < _LARGEST:
            raise UserError(f"{self.title}: {key} is {_shown(value)}, expected a number")
        return float(value)

    def numbers(self, key: str, default: tuple[int, ...]) -> tuple[int, ...]:
        values = self._get(key, default)
        known = isinstance(values, list | tuple) and len(values) <= _LONGEST
        if not known or any(type(n) is not int for n in values):
            raise UserError(
                f"{self.title}: {key} is {_shown(values)}, expected a list of whole numbers"
            )
        return tuple(values)

    def reals(self, key: str, default: tuple[float, ...]) -> tuple[float, ...]:
        values = self._get(key, default)
        known = isinstance(values, list | tuple) and len(values) <= _LONGEST
        if not known or any(type(n) not in (int, float) or not abs(n) < _LARGEST for n in values):
            raise UserError(f"{self.title}: {key} is {_shown(values)}, expected a list of numbers")
        return tuple(float(n) for n in values)

    def skip(self, *keys: str) -> None:
        self._used.update(keys)

    def nothing_else(self) -> None:
        """Refuses settings that are on and unknown here; diffusers writes every setting it has."""
        rest = {
            key: value
            for key, value in self._data.items()
            if key not in self._used and not key.startswith("_") and value not in (None, False)
        }
        if rest:
            raise UserError(f"{self.title}: settings this program does not know: {_shown(rest)}")


class Sizes:
    """Shapes of named tensors; a missing one is refused with a plain message."""

    def __init__(self, title: str, weights: Tensors) -> None:
        self._title = title
        self._shapes = {name: tuple(spec.shape) for name, spec in weights.tensors.items()}

    def __contains__(self, name: str) -> bool:
        return name in self._shapes

    def __getitem__(self, name: str) -> Shape:
        if name not in self._shapes:
            raise UserError(
                f"not a {self._title}: it has no {name}; check that it is the right file"
            )
        return self._shapes[name]

    def axes(self, name: str, count: int) -> Shape:
        """The shape of a tensor, checked to have `count` axes, none of them empty."""
        shape = self[name]
        if len(shape) != count or 0 in shape:
            raise UserError(
                f"not a {self._title}: {name} has shape {list(shape)}, expected {count} axes; "
                "check that it is the right file"
            )
        return shape

    def count(self, stack: str) -> int:
        """Number of blocks `stack.0`, `stack.1`, ...; at most as many as there are tensors."""
        found = (re.match(rf"{re.escape(stack)}\.(\d{{1,9}})\.", name) for name in self._shapes)
        blocks = 1 + max((int(match[1]) for match in found if match), default=-1)
        check_depth(self._title, blocks, len(self._shapes))
        return blocks


def check_depth(title: str, blocks: int, tensors: int) -> None:
    """Refuses a model with more blocks than it has tensors, before any work is done for them.

    Raises:
        UserError: there are not enough tensors.
    """
    if blocks > tensors:
        raise UserError(
            f"{title}: {blocks} blocks are claimed, but the weights have {tensors} tensors; "
            "download both again"
        )
