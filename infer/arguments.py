"""Checks names and types of Python arguments, with messages like those for flags.

People who come from diffusers, or from the released program, may use the names they know.
"""

import dataclasses
import numbers
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from dsd_jax.errors import UserError, did_you_mean

__all__ = ["check_choice", "check_count", "given_once", "listed", "own_names", "structure"]

# diffusers, and the released program's pipeline -> ours
_SYNONYMS = {
    "prompt": "text",
    "num_images_per_prompt": "num_images",
    "num_inference_steps": "steps",
    "guidance_scale": "guidance",
    "guidance_scale_real_i": "i_guidance",
    "guidance_scale_real_t": "t_guidance",
    "image_guidance_scale": "i_guidance",
    "text_guidance_scale": "t_guidance",
}
# Their arguments that have another form here.
_HINTS = {
    "generator": "give seed, a number",
    "output_type": "images are PIL images; `.latents` of the result holds the latents",
    "torch_dtype": "give precision, FLOAT32 or BFLOAT16 of dsd_jax.config",
    "dtype": "give precision, FLOAT32 or BFLOAT16 of dsd_jax.config",
    "precision": "give FLOAT32 or BFLOAT16 of dsd_jax.config",
    "max_sequence_length": "give it to Pipeline.load",
    "device": "give mesh, or choose the device with JAX_PLATFORMS",
}
Instance = TypeVar("Instance")
T = TypeVar("T")


def own_names(given: Mapping[str, Any], known: tuple[str, ...], where: str) -> dict[str, Any]:
    """Renames arguments to our names.

    Args:
        given: arguments by any names.
        known: our names.
        where: name of the callee, for messages.

    Raises:
        UserError: an unknown name, or one argument under two names.
    """
    named: dict[str, Any] = {}
    for name, value in given.items():
        own = _SYNONYMS.get(name, name)
        if own not in known:
            hint = f"; {_HINTS[name]}" if name in _HINTS else did_you_mean(name, known)
            raise UserError(f"{where} takes no argument {name!r}{hint}")
        if own in named:
            raise UserError(f"{own!r} is given twice, also as {name!r}; give one of them")
        named[own] = value
    return named


def check_choice(
    name: str, value: object, choices: Sequence[str], meant: Mapping[str, str] | None = None
) -> None:
    """Refuses a value that is not one of the choices.

    Args:
        name: name of the argument.
        value: value as given.
        choices: values that it may have.
        meant: choices by the names that other programs have for them.

    Raises:
        UserError: it is not one of them.
    """
    if value not in choices:
        own = (meant or {}).get(str(value))
        near = did_you_mean(str(value), choices) if own is None else f"; did you mean {own!r}?"
        listed = ", ".join(map(repr, choices))
        raise UserError(f"{name} must be one of {listed}, got {value!r}{near}")


def check_count(name: str, value: object) -> int:
    """Returns a number of images, also if it is one of NumPy's.

    Raises:
        UserError: it is not a whole number of at least 1.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise UserError(f"{name} must be at least 1, got {value!r}")
    return int(value)


_NAMES: dict[type, tuple[str, type]] = {
    int: ("a whole number", numbers.Integral),
    float: ("a number", numbers.Real),
    bool: ("True or False", bool),
    str: ("text", str),
}


def _plain(name: str, value: Any, kind: type) -> Any:
    words, accepted = _NAMES[kind]
    if not isinstance(value, accepted) or (kind is not bool and isinstance(value, bool)):
        raise UserError(f"{name} must be {words}, got {value!r}")
    return kind(value)


def structure(kind: type[Instance], given: Mapping[str, Any], where: str) -> Instance:
    """Makes a dataclass from arguments, which must have the types of its fields.

    Numbers of NumPy are turned into Python's.

    Args:
        kind: the dataclass.
        given: arguments by any names, see `own_names`.
        where: name of the callee, for messages.

    Raises:
        UserError: an unknown name or a value of another type.
    """
    known = tuple(field.name for field in dataclasses.fields(kind))  # type: ignore[arg-type]
    types, values = typing.get_type_hints(kind), own_names(given, known, where)
    for name, value in values.items():
        wanted = types[name]
        plain = next((t for t in _NAMES if wanted in (t, t | None)), None)
        if plain is not None and not (value is None and wanted == plain | None):
            values[name] = _plain(name, value, plain)
        classes = typing.get_args(wanted) or (wanted,)
        checked = plain is None and all(isinstance(t, type) for t in classes)
        if checked and not isinstance(value, classes):
            words = " or ".join("None" if t is type(None) else t.__name__ for t in classes)
            hint = f"; {_HINTS[name]}" if name in _HINTS else ""
            raise UserError(f"{name} must be {words}, got {value!r}{hint}")
    return kind(**values)


def listed(name: str, given: Any, words: str, kinds: tuple[type, ...]) -> list[Any]:
    """A list of what was given alone or as a list; empty for None.

    Raises:
        UserError: it, or an item of it, is of another kind.
    """
    items = [given] if isinstance(given, kinds) else given
    if items is None:
        return []
    wrong = [items]
    if isinstance(items, list | tuple | np.ndarray):
        wrong = [item for item in items if not isinstance(item, kinds)]
    if wrong:
        raise UserError(f"{name} must be {words}, got {wrong[0]!r}")
    return list(items)


def given_once(name: str, first: T | None, second: T | None) -> T | None:
    """The value of an argument that has two names.

    Raises:
        UserError: it is given by both.
    """
    if first is not None and second is not None:
        raise UserError(f"{name!r} is given twice, by two names; give one of them")
    return second if first is None else first
