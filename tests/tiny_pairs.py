"""Small datasets of random pairs, in memory and as other people's tables."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import arro3.core
import arro3.io
import numpy as np
from PIL import Image

from dsd_jax.data.pairs.record import PairRecord
from dsd_jax.data.pairs.store import PairStore
from dsd_jax.data.pairs.writer import PairWriter

__all__ = [
    "image_bytes",
    "random_pair",
    "rejected",
    "write_pairs",
    "write_parquet",
    "write_rows",
    "write_table",
]

SHARD_BYTES = 20_000  # a few records of these


def image_bytes(seed: int, height: int = 32, width: int = 32, format_name: str = "PNG") -> bytes:
    """A picture of random colours."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format_name)
    return file.getvalue()


def random_pair(
    number: int, *, height: int = 32, width: int = 32, task: str = "identity"
) -> PairRecord:
    """A pair that no other number gives."""
    return PairRecord.from_images(
        id=f"pair-{number}",
        reference=image_bytes(2 * number),
        target=image_bytes(2 * number + 1, height, width),
        caption=f"a red cat number {number}",
        instruction=f"move the cat to place {number}",
        subject="cat" if number % 3 else "dog",
        task=task,
        provenance={"number": number},
    )


def write_pairs(
    path: Path,
    count: int,
    *,
    shapes: Sequence[tuple[int, int]] = ((32, 32),),
    tasks: Sequence[str] = ("identity",),
    first: int = 0,
) -> PairStore:
    """A dataset of pairs whose targets and tasks take turns."""
    with PairWriter(path, shard_bytes=SHARD_BYTES) as writer:
        for i in range(count):
            height, width = shapes[i % len(shapes)]
            task = tasks[i % len(tasks)]
            pair = random_pair(first + i, height=height, width=width, task=task)
            writer.add(pair, position=i + 1)
    return PairStore.open(path)


def write_table(folder: Path, count: int) -> list[dict[str, str]]:
    """A folder with images and `pairs.jsonl`; returns its rows."""
    folder.mkdir(parents=True)
    rows = []
    for i in range(count):
        (folder / f"reference-{i}.png").write_bytes(image_bytes(2 * i))
        (folder / f"target-{i}.jpg").write_bytes(image_bytes(2 * i + 1, 32, 40, "JPEG"))
        rows.append(
            {
                "id": f"row-{i}",
                "reference": f"reference-{i}.png",
                "target": f"target-{i}.jpg",
                "caption": f"a cat, number {i}",
                "subject": "cat",
            }
        )
    write_rows(folder / "pairs.jsonl", rows)
    return rows


def write_rows(path: Path, rows: Sequence[object]) -> None:
    """A JSONL file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_parquet(path: Path, **columns: Any) -> None:
    """Columns of bytes, text, numbers, or structs of them, as the hub has, four rows a group."""
    arrays: dict[str, Any] = {name: _arrow(values) for name, values in columns.items()}
    table = arro3.core.Table.from_pydict(arrays)
    arro3.io.write_parquet(table, str(path), max_row_group_size=4, compression="snappy")


def _arrow(values: list[Any]) -> arro3.core.Array:
    first = next(value for value in values if value is not None)
    if isinstance(first, dict):
        members = {name: _arrow([value[name] for value in values]) for name in first}
        fields = [arro3.core.Field(name, array.type) for name, array in members.items()]
        return arro3.core.struct_array(list(members.values()), fields=fields)
    kinds = {
        bytes: arro3.core.DataType.binary(),
        str: arro3.core.DataType.string(),
        bool: arro3.core.DataType.bool(),
        int: arro3.core.DataType.int64(),
    }
    return arro3.core.Array(values, type=kinds[type(first)])


def rejected(folder: Path) -> list[dict[str, Any]]:
    """The rows that an import into the folder has rejected."""
    return [json.loads(line) for line in (folder / "rejected.jsonl").read_text().splitlines()]
