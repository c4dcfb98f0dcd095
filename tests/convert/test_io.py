"""Reading and writing safetensors: equal to the library's, and every bad file gets its message."""

import errno
import hashlib
import json
import os
import pickle
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from huggingface_hub import split_state_dict_into_shards_factory

from dsd_jax.convert import writer
from dsd_jax.convert.io import SafetensorsFile, open_weights
from dsd_jax.convert.writer import write_weights
from dsd_jax.errors import UserError

DTYPES = (np.float32, np.float16, ml_dtypes.bfloat16, np.float64, np.int64, np.uint8, np.bool_)


def random_tensors(count: int = 7, seed: int = 0) -> dict[str, np.ndarray]:
    """Random bits in every dtype: NaN payloads and negative zeros included."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for k in range(count):
        dtype = np.dtype(DTYPES[k % len(DTYPES)])
        shape = (int(rng.integers(2, 9)), int(rng.integers(1, 5)))
        bits = rng.integers(0, 256, (*shape, dtype.itemsize), dtype=np.uint8)
        if dtype == np.bool_:
            bits &= 1
        tensors[f"block.{k}.weight"] = bits.view(dtype)[..., 0]
    return tensors


def specs_of(tensors: dict[str, np.ndarray]) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def write_raw(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


# Reading


def test_reads_what_the_library_wrote(tmp_path: Path) -> None:
    tensors = random_tensors()
    tensors |= {"scalar": np.array(2.5, np.float32), "empty": np.zeros((0, 3), np.float16)}
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors", {"origin": "library"})
    with open_weights(tmp_path / "model.safetensors") as weights:
        assert set(weights.tensors) == set(tensors)
        assert weights.metadata == {"origin": "library"}
        for name, tensor in tensors.items():
            assert same_bits(weights.read(name), tensor)


def test_reads_only_the_rows_asked_for(tmp_path: Path) -> None:
    table = np.random.default_rng(1).standard_normal((50, 4)).astype(np.float32)
    safetensors.numpy.save_file({"other": table[:3], "table": table}, tmp_path / "a.safetensors")
    file = SafetensorsFile(tmp_path / "a.safetensors")
    assert same_bits(file.read("table", slice(7, 11)), table[7:11])
    assert same_bits(file.read("table", slice(48, 99)), table[48:])
    assert file.read("table", slice(5, 5)).shape == (0, 4)
    file.close()


def test_fingerprint_is_sha256_of_each_file(tmp_path: Path) -> None:
    tensors = random_tensors()
    files = write_weights(tmp_path, specs_of(tensors), tensors.items(), max_shard_bytes=150)
    with open_weights(tmp_path, fingerprint=True) as weights:
        fingerprint = weights.fingerprint()
    expected = {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files[:-1]}
    assert fingerprint.files == expected
    with open_weights(tmp_path) as weights:
        assert weights.fingerprint().combined == fingerprint.combined
    (tmp_path / files[0].name).write_bytes(files[0].read_bytes()[:-1] + b"\x07")
    with open_weights(tmp_path) as weights:
        assert weights.fingerprint().combined != fingerprint.combined


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def _append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"more")


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (_truncate, r"truncated, \d+ bytes of \d+; download the file again"),
    "appended": (_append, "4 bytes after its last tensor"),
    "empty": (lambda p: p.write_bytes(b""), "has 0 bytes, too few"),
    "cut header": (lambda p: p.write_bytes(p.read_bytes()[:40]), "inside its header"),
    "huge header": (
        lambda p: write_raw(p, {}, length=1 << 40),
        "announce a header of 1099511627776",
    ),
    "not JSON": (
        lambda p: write_raw(p, b"{oops"),
        r"header cannot be read \(not JSON at column 2: ",
    ),
    "not an object": (lambda p: write_raw(p, [1]), "expected an object, got an array"),
    "dtype": (
        lambda p: write_raw(p, {"w": entry([2], 0, 8, "F4")}, bytes(8)),
        "'w' has dtype F4; this program reads BOOL",
    ),
    "twice": (
        lambda p: write_raw(
            p,
            b'{"w":%b,"w":%b}' % ((json.dumps(entry([1], 0, 4)).encode(),) * 2),
            bytes(4),
        ),
        "the key 'w' is given twice",
    ),
    "size": (
        lambda p: write_raw(p, {"w": entry([3], 0, 8)}, bytes(8)),
        r"'w' has 8 bytes, too many or too few for \[3\]",
    ),
    "gap": (
        lambda p: write_raw(p, {"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, bytes(12)),
        "'b' leaves a gap or overlaps",
    ),
    "overlap": (
        lambda p: write_raw(p, {"a": entry([2], 0, 8), "b": entry([1], 4, 8)}, bytes(8)),
        "'b' leaves a gap or overlaps",
    ),
    "malformed": (lambda p: write_raw(p, {"w": {"shape": [1]}}), "entry for 'w' is malformed"),
    "negative": (lambda p: write_raw(p, {"w": entry([-1], 0, 4)}), "entry for 'w' is malformed"),
    "pickle": (lambda p: p.write_bytes(pickle.dumps({"w": 1})), "pickle.*convert it with"),
    "zip": (lambda p: p.write_bytes(b"PK\x03\x04" + bytes(60)), "pickle.*convert it with"),
    "gguf": (lambda p: p.write_bytes(b"GGUF" + bytes(60)), "quantised GGUF"),
    "lfs": (
        lambda p: p.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "Git LFS pointer.*git lfs pull",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_damaged_file(tmp_path: Path, case: str) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file({"w": np.ones((4, 5), np.float32)}, path)
    damage, message = BROKEN[case]
    damage(path)
    with pytest.raises(UserError, match=message) as error:
        open_weights(tmp_path)
    assert str(path) in str(error.value)


# Folders


def test_missing_folder_and_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"does not exist; give a folder"):
        open_weights(tmp_path / "absent")
    with pytest.raises(UserError, match=r"holds no safetensors weights; check the path"):
        open_weights(tmp_path)


def test_a_pipeline_folder_hints_at_its_parts(tmp_path: Path) -> None:
    (tmp_path / "transformer").mkdir()
    safetensors.numpy.save_file({"w": np.ones(2)}, tmp_path / "transformer" / "m.safetensors")
    with pytest.raises(UserError, match=r"did you mean its folder transformer\?"):
        open_weights(tmp_path)


def test_pickles_are_refused(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK\x03\x04")
    with pytest.raises(UserError, match=r"only pickled weights \(pytorch_model.bin\)"):
        open_weights(tmp_path)
    with pytest.raises(UserError, match=r"holds pickled weights, which can run code"):
        open_weights(tmp_path / "pytorch_model.bin")


def test_standard_names_come_before_variants(tmp_path: Path) -> None:
    for name, value in (("model", 1.0), ("model.fp16", 2.0), ("extra", 3.0)):
        safetensors.numpy.save_file({"w": np.full(2, value)}, tmp_path / f"{name}.safetensors")
    with open_weights(tmp_path) as weights:
        assert weights.read("w")[0] == 1.0
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"several weight files: extra.*, model.fp16.*give"):
        open_weights(tmp_path)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    tensors = random_tensors()
    write_weights(tmp_path, specs_of(tensors), tensors.items(), max_shard_bytes=150, stem="model")
    return tmp_path


def test_shard_index_disagreements(sharded: Path) -> None:
    index = sharded / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    first = min(set(content["weight_map"].values()))

    def rewrite(change: Callable[[dict[str, str]], object]) -> None:
        weight_map = dict(content["weight_map"])
        change(weight_map)
        index.write_text(json.dumps({"weight_map": weight_map}))

    rewrite(lambda m: m.update({"ghost": first}))
    with pytest.raises(UserError, match=r"'ghost' is in the index but not in the shard"):
        open_weights(sharded)
    rewrite(lambda m: m.pop("block.0.weight"))
    with pytest.raises(UserError, match=r"'block.0.weight' is in the shard but not listed for it"):
        open_weights(sharded)
    rewrite(lambda m: m.update({"w": "../elsewhere.safetensors"}))
    with pytest.raises(UserError, match=r"names shards outside its folder"):
        open_weights(sharded)
    rewrite(lambda m: m.clear())
    with pytest.raises(UserError, match=r"lists no tensors"):
        open_weights(sharded)
    index.write_text('{"weight_map": {"w": "a", "w": "b"}}')
    with pytest.raises(UserError, match=r"the key 'w' is given twice; download the file again"):
        open_weights(sharded)
    index.write_text("{}")
    with pytest.raises(UserError, match=r"is not a shard index"):
        open_weights(sharded)
    index.unlink()
    with pytest.raises(UserError, match=r"shards such as model-00001-of-.*download it too"):
        open_weights(sharded)


def test_missing_shard(sharded: Path) -> None:
    victim = min(sharded.glob("*-00002-of-*.safetensors"))
    victim.unlink()
    with pytest.raises(UserError, match=rf"{victim.name} is not in the folder; download what"):
        open_weights(sharded)


# Writing


def test_the_library_reads_what_is_written(tmp_path: Path) -> None:
    tensors = random_tensors()
    written = write_weights(tmp_path, specs_of(tensors), tensors.items(), metadata={"a": "b"})
    assert written == [tmp_path / "diffusion_pytorch_model.safetensors"]
    with safetensors.safe_open(written[0], "np") as file:
        assert file.metadata() == {"format": "pt", "a": "b"}
    for name, tensor in safetensors.numpy.load_file(written[0]).items():
        assert same_bits(tensor, tensors[name])
    header_length = struct.unpack("<Q", written[0].read_bytes()[:8])[0]
    assert header_length % 8 == 0


def test_tensors_may_arrive_in_any_order(tmp_path: Path) -> None:
    tensors = random_tensors()
    write_weights(tmp_path / "a.safetensors", specs_of(tensors), tensors.items())
    write_weights(tmp_path / "b.safetensors", specs_of(tensors), reversed(tensors.items()))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


@pytest.mark.parametrize("limit", [40, 100, 150, 400])
def test_shards_are_those_of_the_hub_library(tmp_path: Path, limit: int) -> None:
    tensors = random_tensors(20)
    expected = split_state_dict_into_shards_factory(
        tensors,
        get_storage_size=lambda tensor: tensor.nbytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=limit,
    )
    files = write_weights(
        tmp_path, specs_of(tensors), tensors.items(), stem="model", max_shard_bytes=limit
    )
    assert [file.name for file in files[:-1]] == list(expected.filename_to_tensors)
    assert json.loads(files[-1].read_text()) == {
        "metadata": {"total_size": sum(tensor.nbytes for tensor in tensors.values())},
        "weight_map": expected.tensor_to_filename,
    }
    with open_weights(tmp_path) as weights:
        assert all(same_bits(weights.read(name), tensor) for name, tensor in tensors.items())


def test_existing_weights_are_kept_unless_overwritten(tmp_path: Path) -> None:
    old, new = random_tensors(seed=1), random_tensors(seed=2)
    write_weights(tmp_path, specs_of(old), old.items(), max_shard_bytes=150)
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(UserError, match=r"exists already; give another output or overwrite"):
        write_weights(tmp_path, specs_of(new), new.items())
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before
    write_weights(tmp_path, specs_of(new), new.items(), overwrite=True)
    assert [file.name for file in tmp_path.iterdir()] == ["diffusion_pytorch_model.safetensors"]
    with open_weights(tmp_path) as weights:
        assert all(same_bits(weights.read(name), tensor) for name, tensor in new.items())


def test_a_failing_source_leaves_nothing(tmp_path: Path) -> None:
    tensors = random_tensors()

    def broken() -> Iterator[tuple[str, np.ndarray]]:
        yield from list(tensors.items())[:3]
        raise RuntimeError("the source failed")

    with pytest.raises(RuntimeError, match=r"the source failed"):
        write_weights(tmp_path / "new" / "folder", specs_of(tensors), broken())
    assert list(tmp_path.iterdir()) == []


def test_arrays_that_do_not_match_leave_nothing(tmp_path: Path) -> None:
    specs = {"a": ((2,), np.float32), "b": ((2,), np.float32)}
    right = ("a", np.ones(2, np.float32))
    for arrays, message in (
        ([right], "1 announced tensors never came, 'b' first"),
        ([right, right], "'a' was not announced, or came twice"),
        ([("a", np.ones(3, np.float32))], r"announced as float32\[2\], but is float32\[3\]"),
        ([("a", np.ones(2, np.float16))], r"announced as float32\[2\], but is float16\[2\]"),
    ):
        with pytest.raises(ValueError, match=message):
            write_weights(tmp_path, specs, arrays)
        assert list(tmp_path.iterdir()) == []


def test_full_disk_is_noticed_before_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        writer, "shutil", SimpleNamespace(disk_usage=lambda _: SimpleNamespace(free=10**9))
    )
    specs = {"w": ((10**9,), np.float32)}
    with pytest.raises(UserError, match=r"no space left in .*needs 4.00 GB, has 1.00 GB free"):
        write_weights(tmp_path / "out", specs, [])
    assert list(tmp_path.iterdir()) == []


def test_disk_that_fills_up_while_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = random_tensors()
    calls = []

    def pwrite(fd: int, data: memoryview, offset: int) -> int:
        calls.append(offset)
        if len(calls) > 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return len(data)

    monkeypatch.setattr(writer.os, "pwrite", pwrite)
    with pytest.raises(UserError, match=r"no space left in .*make room or give another output"):
        write_weights(tmp_path / "out", specs_of(tensors), tensors.items())
    assert len(calls) == 4
    assert list(tmp_path.iterdir()) == []


def test_unwritable_output(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    tensors = random_tensors()
    with pytest.raises(UserError, match=r"cannot write to .*Not a directory; give another output"):
        write_weights(tmp_path / "file" / "out", specs_of(tensors), tensors.items())
