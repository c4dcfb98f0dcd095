"""Moves batches to devices: a thread lays them over the mesh, a few steps ahead."""

import dataclasses
import queue
import threading
from collections.abc import Generator, Iterable
from contextlib import suppress
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from dsd_jax.data.load.loader import PairBatch
from dsd_jax.errors import UserError
from dsd_jax.sharding import batch_sharding, batch_ways
from dsd_jax.types import Int

__all__ = ["mesh_rows", "prefetch_to_mesh", "to_mesh"]

_ARRAYS = ("drop_text", "drop_image", "reference", "target", "canvas", "condition", "text")
_END = object()


def mesh_rows(mesh: Mesh, batch: int) -> Int[np.ndarray, " b"]:
    """The samples of a global batch that lie on this process's devices, which its loader loads.

    Processes that hold the same part of the batch (their devices differ along `tensor` or
    `context` only) get the same rows.

    Raises:
        UserError: the batch does not divide over the mesh.
    """
    ways = batch_ways(mesh)
    if batch % ways:
        near = max(ways, round(batch / ways) * ways)
        raise UserError(
            f"a batch of {batch} does not divide over the {ways} parts of the mesh "
            f"{dict(mesh.shape)}; the nearest that does is {near}"
        )
    indices = batch_sharding(mesh).addressable_devices_indices_map((batch,))
    own = {row for index in indices.values() if index for row in range(*index[0].indices(batch))}
    return np.asarray(sorted(own), np.int64)


def to_mesh(batch: PairBatch, mesh: Mesh) -> PairBatch:
    """Moves a batch to devices as global arrays, batch axis over fsdp and data; texts stay."""
    sharding = batch_sharding(mesh)

    def place(array: np.ndarray) -> jax.Array:
        shape = (batch.global_size, *array.shape[1:])
        return jax.make_array_from_process_local_data(sharding, array, shape)

    held: dict[str, Any] = {name: getattr(batch, name) for name in _ARRAYS}
    return dataclasses.replace(batch, **jax.tree.map(place, held))


def prefetch_to_mesh(
    batches: Iterable[PairBatch], mesh: Mesh, size: int = 2
) -> Generator[PairBatch, None, None]:
    """Yields batches on devices, which a thread prepares.

    Args:
        batches: batches of a loader whose rows are `mesh_rows(mesh, batch)`.
        mesh: mesh for the arrays.
        size: most batches that wait on devices, beside the one that is being made.

    An error of the loader is raised here, after the batches before it. Closing or dropping the
    iterator ends the thread and closes the loader's iterator.

    Raises:
        UserError: a size below 1.
    """
    if size < 1:
        raise UserError(f"size must be at least 1, got {size}")
    return _prefetched(batches, mesh, size)


def _prefetched(
    batches: Iterable[PairBatch], mesh: Mesh, size: int
) -> Generator[PairBatch, None, None]:
    ready: queue.Queue[Any] = queue.Queue(size)
    stopped = threading.Event()

    def put(item: Any) -> None:
        while not stopped.is_set():
            with suppress(queue.Full):
                ready.put(item, timeout=0.1)
                return

    def work() -> None:
        source = iter(batches)
        try:
            for batch in source:
                put(to_mesh(batch, mesh))
                if stopped.is_set():
                    return
            put(_END)
        except BaseException as error:  # noqa: BLE001 - raised again where the batches are used
            put(error)
        finally:
            if isinstance(source, Generator):
                source.close()

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not _END:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        thread.join()
