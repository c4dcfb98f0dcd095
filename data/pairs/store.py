"""A dataset on disk: a folder that is complete exactly when it has a `dataset.json`.

dataset.json                contents of the folder: counts, tasks, every shard with its sha256
pairs-00000.array_record    records (`dsd_jax.data.pairs.record`)
pairs-00000.index           ids, tasks, sizes and word counts of those records
rejected.jsonl              rejected rows with the reason, if there are any
README.md                   the dataset card
"""

import dataclasses
import functools
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from dsd_jax.data.pairs.record import PairRecord
from dsd_jax.data.pairs.shards import Shard, Shards
from dsd_jax.errors import UserError
from dsd_jax.structured import Limits, MalformedError, read_json
from dsd_jax.types import Int

__all__ = [
    "FORMAT",
    "INDEX_COLUMNS",
    "MANIFEST",
    "SCHEMA",
    "STEM",
    "WRITING",
    "Index",
    "Manifest",
    "PairStore",
    "card",
    "fingerprint_of",
    "index_row",
    "read_manifest",
    "tally",
]

FORMAT = "dsd-pairs"
SCHEMA = 1
MANIFEST = "dataset.json"
WRITING = "writing.json"  # exists while a dataset is being written
STEM = "pairs"
_LIMITS = Limits(size=2**28)  # a dataset may have many shards


class Index(TypedDict):
    """Columns of an index, with one entry per record. Sizes are height and width in pixels."""

    id: list[str]
    task: list[str]
    subject: list[str]
    reference_size: list[tuple[int, int]]
    target_size: list[tuple[int, int]]
    caption_words: list[int]
    instruction_words: list[int]


INDEX_COLUMNS = tuple(Index.__annotations__)


@dataclasses.dataclass(frozen=True)
class Manifest:
    """`dataset.json`.

    Attributes:
        count: number of records.
        tasks: number of records by task.
        rejected: number of rejected rows of the source.
        shards: in order; a record's number counts through them.
        fingerprint: digest of the shards' digests: the same records in the same order.
        origin: origin of the dataset; JSON.
    """

    count: int
    tasks: Mapping[str, int]
    rejected: int
    shards: Sequence[Shard]
    fingerprint: str
    origin: Mapping[str, Any]

    def to_json(self) -> str:
        """The file's content."""
        return (
            json.dumps(
                {"format": FORMAT, "schema": SCHEMA, **dataclasses.asdict(self)},
                indent=1,
                ensure_ascii=False,
            )
            + "\n"
        )


def fingerprint_of(shards: Sequence[Shard]) -> str:
    """SHA-256 of the shards' hex digests, one a line."""
    lines = "".join(f"{shard.sha256}\n" for shard in shards)
    return hashlib.sha256(lines.encode()).hexdigest()


def index_row(record: PairRecord) -> tuple[Any, ...]:
    """A record's entry in the index, in the order of `INDEX_COLUMNS`."""
    return (
        record.id,
        record.task,
        record.subject,
        list(record.reference_size),
        list(record.target_size),
        len(record.caption.split()),
        len(record.instruction.split()),
    )


def read_manifest(path: Path, format_name: str, schema: int) -> dict[str, Any]:
    """Reads the JSON file that completes a folder of shards.

    Args:
        path: path of the JSON file.
        format_name: name that its format must have.
        schema: newest known version of the format.

    Raises:
        UserError: the file is of another format or a newer version, damaged, or lists no records.
    """
    try:
        content = read_json(path, dict, _LIMITS)
        found, version = content.pop("format"), content.pop("schema")
    except (MalformedError, KeyError):
        raise UserError(
            f"cannot read {path}: it is not what was written; copy the folder again"
        ) from None
    if found != format_name:
        raise UserError(f"{path} is of format {found!r}, expected {format_name!r}")
    if not isinstance(version, int) or version > schema:
        raise UserError(
            f"{path} has schema version {version}, but this program knows versions up to {schema}; "
            "install a newer dsd-jax"
        )
    try:
        content["shards"] = [Shard(**shard) for shard in content["shards"]]
        count, fingerprint = content["count"], content["fingerprint"]
        if not isinstance(count, int):
            raise TypeError
    except (KeyError, TypeError):
        raise UserError(f"cannot read {path}: it lacks fields; copy the folder again") from None
    if not count:
        raise UserError(f"{path.parent} is empty: it holds no records")
    held = sum(shard.count for shard in content["shards"])
    if held != count or fingerprint_of(content["shards"]) != fingerprint:
        raise UserError(
            f"{path} contradicts itself: it was edited or damaged; copy the folder again"
        )
    return dict(content)


