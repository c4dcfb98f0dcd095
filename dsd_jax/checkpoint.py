"""Orbax checkpoints of model parameters: written as a stream, read by slices.

The tree has one leaf per parameter under its per-layer path, so that a checkpoint is independent of
mesh, scan setting and LoRA. Local paths and `gs://` buckets work alike.
"""

import contextlib
import hashlib
import logging
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
import tensorstore as ts
from etils import epath

from dsd_jax.errors import UserError
from dsd_jax.files import remove_tree
from dsd_jax.types import Shape
from dsd_jax.weights import Index

__all__ = ["OrbaxSource", "is_checkpoint", "nest", "save_params", "tensor_digest"]

# Bytes written at once, while the next ones are made; bounds the memory of a conversion.
BATCH_BYTES = 2**28
# Stored apart. Smaller chunks took three times as long to write, larger ones more memory.
CHUNK_BYTES = 2**27
_ITEM = "state"  # Orbax's name for the one tree of such a checkpoint
_INDEX = "manifest.ocdbt"  # index of the key-value store that holds all parameters


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Builds a tree of dictionaries from dotted names, as Orbax wants it."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *parents, leaf = name.split(".")
        node = tree
        for part in parents:
            node = node.setdefault(part, {})
        node[leaf] = value
    return tree


def _locate(path: epath.PathLike) -> epath.Path:
    """Makes a local path absolute, as Orbax wants it."""
    return epath.Path(path if "://" in str(path) else Path(path).absolute())


def is_checkpoint(path: epath.PathLike) -> bool:
    """Whether `path` is a finished Orbax checkpoint."""
    # Orbax' own test takes any folder, an empty one too, for a checkpoint of an older format.
    root = _locate(path)
    return all((root / file).exists() for file in ("orbax.checkpoint", f"{_ITEM}/_METADATA"))


def save_params(
    path: epath.PathLike,
    tensors: Iterable[tuple[str, np.ndarray]],
    metadata: Mapping[str, object] | None = None,
) -> None:
    """Writes (per-layer path, tensor) pairs as they come, with bounded memory.

    The checkpoint appears under `path` only when it is complete; an error leaves nothing behind.

    Args:
        path: new folder, local or `gs://`.
        tensors: any float dtype, each path once. Nothing may change them before this returns.
        metadata: JSON that `OrbaxSource.metadata` gives back.

    Raises:
        UserError: `path` exists or cannot be written.
    """
    root = _locate(path)
    if root.exists():
        raise UserError(f"{path} exists already; remove it or choose another destination")
    batch: dict[str, np.ndarray] = {}
    size = 0
    writing: list[ocp.AsyncResponse[None]] = []  # the batch before

    def flush() -> None:
        nonlocal batch, size
        with _writing(root):
            if writing:
                writing.pop().result()
            if batch:
                state, words = nest(batch), dict(metadata or {})
                writing.append(ocp.partial.save_async(root, state, custom_metadata=words))
        batch, size = {}, 0

    context = ocp.Context()
    context.memory.deepcopy_host_arrays = False
    context.array.saving.use_compression = False  # bfloat16 weights hardly shrink
    context.array.saving.storage_options.chunk_byte_size = CHUNK_BYTES
    try:
        with _writing(root):
            root.parent.mkdir(parents=True, exist_ok=True)
            _remove_unfinished(root)  # the rest of a killed process, which Orbax would add to
        with context, _silent():
            for name, tensor in tensors:
                # Orbax wants plain arrays; a strided view is copied here at the latest.
                batch[name] = np.asarray(tensor, order="C")
                size += tensor.nbytes
                if size >= BATCH_BYTES:
                    flush()
            flush()
            flush()  # waits for the last batch
            with _writing(root):
                ocp.partial.finalize(root)
                _forget_machine(root)
    except BaseException:
        with contextlib.suppress(Exception), _silent():
            for response in writing:
                response.result()
        _remove_unfinished(root)
        raise


def _forget_machine(root: epath.Path) -> None:
    """Removes this machine's folder from the mark that Orbax leaves in a finished checkpoint.

    Orbax asks only whether the mark is there.
    """
    mark = root / "commit_success.txt"
    if mark.exists():
        mark.write_text("complete\n")


