"""The settings of a run as a TOML file: saved at the start of every run, read by `--config`.

Keys are the names of the flags: `steps = 100`, and `rank = 16` under `[lora]` for `--lora.rank`.
A setting that is not in the file keeps its default.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dsd_jax.errors import UserError, did_you_mean
from dsd_jax.files import write_file
from dsd_jax.structured import read_toml

__all__ = ["RUN_FILE", "flags_of", "preset_of", "write_run_file"]

RUN_FILE = "run.toml"  # in the folder of a run
_PRESET = "preset"


def write_run_file(path: Path, preset: str, groups: Iterable[Any]) -> None:
    """Writes every setting of a run.

    Args:
        path: TOML file to write; one from before is replaced.
        preset: name of the recipe that the run began with.
        groups: dataclasses whose fields are flags.

    Raises:
        UserError: the file cannot be written.
    """
    values = _settings(groups)
    tables: dict[str, list[str]] = {"": [f"{_PRESET} = {_toml(preset)}"]}
    for name, value in values.items():
        table, _, key = name.rpartition(".")
        if value is not None:
            tables.setdefault(table, []).append(f"{key} = {_toml(value)}")
    text = [f"# Settings of a run; repeat it with `dsd train {preset} --config FILE`."]
    for table, lines in tables.items():
        text += [*(["", f"[{table}]"] if table else []), *lines]
    write_file(path, "\n".join(text) + "\n")


def preset_of(path: Path) -> str | None:
    """Reads the preset that a settings file names, if it names one.

    Raises:
        UserError: the file cannot be read.
    """
    found = read_toml(path).get(_PRESET)
    return None if found is None else str(found)


def flags_of(path: Path, preset: str, groups: Iterable[Any]) -> list[str]:
    """Turns a settings file into words of the command line.

    Args:
        path: TOML file.
        preset: name of the recipe that is run.
        groups: dataclasses, or their types, whose fields are flags.

    Raises:
        UserError: the file cannot be read, is of another preset, or has an unknown setting.
    """
    given = _flat(read_toml(path))
    named = given.pop(_PRESET, preset)
    if named != preset:
        raise UserError(
            f"{path} is of the preset {named!r}, not {preset!r}; run `dsd train {named} --config "
            f"{path}`, or take the line `{_PRESET}` out of it"
        )
    known = _settings(groups)
    words: list[str] = []
    for name, value in given.items():
        if name not in known:
            raise UserError(f"{path}: there is no setting {name!r}{did_you_mean(name, known)}")
        words += _words(name, value)
    return words


def _settings(groups: Iterable[Any]) -> dict[str, Any]:
    """Every setting by the name of its flag."""
    flat: dict[str, Any] = {}
    for group in groups:
        if isinstance(group, type):
            flat |= dict.fromkeys(field.name for field in dataclasses.fields(group))
        else:
            flat |= _flat(dataclasses.asdict(group))
    return flat


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in table.items():
        own = f"{prefix}{name}"
        flat |= _flat(value, f"{own}.") if isinstance(value, Mapping) else {own: value}
    return flat


def _words(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        table, dot, key = name.rpartition(".")
        return [f"--{table}{dot}{'' if value else 'no_'}{key}"]
    if isinstance(value, list):
        items = [word for item in value for word in _items(item)]
        return [f"--{name}", *items] if items else []
    return [f"--{name}", str(value)]


def _items(value: Any) -> list[str]:
    return (
        [word for item in value for word in _items(item)]
        if isinstance(value, list)
        else [str(value)]
    )


def _toml(value: Any) -> str:
    match value:
        case bool() | int():
            return str(value).lower()
        case float():
            return repr(value)  # also inf and nan, as TOML spells them
        case list() | tuple():
            return f"[{', '.join(map(_toml, value))}]"
        case _:
            return json.dumps(str(value), ensure_ascii=False)
