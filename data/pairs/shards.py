"""ArrayRecord shards: complete or absent, read at random, checked by size and SHA-256.

A shard is a file `<stem>-00000.array_record` with one record per chunk, so that any record is one
read, and an index `<stem>-00000.index` (msgpack) that describes the records without reading them.
The index is written last: a shard with an index is complete, a shard without one was left by a
killed writer.
"""

import bisect
import contextlib
import dataclasses
import hashlib
import itertools
import re
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgpack
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from dsd_jax.errors import UserError
from dsd_jax.files import explained, partial_of, publish, write_file

__all__ = [
    "Shard",
    "ShardWriter",
    "Shards",
    "committed_shard",
    "remove_partials",
    "shard_name",
]

_SUFFIX = ".array_record"
_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}\.array_record")
# One record per chunk is what random access needs; images and moments do not compress further.
_WRITE = "group_size:1,uncompressed"
_READ = "readahead_buffer_size:0,max_parallelism:0"


@dataclasses.dataclass(frozen=True)
class Shard:
    """One shard as a dataset's JSON lists it.

    Attributes:
        name: name of the record file.
        count: number of records.
        bytes, sha256: size and digest of the record file.
        index_sha256: digest of the index beside it.
    """

    name: str
    count: int
    bytes: int
    sha256: str
    index_sha256: str

    def __post_init__(self) -> None:
        numbers, texts = (self.count, self.bytes), (self.name, self.sha256, self.index_sha256)
        if not all(isinstance(each, int) and each >= 0 for each in numbers):
            raise TypeError("count and bytes must be whole numbers")
        if not all(isinstance(each, str) for each in texts) or not _NAME.fullmatch(self.name):
            raise TypeError("a shard must have the name of a file in its folder, and digests")


def shard_name(stem: str, number: int) -> str:
    """File name of a shard."""
    return f"{stem}-{number:05d}{_SUFFIX}"


def _index_path(folder: Path, name: str) -> Path:
    return folder / f"{name.removesuffix(_SUFFIX)}.index"


class ShardWriter:
    """Writes one shard; nothing is visible under its name before `commit`."""

    def __init__(self, folder: Path, name: str) -> None:
        self.count, self.bytes = 0, 0
        self._path = folder / name
        self._partial = partial_of(self._path)
        with explained(self._path, RuntimeError):  # which is all that ArrayRecord raises
            self._partial.unlink(missing_ok=True)
            self._writer = ArrayRecordWriter(str(self._partial), _WRITE)

    def write(self, record: bytes) -> None:
        """Adds a record.

        Raises:
            UserError: the disk is full, or the file cannot be written for another reason.
        """
        with explained(self._path, RuntimeError):  # which is all that ArrayRecord raises
            self._writer.write(record)
        self.count += 1
        self.bytes += len(record)

    def commit(self, index: Mapping[str, Any]) -> Shard:
        """Makes the shard visible, then its index.

        Args:
            index: description of the records, for readers; msgpack types.

        Raises:
            UserError: it cannot be written; nothing is left behind.
        """
        with explained(self._path, RuntimeError):  # which is all that ArrayRecord raises
            self._writer.close()
            reader = ArrayRecordReader(str(self._partial), _READ)
            held = reader.num_records() if reader.ok() else -1
            reader.close()
            if held != self.count:
                raise OSError("what was written cannot be read back")
            with self._partial.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = self._partial.stat().st_size
            publish(self._partial, self._path)
        summary = {"count": self.count, "bytes": size, "sha256": digest}
        packed = msgpack.packb({"shard": summary, **index})
        write_file(_index_path(self._path.parent, self._path.name), packed)
        return Shard(self._path.name, self.count, size, digest, hashlib.sha256(packed).hexdigest())

    def discard(self) -> None:
        """Gives the shard up; nothing is left behind."""
        with contextlib.suppress(RuntimeError):
            self._writer.close()
        self._partial.unlink(missing_ok=True)