def _remove_unfinished(root: epath.Path) -> None:
    """Removes what Orbax has written for `root` before it is finished, and only that."""
    if root.parent.is_dir():
        for entry in root.parent.iterdir():
            if entry.name.startswith(f"{root.name}.partial_save"):
                remove_tree(entry)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keeps Orbax from logging a traceback for each of its threads; errors tell what it says."""
    log = logging.getLogger("absl")
    was, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = was


@contextlib.contextmanager
def _writing(root: epath.Path) -> Iterator[None]:
    """Turns a failure to write into a message."""
    try:
        with _silent():
            yield
    except (OSError, ValueError) as error:  # TensorStore has only ValueError
        code = re.search(r"os_error_code='(\d+)'", str(error))
        reason = os.strerror(int(code[1])) if code else str(error)
        free = ""
        if "://" not in str(root):
            held = next(parent for parent in Path(str(root)).parents if parent.is_dir())
            free = f" ({shutil.disk_usage(held).free / 1e9:.1f} GB free)"
        raise UserError(f"cannot write {root}: {reason}{free}; nothing was left behind") from error


def tensor_digest(tensor: np.ndarray) -> str:
    """SHA-256 of a tensor's bytes in the order of its axes."""
    data = np.ascontiguousarray(tensor).reshape(-1).view(np.uint8)
    return hashlib.sha256(data.data).hexdigest()


@contextlib.contextmanager
def _damage(root: epath.Path, what: str) -> Iterator[None]:
    """Turns the exceptions of Orbax and TensorStore about a damaged file into a message."""
    try:
        with _silent():
            yield
    except (ValueError, OSError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        reason = str(error).partition("\n")[0][:200]
        raise UserError(
            f"{root} is damaged: {what} cannot be read ({reason}); copy or convert it again"
        ) from error


class OrbaxSource:
    """Parameters in an Orbax checkpoint, read by slices through TensorStore.

    Args:
        path: the checkpoint.
        digests: SHA-256 of all parameters by path (`tensor_digest`). The first read of a parameter
            reads all of it and checks its digest. None checks nothing.

    Raises:
        UserError: not a finished checkpoint, or a damaged one.
    """

    def __init__(self, path: epath.PathLike, digests: Mapping[str, str] | None = None) -> None:
        self.path = _locate(path)
        if not is_checkpoint(path):
            raise UserError(
                f"{path} is not a finished Orbax checkpoint; write one with `dsd convert to-jax`"
            )
        self._unchecked = dict(digests or {})
        with _damage(self.path, "its index"):
            if not (self.path / _ITEM / _INDEX).exists():
                # Orbax would go on to read every parameter, and leave its tasks behind.
                raise ValueError(f"{_INDEX} is missing")
            found = ocp.metadata(self.path)
            if not found.metadata:  # Orbax logs the reason and goes on without
                raise ValueError("no parameters are listed")
        self.metadata: dict[str, Any] = dict(found.custom_metadata or {})
        leaves = jax.tree_util.tree_flatten_with_path(found.metadata)[0]
        info = {".".join(str(key.key) for key in keys): leaf for keys, leaf in leaves}
        self.shapes: dict[str, Shape] = {p: tuple(i.shape) for p, i in info.items()}
        self.dtypes = {path: np.dtype(leaf.dtype) for path, leaf in info.items()}
        self._open: dict[str, ts.TensorStore] = {}
        if digests is not None and (odd := sorted(digests.keys() ^ self.shapes.keys())):
            raise UserError(
                f"{self.path} is damaged: it and its digests do not name the same parameters, such "
                f"as {odd[0]}; copy or convert it again"
            )

    def read(self, path: str, index: Index) -> np.ndarray:
        with _damage(self.path, path):
            if (expected := self._unchecked.get(path)) is None:
                return self._read(path, index)
            whole = self._read(path, tuple(slice(0, size) for size in self.shapes[path]))
        if tensor_digest(whole) != expected:
            raise UserError(
                f"{self.path} is damaged: {path} has another SHA-256 than it was written with; "
                "copy or convert it again"
            )
        self._unchecked.pop(path, None)
        return whole[index]

    def _read(self, path: str, index: Index) -> np.ndarray:
        store = self._open.pop(path, None)
        if store is None:
            base = str(self.path / _ITEM)
            root = base if "://" in base else f"file://{base}"
            spec = {
                "driver": "zarr3",
                "kvstore": {"driver": "ocdbt", "base": f"{root}/", "path": f"{path}/"},
            }
            store = ts.open(spec, open=True, read=True).result()
        part = store[index]
        # A store serves the next slice. Once all of a parameter is read it is dropped: kept stores
        # lie between freed tensors and withhold their memory from the system, 2 GB for FLUX.
        if part.shape != store.shape:
            self._open[path] = store
        return part.read().result()
