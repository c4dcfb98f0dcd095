"""Reading safetensors, one tensor (or a few of its rows) at a time.

The safetensors library serves reads from a memory map, whose touched pages count as memory of the
process, and writes a file only from tensors that are all in memory. A FLUX transformer is 24 GB,
so both directions are done with plain `pread` here and `pwrite` in `writer.py`: memory never holds
more than the tensor at hand, and no torch is needed. The format is 8 bytes of little-endian header
length, a JSON header `{name: {dtype, shape, data_offsets}}`, then the tensors' bytes, no gaps.
"""

import dataclasses
import hashlib
import math
import os
import re
import struct
import threading
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import ml_dtypes
import numpy as np

from dsd_jax.errors import UserError
from dsd_jax.inside import OutsideError, open_inside, open_regular, read_inside
from dsd_jax.structured import Limits, MalformedError, parse_json
from dsd_jax.types import Shape

__all__ = ["DTYPES", "Fingerprint", "SafetensorsFile", "TensorInfo", "Weights", "open_weights"]

DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(kind)
    for name, kind in {
        "BOOL": np.bool_,
        "U8": np.uint8,
        "I8": np.int8,
        "U16": np.uint16,
        "I16": np.int16,
        "U32": np.uint32,
        "I32": np.int32,
        "U64": np.uint64,
        "I64": np.int64,
        "F8_E4M3": ml_dtypes.float8_e4m3fn,
        "F8_E5M2": ml_dtypes.float8_e5m2,
        "BF16": ml_dtypes.bfloat16,
        "F16": np.float16,
        "F32": np.float32,
        "F64": np.float64,
    }.items()
}
"""Every dtype of the format that is read and written here, by its name in the header."""

# Bounds of what a header may claim; FLUX.1 has 1,160 tensors and a header of 0.1 MB.
_HEADER = Limits(size=25_000_000, depth=8)
_MAX_TENSORS = 200_000
_MAX_NAME = 1_000
_MAX_FILE_NAME = 255  # bytes, the limit of file systems
_MAX_AXES = 8
_INDEX = Limits(size=50_000_000, depth=8)
_MAX_TRANSFER = 1 << 30  # Linux moves at most 2 GiB - 4 KiB in one call
_STEMS = ("diffusion_pytorch_model", "model")
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.safetensors$")
_INDEX_SUFFIX = ".safetensors.index.json"
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_AGAIN = "download the file again"


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """Place of a tensor: `offset` counts bytes from the start of its file."""

    shape: Shape
    dtype: np.dtype[Any]
    offset: int
    nbytes: int


class SafetensorsFile:
    """One safetensors file, opened for reading; its header is checked in full at once.

    Reads are independent of each other, so several threads may read at the same time.

    Args:
        path: the file.
        folder: the folder that it must lie in, links resolved; None if the user named the file
            itself.

    Raises:
        UserError: the file is missing, cut short, damaged, not safetensors, not a regular file, or
            outside of the folder.
    """

    def __init__(
        self, path: str | os.PathLike[str], folder: str | os.PathLike[str] | None = None
    ) -> None:
        self.path = Path(path)
        try:
            file = (
                open_regular(self.path)
                if folder is None
                else open_inside(Path(folder), self.path.name)
            )
        except OutsideError as error:
            raise UserError(f"{error}; give the path of the file that it leads to") from None
        except OSError as error:
            raise UserError(f"cannot open {self.path}: {error.strerror}; check the path") from None
        self._fd = file.fileno()
        self._closer = weakref.finalize(self, file.close)
        try:
            self.tensors, self.metadata = _parse_header(self.path, self._fd)
        except BaseException:
            self.close()
            raise

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        """The tensor, or the given range of its leading axis, as a fresh array."""
        info = self.tensors[name]
        shape, offset = info.shape, info.offset
        if rows is not None:
            start, stop, step = rows.indices(shape[0])
            if step != 1:
                raise ValueError(f"rows must have step 1, got {rows}")
            shape = (max(stop - start, 0), *shape[1:])
            offset += start * math.prod(shape[1:]) * info.dtype.itemsize
        array = np.empty(shape, info.dtype)
        if array.size:
            self._read_into(array.reshape(-1).view(np.uint8).data, offset)
        return array

    def _read_into(self, buffer: memoryview, offset: int) -> None:
        done = 0
        while done < len(buffer):
            part = buffer[done : done + _MAX_TRANSFER]
            count = os.preadv(self._fd, [part], offset + done)
            if count == 0:
                raise UserError(f"{self.path} became shorter while it was read; {_AGAIN}")
            done += count

    def close(self) -> None:
        self._closer()


