"""Command lines: how functions with typed, documented parameters become flags and help.

tyro reads the types and the docstrings. The rules below change its help: a positional argument has
its own name, `None` is not among the values, a default is never empty, and a flag `--no_x` is
described by what it does.
"""

import dataclasses
import functools
import inspect
import re
import shutil
import textwrap
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

import docstring_parser
import tyro
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
    UnsupportedTypeAnnotationError,
)

from dsd_jax.errors import UserError

__all__ = ["call"]

T = TypeVar("T")

_METAVARS = {"source": "SRC", "target": "DST"}  # a positional argument else has its own name
_POSITIONAL = typing.get_args(tyro.conf.Positional[str])[1:]  # tyro's mark


def call(
    command: Callable[..., T],
    words: Sequence[str],
    prog: str,
    *,
    pairs: bool = False,
    default: Any = tyro.MISSING_NONPROP,
) -> T:
    """Calls a command with the flags that `words` hold, or shows its help.

    Args:
        command: Function, or dataclass, with typed and documented parameters.
        words: Words after the name of the command. Hyphens and underscores in flags are the same.
        prog: Name of the command, as it is called.
        pairs: Accept both `--x` and `--no_x`, because defaults depend on a preset.
        default: Instance with the defaults of a dataclass.

    Raises:
        SystemExit: The status is 0 after help, and 2 for a wrong flag.
        UserError: A dataclass refuses the values of its fields.
    """
    try:
        return tyro.cli(
            command,
            args=words,
            prog=prog,
            description=_description(command),
            use_underscores=True,
            config=(tyro.conf.AvoidSubcommands,) if pairs else (tyro.conf.FlagCreatePairsOff,),
            registry=_Rules(pairs=pairs).registry,
            default=default,
        )
    except _RefusedError as refused:
        raise refused.error from None


class _RefusedError(Exception):
    """Carries a `UserError` through tyro, which would show any `ValueError` in a box."""

    def __init__(self, error: UserError) -> None:
        super().__init__(error)
        self.error = error


def _description(command: Callable[..., Any]) -> str:
    text = docstring_parser.parse(inspect.getdoc(command) or "").description or ""
    # tyro does not wrap a description, and joins lines unless the next one is indented.
    lines = textwrap.TextWrapper(shutil.get_terminal_size().columns, subsequent_indent="  ")
    return "\n\n".join(map(lines.fill, text.split("\n\n")))


