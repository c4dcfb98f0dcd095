"""Writing safetensors tensor by tensor, in shards like those of diffusers and transformers.

The shapes are given first, so every tensor's place is known before any of them exists: they may
arrive in any order and each is written at once. See `io.py` for the reasons and the format.
"""

import contextlib
import errno
import json
import math
import os
import shutil
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dsd_jax.convert.io import DTYPES
from dsd_jax.errors import UserError
from dsd_jax.files import partial_of, publish
from dsd_jax.types import Shape

__all__ = ["DIFFUSERS_STEM", "TRANSFORMERS_STEM", "Specs", "write_weights"]

Specs = Mapping[str, tuple[Shape, Any]]
"""Tensor name -> (shape, dtype), in the order that decides the shards."""

DIFFUSERS_STEM = "diffusion_pytorch_model"
TRANSFORMERS_STEM = "model"

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_MAX_TRANSFER = 1 << 30  # Linux moves at most 2 GiB - 4 KiB in one call


class _Slot(NamedTuple):
    """One tensor and its place: the file and the first byte."""

    file: int
    offset: int
    shape: Shape
    dtype: np.dtype[Any]


def write_weights(
    path: str | os.PathLike[str],
    specs: Specs,
    arrays: Iterable[tuple[str, np.ndarray]],
    *,
    stem: str = DIFFUSERS_STEM,
    max_shard_bytes: int = 10 * 10**9,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Writes tensors as safetensors and returns the files made, the index (if any) last.

    Everything is written under temporary names beside its destination and renamed at the end;
    after any error the temporary files are gone and what was there before is untouched.

    Args:
        path: a file name ending in `.safetensors`, for one file whatever its size; else a folder,
            made if missing, for `stem.safetensors` or shards `stem-00001-of-0000N.safetensors`
            with their index.
        specs: every tensor to write, with its shape and dtype.
        arrays: exactly these tensors, once each, in any order.
        stem: file name in a folder; diffusers and transformers each look for their own.
        max_shard_bytes: largest shard; the default is that of diffusers.
        metadata: strings for the header, beside the `format` that transformers insists on.
        overwrite: replace weights of this name that are already there.

    Raises:
        UserError: weights are already there, the disk is too full, or the place is not writable.
        ValueError: `arrays` does not match `specs`.
    """
    path = Path(path)
    dtypes = {name: np.dtype(dtype) for name, (_, dtype) in specs.items()}
    sizes = {name: math.prod(spec[0]) * dtypes[name].itemsize for name, spec in specs.items()}
    if path.suffix == ".safetensors":
        shards, targets = [list(specs)], [path]
        present = [path] if path.exists() else []
    else:
        shards = _split(sizes, max_shard_bytes)
        targets = _shard_paths(path, stem, len(shards))
        present = sorted([*path.glob(f"{stem}.safetensors*"), *path.glob(f"{stem}-*.safetensors")])
    if present and not overwrite:
        raise UserError(f"{present[0]} exists already; give another output or overwrite it")

    slots: dict[str, _Slot] = {}
    headers: list[bytes] = []
    for number, shard in enumerate(shards):
        # Wide dtypes first keeps every tensor aligned, which memory-mapping readers rely on.
        order = sorted(shard, key=lambda name: -dtypes[name].itemsize)
        headers.append(_header({n: (specs[n][0], dtypes[n]) for n in order}, metadata or {}))
        offset = len(headers[-1])
        for name in order:
            slots[name] = _Slot(number, offset, tuple(specs[name][0]), dtypes[name])
            offset += sizes[name]
    index = [_index(shards, targets, sum(sizes.values()))] if len(shards) > 1 else []

    output = _Output(targets, sum(map(len, [*headers, *index])) + sum(sizes.values()))
    try:
        for number, text in enumerate(headers + index):
            output.write(number, text, 0)
        _write_arrays(output, slots, arrays)
        output.commit()
    except BaseException:
        output.discard()
        raise
    for stale in set(present) - set(targets):
        stale.unlink()
    return targets


def _write_arrays(
    output: "_Output", slots: dict[str, _Slot], arrays: Iterable[tuple[str, np.ndarray]]
) -> None:
    waiting = dict(slots)
    for name, array in arrays:
        if name not in waiting:
            raise ValueError(f"{name!r} was not announced, or came twice")
        slot = waiting.pop(name)
        if array.shape != slot.shape or array.dtype != slot.dtype:
            raise ValueError(
                f"{name!r} was announced as {slot.dtype}{list(slot.shape)}, "
                f"but is {array.dtype}{list(array.shape)}"
            )
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        output.write(slot.file, data.data, slot.offset)
    if waiting:
        first = next(iter(waiting))
        raise ValueError(f"{len(waiting)} announced tensors never came, {first!r} first")


def _split(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    """Greedy shards in the given order; a tensor above the limit gets one of its own."""
    shards: list[list[str]] = []
    shard: list[str] = []
    used = 0
    for name, size in sizes.items():
        if size > limit:
            shards.append([name])
            continue
        if used + size > limit:
            shards.append(shard)
            shard, used = [], 0
        shard.append(name)
        used += size
    return [*shards, shard] if shard or not shards else shards


def _shard_paths(folder: Path, stem: str, count: int) -> list[Path]:
    if count == 1:
        return [folder / f"{stem}.safetensors"]
    names = [f"{stem}-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    return [folder / name for name in [*names, f"{stem}.safetensors.index.json"]]


def _header(entries: Specs, metadata: Mapping[str, str]) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
    begin = 0
    for name, (shape, dtype) in entries.items():
        end = begin + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _index(shards: Sequence[Sequence[str]], targets: Sequence[Path], total: int) -> bytes:
    homes: dict[str, str] = {}
    for shard, target in zip(shards, targets, strict=False):
        homes |= dict.fromkeys(shard, target.name)
    index = {"metadata": {"total_size": total}, "weight_map": homes}
    return (json.dumps(index, indent=2, sort_keys=True) + "\n").encode()


class _Output:
    """Files of one folder under temporary names, until `commit` gives them their own."""

    def __init__(self, targets: Sequence[Path], nbytes: int) -> None:
        self._targets = targets
        self._nbytes = nbytes
        self._folder = targets[0].parent
        self._new_folders: list[Path] = []
        self._files: list[tuple[int, Path]] = []
        try:
            with self._explained():
                self._make_folder()
                if self._free() < nbytes:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                for target in targets:
                    partial = partial_of(target, shared=True)
                    fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
                    self._files.append((fd, partial))
        except BaseException:
            self.discard()
            raise

    def _make_folder(self) -> None:
        missing = [p for p in (self._folder, *self._folder.parents) if not p.exists()]
        for folder in reversed(missing):
            folder.mkdir()
            self._new_folders.append(folder)

    def _free(self) -> int:
        return shutil.disk_usage(next(p for p in self._targets[0].parents if p.exists())).free

    def write(self, number: int, data: bytes | memoryview, offset: int) -> None:
        view = memoryview(data)
        done = 0
        with self._explained():
            while done < len(view):
                part = view[done : done + _MAX_TRANSFER]
                done += os.pwrite(self._files[number][0], part, offset + done)

    def commit(self) -> None:
        with self._explained():
            for fd, _ in self._files:
                os.fsync(fd)  # all of them before the first rename, which cannot be undone
            for (_, partial), target in zip(self._files, self._targets, strict=True):
                publish(partial, target)
        while self._files:
            os.close(self._files.pop()[0])

    def discard(self) -> None:
        for fd, partial in self._files:
            os.close(fd)
            partial.unlink(missing_ok=True)
        for folder in reversed(self._new_folders):
            with contextlib.suppress(OSError):
                folder.rmdir()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise UserError(
                    f"no space left in {self._folder}: needs {_gigabytes(self._nbytes)}, has "
                    f"{_gigabytes(self._free())} free; make room or give another output"
                ) from None
            raise UserError(
                f"cannot write to {self._folder}: {error.strerror}; give another output"
            ) from None


def _gigabytes(nbytes: int) -> str:
    return f"{nbytes / 1e9:.2f} GB"
