"""Counts the contents of a dataset, and checks that nothing has changed since it was written."""

import collections
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dsd_jax.data.load.encoded import MANIFEST as ENCODED_MANIFEST
from dsd_jax.data.load.encoded import EncodedStore
from dsd_jax.data.pairs.record import checked_image
from dsd_jax.data.pairs.shards import Shards
from dsd_jax.data.pairs.store import PairStore, index_row
from dsd_jax.errors import UserError
from dsd_jax.files import file_sha256
from dsd_jax.progress import progress
from dsd_jax.terminal import table_text
from dsd_jax.threads import in_order

__all__ = ["statistics", "verify_folder"]

TOP_SUBJECTS = 20
TOP_SIZES = 10


def statistics(store: PairStore) -> str:
    """Counts, sizes, lengths of texts in words, and frequent subjects; from the indices."""
    manifest, index = store.manifest, store.index
    size, shards = sum(shard.bytes for shard in manifest.shards), len(manifest.shards)
    about = [
        f"{manifest.count:,} pairs in {shards:,} shard{'s' * (shards != 1)}, {size / 1e6:,.1f} MB",
        f"{manifest.rejected:,} rows of the source were rejected",
        f"fingerprint {manifest.fingerprint}",
    ]
    found = ["\n".join(about), _counts("task", list(manifest.tasks.items()))]
    for name, shapes in (("target", index["target_size"]), ("reference", index["reference_size"])):
        sizes = collections.Counter(f"{width}x{height}" for height, width in shapes)
        found.append(_counts(f"{name} (width x height)", _top(sizes, TOP_SIZES)))
    texts = {"caption": index["caption_words"], "instruction": index["instruction_words"]}
    rows = []
    for name, counts in texts.items():
        words = np.asarray([count for count in counts if count])
        if len(words):
            spread = np.percentile(words, [0, 50, 95, 100])
            rows.append((name, f"{len(words):,}", *(f"{value:.0f}" for value in spread)))
    found.append(table_text(("words", "texts", "min", "median", "95 %", "max"), rows))
    subjects = collections.Counter(subject for subject in index["subject"] if subject)
    if subjects:
        title = f"subject ({len(subjects):,} different)"
        found.append(_counts(title, _top(subjects, TOP_SUBJECTS)))
    return "\n\n".join(found)


def _top(counts: collections.Counter[str], limit: int) -> list[tuple[str, int]]:
    rows = sorted(counts.items(), key=lambda row: (-row[1], row[0]))
    rest = rows[limit:]
    others = [(f"and {len(rest):,} more", sum(count for _, count in rest))] if rest else []
    return rows[:limit] + others


def _counts(title: str, rows: Sequence[tuple[str, int]]) -> str:
    total = sum(count for _, count in rows)
    shown = [(name, f"{count:,}", f"{100 * count / total:.1f} %") for name, count in rows]
    return table_text((title, "pairs", "share"), shown)


def verify_folder(path: str | Path, *, workers: int) -> list[str]:
    """Checks every digest of a dataset or an encoded folder; of a dataset, decodes every image.

    Args:
        path: path of the folder.
        workers: number of threads.

    Returns:
        The problems, a line each.

    Raises:
        UserError: there is no such folder, or its JSON cannot be read.
    """
    path = Path(path)
    if (path / ENCODED_MANIFEST).exists():
        encoded = EncodedStore.open(path)
        damaged = _each(lambda number: _load(encoded, number), len(encoded), workers)
        return [*_files(encoded.shards), *damaged]
    store = PairStore.open(path)
    problems = _files(store.shards)
    try:
        index = store.index
    except UserError as error:
        return [*problems, str(error)]
    rows = list(zip(*index.values(), strict=True))
    twice = [name for name, count in collections.Counter(index["id"]).items() if count > 1]
    problems += [f"the id {name!r} is there more than once" for name in twice]
    return problems + _each(lambda number: _check(store, rows, number), len(store), workers)


def _files(shards: Shards) -> list[str]:
    found = []
    for shard in shards.shards:
        path = shards.folder / shard.name
        if file_sha256(path) != shard.sha256:
            found.append(f"the shard {path} does not have the sha256 that was written")
    return found


def _each(check: Callable[[int], str | None], count: int, workers: int) -> list[str]:
    problems = []
    with progress("verify", count, "records") as advance:
        for _, result in in_order(check, range(count), threads=workers):
            problem = result.result()
            problems += [problem] if problem else []
            advance()
    return problems


def _check(store: PairStore, rows: Sequence[tuple[Any, ...]], number: int) -> str | None:
    try:
        record = store[number]
        for role in ("reference", "target"):
            size = checked_image(getattr(record, role), role)[1]
            if size != getattr(record, f"{role}_size"):
                raise UserError(f"{role}: the image has another size than the record says")
    except UserError as error:
        return f"record {number}: {error}"
    if index_row(record) != rows[number]:
        return f"record {number}: {record.id!r} is not what the index says"
    return None


def _load(store: EncodedStore, number: int) -> str | None:
    try:
        store[number]
    except UserError as error:
        return f"record {number}: {error}"
    return None
