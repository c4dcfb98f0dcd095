"""Encodes a dataset once: VAE moments of both canvases, and text embeddings if wanted.

Each shard of the dataset gives one encoded shard, so an interrupted run resumes with the next
shard, and several machines can share the work. Within a shard, records of one size are encoded a
batch at a time over the mesh, and written as they are finished.
"""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dsd_jax.data.load.encoded import (
    ENCODED_STEM,
    MANIFEST,
    Binding,
    Embedding,
    EncodedPair,
    EncodedStore,
    Moments,
    pack_encoded,
    write_encoded_manifest,
    write_null,
)
from dsd_jax.data.load.mixture import nearest_size
from dsd_jax.data.pairs.record import PairRecord
from dsd_jax.data.pairs.shards import (
    Shard,
    ShardWriter,
    committed_shard,
    remove_partials,
    shard_name,
)
from dsd_jax.data.pairs.store import PairStore
from dsd_jax.encoders import ImageCodec
from dsd_jax.errors import UserError
from dsd_jax.files import begin_folder
from dsd_jax.frames import check_size
from dsd_jax.images import fit, open_image, to_array
from dsd_jax.interrupt import Stop
from dsd_jax.progress import progress
from dsd_jax.sharding import batch_ways
from dsd_jax.shares import ALL, WorkerShare
from dsd_jax.threads import in_order
from dsd_jax.types import Float32

__all__ = ["TextEncode", "encode_pairs"]

TextEncode = Callable[[Sequence[str]], Mapping[str, tuple[Any, Any]]]
"""Encodes prompts; gives the arrays `txt` [Lt, Dt] and `vec` [Dv] for each distinct one."""

Size = tuple[int, int]
_BINDING = "binding.json"  # dataset and weights of an unfinished folder
_THREADS = 8  # threads that decode, a batch ahead


@dataclasses.dataclass(frozen=True)
class _Ready:
    """A record whose frames are cut to size."""

    number: int  # number in its shard
    record: PairRecord
    size: Size
    reference: Float32[np.ndarray, "H W 3"]
    target: Float32[np.ndarray, "H W 3"]


def encode_pairs(
    store: PairStore,
    target: str | Path,
    binding: Binding,
    images: ImageCodec,
    *,
    text: TextEncode | None = None,
    batch: int = 8,
    share: WorkerShare = ALL,
) -> bool:
    """Encodes the shards of a dataset that are not encoded yet.

    Args:
        store: dataset to encode.
        target: folder for the result, new or unfinished.
        binding: the dataset and the weights, whose digests go into the result.
        images: encodes pictures; its mesh splits every batch.
        text: encodes prompts; needed if the binding names text encoders.
        batch: canvases encoded together, a multiple of that split.
        share: the dataset's shards that this worker encodes. The worker that finds all of them done
            completes the folder.

    Returns:
        Whether the folder is complete.

    Raises:
        UserError: sizes that do not divide into tokens, a batch that does not divide over the
            mesh, or a folder that holds something else.
    """
    for height, width in binding.sizes:
        check_size(height, width, images.config.downscale)
    folder = Path(target)
    if _begin(folder, binding):
        return True
    if text is not None:
        encode_null = text
        write_null(folder, lambda: Embedding(*encode_null([""])[""]), binding.dtype)
    encoder = _Encoder(images, text, batch)
    shards = store.shards.shards
    mine = [i for i in share.of(len(shards)) if _encoded(folder, i) is None]
    starts = np.cumsum([0, *(own.count for own in shards)])
    total = sum(shards[i].count for i in mine)
    with progress("encode", total, "pairs", "compiling") as advance, Stop("batch") as stop:

        def encoded(amount: float = 1.0) -> None:
            advance(amount)
            stop.check()

        for i in mine:
            numbers = range(int(starts[i]), int(starts[i + 1]))
            _encode_shard(folder, i, store, numbers, binding, encoder, encoded)
    done = [_encoded(folder, i) for i in range(len(shards))]
    whole = [own for own in done if own is not None]
    if len(whole) < len(done):
        return False
    write_encoded_manifest(folder, binding, whole)
    (folder / _BINDING).unlink(missing_ok=True)
    return True


