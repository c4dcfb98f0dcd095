"""The folder of a training run: its checkpoints, their digests, and what was trained."""

import hashlib
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from dsd_jax.checkpoint import OrbaxSource
from dsd_jax.errors import UserError
from dsd_jax.files import PARTIAL, write_object
from dsd_jax.processes import say
from dsd_jax.structured import Limits, read_json

__all__ = [
    "FOLDER",
    "MANIFEST",
    "RUN",
    "SCHEMA",
    "STATE",
    "digests",
    "find_checkpoints",
    "folder_of",
    "folders",
    "read_run",
    "read_trained",
    "steps_of",
    "verify",
    "write_json",
]

SCHEMA = 1  # of run.json and manifest.json
FOLDER = "checkpoints"  # default name in the folder of a run
STATE, RUN, MANIFEST = "state", "run.json", "manifest.json"
_HASHED_AT_ONCE = 2**22  # bytes
_HASHERS = 8
_OWN = Limits(lenient=True)  # a metric of a run that went wrong may be NaN


def write_json(path: epath.Path, content: object) -> None:
    """Writes `content`, complete or not at all."""
    write_object(path, json.dumps(content, indent=1) + "\n")


def _files(folder: epath.Path) -> Iterator[epath.Path]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _files(entry)
        else:
            yield entry


def _digest(path: epath.Path) -> dict[str, Any]:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(_HASHED_AT_ONCE):
            digest.update(block)
            size += len(block)
    return {"size": size, "sha256": digest.hexdigest()}


def digests(folder: epath.Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every file but the manifest."""
    files = {str(file.relative_to(folder)): file for file in _files(folder)}
    names = sorted(name for name in files if name != MANIFEST and not name.endswith(PARTIAL))
    with ThreadPoolExecutor(_HASHERS) as pool:
        return dict(zip(names, pool.map(_digest, (files[name] for name in names)), strict=True))


def verify(folder: str | Path | epath.Path) -> str | None:
    """Says what is wrong with a checkpoint; None if nothing is.

    Raises:
        UserError: it was written by a newer program.
    """
    root = epath.Path(folder)
    try:
        manifest = read_json(root / MANIFEST, dict, _OWN)
        schema, listed = manifest["schema"], dict(manifest["files"])
    except (ValueError, KeyError, TypeError):
        return f"{MANIFEST} cannot be read"
    _check_schema(root / MANIFEST, schema)
    held = digests(root)
    for name, expected in listed.items():
        found = held.get(name)
        if found is None:
            return f"{name} is missing"
        if found["size"] != expected["size"]:
            return f"{name} has {found['size']} bytes, expected {expected['size']}"
        if found != expected:
            return f"{name} has another sha256 than it was written with"
    extra = sorted(held.keys() - listed.keys())
    return f"{extra[0]} does not belong there" if extra else None


def _check_schema(path: epath.Path, schema: object) -> None:
    if not isinstance(schema, int) or schema > SCHEMA:
        raise UserError(
            f"{path} has schema {schema}, but this program knows schemas up to {SCHEMA}; install a "
            "newer dsd-jax"
        )


def find_checkpoints(run: epath.PathLike) -> epath.Path | None:
    """Finds the checkpoints of a run, in their own folder or the run's; None if there are none."""
    for root in (epath.Path(run) / FOLDER, epath.Path(run)):
        if folders(root):
            return root
    return None


def steps_of(root: epath.PathLike) -> list[int]:
    """Steps of the finished checkpoints in a folder, ascending; not verified."""
    return [step for step, folder in folders(root) if (folder / MANIFEST).exists()]


def folders(root: epath.PathLike) -> list[tuple[int, epath.Path]]:
    """Step and folder of every checkpoint, ascending, unfinished ones included."""
    root = epath.Path(root)
    if not root.is_dir():
        return []
    found = [(int(p.name), p) for p in root.iterdir() if re.fullmatch(r"\d{8}", p.name)]
    return sorted(found)


def folder_of(root: epath.PathLike, step: int) -> epath.Path:
    """Folder of the checkpoint of a step."""
    return epath.Path(root) / f"{step:08d}"


def read_run(folder: epath.Path) -> dict[str, object]:
    """`run.json` of a checkpoint.

    Raises:
        UserError: unreadable, or written by a newer program.
    """
    path = folder / RUN
    try:
        content = read_json(path, dict, _OWN)
        schema = content["schema"]
    except (ValueError, KeyError) as error:
        raise UserError(f"{path} cannot be read ({error}); take an older checkpoint") from None
    _check_schema(path, schema)
    return dict(content)


def read_trained(
    root: epath.PathLike, step: int | None = None, *, ema: bool = True
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Reads the trained parameters, by per-layer path, and `run.json`.

    Args:
        root: folder of a run's checkpoints.
        step: step of the checkpoint; default: the newest one that is undamaged.
        ema: read the averaged parameters, if the run keeps them.

    Raises:
        UserError: no checkpoint, or a damaged one.
    """
    steps = steps_of(root)
    if not steps:
        raise UserError(f"{root} holds no finished checkpoint; `dsd train` writes them")
    if step is not None and step not in steps:
        raise UserError(
            f"{root} has no checkpoint of step {step}; there are {', '.join(map(str, steps))}"
        )
    problems = {}
    for chosen in [step] if step is not None else reversed(steps):
        problem = verify(folder_of(root, chosen))
        if problem is None:
            return _read_params(folder_of(root, chosen), ema=ema)
        problems[chosen] = problem
        say(f"checkpoint {folder_of(root, chosen)} is damaged: {problem}")
    newest = max(problems)
    raise UserError(f"{folder_of(root, newest)} is damaged: {problems[newest]}; take another step")


def _read_params(folder: epath.Path, *, ema: bool) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    source = OrbaxSource(str(folder / STATE))
    averaged = ema and any(name.startswith("ema.") for name in source.shapes)
    prefix = "ema." if averaged else "params."
    tensors = {
        name.removeprefix(prefix): source.read(name, tuple(slice(0, n) for n in shape))
        for name, shape in source.shapes.items()
        if name.startswith(prefix)
    }
    return tensors, read_run(folder)
