"""Texts of questions from a versioned file, which a file of the user may replace."""

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from dsd_jax.errors import UserError, did_you_mean
from dsd_jax.structured import read_toml

__all__ = ["Wording", "load_wording"]

_FIELD = re.compile(r"\{(\w+)\}")


@dataclasses.dataclass(frozen=True)
class Wording:
    """The texts of one stage or question.

    Attributes:
        name: Name of the version.
        texts: Texts by name; fields such as `{caption}` are filled in.
    """

    name: str
    texts: Mapping[str, str]

    @functools.cached_property
    def id(self) -> str:
        """Name and digest; the digest changes with any of the texts."""
        canonical = json.dumps(self.texts, sort_keys=True, ensure_ascii=False)
        return f"{self.name}@{hashlib.sha256(canonical.encode()).hexdigest()[:12]}"

    def __call__(self, text: str, /, **values: str) -> str:
        """A text with its fields filled in; values keep their braces."""
        return _FIELD.sub(lambda field: values[field[1]], self.texts[text])


def load_wording(ours: Path, path: Path | None, table: str, tasks: Collection[str] = ()) -> Wording:
    """The texts of a table of our file; those of the file `path` replace ours.

    Args:
        ours: Our file.
        path: File with texts of the user.
        table: Name of the table: the stage, or the question.
        tasks: Tasks whose own texts are wanted too, such as `relight.step_1` of `[relight.judge]`.

    Raises:
        UserError: The file cannot be read, or holds a text that we have not, or a text that lacks a
            field of ours.
    """
    held = known = _read(ours)
    if path is not None:
        held = _read(path)
        _check(held, known, path)
    texts = {**known[table], **held.get(table, {})}
    wanted = {name: text for name, text in texts.items() if _task_of(name) in ("", *tasks)}
    return Wording(held["name"], wanted)


def _task_of(text: str) -> str:
    """The task whose own text this is; empty for a text of all tasks."""
    return text.rpartition(".")[0]


def _read(path: Path) -> dict[str, Any]:
    """The texts by stage and name; those of a table such as [relight.judge] are `relight.NAME`."""
    content: dict[str, Any] = {}
    for key, value in read_toml(path).items():
        if not isinstance(value, Mapping):
            content[key] = value
        elif value and all(isinstance(each, Mapping) for each in value.values()):
            for stage, texts in value.items():
                named = {f"{key}.{name}": text for name, text in _stripped(texts).items()}
                content.setdefault(stage, {}).update(named)
        else:
            content.setdefault(key, {}).update(_stripped(value))
    return content


def _stripped(texts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: text.strip() if isinstance(text, str) else text for name, text in texts.items()}


def _check(own: Mapping[str, Any], ours: Mapping[str, Any], path: Path) -> None:
    if not isinstance(own.get("name"), str) or not own["name"]:
        raise UserError(f'{path} needs a name, such as name = "paper"; rows carry it')
    for stage, texts in own.items():
        if stage == "name":
            continue
        if stage not in ours or not isinstance(texts, Mapping):
            raise UserError(
                f"{path}: there is no [{stage}]{did_you_mean(stage, set(ours) - {'name'})}"
            )
        for name, text in texts.items():
            if name not in ours[stage]:
                raise UserError(
                    f"{path}: [{stage}] has no text {name!r}{did_you_mean(name, ours[stage])}"
                )
            if not isinstance(text, str) or not text:
                raise UserError(f"{path}: {stage}.{name} must be a text")
            wanted, held = set(_FIELD.findall(ours[stage][name])), set(_FIELD.findall(text))
            if wanted != held:
                fields = ", ".join(f"{{{field}}}" for field in sorted(wanted)) or "no fields"
                raise UserError(f"{path}: {stage}.{name} must hold {fields} and no others")
