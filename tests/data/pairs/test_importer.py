"""Importing other people's tables: every format, right rows in order, restarts exact."""

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

from dsd_jax import cli
from dsd_jax.data.pairs.importer import import_pairs
from dsd_jax.data.pairs.reader import ImportSettings
from dsd_jax.data.pairs.store import PairStore
from dsd_jax.errors import UserError
from tests.tiny_pairs import image_bytes, rejected, write_parquet, write_rows, write_table

ROOT = Path(__file__).parents[3]


def test_a_folder_with_jsonl(tmp_path: Path):
    rows = write_table(tmp_path / "source", 6)
    done = import_pairs(tmp_path / "source", tmp_path / "pairs")
    assert (done.pairs, done.rejected, done.before) == (6, 0, 0)
    store = PairStore.open(tmp_path / "pairs")
    assert [pair.id for pair in store] == [row["id"] for row in rows]
    pair = store[4]
    assert pair.target == (tmp_path / "source" / "target-4.jpg").read_bytes()
    assert pair.target_size == (32, 40)
    assert (pair.caption, pair.subject, pair.task) == ("a cat, number 4", "cat", "identity")
    assert pair.provenance == {"file": "pairs.jsonl", "row": 5}
    assert not (tmp_path / "pairs" / "rejected.jsonl").exists()


def test_csv_as_spreadsheets_write_it(tmp_path: Path):
    rows = write_table(tmp_path / "source", 4)
    (tmp_path / "source" / "pairs.jsonl").unlink()
    for row in rows:
        row["caption"] = 'a "cat",\nsitting'
    with (tmp_path / "source" / "pairs.csv").open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        file.write("one,two\r\n")
    done = import_pairs(tmp_path / "source" / "pairs.csv", tmp_path / "pairs")
    assert (done.pairs, done.rejected) == (4, 1)
    assert PairStore.open(tmp_path / "pairs")[3].caption == 'a "cat",\nsitting'
    assert rejected(tmp_path / "pairs")[0]["reason"] == "2 cells in a table of 5 columns"


def test_a_table_that_is_a_link_out_of_its_folder_is_refused(tmp_path: Path):
    write_table(tmp_path / "private", 1)
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "pairs.jsonl").symlink_to(tmp_path / "private" / "pairs.jsonl")
    with pytest.raises(UserError, match=r"pairs\.jsonl is outside of the folder"):
        import_pairs(tmp_path / "source", tmp_path / "pairs")


