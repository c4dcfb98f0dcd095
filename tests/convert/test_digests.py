"""Converted weights carry digests: damage is named and never used, and caches bind to the bytes."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from dsd_jax.convert.jobs import to_jax, to_torch
from dsd_jax.convert.open import open_component
from dsd_jax.convert.origin import write_origin
from dsd_jax.errors import UserError
from dsd_jax.toy.making.random_pipeline import SMALL, random_tensors, write_model


@pytest.fixture
def converted(tmp_path: Path) -> Path:
    write_model(tmp_path / "vae", SMALL.vae, random_tensors(SMALL.vae, 0))
    to_jax(tmp_path / "vae", tmp_path / "jax")
    return tmp_path / "jax"


def read_all(folder: Path) -> dict[str, np.ndarray]:
    source = open_component(folder).source
    return {
        path: source.read(path, tuple(slice(0, size) for size in shape))
        for path, shape in source.shapes.items()
    }


def test_every_tensor_has_a_digest_of_its_bytes(converted: Path) -> None:
    record = json.loads((converted / "source.json").read_text())
    for path, tensor in read_all(converted).items():
        assert record["tensors"][path] == hashlib.sha256(tensor.tobytes()).hexdigest()


def test_slices_are_checked_and_stay_slices(converted: Path) -> None:
    source, whole = open_component(converted).source, read_all(converted)
    path = "encoder.conv_in.kernel"
    for _ in range(2):
        part = source.read(path, (slice(1, 2), slice(0, 2)))
        np.testing.assert_array_equal(part, whole[path][1:2, 0:2])


def files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


# Orbax leaves tasks behind that end with the same error.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("place", ["start", "middle", "end"])
def test_no_flipped_bit_is_ever_read(converted: Path, place: str) -> None:
    """Flips bits in every file: tensors, tree and manifest of OCDBT, config, and the digests."""
    before = read_all(converted)
    named = set()
    for path in files(converted):
        data = path.read_bytes()
        if not data:
            continue
        at = {"start": 0, "middle": len(data) // 2, "end": len(data) - 1}[place]
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        try:
            after = read_all(converted)
        except UserError:
            named.add(path.name)
        else:  # a byte that says nothing about the numbers
            assert before.keys() == after.keys()
            assert all(np.array_equal(before[name], after[name]) for name in before)
        path.write_bytes(data)
    assert len(named) >= 5
    assert {"source.json", "config.json"} <= named


def test_a_missing_file_is_named(converted: Path) -> None:
    manifest = next(path for path in files(converted) if path.name == "manifest.ocdbt")
    manifest.unlink()
    with pytest.raises(UserError, match=r"jax/params is damaged: its index cannot be read"):
        read_all(converted)


def test_a_cast_has_another_identity(converted: Path, tmp_path: Path) -> None:
    to_jax(tmp_path / "vae", tmp_path / "half", dtype="bfloat16")
    to_jax(tmp_path / "vae", tmp_path / "same", dtype="float32")
    plain, half, same = (
        open_component(tmp_path / name).sha256() for name in ("jax", "half", "same")
    )
    assert plain == same == open_component(tmp_path / "vae", fingerprint=True).sha256()
    assert half.keys() == {"params"}
    record = json.loads((tmp_path / "half" / "source.json").read_text())
    assert record["converted_from"] == plain
    to_torch(tmp_path / "half", tmp_path / "torch")


def change(folder: Path, **changes: object) -> None:
    """Writes another record, with the digest that belongs to it."""
    record = json.loads((folder / "source.json").read_text()) | changes
    write_origin(epath.Path(folder), record, json.loads((folder / "config.json").read_text()))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"tensors": [1]}, r"source.json: `tensors`: input should be a valid dictionary"),
        ({"tensors": {}}, r"its digests do not name the same parameters, such as decoder.conv_in"),
        ({"sha256": {"a": 1}}, r"source.json: `sha256.a`: input should be a valid string"),
    ],
)
def test_a_record_of_another_form_is_named(
    converted: Path, record: dict[str, object], message: str
) -> None:
    change(converted, **record)
    with pytest.raises(UserError, match=message):
        open_component(converted)


def test_a_missing_record_is_named(converted: Path) -> None:
    (converted / "source.json").unlink()
    with pytest.raises(UserError, match=r"is not a finished conversion: it has no source.json"):
        open_component(converted)
