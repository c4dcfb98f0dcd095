"""The work folder of a configuration, and the settings that it was begun with."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dsd_jax.data.make.config import MakeConfig
from dsd_jax.data.make.parts import Parts
from dsd_jax.data.make.stages import STAGES, Stage, StageRow
from dsd_jax.errors import UserError
from dsd_jax.files import write_file
from dsd_jax.structured import MalformedError, read_json

__all__ = ["begin_stage", "begun_folder", "begun_settings", "is_begun", "open_parts"]

_BEGUN = "making.json"  # holds the number of parts
_SETTINGS = "settings.json"


def is_begun(root: Path) -> bool:
    """Whether a folder is a work folder of `dsd data make`."""
    return (root / _BEGUN).exists()


def begun_folder(root: Path) -> Parts:
    """Opens a work folder without its configuration.

    Raises:
        UserError: It is not such a folder.
    """
    try:
        count = read_json(root / _BEGUN, dict).get("parts")
    except UserError:
        count = None
    if type(count) is not int or count < 1:
        raise UserError(
            f"{root} is not a work folder of `dsd data make`: it has no readable {_BEGUN}"
        )
    return Parts(root, count)


def open_parts(config: MakeConfig) -> Parts:
    """Opens the work folder of a configuration, begun or not.

    Raises:
        UserError: It was begun with another number of parts, or it holds something else.
    """
    # Another worker may begin now: it marks the folder first, so the list is made before.
    others = config.root.is_dir() and any(x.name[:1] != "." for x in config.root.iterdir())
    if is_begun(config.root):
        held = _read(config.root / _BEGUN).get("parts")
        if held != config.parts:
            raise UserError(
                f"{config.root} was begun with {held} parts, but the configuration says "
                f"{config.parts}; set parts = {held}, or choose another root"
            )
    elif others:
        raise UserError(f"{config.root} holds other files; choose a new folder as root")
    return Parts(config.root, config.parts)


def begin_stage(config: MakeConfig, stage: Stage[StageRow]) -> Parts:
    """Prepares the work folder for a stage, and checks that it was made with these settings.

    Raises:
        UserError: This stage or one before it was begun with other settings, or one before it was
            not begun.
    """
    parts = open_parts(config)
    if not is_begun(config.root):
        write_file(config.root / _BEGUN, json.dumps({"parts": config.parts}) + "\n")
    after = ""
    for each in STAGES[: STAGES.index(stage)]:
        path = _path(parts, each)
        begun = _begun(parts, each)
        # Its wording may have come from a flag of its own command.
        _compare(path, each, {**config.settings(each), "wording": begun.get("wording")})
        after = hashlib.sha256(path.read_bytes()).hexdigest()
    path = _path(parts, stage)
    settings = config.settings(stage)
    if not path.exists():
        texts = dict(config.wording(stage).texts) if "wording" in settings else {}
        content = {"after": after, "settings": settings, "texts": texts}
        write_file(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    _compare(path, stage, settings)
    if _read(path).get("after") != after:
        raise _other(path, "a stage before it has other settings now")
    return parts


def begun_settings(parts: Parts) -> dict[str, dict[str, object]]:
    """The settings that every stage was begun with, by its name.

    Raises:
        UserError: A stage has not been begun.
    """
    return {stage.name: _begun(parts, stage) for stage in STAGES}


def _path(parts: Parts, stage: Stage[StageRow]) -> Path:
    return parts.root / stage.name / _SETTINGS


def _begun(parts: Parts, stage: Stage[StageRow]) -> dict[str, object]:
    path = _path(parts, stage)
    if not path.exists():
        raise UserError(
            f"`{stage}` has not been begun in {parts.root}; run `dsd data {stage}` first"
        )
    return _settings(path)


def _settings(path: Path) -> dict[str, object]:
    found = _read(path).get("settings")
    if not isinstance(found, dict):
        raise _damaged(path, "it holds no settings")
    return found


def _compare(path: Path, stage: Stage[StageRow], settings: Mapping[str, object]) -> None:
    before = _settings(path)
    changed = [
        f"{stage}.{name} was {before.get(name)!r} and is {settings.get(name)!r}"
        for name in sorted({*before, *settings})
        if before.get(name) != settings.get(name)
    ]
    if changed:
        raise _other(path, "; ".join(changed))


def _other(path: Path, what: str) -> UserError:
    return UserError(
        f"{path.parent} was begun with other settings: {what}. Change the configuration back, "
        f"choose another root, or remove {path.parent} and what was made from it; answers that are "
        "in the ledgers are not asked for again"
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_json(path, dict)
    except MalformedError as error:
        raise _damaged(path, error.reason) from None


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(f"{path} is damaged ({reason}); remove it, if the configuration is the same")
