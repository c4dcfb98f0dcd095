"""Readers of tables, pictures and datasets."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import arro3.core
import arro3.io
import numpy as np
from PIL import Image

from dsd_jax.data.load.encoded import (
    Binding,
    Embedding,
    EncodedPair,
    EncodedStore,
    Moments,
    pack_encoded,
    write_encoded_manifest,
    write_null,
)
from dsd_jax.data.make.sources import read_captions
from dsd_jax.data.pairs.importer import import_pairs
from dsd_jax.data.pairs.record import PairRecord
from dsd_jax.data.pairs.shards import ShardWriter, shard_name
from dsd_jax.data.pairs.store import PairStore
from dsd_jax.images import open_frame, open_image, read_parameters, save_image
from dsd_jax.infer.batch import read_manifest
from dsd_jax.infer.prepared import read_latents
from dsd_jax.infer.settings import Settings
from dsd_jax.rows import open_table
from dsd_jax.train.prompts import read_prompts
from dsd_jax.train.sheet import cells, draw_sheet
from tests.fuzz.reader import Reader, written
from tests.tiny_pairs import image_bytes, random_pair, write_pairs, write_table

__all__ = ["TABLES"]


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


def _captions(path: Path) -> object:
    return list(read_captions([path]))


# Datasets


def _dataset(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        write_pairs(folder / "pairs", 4)
        return folder / "pairs" / name

    return make


def _store(path: Path) -> object:
    store = PairStore.open(path.parent)
    return [store.index, list(store)]


def _encoded(folder: Path) -> Path:
    """An encoded folder as `dsd data encode` leaves it, with numbers of its own."""
    path = folder / "encoded"
    path.mkdir()
    rng = np.random.default_rng(0)

    def moments() -> Moments:
        return Moments(*rng.standard_normal((2, 2, 4, 16), np.float32))

    def embedding() -> Embedding:
        return Embedding(*(rng.standard_normal(shape, np.float32) for shape in ((4, 6), 6)))

    writer = ShardWriter(path, shard_name("encoded", 0))
    for i in range(3):
        pair = EncodedPair(
            f"pair-{i}", "a cat", "move it", moments(), moments(), embedding(), embedding()
        )
        writer.write(pack_encoded(pair, "float32"))
    shard = writer.commit({"order": [2, 0, 1]})
    write_null(path, embedding, "float32")
    binding = Binding("0" * 64, ((32, 32),), "float32", "1" * 64, "2" * 64, 4)
    write_encoded_manifest(path, binding, [shard])
    return path


def _read_encoded(path: Path) -> object:
    store = EncodedStore.open(path)
    return [store.binding, [store[i] for i in range(len(store))], store.null]


# Pictures


def _picture(kind: str) -> Reader:
    def read(path: Path) -> object:
        frame = open_frame(path, 16, 16)
        return [np.asarray(open_image(path)), np.asarray(frame.image), frame.notices]

    return Reader(written(f"a.{kind}", _drawn(kind)), read)


def _drawn(kind: str) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8)
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def _with_parameters(kind: str) -> Reader:
    def make(folder: Path) -> Path:
        path = folder / f"a.{kind}"
        save_image(Image.new("RGB", (32, 32)), path, {"text": "a cat", "seed": 3, "steps": [1, 2]})
        return path

    return Reader(make, lambda path: [read_parameters(path), open_image(path).size])


def _sheet(folder: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (2, 32, 64, 3)).astype(np.uint8)
    sheet = draw_sheet(pixels, ["reference", "target"], ["a", "b"])
    save_image(sheet.image, folder / "sheet.png", sheet.layout)
    return folder / "sheet.png"


def _latents(folder: Path) -> Path:
    path = folder / "latents.npy"
    np.save(path, np.zeros((1, 16, 4, 4), np.float32))
    return path


_LINES = b"".join(
    json.dumps({"id": i, "caption": f"a cat {i}", "list": [{"x": None}]}).encode() + b"\n"
    for i in range(5)
)
_JOBS = b'text,image,seed,steps,id\r\n"a cat, black",a.png,1,4,one\r\na dog,b.png,,,two\r\n'
_PROMPTS = b'{"text": "a cat", "seed": 1}\n{"text": "a dog", "steps": 3.0, "guidance": 2}\n'
TABLES: dict[str, Reader] = {
    "csv": Reader(written("a.csv", b'id,caption\r\n1,"a ""cat"", black"\r\n2,a dog\r\n'), _rows),
    "jsonl": Reader(written("a.jsonl", _LINES), _rows),
    "json list": Reader(
        written("a.json", b"[" + _LINES.strip().replace(b"\n", b",\n") + b"]"), _rows
    ),
    "parquet": Reader(_columnar("a.parquet"), _rows, 0.02),
    "arrow": Reader(_columnar("a.arrow"), _rows, 0.02),
    "tar": Reader(_tar, _rows),
    "captions": Reader(written("a.txt", "a cat\na dog\r\nein Käfer\n"), _captions),
    "manifest csv": Reader(
        written("jobs.csv", _JOBS), lambda path: read_manifest(path, Settings())
    ),
    "manifest jsonl": Reader(
        written("jobs.jsonl", _PROMPTS), lambda path: read_manifest(path, Settings())
    ),
    "prompts": Reader(
        written("prompts.jsonl", _PROMPTS),
        lambda path: read_prompts(path, str(path.parent / "pairs"), condition=False),
    ),
    "import": Reader(_table, _import, 0.2),
    "dataset.json": Reader(_dataset("dataset.json"), _store),
    "index": Reader(_dataset("pairs-00000.index"), _store, sealed=True),
    "shard": Reader(_dataset("pairs-00000.array_record"), _store, 0.2, sealed=True),
    "encoded": Reader(_encoded, _read_encoded),
    "record": Reader(
        written("record", random_pair(1).pack()), lambda path: PairRecord.unpack(path.read_bytes())
    ),
    **{kind: _picture(kind) for kind in ("png", "jpeg", "webp", "gif", "bmp", "tiff")},
    **{f"parameters {kind}": _with_parameters(kind) for kind in ("png", "jpg", "webp")},
    "sheet": Reader(_sheet, cells, 0.5),
    "latents": Reader(_latents, read_latents),
}