def _begin(folder: Path, binding: Binding) -> bool:
    """Takes or continues the folder, and returns whether it is complete already."""
    if (folder / MANIFEST).exists():
        if EncodedStore.open(folder).binding != binding:
            raise UserError(
                f"{folder} was encoded from another dataset, at other sizes or with other "
                "weights; choose a new folder"
            )
        return True
    other = (
        "is being encoded from another dataset, at other sizes or with other weights; repeat the "
        "command that began it, or choose a new folder"
    )
    begin_folder(folder, _BINDING, json.dumps(dataclasses.asdict(binding), indent=1) + "\n", other)
    return False


def _encoded(folder: Path, number: int) -> Shard | None:
    return committed_shard(folder, shard_name(ENCODED_STEM, number))


def _encode_shard(
    folder: Path,
    number: int,
    store: PairStore,
    numbers: range,
    binding: Binding,
    encoder: "_Encoder",
    advance: Callable[[float], None],
) -> None:
    """Encodes one shard of the dataset."""
    name = shard_name(ENCODED_STEM, number)
    remove_partials(folder, name)
    writer = ShardWriter(folder, name)
    order: list[int] = []
    waiting: dict[Size, list[_Ready]] = {}

    def flush(size: Size) -> None:
        ready = waiting.pop(size)
        for item, pair in zip(ready, encoder(ready), strict=True):
            writer.write(pack_encoded(pair, binding.dtype))
            order.append(item.number)
        advance(len(ready))

    try:
        with contextlib.closing(_decoded(store, numbers, binding.sizes, encoder.batch)) as items:
            for item in items:
                waiting.setdefault(item.size, []).append(item)
                if len(waiting[item.size]) == encoder.batch:
                    flush(item.size)
        for size in list(waiting):
            flush(size)
        writer.commit({"order": order})
    except BaseException:
        writer.discard()
        raise


def _decoded(
    store: PairStore, numbers: range, sizes: Sequence[Size], ahead: int
) -> Generator[_Ready, None, None]:
    """Records of a shard in order, with their frames."""

    def decode(number: int) -> _Ready:
        record = store[number]
        size = sizes[int(nearest_size(np.asarray([record.target_size]), sizes)[0])]
        reference, target = (
            to_array(fit(open_image(data), *size)) for data in (record.reference, record.target)
        )
        return _Ready(number - numbers.start, record, size, reference, target)

    with contextlib.closing(in_order(decode, numbers, threads=_THREADS, ahead=ahead)) as items:
        for _, ready in items:
            yield ready.result()


class _Encoder:
    """Encodes the frames and words of records of one size."""

    def __init__(self, images: ImageCodec, text: TextEncode | None, batch: int) -> None:
        ways = batch_ways(images.mesh)
        if batch < 1 or batch % ways:
            raise UserError(f"the batch must be a multiple of {ways} on this mesh, got {batch}")
        self._images, self._text, self.batch = images, text, batch

    def __call__(self, ready: Sequence[_Ready]) -> list[EncodedPair]:
        # Filled up with repeated rows: one program serves any number, and no result depends on it.
        filled = [ready[min(i, len(ready) - 1)] for i in range(self.batch)]
        reference = np.stack([item.reference for item in filled])
        target = np.stack([item.target for item in filled])
        canvas, condition = jax.tree.map(
            np.asarray,
            (
                self._images.encode(np.concatenate([reference, target], axis=2)),
                self._images.encode_condition(reference),
            ),
        )
        texts = [words for item in ready for words in _texts(item.record) if words]
        embedded = self._text(list(dict.fromkeys(texts))) if self._text else {}

        def embedding(words: str) -> Embedding | None:
            return Embedding(*embedded[words]) if words in embedded else None

        return [
            EncodedPair(
                item.record.id,
                item.record.caption,
                item.record.instruction,
                Moments(*(array[i] for array in canvas)),
                Moments(*(array[i] for array in condition)),
                *map(embedding, _texts(item.record)),
            )
            for i, item in enumerate(ready)
        ]


def _texts(record: PairRecord) -> tuple[str, str]:
    return record.caption, record.instruction
