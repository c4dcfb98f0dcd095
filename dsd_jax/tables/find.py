"""The files of a folder that make a table, and the splits of a dataset."""

import re
from collections.abc import Iterable
from pathlib import Path

from dsd_jax.errors import UserError, and_more, did_you_mean

__all__ = ["BINARY", "ENDINGS", "find_files"]

_JSON = ".json"  # also the format of metadata files
_TEXT = (".jsonl", ".csv", ".tsv", ".ndjson")  # a folder holds one such table
BINARY = (".parquet", ".arrow", ".tar")
"""Endings of tables that are often cut into many files."""
ENDINGS = (*_TEXT, _JSON, *BINARY)
"""Endings of all files that can be read."""
_NOTES = {
    "dataset_dict.json",
    "dataset_info.json",
    "dataset_infos.json",
    "state.json",
}
_SPLITS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
_SHARD = re.compile(r"(?P<name>\w+?)-\d{5}-of-\d{5}")
# Files that `datasets` leaves beside a saved table.
_CACHED = re.compile(r"cache-[0-9a-f]+\w*\.arrow")
_REST = "the rest"


def find_files(source: Path, split: str | None) -> list[Path]:
    """Files of one table, in the order they are read.

    Args:
        source: a file, or a folder that holds one table or several splits of one.
        split: `train`, `validation`, `test`, or another NAME of files such as
            `data/NAME-00000-of-00001.parquet`. None takes the only split.

    Raises:
        UserError: there is no table, more than one, or no such split.
    """
    if source.is_dir():
        files = _of_folder(source)
    elif not source.exists():
        raise UserError(f"there is no file or folder {source}")
    elif source.suffix.lower() not in ENDINGS:
        raise UserError(f"{source} must end in {_listed()}, which tells its format")
    else:
        files = [source]
    if split is not None or len(files) > 1:
        files = _of_split(source, files, split)
    kinds = {path.suffix.lower() for path in files}
    cut = all(_SHARD.match(path.name) for path in files)
    if len(kinds) > 1 or (len(files) > 1 and not (cut or kinds <= set(BINARY))):
        names = and_more([str(path.relative_to(source)) for path in files], 4)
        raise UserError(f"{source} holds more than one table ({names}); give the path of one")
    return files


def _listed() -> str:
    return f"{', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}"


def _of_folder(folder: Path) -> list[Path]:
    """Tables of text at the top and binary ones anywhere, else tables of text below."""
    below = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in ENDINGS
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.name not in _NOTES
        and not _CACHED.fullmatch(path.name)
    )
    top = [path for path in below if path.parent == folder]
    for found in (_ending(top, _TEXT) + _ending(below, BINARY), _ending(below, _TEXT), top, below):
        if found:
            return found
    raise UserError(f"{folder} holds no file that ends in {_listed()}")


def _ending(paths: Iterable[Path], endings: Iterable[str]) -> list[Path]:
    return [path for path in paths if path.suffix.lower() in endings]


def _of_split(source: Path, files: list[Path], split: str | None) -> list[Path]:
    splits: dict[str, list[Path]] = {}
    tables: set[str] = set()
    for path in files:
        inside = path.relative_to(source if source.is_dir() else source.parent)
        found = split_of(inside)
        splits.setdefault(found or _REST, []).append(path)
        if found:
            tables.add(_folder_of_split(inside))
    if len(tables) > 1:
        raise UserError(
            f"{source} holds more than one table ({and_more(sorted(tables), 4)}); give the folder "
            "of one"
        )
    named = sorted(set(splits) - {_REST})
    split = split if split is None or split in named else _SPLITS.get(split.lower(), split)
    if split is None:
        if len(splits) > 1 and len(named) > 1:
            raise UserError(
                f"{source} holds the splits {', '.join(named)}; choose one, as with --split "
                f"{named[-1]}"
            )
        return files
    if split not in named:
        held = f"it has {', '.join(named)}" if named else "its files name no splits"
        raise UserError(f"{source} has no split {split!r}{did_you_mean(split, named)} ({held})")
    return splits[split]


def _folder_of_split(path: Path) -> str:
    """The folder that holds the splits of a dataset, for a path inside one of them."""
    parts = path.parts
    while len(parts) > 1 and split_of(Path(*parts[:-1])) is not None:
        parts = parts[:-1]
    return str(Path(*parts[:-1]))


def split_of(path: Path) -> str | None:
    """The split that a path within a dataset names, by the rules of the `datasets` library."""
    for part in reversed(path.parts):
        words = re.split(r"[^a-z]+", part.lower())
        if found := next((_SPLITS[word] for word in words if word in _SPLITS), None):
            return found
    shard = _SHARD.match(path.name)
    return shard["name"] if shard and path.parent.name == "data" else None
