"""What is fuzzed: for each reader, how a sound file is made, and how it is read."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import arro3.core
import arro3.io
import numpy as np
from PIL import Image
from safetensors.numpy import save_file

from dsd_jax.convert.io import open_weights
from dsd_jax.data.pairs.importer import import_pairs
from dsd_jax.data.pairs.record import PairRecord
from dsd_jax.data.pairs.store import PairStore
from dsd_jax.images import open_image
from dsd_jax.rows import open_table
from dsd_jax.structured import read_json, read_toml
from tests.tiny_pairs import image_bytes, random_pair, write_pairs, write_table

__all__ = ["READERS", "Reader"]


class Reader(NamedTuple):
    """One reader.

    Attributes:
        make: writes sound files into a folder, and returns the one to damage.
        read: reads that file, wholly; it may raise `UserError` alone.
        share: of the mutations that the others get, for readers that are slow.
    """

    make: Callable[[Path], Path]
    read: Callable[[Path], object]
    share: float = 1.0


def _written(name: str, data: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(data)
        return path

    return make


def _rows(path: Path) -> object:
    return [row.fields or row.error for row in open_table(path).rows()]


def _columnar(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        images = arro3.core.Array(
            [image_bytes(i) for i in range(8)], type=arro3.core.DataType.binary()
        )
        words = arro3.core.Array(
            [f"caption {i}" for i in range(8)], type=arro3.core.DataType.string()
        )
        table = arro3.core.Table.from_pydict({"reference": images, "caption": words})
        path = folder / name
        if name.endswith(".parquet"):
            arro3.io.write_parquet(table, str(path), compression="snappy")
        else:
            arro3.io.write_ipc_stream(table, str(path))
        return path

    return make


def _tar(folder: Path) -> Path:
    path = folder / "a.tar"
    with tarfile.open(path, "w") as archive:
        for i in range(4):
            for name, data in {"jpg": image_bytes(i), "json": b'{"caption": "a"}'}.items():
                member = tarfile.TarInfo(f"{i}.{name}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return path


def _import(path: Path) -> object:
    return import_pairs(path, path.parent / "pairs", workers=1)


def _table(folder: Path) -> Path:
    write_table(folder / "source", 3)
    return folder / "source" / "pairs.jsonl"


def _dataset(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        write_pairs(folder / "pairs", 4)
        return folder / "pairs" / name

    return make


def _store(path: Path) -> object:
    store = PairStore.open(path.parent)
    return [store.index, list(store)]


def _picture(kind: str) -> Reader:
    def read(path: Path) -> object:
        return open_image(path).size

    return Reader(_written(f"a.{kind}", _encoded(kind)), read)


def _encoded(kind: str) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8)
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def _weights(folder: Path) -> Path:
    path = folder / "model.safetensors"
    save_file({f"layer.{i}": np.ones((3, 4), np.float32) for i in range(4)}, path)
    return path


def _tensors(path: Path) -> object:
    weights = open_weights(path)
    return [weights.read(name) for name in weights.tensors]


_LINES = b"".join(
    json.dumps({"id": i, "caption": f"a cat {i}", "list": [{"x": None}]}).encode() + b"\n"
    for i in range(5)
)
READERS: dict[str, Reader] = {
    "csv": Reader(_written("a.csv", b'id,caption\r\n1,"a ""cat"", black"\r\n2,a dog\r\n'), _rows),
    "jsonl": Reader(_written("a.jsonl", _LINES), _rows),
    "json list": Reader(
        _written("a.json", b"[" + _LINES.strip().replace(b"\n", b",\n") + b"]"), _rows
    ),
    "parquet": Reader(_columnar("a.parquet"), _rows),
    "arrow": Reader(_columnar("a.arrow"), _rows, 0.02),
    "tar": Reader(_tar, _rows),
    "import": Reader(_table, _import, 0.2),
    "dataset.json": Reader(_dataset("dataset.json"), _store),
    "index": Reader(_dataset("pairs-00000.index"), _store),
    "shard": Reader(_dataset("pairs-00000.array_record"), _store, 0.2),
    "record": Reader(
        _written("record", random_pair(1).pack()), lambda path: PairRecord.unpack(path.read_bytes())
    ),
    "json": Reader(
        _written("a.json", b'{"a": [1, 2.5, {"b": "c"}]}'), lambda p: read_json(p, dict)
    ),
    "toml": Reader(_written("a.toml", b'a.b = [1, "x"]\n[c]\nd = 2026-01-01\n'), read_toml),
    "safetensors": Reader(_weights, _tensors),
    **{kind: _picture(kind) for kind in ("png", "jpeg", "webp", "gif", "bmp", "tiff")},
}
