"""The pair store: what is written is read, and what is not whole is refused by name."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dsd_jax.data.pairs.record import PairRecord
from dsd_jax.data.pairs.report import statistics, verify_folder
from dsd_jax.data.pairs.store import PairStore
from dsd_jax.data.pairs.writer import PairWriter
from dsd_jax.errors import UserError
from tests.tiny_pairs import SHARD_BYTES, image_bytes, random_pair, write_pairs

ROOT = Path(__file__).parents[3]
COUNT = 12


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "pairs"
    write_pairs(path, COUNT, tasks=("identity", "relight", "identity"))
    return path


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    target = tmp_path / "copy"
    target.mkdir()
    for path in whole.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def edit(path: Path, **fields: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_records_come_back_in_order(whole: Path):
    store = PairStore.open(whole)
    assert len(store.manifest.shards) > 2
    assert len(store) == COUNT
    expected = [random_pair(i, task="relight" if i % 3 == 1 else "identity") for i in range(COUNT)]
    assert list(store) == expected
    assert store[7] == expected[7]
    assert store.manifest.tasks == {"identity": 8, "relight": 4}
    with pytest.raises(IndexError):
        store[COUNT]


def test_the_folder_tells_what_it_is(whole: Path):
    card = (whole / "README.md").read_text()
    store = PairStore.open(whole)
    assert store.fingerprint in card
    assert "| relight | 4 |" in card
    assert not list(whole.glob("*.part"))
    assert not (whole / "writing.json").exists()


def test_the_fingerprint_is_of_the_records(whole: Path, copy: Path, tmp_path: Path):
    fingerprint = PairStore.open(whole).fingerprint
    assert PairStore.open(copy).fingerprint == fingerprint
    assert write_pairs(tmp_path / "fewer", COUNT - 1).fingerprint != fingerprint


def test_statistics(whole: Path):
    text = statistics(PairStore.open(whole))
    assert "12 pairs in" in text
    assert "relight       4  33.3 %" in text
    assert "32x32" in text
    assert "caption         12    5       5     5    5" in text
    assert "subject (2 different)" in text
    assert "dog                        4  33.3 %" in text


def test_a_whole_dataset_verifies(whole: Path):
    assert verify_folder(whole, workers=2) == []


def test_a_flipped_bit_is_refused_where_it_is_read(copy: Path):
    store = PairStore.open(copy)
    shard, own = store.shards.locate(5)
    path = copy / store.manifest.shards[shard].name
    data = bytearray(path.read_bytes())
    data[data.find(store[5].target) + 40] ^= 1
    path.write_bytes(data)
    store = PairStore.open(copy)
    with pytest.raises(UserError, match=rf"record {own} of shard {path} cannot be read.*copy the"):
        store[5]
    assert store[4].id == "pair-4"
    problems = verify_folder(copy, workers=2)
    assert problems[0] == f"the shard {path} does not have the sha256 that was written"
    assert len(problems) == 2
    assert problems[1].startswith("record 5: ")


def test_an_image_that_is_not_its_digest_is_named():
    packed = random_pair(3).pack()
    image = random_pair(3).reference
    with pytest.raises(UserError, match="'pair-3': the reference image does not have its sha256"):
        PairRecord.unpack(packed.replace(image, image[:-1] + b"x"))
    with pytest.raises(UserError, match="not a record of a pair"):
        PairRecord.unpack(packed[:100])


def test_a_half_shard_is_refused_by_name(copy: Path):
    path = sorted(copy.glob("*.array_record"))[1]
    size = path.stat().st_size
    os.truncate(path, size // 2)
    message = rf"shard {path} has {size // 2:,} bytes where {size:,} were written: it is half"
    with pytest.raises(UserError, match=message):
        PairStore.open(copy)
    path.write_bytes(b"\0" * size)
    with pytest.raises(UserError, match=rf"shard {path} is not a readable ArrayRecord file of"):
        list(PairStore.open(copy))
    path.unlink()
    with pytest.raises(UserError, match=rf"shard {path} is missing; copy the dataset again"):
        PairStore.open(copy)


def test_a_damaged_index_is_refused_by_name(copy: Path):
    path = min(copy.glob("*.index"))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=rf"the index {path} is damaged"):
        _ = PairStore.open(copy).index


def test_a_schema_from_the_future_is_refused(copy: Path):
    edit(copy / "dataset.json", schema=7)
    with pytest.raises(
        UserError, match="schema version 7, but this program knows versions up to 1"
    ):
        PairStore.open(copy)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format": "other"}, "is of format 'other', expected 'dsd-pairs'"),
        ({"count": 0}, "is empty: it holds no records"),
        ({"count": 11}, "contradicts itself"),
        ({"fingerprint": "0" * 64}, "contradicts itself"),
        ({"shards": 3}, "it lacks fields"),
        ({"count": "12"}, "it lacks fields"),
        ({"tasks": []}, "it lacks fields"),
        (
            {"shards": [{"name": "../a.array_record", "count": 12, "bytes": 1}]},
            "it lacks fields",
        ),
        ({"tsks": {}}, "it lacks fields"),
    ],
)
def test_an_edited_manifest_is_refused(copy: Path, fields: dict[str, object], message: str):
    edit(copy / "dataset.json", **fields)
    with pytest.raises(UserError, match=message):
        PairStore.open(copy)


def test_what_is_no_dataset_is_refused(tmp_path: Path, copy: Path):
    with pytest.raises(UserError, match=r"no dataset folder .*make one with `dsd data import`"):
        PairStore.open(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no dataset\.json: it is not a dataset folder"):
        PairStore.open(tmp_path)
    (copy / "dataset.json").write_text('{"format": "dsd-pa')
    with pytest.raises(UserError, match=r"cannot read .*dataset\.json: it is not what was written"):
        PairStore.open(copy)


def test_an_error_keeps_whole_shards_and_the_next_writer_goes_on(tmp_path: Path, whole: Path):
    target = tmp_path / "pairs"
    tasks = ("identity", "relight", "identity")

    def write(stop: int | None) -> None:
        with PairWriter(target, shard_bytes=SHARD_BYTES) as writer:
            for i in range(writer.position or 0, COUNT):
                if i == stop:
                    raise RuntimeError("pulled the plug")
                writer.add(random_pair(i, task=tasks[i % 3]), position=i + 1)

    with pytest.raises(RuntimeError, match="pulled"):
        write(1)
    assert not target.exists()  # not one whole shard: nothing is left
    with pytest.raises(RuntimeError, match="pulled"):
        write(8)
    assert not list(target.glob("*.part"))
    with pytest.raises(UserError, match="an unfinished dataset; run the command that writes it"):
        PairStore.open(target)
    write(None)
    assert contents(target) == contents(whole)


def test_a_folder_in_use_or_of_something_else_is_refused(tmp_path: Path, whole: Path):
    target = tmp_path / "pairs"
    with PairWriter(target, origin={"source": "a"}, shard_bytes=1) as writer:
        writer.add(random_pair(0), position=1)
        with pytest.raises(UserError, match="another program is writing"):
            PairWriter(target, origin={"source": "a"}, shard_bytes=1)
        writer.add(random_pair(1), position=2)
    with (
        pytest.raises(UserError, match="a finished dataset of another source"),
        PairWriter(target, origin={"source": "b"}),
    ):
        pass
    with (
        PairWriter(target, origin={"source": "a"}, shard_bytes=1) as writer,
        pytest.raises(UserError, match="is complete already"),
    ):
        writer.add(random_pair(2))
    assert len(PairStore.open(target)) == 2
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="holds other files; choose a new folder"):
        PairWriter(tmp_path / "papers")
    with pytest.raises(UserError, match="cannot write to"):
        PairWriter(whole / "dataset.json" / "below")


def test_an_unfinished_dataset_of_another_origin_is_refused(tmp_path: Path):
    target = tmp_path / "pairs"

    def interrupted() -> None:
        with PairWriter(target, origin={"source": "a"}, shard_bytes=1) as writer:
            writer.add(random_pair(0), position=1)
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    with pytest.raises(UserError, match="unfinished dataset of another source or other settings"):
        PairWriter(target, origin={"source": "b"}, shard_bytes=1)


def test_nothing_to_store_leaves_nothing(tmp_path: Path):
    with (
        pytest.raises(UserError, match="there is nothing to store: the source has no rows"),
        PairWriter(tmp_path / "pairs"),
    ):
        pass
    assert not (tmp_path / "pairs").exists()


def test_an_id_is_taken_once(tmp_path: Path):
    with PairWriter(tmp_path / "pairs") as writer:
        writer.add(random_pair(0))
        with pytest.raises(UserError, match="the id 'pair-0' is there already"):
            writer.add(random_pair(1), random_pair(0))
        assert "pair-0" in writer
        assert "pair-1" not in writer


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"id": "a\nb"}, "must be 1 to 200 printable characters"),
        ({"task": "Relight!"}, "the task 'Relight!' must be a lower-case word"),
        ({"caption": "", "instruction": ""}, "neither a caption nor an instruction"),
        ({"caption": "x" * 10_001}, "the caption is longer than 10,000 characters"),
        ({"target": b"text"}, "target: the image is not a picture"),
        ({"reference": image_bytes(1, 200, 200)[:5_000]}, "reference: cannot decode the image"),
    ],
)
def test_a_record_that_cannot_be_used_is_refused(fields: dict[str, Any], message: str):
    words: dict[str, Any] = {
        "id": "a",
        "reference": image_bytes(1),
        "target": image_bytes(2),
        "caption": "a cat",
        **fields,
    }
    with pytest.raises(UserError, match=message):
        PairRecord.from_images(**words)


def test_other_formats_are_stored_as_png():
    bitmap = image_bytes(5, 20, 30, "BMP")
    jpeg = image_bytes(6, 20, 30, "JPEG")
    record = PairRecord.from_images(id="a", reference=bitmap, target=jpeg, caption="x")
    assert record.reference.startswith(b"\x89PNG")
    assert record.target == jpeg
    assert record.reference_size == (20, 30)


def test_a_full_disk_is_a_message_and_leaves_nothing(tmp_path: Path):
    script = """
import resource, signal, sys
from dsd_jax.data.pairs.writer import PairWriter
from tests.tiny_pairs import random_pair

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
with PairWriter(sys.argv[1]) as writer:
    for i in range(30):
        writer.add(random_pair(i, height=200, width=200))
"""
    target = tmp_path / "pairs"
    command = [sys.executable, "-c", script, str(target)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert "UserError: cannot write" in result.stderr
    assert "File too large; make room or choose another place" in result.stderr
    assert not target.exists()