def _parse_header(path: Path, fd: int) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Checks every entry of the header against the others and against the file's size."""
    size = os.fstat(fd).st_size
    start = os.pread(fd, 64, 0)
    if foreign := _foreign_format(start):
        raise _invalid(path, *foreign)
    if size < 8:
        raise _invalid(path, f"it has {size} bytes, too few for a header")
    (length,) = struct.unpack("<Q", start[:8])
    if length > _HEADER.size:
        raise _invalid(path, f"its first 8 bytes announce a header of {length} bytes")
    if 8 + length > size:
        raise _invalid(path, f"it ends after {size} bytes, inside its header of {length} bytes")
    header, metadata = _load_header(path, os.pread(fd, length, 8))
    tensors = {name: _parse_entry(path, name, 8 + length, e) for name, e in header.items()}
    for name, info in tensors.items():  # of an empty tensor, too: readers go over its rows
        if any(axis > size for axis in info.shape):
            raise _invalid(path, f"{name!r} has shape {list(info.shape)}, more than the file holds")
    position = 8 + length
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if info.offset != position:
            raise _invalid(path, f"{name!r} leaves a gap or overlaps the tensor before it")
        position += info.nbytes
    if size < position:
        raise _invalid(path, f"it is truncated, {size} bytes of {position}")
    if size > position:
        raise _invalid(path, f"it has {size - position} bytes after its last tensor")
    return tensors, {str(key): str(value) for key, value in metadata.items()}