class PairStore:
    """Random access to the pairs of a dataset folder. Safe to read from many threads."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path, self.manifest = path, manifest
        self._shards = Shards(path, manifest.shards)

    @classmethod
    def open(cls, path: str | Path) -> "PairStore":
        """Opens a dataset; checks that every shard exists in its full size.

        Raises:
            UserError: there is no dataset, it is unfinished, empty or newer, or a shard is missing
                or of another size.
        """
        path = Path(path)
        if not path.is_dir():
            raise UserError(f"there is no dataset folder {path}; make one with `dsd data import`")
        if not (path / MANIFEST).exists():
            if (path / WRITING).exists():
                raise UserError(
                    f"{path} is an unfinished dataset; run the command that writes it again, and "
                    "it goes on where it stopped"
                )
            raise UserError(f"{path} has no {MANIFEST}: it is not a dataset folder")
        content = read_manifest(path / MANIFEST, FORMAT, SCHEMA)
        try:
            manifest = Manifest(**content)
            if not (isinstance(manifest.tasks, dict) and isinstance(manifest.origin, dict)):
                raise TypeError
        except TypeError:
            raise UserError(f"cannot read {path / MANIFEST}: it lacks fields") from None
        return cls(path, manifest)

    @property
    def fingerprint(self) -> str:
        """Digest of the records and their order, independent of the folder's name."""
        return self.manifest.fingerprint

    @property
    def shards(self) -> Shards:
        """The record files."""
        return self._shards

    def __len__(self) -> int:
        return self.manifest.count

    def __getitem__(self, number: int) -> PairRecord:
        """Reads one record and checks its images against their digests.

        Raises:
            UserError: the record or its shard is damaged; both are named.
        """
        packed = self._shards.read(number)
        try:
            return PairRecord.unpack(packed)
        except UserError as error:
            shard, own = self._shards.locate(number)
            name = self.path / self._shards.shards[shard].name
            raise UserError(
                f"record {own} of shard {name} is damaged ({error}); copy the shard again"
            ) from None

    def __iter__(self) -> Iterator[PairRecord]:
        return (self[number] for number in range(len(self)))

    @functools.cached_property
    def index(self) -> Index:
        """The entries of the shards' indices for every record.

        Raises:
            UserError: an index file is missing or damaged.
        """
        columns: dict[str, list[Any]] = {name: [] for name in INDEX_COLUMNS}
        for shard in self.manifest.shards:
            held = self._shards.index(shard)["columns"]
            for name in columns:
                columns[name] += held[name]
        return Index(**columns)  # type: ignore[typeddict-item] # its names are INDEX_COLUMNS

    @functools.cached_property
    def target_sizes(self) -> Int[np.ndarray, "N 2"]:
        """Height and width of every target, in pixels."""
        return np.asarray(self.index["target_size"], np.int64)

    def records_of(self, task: str | None) -> Int[np.ndarray, " n"]:
        """Numbers of the records of a task, or of all, in order."""
        if task is None:
            return np.arange(len(self))
        return np.flatnonzero(np.asarray(self.index["task"]) == task)


def card(manifest: Manifest) -> str:
    """The dataset card, as Markdown."""
    tasks = "\n".join(f"| {task} | {count:,} |" for task, count in manifest.tasks.items())
    size = sum(shard.bytes for shard in manifest.shards)
    return f"""# Pairs of one subject

{manifest.count:,} pairs (reference image, target image, words) in {len(manifest.shards):,}
ArrayRecord shards, {size / 1e6:,.1f} MB. {manifest.rejected:,} rows of the source were not taken.

| task | pairs |
| --- | --- |
{tasks}

Fingerprint (SHA-256 over the shards' SHA-256): `{manifest.fingerprint}`

## Format

One msgpack map per record: `id`, `reference` and `target` (image files as they came), their
`_size` (height, width) and `_sha256`, `caption` (what the target shows), `instruction`, `subject`,
`task`, `provenance`. `dataset.json` lists every shard with its size and SHA-256.

```python
from dsd_jax.data.pairs.store import PairStore

store = PairStore.open("this folder")
print(len(store), store[0].caption)
```

`dsd data verify` checks every digest and decodes every image.

## Origin

```json
{json.dumps(manifest.origin, indent=1, ensure_ascii=False)}
```
"""


def tally(tasks: Sequence[str]) -> dict[str, int]:
    """Count by task, the most frequent first."""
    return dict(sorted(Counter(tasks).items(), key=lambda item: (-item[1], item[0])))
