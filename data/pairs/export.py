"""Exports a dataset for other programs: Parquet with image columns, or a plain folder of images.

Both open with `load_dataset` of the `datasets` library, and `dsd data import` gives back the same
records.

    README.md                            the dataset card, with the licence
    data/train-00000-of-00002.parquet    as Parquet
    train/metadata.jsonl, train/...      as a folder of images
"""

import dataclasses
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from dsd_jax.data.pairs.record import PairRecord
from dsd_jax.data.pairs.shards import Shard
from dsd_jax.data.pairs.store import PairStore
from dsd_jax.errors import UserError
from dsd_jax.extras import require
from dsd_jax.files import begin_folder, explained, replacing, write_file
from dsd_jax.progress import progress

__all__ = ["Licence", "export_pairs"]

Format = Literal["parquet", "folder"]

IMAGES = ("reference", "target")
TEXTS = ("id", "caption", "instruction", "subject", "task", "provenance")
_BEGUN = "exporting.json"  # exists while an export is unfinished
_SPLIT = "train"
_ROWS = 100  # rows of a group, which a viewer of the hub reads at a time
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (10**6, "100K<n<1M"))
_SIGNATURES = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpg", b"RIFF": "webp"}


@dataclasses.dataclass(frozen=True)
class Licence:
    """The licence that the card names.

    Attributes:
        license: Identifier on the hub, such as `apache-2.0`, or `other` with a name and a link.
        license_name: Name of another licence, such as `flux-1-dev-non-commercial-license`.
        license_link: Address of another licence's text.
    """

    license: str = "unknown"
    license_name: str | None = None
    license_link: str | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", self.license):
            raise UserError(
                f"the licence {self.license!r} must be an identifier of the hub in lower case, "
                "such as apache-2.0 or other"
            )
        if (self.license == "other") != bool(self.license_name):
            raise UserError("the licence `other` needs --license_name, and no other takes one")


def export_pairs(store: PairStore, target: str | Path, format_name: Format, card: Licence) -> None:
    """Writes a dataset for other programs; resumes where an interrupted export stopped.

    Args:
        store: dataset to export.
        target: folder for the result, new or unfinished.
        format_name: Parquet, or a folder of images.
        card: licence that the card names.

    Raises:
        UserError: the folder holds something else or cannot be written, or a record is damaged.
    """
    target = Path(target)
    if format_name == "parquet":
        require("parquet")
    wanted = json.dumps({"fingerprint": store.fingerprint, "format": format_name}) + "\n"
    other = (
        "holds an unfinished export of another dataset or in another format; repeat the command "
        "that began it, or choose a new folder"
    )
    begin_folder(target, _BEGUN, wanted, other)
    write = _write_parquet if format_name == "parquet" else _write_folder
    with progress("export", len(store), "pairs") as advance:
        write(store, target, advance)
    write_file(target / "README.md", _card(store, format_name, card))
    with explained(target):
        (target / _BEGUN).unlink()


def _words(record: PairRecord) -> dict[str, str]:
    """The columns of text."""
    held = {name: getattr(record, name) for name in TEXTS}
    return held | {"provenance": json.dumps(record.provenance, ensure_ascii=False)}


def _file_name(number: int, role: str, data: bytes) -> str:
    ending = next(name for start, name in _SIGNATURES.items() if data.startswith(start))
    return f"{number:08d}-{role}.{ending}"


def _write_parquet(store: PairStore, target: Path, advance: Callable[[float], None]) -> None:
    """Writes one file per shard of the dataset."""
    shards = store.manifest.shards
    for i, (shard, numbers) in enumerate(_numbers(shards)):
        path = target / "data" / f"{_SPLIT}-{i:05d}-of-{len(shards):05d}.parquet"
        if not path.exists():
            with replacing(path) as partial:
                _write_table(partial, [(number, store[number]) for number in numbers])
        advance(shard.count)


def _numbers(shards: Iterable[Shard]) -> Iterator[tuple[Shard, range]]:
    done = 0
    for shard in shards:
        yield shard, range(done, done + shard.count)
        done += shard.count