def _load_header(path: Path, text: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """The entries of the tensors and the metadata, within bounds."""
    try:
        header = parse_json(text, str(path), dict, _HEADER)
    except MalformedError as error:
        raise _invalid(path, f"its header cannot be read ({error.reason})") from None
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise _invalid(path, "the __metadata__ of its header is not an object")
    if len(header) > _MAX_TENSORS:
        raise _invalid(path, f"its header names {len(header)} tensors, more than {_MAX_TENSORS}")
    if long := next((name for name in header if len(name) > _MAX_NAME), None):
        raise _invalid(path, f"a name in its header has {len(long)} characters")
    return header, metadata


def _parse_entry(path: Path, name: str, data: int, entry: Any) -> TensorInfo:
    """One tensor's entry; `data` is where the tensors begin in the file."""
    try:
        dtype_name, shape = entry["dtype"], tuple(entry["shape"])
        begin, end = entry["data_offsets"]
        natural = all(type(n) is int and n >= 0 for n in (*shape, begin, end))
        natural = natural and isinstance(dtype_name, str) and len(shape) <= _MAX_AXES
        natural = natural and all(n < 2**63 for n in (*shape, begin, end))
    except (TypeError, KeyError, ValueError):
        natural = False
    if not natural:
        raise _invalid(path, f"its entry for {name!r} is malformed")
    if dtype_name not in DTYPES:
        known = ", ".join(DTYPES)
        raise _invalid(path, f"{name!r} has dtype {dtype_name}", f"this program reads {known}")
    dtype = DTYPES[dtype_name]
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise _invalid(
            path, f"{name!r} has {end - begin} bytes, too many or too few for {list(shape)}"
        )
    return TensorInfo(shape, dtype, data + begin, end - begin)


def _invalid(path: Path, found: str, advice: str = _AGAIN) -> UserError:
    return UserError(f"{path} is not a valid safetensors file: {found}; {advice}")


def _foreign_format(start: bytes) -> tuple[str, str] | None:
    """(what was found, what to do) when the first bytes belong to another well-known format."""
    if start[:4] == b"PK\x03\x04" or (start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05"):
        return "it is a pickle, which can run code when it is read", _CONVERT_ADVICE
    if start[:4] == b"GGUF":
        return "it is a quantised GGUF file", "give the original safetensors weights"
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, not the weights", "run `git lfs pull` in its repository"
    return None


_CONVERT_ADVICE = "convert it with safetensors.torch.save_file, or download the safetensors version"


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """SHA-256 of each source file, by file name."""

    files: dict[str, str]

    @property
    def combined(self) -> str:
        """One SHA-256 for all: that of the lines `<hex>  <file name>`, sorted by file name."""
        lines = (f"{digest}  {name}\n" for name, digest in sorted(self.files.items()))
        return hashlib.sha256("".join(lines).encode()).hexdigest()


class Weights:
    """The tensors of one model, over one or several safetensors files. Made by `open_weights`.

    Attributes:
        files: the safetensors files, in order.
        tensors: name -> TensorInfo, in the order of the files and of the bytes within each.
        metadata: the files' metadata, merged.
    """

    def __init__(self, shards: Iterable[SafetensorsFile], *, fingerprint: bool = False) -> None:
        self._shards = tuple(shards)
        self.files = tuple(shard.path for shard in self._shards)
        self.tensors: dict[str, TensorInfo] = {}
        self.metadata: dict[str, str] = {}
        self._home: dict[str, SafetensorsFile] = {}
        for shard in self._shards:
            for name in sorted(shard.tensors, key=lambda name: shard.tensors[name].offset):
                self._home[name] = shard
                self.tensors[name] = shard.tensors[name]
            self.metadata |= shard.metadata
        self._hashing: threading.Thread | None = None
        self._digests: dict[str, str] = {}
        self._hashing_error: OSError | None = None
        if fingerprint:
            self._start_hashing()

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        """The tensor, or the given range of its leading axis, as a fresh array."""
        return self._home[name].read(name, rows)

    def fingerprint(self) -> Fingerprint:
        """SHA-256 of every file; waits for the background thread that computes it."""
        thread = self._hashing or self._start_hashing()
        thread.join()
        if self._hashing_error is not None:
            raise self._hashing_error
        return Fingerprint(dict(self._digests))

    def _start_hashing(self) -> threading.Thread:
        # A daemon, so that a program that fails elsewhere does not wait for 24 GB to be hashed.
        self._hashing = threading.Thread(target=self._hash, name="sha256", daemon=True)
        self._hashing.start()
        return self._hashing

    def _hash(self) -> None:
        try:
            for path in self.files:
                with path.open("rb") as file:
                    self._digests[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            self._hashing_error = error

    def close(self) -> None:
        for shard in self._shards:
            shard.close()

    def __enter__(self) -> "Weights":  # noqa: PYI034 -- checked at run time in tests, Self cannot be
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def open_weights(
    path: str | os.PathLike[str], *, usual: Sequence[str] = (), fingerprint: bool = False
) -> Weights:
    """Opens a safetensors file, a shard index, or a folder that holds one of either.

    In a folder, `diffusion_pytorch_model` and `model` (the names of diffusers and transformers)
    come before other names, such as the `.fp16` variant beside them.

    Args:
        path: file or folder.
        usual: names that come before these, in a folder.
        fingerprint: start hashing the files in the background at once.

    Raises:
        UserError: nothing to read there, more than one candidate, shards that disagree with their
            index, pickled weights, or a damaged file.
    """
    path = Path(path)
    folder = path if path.is_dir() else None
    if folder is not None:
        path = _pick(folder, usual)
    elif not path.exists():
        raise UserError(f"{path} does not exist; give a folder with safetensors weights, or a file")
    if path.suffix in _PICKLE_SUFFIXES:
        raise UserError(
            f"{path} holds pickled weights, which can run code when read; {_CONVERT_ADVICE}"
        )
    shards = _open_sharded(path) if path.suffix == ".json" else [SafetensorsFile(path, folder)]
    return Weights(shards, fingerprint=fingerprint)


def _pick(folder: Path, usual: Sequence[str]) -> Path:
    """The one weight file (or index) of a folder."""
    files = sorted(entry for entry in folder.iterdir() if entry.is_file())
    if found := [f for name in usual for f in files if f.name == name]:
        return found[0]
    single = [f for f in files if f.suffix == ".safetensors" and not _SHARD.search(f.name)]
    indices = [f for f in files if ".safetensors.index." in f.name and f.suffix == ".json"]
    candidates = single + indices
    for stem in _STEMS:
        names = (f"{stem}.safetensors", stem + _INDEX_SUFFIX)
        standard = [f for f in candidates if f.name in names]
        if standard:
            candidates = standard
            break
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        held = ", ".join(f.name for f in candidates)
        raise UserError(f"{folder} holds several weight files: {held}; give the path of one")
    if shards := [f.name for f in files if _SHARD.search(f.name)]:
        raise UserError(
            f"{folder} holds shards such as {shards[0]} but no {_INDEX_SUFFIX[1:]}; download it too"
        )
    if pickles := [f.name for f in files if f.suffix in _PICKLE_SUFFIXES]:
        raise UserError(
            f"{folder} holds only pickled weights ({pickles[0]}), which can run code when read; "
            f"{_CONVERT_ADVICE}"
        )
    inside = sorted({f.parent.name for f in folder.glob("*/*.safetensors")})
    hint = f"did you mean its folder {' or '.join(inside)}?" if inside else "check the path"
    raise UserError(f"{folder} holds no safetensors weights; {hint}")


def _read_index(index: Path) -> dict[str, str]:
    """Tensor name -> file name."""
    try:
        text = read_inside(index.parent, index.name, _INDEX.size)
        weight_map = parse_json(text, str(index), dict, _INDEX).get("weight_map")
    except OSError as error:
        raise UserError(f"cannot open {index}: {error.strerror}; check the path") from None
    except MalformedError as error:
        raise UserError(f"{error}; {_AGAIN}") from None
    if not isinstance(weight_map, dict) or not all(isinstance(f, str) for f in weight_map.values()):
        raise UserError(f"{index} is not a shard index (a JSON weight_map); {_AGAIN}")
    return weight_map


def _open_sharded(index: Path) -> list[SafetensorsFile]:
    homes = _read_index(index)
    names = sorted(set(homes.values()))
    if any(Path(name).name != name or not name.endswith(".safetensors") for name in names):
        raise UserError(f"{index} names shards outside its folder; {_AGAIN}")
    if long := next((name for name in names if len(name.encode()) > _MAX_FILE_NAME), None):
        raise UserError(f"{index} names a file by {len(long)} characters; {_AGAIN}")
    if missing := [name for name in names if not (index.parent / name).exists()]:
        raise UserError(
            f"{index} lists {len(names)} shards, but {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not in the folder; download what is missing"
        )
    if not names:
        raise UserError(f"{index} lists no tensors; {_AGAIN}")
    listed_in: dict[str, set[str]] = {name: set() for name in names}
    for name, file in homes.items():
        listed_in[file].add(name)
    shards: list[SafetensorsFile] = []
    try:
        shards.extend(SafetensorsFile(index.parent / name, index.parent) for name in names)
        for shard in shards:
            listed = listed_in[shard.path.name]
            for odd, what in (
                (listed - shard.tensors.keys(), "is in the index but not in the shard"),
                (shard.tensors.keys() - listed, "is in the shard but not listed for it"),
            ):
                if odd:
                    raise UserError(
                        f"{index.name} and {shard.path} disagree: {min(odd)!r} {what} "
                        f"({len(odd)} such tensors); download the folder again"
                    )
    except BaseException:
        for shard in shards:
            shard.close()
        raise
    return shards