def committed_shard(folder: Path, name: str) -> Shard | None:
    """A shard that was finished, or None.

    Raises:
        UserError: it was finished, but its files are damaged.
    """
    path = _index_path(folder, name)
    if not path.exists():
        return None
    packed = path.read_bytes()
    summary = _unpack_index(path, packed)["shard"]
    try:
        shard = Shard(name, **summary, index_sha256=hashlib.sha256(packed).hexdigest())
    except TypeError:
        raise UserError(f"the index {path} is damaged; copy the dataset again") from None
    _check_size(folder, shard)
    return shard


def remove_partials(folder: Path, name: str) -> None:
    """Removes the files of an unfinished shard that a killed writer left."""
    for path in (folder / name, partial_of(folder / name)):
        path.unlink(missing_ok=True)


def _unpack_index(path: Path, packed: bytes) -> dict[str, Any]:
    try:
        index = msgpack.unpackb(packed)
        if not isinstance(index["shard"]["count"], int):
            raise TypeError
    except (ValueError, TypeError, KeyError, msgpack.UnpackException):
        raise UserError(f"the index {path} is damaged; copy the dataset again") from None
    return dict(index)


def _check_size(folder: Path, shard: Shard) -> None:
    path = folder / shard.name
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise UserError(f"the shard {path} is missing; copy the dataset again") from None
    if size != shard.bytes:
        raise UserError(
            f"the shard {path} has {size:,} bytes where {shard.bytes:,} were written: it is half "
            "copied or damaged; copy it again"
        )


class Shards:
    """Random access to the records of a list of shards. Safe to read from many threads."""

    def __init__(self, folder: Path, shards: Sequence[Shard]) -> None:
        """Checks that every shard exists in its full size; opens none yet.

        Raises:
            UserError: a shard is missing or of another size.
        """
        self.folder, self.shards = folder, tuple(shards)
        for shard in self.shards:
            _check_size(folder, shard)
        self._ends = list(itertools.accumulate(shard.count for shard in self.shards))
        self._readers: dict[int, ArrayRecordReader] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def locate(self, number: int) -> tuple[int, int]:
        """Number of the shard that holds a record, and the record's number in it."""
        if not 0 <= number < len(self):
            raise IndexError(f"record {number} of {len(self)}")
        shard = bisect.bisect_right(self._ends, number)
        return shard, number - (self._ends[shard - 1] if shard else 0)

    def read(self, number: int) -> bytes:
        """One record.

        Raises:
            UserError: the record or the shard is damaged.
        """
        shard, own = self.locate(number)
        try:
            return bytes(self._reader(shard).read([own])[0])
        except (RuntimeError, IndexError) as error:
            reason = str(error).partition(" (")[0]
            raise UserError(
                f"record {own} of shard {self.folder / self.shards[shard].name} cannot be read: "
                f"{reason}; copy the shard again (`dsd data verify` lists all damage)"
            ) from error

    def index(self, shard: Shard) -> dict[str, Any]:
        """The index of a shard.

        Raises:
            UserError: missing, or not the one that was written.
        """
        path = _index_path(self.folder, shard.name)
        try:
            packed = path.read_bytes()
        except OSError as error:
            raise UserError(f"cannot read the index {path}: {error.strerror}") from None
        if hashlib.sha256(packed).hexdigest() != shard.index_sha256:
            raise UserError(f"the index {path} is damaged; copy the dataset again")
        return _unpack_index(path, packed)

    def _reader(self, number: int) -> ArrayRecordReader:
        with self._lock:
            reader = self._readers.get(number)
            if reader is None:
                shard = self.shards[number]
                reader = ArrayRecordReader(str(self.folder / shard.name), _READ)
                if not reader.ok() or reader.num_records() != shard.count:
                    raise UserError(
                        f"the shard {self.folder / shard.name} is not a readable ArrayRecord file "
                        f"of {shard.count} records; copy it again"
                    )
                self._readers[number] = reader
            return reader