def test_images_in_a_list_and_in_a_tar(tmp_path: Path):
    pairs = [(image_bytes(2 * i), image_bytes(2 * i + 1)) for i in range(3)]
    with tarfile.open(tmp_path / "pairs.tar", "w") as archive:
        for i, (reference, target) in enumerate(pairs):
            words = json.dumps({"caption": f"a cat, number {i}"}).encode()
            cells = {"reference.png": reference, "target.png": target, "json": words}
            for ending, data in cells.items():
                member = tarfile.TarInfo(f"{i:03d}.{ending}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    import_pairs(tmp_path / "pairs.tar", tmp_path / "from-tar")
    store = PairStore.open(tmp_path / "from-tar")
    assert [(pair.id, pair.reference, pair.target) for pair in store] == [
        (f"{i:03d}", *pair) for i, pair in enumerate(pairs)
    ]
    assert store[2].caption == "a cat, number 2"
    (tmp_path / "table").mkdir()
    rows = []
    for i, pair in enumerate(pairs):
        names = [f"{i}-{k}.png" for k in range(2)]
        for name, data in zip(names, pair, strict=True):
            (tmp_path / "table" / name).write_bytes(data)
        rows.append({"images": [{"path": name} for name in names], "text": [f"cat {i}", "x"]})
    (tmp_path / "table" / "pairs.json").write_text(json.dumps(rows, indent=1))
    settings = ImportSettings(
        reference_column="images.0", target_column="images.1", caption_column="text.0"
    )
    import_pairs(tmp_path / "table", tmp_path / "from-list", settings)
    store = PairStore.open(tmp_path / "from-list")
    assert [(pair.reference, pair.target) for pair in store] == pairs
    assert store[1].caption == "cat 1"
    wrong = ImportSettings(reference_column="pictures.0", target_column="images.1")
    with pytest.raises(UserError, match=r"no column 'pictures\.0'"):
        import_pairs(tmp_path / "table", tmp_path / "wrong", wrong)


def test_a_split_of_a_dataset_in_the_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    repository = tmp_path / "hub" / "datasets--someone--cats"
    snapshot = repository / "snapshots" / "c0ffee"
    (repository / "blobs").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("c0ffee")
    for number, split in enumerate(("train", "test")):
        rows = write_table(tmp_path / split, 2 + number)
        for row in rows:
            row["reference_file_name"] = row.pop("reference")
            row["target_file_name"] = row.pop("target")
        (tmp_path / split / "pairs.jsonl").unlink()
        write_rows(tmp_path / split / "metadata.jsonl", rows)
        (snapshot / split).mkdir(parents=True)
        for path in (tmp_path / split).iterdir():  # the cache holds links to its blobs
            blob = repository / "blobs" / f"{split}-{path.name}"
            path.rename(blob)
            (snapshot / split / path.name).symlink_to(Path("..", "..", "..", "blobs", blob.name))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(UserError, match="holds the splits test, train; choose one"):
        import_pairs("someone/cats", tmp_path / "pairs")
    done = import_pairs("someone/cats", tmp_path / "pairs", ImportSettings(split="test"))
    assert (done.pairs, done.rejected) == (3, 0)
    with pytest.raises(UserError, match="no folder someone/dogs, it is not in the hub cache"):
        import_pairs("someone/dogs", tmp_path / "dogs")


def test_parquet_of_the_hub(tmp_path: Path):
    (tmp_path / "source" / "data").mkdir(parents=True)
    names = ["train-00000-of-00002", "train-00001-of-00002"]
    for part, name in enumerate(names):
        numbers = [part * 10 + i for i in range(10)]
        write_parquet(
            tmp_path / "source" / "data" / f"{name}.parquet",
            conditioning=[{"bytes": image_bytes(2 * i), "path": "x.png"} for i in numbers],
            image=[image_bytes(2 * i + 1, 32, 48) if i != 3 else None for i in numbers],
            caption=[f"caption {i}" for i in numbers],
            score=[i % 5 for i in numbers],
        )
    settings = ImportSettings(
        reference_column="conditioning",
        target_column="image",
        where=("score>=1",),
        provenance_columns=("score",),
        task="relight",
    )
    done = import_pairs(tmp_path / "source", tmp_path / "pairs", settings)
    assert (done.pairs, done.rejected) == (15, 5)
    store = PairStore.open(tmp_path / "pairs")
    assert store[0].caption == "caption 1"
    assert store[0].reference == image_bytes(2)
    assert store[0].target == image_bytes(3, 32, 48)
    assert store[0].task == "relight"
    assert store[-1 + len(store)].provenance == {
        "file": f"{names[1]}.parquet",
        "row": 10,
        "score": 4,
    }
    reasons = [line["reason"] for line in rejected(tmp_path / "pairs")]
    assert reasons[0] == "left out: score>=1 does not hold, score is 0"
    assert reasons[1] == "column image holds no image"


def test_no_usable_row_is_an_error_that_says_where_the_reasons_are(tmp_path: Path):
    rows = write_table(tmp_path / "source", 2)
    write_rows(tmp_path / "source" / "pairs.jsonl", [row | {"target": "x.png"} for row in rows])
    with pytest.raises(UserError, match=r"nothing to store: 2 rows .*rejected\.jsonl says why"):
        import_pairs(tmp_path / "source", tmp_path / "pairs")
    assert [path.name for path in (tmp_path / "pairs").iterdir()] == ["rejected.jsonl"]
    write_rows(tmp_path / "source" / "pairs.jsonl", rows)
    assert import_pairs(tmp_path / "source", tmp_path / "pairs").rejected == 0


def test_sources_that_are_none(tmp_path: Path):
    def refused(path: Path, message: str) -> None:
        with pytest.raises(UserError, match=message):
            import_pairs(path, tmp_path / "pairs")

    refused(tmp_path / "nowhere", "there is no file or folder")
    refused(tmp_path, r"holds no file that ends in \.jsonl, .*\.parquet, \.arrow or \.tar")
    for name in ("a.jsonl", "b.csv"):
        (tmp_path / name).write_text("")
    refused(tmp_path, r"more than one table \(a\.jsonl, b\.csv\); give the path of one")
    refused(tmp_path / "a.jsonl", "has no rows: expected one JSON object a line")
    refused(tmp_path / "b.csv", "has no header line")
    (tmp_path / "c.txt").write_text("x")
    refused(tmp_path / "c.txt", r"must end in \.jsonl, .* or \.tar, which tells its format")
    (tmp_path / "b.csv").write_bytes(b"reference,targ\xe9t,caption\na,b,c\n")
    refused(tmp_path / "b.csv", "line 1 of .* is not UTF-8; save the file as UTF-8")
    (tmp_path / "b.csv").write_bytes(b"target,target,caption\na,b,c\n")
    refused(tmp_path / "b.csv", "several columns named 'target'; give each its own name")
    (tmp_path / "b.csv").write_text("reference,target,caption\n", encoding="utf-16")
    refused(tmp_path / "b.csv", "is UTF-16 text; save it as UTF-8")
    write_parquet(tmp_path / "d.parquet", reference=["a"], target=["b"], caption=["c"])
    os.truncate(tmp_path / "d.parquet", 100)
    refused(tmp_path / "d.parquet", "is not a readable Parquet file: it is cut off or damaged")


def test_another_import_into_the_folder_is_refused(tmp_path: Path):
    write_table(tmp_path / "source", 3)
    import_pairs(tmp_path / "source", tmp_path / "pairs")
    with pytest.raises(UserError, match="a finished dataset of another source or other settings"):
        import_pairs(tmp_path / "source", tmp_path / "pairs", ImportSettings(task="depth"))
    again = import_pairs(tmp_path / "source", tmp_path / "pairs")
    assert (again.pairs, again.before) == (3, 3)


# The command line, which waits to be killed before it would finish, however late that is.
NEVER_FINISHED = """
import sys, time
from dsd_jax import cli
from dsd_jax.data.pairs.writer import PairWriter
PairWriter._finish = lambda writer: time.sleep(600)
cli.main(sys.argv[1:])
"""


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_killed_import_goes_on_and_ends_with_the_same_bytes(tmp_path: Path, kind: str):
    source = tmp_path / "source"
    rows: list[Any] = [dict(row) for row in write_table(source, 60)]
    for bad in (5, 31, 59):
        rows[bad]["target"] = "gone.png"
    write_rows(source / "pairs.jsonl", rows)
    if kind == "parquet":
        (source / "pairs.jsonl").unlink()
        for part in range(3):
            own = rows[20 * part : 20 * part + 20]
            columns = {name: [row[name] for row in own] for name in own[0]}
            write_parquet(source / f"part-{part}.parquet", **columns)
    target = tmp_path / "killed"
    words = ["data", "import", str(source), str(target), "--shard_bytes", "20000", "--workers", "1"]
    command = [sys.executable, "-c", NEVER_FINISHED, *words]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            if len(list(target.glob("*.index"))) >= 3:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.001)
    assert process.returncode == -signal.SIGKILL
    assert not (target / "dataset.json").exists()
    settings = ImportSettings(shard_bytes=20_000)
    assert import_pairs(source, target, settings).before > 0
    assert import_pairs(source, tmp_path / "straight", settings).before == 0
    straight, killed = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("straight", "killed")
    )
    assert killed == straight
    assert [line["id"] for line in rejected(tmp_path / "killed")] == ["row-5", "row-31", "row-59"]


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = write_table(tmp_path / "source", 3)
    write_rows(tmp_path / "source" / "pairs.jsonl", [*rows, {}])
    source, target = str(tmp_path / "source"), str(tmp_path / "pairs")
    assert cli.main(["data", "import", source, target, "--caption-column", "captoin"]) == 2
    assert "no column 'captoin'; did you mean 'caption'?" in capsys.readouterr().err
    assert cli.main(["data", "import", source, target, "--task", "depth"]) == 0
    out = capsys.readouterr().out
    assert f"3 pairs in {target}; 1 rows rejected" in out
    assert f"{target}/rejected.jsonl says why" in out
    assert cli.main(["data", "stats", target]) == 0
    assert re.search(r"depth +3 +100\.0 %", capsys.readouterr().out)
    assert cli.main(["data", "verify", target]) == 0
    assert "is complete and undamaged" in capsys.readouterr().out
    index = next((tmp_path / "pairs").glob("*.index"))
    index.write_bytes(index.read_bytes() + b"x")
    with pytest.raises(SystemExit, match="1"):
        cli.main(["data", "verify", target])
    assert f"the index {index} is damaged" in capsys.readouterr().out
