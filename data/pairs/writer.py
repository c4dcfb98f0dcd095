"""Writes a dataset so that a crash at any moment leaves only complete shards.

Shards are cut by size alone, so the same records give the same files, byte for byte, with or
without interruptions.
"""

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from dsd_jax.data.pairs.record import PairRecord
from dsd_jax.data.pairs.shards import (
    Shard,
    Shards,
    ShardWriter,
    committed_shard,
    remove_partials,
    shard_name,
    write_file,
)
from dsd_jax.data.pairs.store import (
    INDEX_COLUMNS,
    MANIFEST,
    STEM,
    WRITING,
    Manifest,
    PairStore,
    card,
    fingerprint_of,
    index_row,
    tally,
)
from dsd_jax.errors import UserError
from dsd_jax.files import PARTIAL, locked
from dsd_jax.structured import Limits, MalformedError, json_value, parse_json

__all__ = ["REJECTED", "SHARD_BYTES", "PairWriter"]

REJECTED = "rejected.jsonl"
SHARD_BYTES = 2**28  # a shard is closed by the record that reaches this


class PairWriter:
    """Writes a dataset, or resumes one that was interrupted.

        with PairWriter("pairs", origin={"source": "grids"}) as writer:
            for number in range(writer.position or 0, len(records)):
                writer.add(records[number], position=number + 1)

    Leaving the block completes the dataset. An exception leaves the complete shards, and the next
    writer with the same origin resumes after them.

    Attributes:
        position: position of the last record in a complete shard, as given to `add`; None at
            the start.
        complete: whether the dataset exists already, so that there is nothing to write.
        count, rejected: records and refused rows, those of earlier runs included.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        origin: Mapping[str, object] | None = None,
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        """Takes the folder for this process alone.

        Args:
            path: dataset folder, new or unfinished.
            origin: source and settings of the dataset, in JSON types. An unfinished dataset is
                resumed only if it has the same origin.
            shard_bytes: size of a shard.

        Raises:
            UserError: the folder holds something else, or is being written by another program.
        """
        self.path = Path(path)
        self.origin = json_value({**(origin or {}), "shard_bytes": shard_bytes})
        self.position: Any = None
        self.complete = False
        self.count = self.rejected = 0
        self._shard_bytes = shard_bytes
        self._shards: list[Shard] = []
        self._ids: set[str] = set()
        self._tasks: list[str] = []
        self._writer: ShardWriter | None = None
        self._rejects: BinaryIO | None = None
        self._columns: dict[str, list[Any]] = {name: [] for name in INDEX_COLUMNS}
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._check_folder()
            self._lock = (self.path / WRITING).open("a+b")
        except OSError as error:
            raise UserError(f"cannot write to {self.path}: {error.strerror}") from None
        try:
            self._take()
        except BaseException:
            self._lock.close()
            raise

    def _check_folder(self) -> None:
        held = {path.name for path in self.path.iterdir()}
        if held and not held & {MANIFEST, WRITING, REJECTED}:
            raise UserError(f"{self.path} holds other files; choose a new folder")

    def _take(self) -> None:
        """Locks the folder and reads what is there."""
        if not locked(self._lock):
            raise UserError(f"another program is writing {self.path}; wait for it, or stop it")
        if (self.path / MANIFEST).exists():
            manifest = PairStore.open(self.path).manifest
            if manifest.origin != self.origin:
                raise UserError(
                    f"{self.path} is a finished dataset of another source or other settings; "
                    "choose a new folder"
                )
            self.complete, self.count, self.rejected = True, manifest.count, manifest.rejected
            return
        self._lock.seek(0)
        begun = self._begun(self._lock.read())
        if begun is not None and begun != self.origin:
            raise UserError(
                f"{self.path} holds an unfinished dataset of another source or other settings; "
                "repeat the command that began it, or remove the folder"
            )
        if begun is None:  # the folder is new, or the writer was killed before its first line
            self._lock.truncate(0)
            self._lock.write(json.dumps(self.origin, ensure_ascii=False).encode())
            self._lock.flush()
            os.fsync(self._lock.fileno())
        self._resume()

    def _begun(self, content: bytes) -> object:
        """Reads what an unfinished dataset is made from; None if its first line is not complete."""
        try:
            return parse_json(content, str(self.path / WRITING), object, Limits(lenient=True))
        except MalformedError:
            return None

    def _resume(self) -> None:
        rejected_bytes = 0
        while shard := committed_shard(self.path, self._next_name()):
            self._shards.append(shard)
            index = Shards(self.path, [shard]).index(shard)
            self._ids.update(index["columns"]["id"])
            self._tasks += index["columns"]["task"]
            self.count += shard.count
            self.position = index["position"]
            self.rejected, rejected_bytes = index["rejected"]
        remove_partials(self.path, self._next_name())
        for partial in self.path.glob(f".*{PARTIAL}"):
            partial.unlink()
        self._rejects = (self.path / REJECTED).open("a+b")
        self._rejects.truncate(rejected_bytes)

    def _next_name(self) -> str:
        return shard_name(STEM, len(self._shards))

    def __contains__(self, name: str) -> bool:
        """Whether there is a record of this id."""
        return name in self._ids

    def add(self, *records: PairRecord, position: int | list[int] | None = None) -> None:
        """Adds the records of one row of a source.

        Args:
            records: records that stay in one shard, so that a restart neither loses nor
                repeats one.
            position: position in the source after these.

        Raises:
            UserError: an id is there already (nothing is added then), or the disk is full.
        """
        if self.complete:
            raise UserError(f"{self.path} is complete already; choose a new folder")
        ids = [record.id for record in records]
        for number, name in enumerate(ids):
            if name in self._ids or name in ids[:number]:
                raise UserError(f"the id {name!r} is there already; ids must be unique")
        if self._writer is None:
            self._writer = ShardWriter(self.path, self._next_name())
        self.count += len(records)
        for record in records:
            self._writer.write(record.pack())
            self._ids.add(record.id)
            self._tasks.append(record.task)
            row = zip(INDEX_COLUMNS, index_row(record), strict=True)
            for name, value in row:
                self._columns[name].append(value)
        self.position = position
        if self._writer.bytes >= self._shard_bytes:
            self._close_shard()

    def reject(self, reason: str, **where: str | int) -> None:
        """Lists a rejected row, with the reason and its place."""
        assert self._rejects is not None  # a complete dataset takes nothing
        line = json.dumps({**where, "reason": reason}, ensure_ascii=False)
        # The reason may repeat the text that it complains about.
        self._rejects.write(line.encode(errors="backslashreplace") + b"\n")
        self.rejected += 1

    def _sync_rejects(self) -> int:
        """Flushes the rejected rows to disk; returns the size of their file in bytes."""
        assert self._rejects is not None
        self._rejects.flush()
        os.fsync(self._rejects.fileno())
        return self._rejects.tell()

    def _close_shard(self) -> None:
        if self._writer is None:
            return
        index = {
            "position": self.position,
            "rejected": [self.rejected, self._sync_rejects()],
            "columns": self._columns,
        }
        self._shards.append(self._writer.commit(index))
        self._writer = None
        self._columns = {name: [] for name in INDEX_COLUMNS}

    def _finish(self) -> None:
        self._close_shard()
        self._sync_rejects()
        if not self._shards:
            why = "the source has no rows"
            if self.rejected:
                why = f"{self.rejected:,} rows were refused; {self.path / REJECTED} says why"
            raise UserError(f"there is nothing to store: {why}")
        if not self.rejected:
            (self.path / REJECTED).unlink()
        manifest = Manifest(
            count=self.count,
            tasks=tally(self._tasks),
            rejected=self.rejected,
            shards=self._shards,
            fingerprint=fingerprint_of(self._shards),
            origin=self.origin,
        )
        write_file(self.path / "README.md", card(manifest))
        write_file(self.path / MANIFEST, manifest.to_json())
        self.complete = True
        (self.path / WRITING).unlink()

    def __enter__(self) -> "PairWriter":  # noqa: PYI034 - beartype cannot check Self
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if self.complete:
                (self.path / WRITING).unlink(missing_ok=True)
            elif kind is None:
                self._finish()
        finally:
            if self._writer is not None:
                self._writer.discard()
            if self._rejects is not None:
                self._rejects.close()
            if not (self.complete or self._shards):  # there is nothing to resume
                self._clear(keep_rejects=kind is None and self.rejected > 0)
            self._lock.close()

    def _clear(self, *, keep_rejects: bool) -> None:
        (self.path / WRITING).unlink(missing_ok=True)
        if not keep_rejects:
            (self.path / REJECTED).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.path.rmdir()  # fails if it holds other files