def _write_table(path: Path, records: list[tuple[int, PairRecord]]) -> None:
    from arro3.core import Array, DataType, Field, Table, struct_array  # noqa: PLC0415 - an extra
    from arro3.io import write_parquet  # noqa: PLC0415

    columns: dict[str, Any] = {}
    for role in IMAGES:
        files = [getattr(record, role) for _, record in records]
        names = [
            _file_name(number, role, file) for (number, _), file in zip(records, files, strict=True)
        ]
        members = [Array(files, type=DataType.binary()), Array(names, type=DataType.string())]
        fields = [Field("bytes", DataType.binary()), Field("path", DataType.string())]
        columns[role] = struct_array(members, fields=fields)
    words = [_words(record) for _, record in records]
    for name in TEXTS:
        columns[name] = Array([each[name] for each in words], type=DataType.string())
    written = io.BytesIO()  # the library panics, and prints that, if it cannot write to a disk
    # Metadata of the schema: where there is a schema, readers look for none beside it.
    features = {"huggingface": json.dumps({"info": {"features": _features()}})}
    table = Table.from_pydict({name: columns[name] for name in _features()}, metadata=features)
    write_parquet(table, written, compression="snappy", max_row_group_size=_ROWS)
    path.write_bytes(written.getbuffer())


def _features() -> dict[str, dict[str, str]]:
    """Columns as the `datasets` library describes them."""
    text, image = {"dtype": "string", "_type": "Value"}, {"_type": "Image"}
    return {"id": text} | dict.fromkeys(IMAGES, image) | dict.fromkeys(TEXTS[1:], text)


def _write_folder(store: PairStore, target: Path, advance: Callable[[float], None]) -> None:
    """Writes one file per image, and the table of them last."""
    folder = target / _SPLIT
    lines = []
    for number, record in enumerate(store):
        names = {}
        for role in IMAGES:
            data = getattr(record, role)
            name = names[f"{role}_file_name"] = _file_name(number, role, data)
            if not (folder / name).exists():
                write_file(folder / name, data)
        lines.append(json.dumps({**names, **_words(record)}, ensure_ascii=False) + "\n")
        advance(1)
    write_file(folder / "metadata.jsonl", "".join(lines))


def _card(store: PairStore, format_name: Format, licence: Licence) -> str:
    """The dataset card, with the fields that the hub reads from its head."""
    manifest = store.manifest
    path = f"data/{_SPLIT}-*" if format_name == "parquet" else f"{_SPLIT}/**"
    held = sum(shard.bytes for shard in manifest.shards)
    size = next((name for most, name in _SIZES if manifest.count < most), "n>1M")
    legal = {name: value for name, value in dataclasses.asdict(licence).items() if value}
    kinds = {name: kind.get("dtype", "image") for name, kind in _features().items()}
    head = [
        *(f"{name}: {json.dumps(value)}" for name, value in legal.items()),
        "pretty_name: Pairs of one subject",
        "task_categories: [image-to-image, text-to-image]",
        "tags: [subject-driven-generation, diffusion-self-distillation]",
        f"size_categories: [{size}]",
        "configs:",
        "- config_name: default",
        f"  data_files: [{{split: {_SPLIT}, path: {json.dumps(path)}}}]",
        "dataset_info:",
        "  features:",
        *(f"  - {{name: {name}, dtype: {kind}}}" for name, kind in kinds.items()),
        f"  splits: [{{name: {_SPLIT}, num_bytes: {held}, num_examples: {manifest.count}}}]",
    ]
    tasks = "\n".join(f"| {task} | {count:,} |" for task, count in manifest.tasks.items())
    return f"""---
{chr(10).join(head)}
---

# Pairs of one subject

{manifest.count:,} pairs: a reference image, a target image of the same subject, and words.

| task | pairs |
| --- | --- |
{tasks}

| column | |
| --- | --- |
| `id` | unique name of the pair |
| `reference`, `target` | the images |
| `caption` | what the target shows |
| `instruction` | how to get from reference to target |
| `subject` | what both show |
| `task` | `identity`, `relight`, `depth`, or another word |
| `provenance` | where the pair came from, as JSON |

```python
from datasets import load_dataset

pairs = load_dataset("FOLDER", split="{_SPLIT}")
```

`dsd data import FOLDER pairs/` makes it a dataset for training again. Fingerprint of the records:
`{manifest.fingerprint}`

## Licence

{_legal_text(licence)}

## Origin

```json
{json.dumps(manifest.origin, indent=1, ensure_ascii=False)}
```
"""


def _legal_text(licence: Licence) -> str:
    if licence.license == "unknown":
        return "Not stated. Images made by a model are under the terms of that model's licence."
    name = licence.license_name or licence.license
    return f"[{name}]({licence.license_link})" if licence.license_link else name