class _Rules:
    """Rules that turn types into flags: tyro's own, with our wording."""

    def __init__(self, *, pairs: bool) -> None:
        self.registry = ConstructorRegistry()
        self.registry.primitive_rule(self._value)
        self.registry.struct_rule(self._group)
        self._pairs = pairs
        self._asking_tyro = False

    def _value(
        self, info: PrimitiveTypeInfo
    ) -> PrimitiveConstructorSpec | UnsupportedTypeAnnotationError | None:
        """Leaves `None` out of the values that the help offers, and reads paths as a shell would.

        None is accepted all the same.
        """
        kinds = {info.type, *typing.get_args(info.type)}
        if self._asking_tyro or not kinds & {Path, type(None)}:
            return None
        self._asking_tyro = True
        try:
            spec = ConstructorRegistry.get_primitive_spec(info)
        finally:
            self._asking_tyro = False
        if isinstance(spec, UnsupportedTypeAnnotationError):
            return spec
        if Path in kinds:
            read = spec.instance_from_str
            spec = dataclasses.replace(spec, instance_from_str=lambda words: _path(read(words)))
        shown = re.sub(r"\{None\}\||(?<=\{)None,", "", spec.metavar)
        return dataclasses.replace(spec, metavar=re.sub(r"^\{(.* .*)\}$", r"\1", shown))

    def _group(self, info: StructTypeInfo) -> StructConstructorSpec | None:
        """The parameters of a function, or the fields of a dataclass."""
        if self._asking_tyro:
            return None
        called: object = info.type  # tyro says that it is a type; it may be a function
        if inspect.isfunction(called):
            return StructConstructorSpec(_by_name(called), tuple(self._parameters(called)))
        if not dataclasses.is_dataclass(info.type):
            return None
        self._asking_tyro = True
        try:
            spec = ConstructorRegistry.get_struct_spec(info)
        finally:
            self._asking_tyro = False
        if not isinstance(spec, StructConstructorSpec):
            return None
        fields = tuple(map(self._worded, spec.fields))
        return StructConstructorSpec(_carrying(spec.instantiate), fields)

    def _parameters(self, function: Callable[..., Any]) -> typing.Iterator[StructFieldSpec]:
        hints = typing.get_type_hints(function, include_extras=True)
        documents = docstring_parser.parse(inspect.getdoc(function) or "").params
        texts = {one.arg_name: one.description for one in documents}
        for name, parameter in inspect.signature(function).parameters.items():
            kind, missing = hints[name], parameter.default is parameter.empty
            if parameter.kind is parameter.POSITIONAL_ONLY:
                kind = Annotated[(kind, *_POSITIONAL)]
            default = tyro.MISSING_NONPROP if missing else parameter.default
            yield self._worded(StructFieldSpec(name, kind, default, texts.get(name)))

    def _worded(self, field: StructFieldSpec) -> StructFieldSpec:
        """Applies our wording to a field."""
        marks = getattr(field.type, "__metadata__", ())
        positional = any(mark in _POSITIONAL for mark in marks)
        choices = typing.get_origin(typing.get_args(field.type)[0]) if positional else None
        named = positional and choices is not typing.Literal
        off = field.default is True and not self._pairs
        settings = tyro.conf.arg(
            metavar=_METAVARS.get(field.name, field.name.upper()) if named else None,
            help_behavior_hint="(default: off)" if off else _default,
        )
        return dataclasses.replace(
            field,
            type=cast(type, Annotated[field.type, settings]),
            helptext=lambda: _sentence(field, off=off),
        )


def _by_name(function: Callable[..., T]) -> Callable[..., T]:
    """Wraps a function so that every argument can be given by name, even positional-only ones."""
    names = [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.POSITIONAL_ONLY
    ]

    def called(**arguments: Any) -> T:
        by_position = [arguments.pop(name) for name in names]
        return function(*by_position, **arguments)

    return called


def _carrying(make: Callable[..., T]) -> Callable[..., T]:
    """Wraps a dataclass so that the values that it refuses raise a `_RefusedError`."""

    @functools.wraps(make, updated=())  # its docstring heads the group in the help
    def called(**arguments: Any) -> T:
        try:
            return make(**arguments)
        except UserError as error:
            raise _RefusedError(error) from None

    return called


def _path(value: Any) -> Any:
    """A path with `~` as the home folder, which a shell leaves in `--x=~/y`.

    Raises:
        ValueError: it is an address, of which a path would make a folder here.
    """
    if not isinstance(value, Path):
        return value
    if re.match(r"[a-z][a-z0-9+.-]+:/", str(value)):
        raise ValueError(f"{value} is the address of something elsewhere; give a path of this disk")
    return value.expanduser()


def _default(label: str) -> str:
    """Words of the help for a default. They are never empty, which would give an empty line."""
    words = {"": "(optional)", "''": "(optional)", "None": "(optional)"}
    flags = {"True": "(default: on)", "False": "(default: off)"}
    return (words | flags).get(label, f"(default: {label})")


def _sentence(field: StructFieldSpec, *, off: bool) -> str:
    """The text of a field as one paragraph; for a flag that turns something off, its effect.

    `Sample the posterior. Otherwise take its mode.` becomes `Take its mode.` then.
    """
    given = field.helptext() if callable(field.helptext) else field.helptext
    text = " ".join((given or "").split())
    if off:
        _, otherwise, instead = text.partition("Otherwise ")
        text = instead if otherwise else f"Do not {text[:1].lower()}{text[1:]}"
    return text[:1].upper() + text[1:]
