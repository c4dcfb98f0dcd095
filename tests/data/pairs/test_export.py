"""Exports open in the `datasets` library, and come back as the same records."""

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from dsd_jax import cli
from dsd_jax.data.pairs.export import Licence, export_pairs
from dsd_jax.data.pairs.importer import import_pairs
from dsd_jax.data.pairs.reader import ImportSettings
from dsd_jax.data.pairs.store import PairStore
from dsd_jax.errors import UserError
from dsd_jax.images import open_image
from tests.tiny_pairs import SHARD_BYTES, write_pairs, write_rows, write_table

COUNT = 12


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> PairStore:
    path = tmp_path_factory.mktemp("export") / "pairs"
    return write_pairs(path, COUNT, shapes=((32, 32), (32, 48)), tasks=("identity", "relight"))


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`load_dataset` without a network and with a cache of its own."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    import datasets  # reads HF_HOME when it is loaded

    datasets.disable_progress_bars()
    return lambda path: datasets.load_dataset(
        str(path), split="train", cache_dir=str(tmp_path / "cache")
    )


@pytest.mark.parametrize("kind", ["parquet", "folder"])
def test_load_dataset_opens_an_export(store: PairStore, tmp_path: Path, load: Any, kind: Any):
    export_pairs(store, tmp_path / "out", kind, Licence("apache-2.0"))
    loaded = load(tmp_path / "out")
    assert len(loaded) == COUNT
    features = {name: type(feature).__name__ for name, feature in loaded.features.items()}
    texts = dict.fromkeys(
        ("id", "caption", "instruction", "subject", "task", "provenance"), "Value"
    )
    assert features == {"reference": "Image", "target": "Image", **texts}
    for row, record in zip(loaded, store, strict=True):
        for name in ("id", "caption", "instruction", "subject", "task"):
            assert row[name] == getattr(record, name)
        assert json.loads(row["provenance"]) == record.provenance
        for role in ("reference", "target"):
            expected = np.asarray(open_image(getattr(record, role)))
            np.testing.assert_array_equal(np.asarray(row[role]), expected)


def test_a_parquet_file_alone_tells_what_its_columns_are(store: PairStore, tmp_path: Path):
    """`load_dataset("parquet", data_files=...)` sees the file without the card beside it."""
    export_pairs(store, tmp_path / "out", "parquet", Licence())
    file = min((tmp_path / "out" / "data").iterdir())
    parquet: Any = importlib.import_module("pyarrow.parquet")  # what `datasets` reads it by
    told = json.loads(parquet.read_schema(file).metadata[b"huggingface"])
    features = told["info"]["features"]
    assert features["reference"] == features["target"] == {"_type": "Image"}


@pytest.mark.parametrize("kind", ["parquet", "folder"])
def test_an_export_comes_back_as_the_same_records(store: PairStore, tmp_path: Path, kind: Any):
    export_pairs(store, tmp_path / "out", kind, Licence())
    done = import_pairs(
        tmp_path / "out", tmp_path / "back", ImportSettings(shard_bytes=SHARD_BYTES)
    )
    assert (done.pairs, done.rejected) == (COUNT, 0)
    back = PairStore.open(tmp_path / "back")
    assert list(back) == list(store)
    assert back.fingerprint == store.fingerprint


def test_the_card_says_what_the_hub_asks_for(store: PairStore, tmp_path: Path):
    licence = Licence("other", "flux-1-dev-non-commercial-license", "https://example.org/LICENSE")
    export_pairs(store, tmp_path / "out", "parquet", licence)
    _, head, body = (tmp_path / "out" / "README.md").read_text().split("---\n", 2)
    fields = yaml.safe_load(head)
    assert fields["license"] == "other"
    assert fields["license_name"] == "flux-1-dev-non-commercial-license"
    assert fields["configs"][0]["data_files"] == [{"split": "train", "path": "data/train-*"}]
    assert fields["dataset_info"]["splits"][0]["num_examples"] == COUNT
    assert fields["size_categories"] == ["n<1K"]
    assert "| relight | 6 |" in body
    assert store.fingerprint in body
    assert "(https://example.org/LICENSE)" in body
    assert str(tmp_path) not in head + body


@pytest.mark.parametrize("kind", ["parquet", "folder"])
def test_an_interrupted_export_goes_on(
    store: PairStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Any
):
    export_pairs(store, tmp_path / "whole", kind, Licence())
    read = PairStore.__getitem__

    def pulled(self: PairStore, number: int) -> Any:
        if number == 7:
            raise RuntimeError("pulled the plug")
        return read(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(PairStore, "__getitem__", pulled)
        with pytest.raises(RuntimeError, match="pulled"):
            export_pairs(store, tmp_path / "out", kind, Licence())
    other: Any = "folder" if kind == "parquet" else "parquet"
    with pytest.raises(UserError, match="an unfinished export of another dataset or in another"):
        export_pairs(store, tmp_path / "out", other, Licence())
    export_pairs(store, tmp_path / "out", kind, Licence())
    whole, again = (
        {
            path.relative_to(tmp_path / name): path.read_bytes()
            for path in (tmp_path / name).rglob("*")
            if path.is_file()
        }
        for name in ("whole", "out")
    )
    assert whole == again


def test_what_cannot_be_exported_is_refused(store: PairStore, tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="holds other files; choose a new folder"):
        export_pairs(store, tmp_path, "parquet", Licence())
    with pytest.raises(UserError, match="the licence 'Apache 2' must be an identifier of the hub"):
        Licence("Apache 2")
    with pytest.raises(UserError, match="the licence `other` needs --license_name"):
        Licence("other")


def test_the_command(store: PairStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["data", "export", str(store.path), str(tmp_path / "out"), "--format", "folder"]
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert f"12 pairs in {tmp_path / 'out'}" in said
    assert "the card says `license: unknown`; name one with --license before you share it" in said


def test_what_is_shared_names_no_folder_of_the_machine(tmp_path: Path):
    folder = tmp_path / "bluebeards-chamber"
    rows: list[dict[str, str]] = write_table(folder / "source", 4)
    rows[0]["reference"] = str(folder / "source" / "reference-0.png")
    rows[1]["target"] = str(folder / "source" / "gone.png")
    rows[2]["target"] = str(folder / "elsewhere.png")
    write_rows(folder / "source" / "pairs.jsonl", rows)
    assert import_pairs(folder / "source", folder / "pairs").rejected == 2
    export_pairs(PairStore.open(folder / "pairs"), folder / "out", "folder", Licence("mit"))
    assert cli.main(["data", "view", str(folder / "pairs")]) == 0
    files = [path for path in folder.rglob("*") if path.is_file() and "source" not in path.parts]
    assert {"pairs.html", "rejected.jsonl", "README.md", "dataset.json"} <= {p.name for p in files}
    assert [path.name for path in files if b"bluebeard" in path.read_bytes()] == []
