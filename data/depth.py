"""Depth pairs: the depth map of an image as the reference, the image itself as the target.

Workers write one map per image, so that a stopped run resumes and any number of workers make the
same files. The worker that finds all maps there writes the dataset and removes them.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
from etils import epath

from dsd_jax.convert.hub import find_table
from dsd_jax.data.pairs.importer import Imported, copy_rows
from dsd_jax.data.pairs.pictures import PictureFolder
from dsd_jax.data.pairs.reader import FILE_NAME, ImportSettings, RowError, RowReader
from dsd_jax.data.pairs.record import PairRecord, png_bytes
from dsd_jax.data.pairs.store import MANIFEST
from dsd_jax.data.pairs.writer import PairWriter
from dsd_jax.errors import UserError
from dsd_jax.files import begin_folder, explained, locked, remove_tree, write_file
from dsd_jax.images import open_image
from dsd_jax.interrupt import Stop
from dsd_jax.progress import progress
from dsd_jax.rows import Position, Row, Table, open_table
from dsd_jax.shares import ALL, WorkerShare
from dsd_jax.tasks import DEPTH
from dsd_jax.threads import in_order
from dsd_jax.types import Float32
from dsd_jax.vision.disparity import DepthTower, depth_picture

__all__ = ["DATASET", "DepthSettings", "make_depth_pairs"]

DATASET = "dataset"
"""Folder of the dataset within the output folder."""
_MARK, _MAPS, _LOCK = "depth.json", "maps", "packing"
_PER_FOLDER = 1000  # maps
_THREADS = 8  # that decode
_WAITING = 16  # batches of images that wait for others of their size
_OTHER = (
    "holds depth maps of other images, settings or weights; repeat the command that began it, or "
    "choose a new folder"
)
_Ready = tuple[Row, tuple[int, int], Float32[np.ndarray, "H W 3"]]


@dataclasses.dataclass(frozen=True)
class DepthSettings:
    """The meaning of each column of a table of images; a plain folder of images has no columns.

    Attributes:
        image_column: Image: a path, file bytes, or {bytes, path}. `file_name` is found too.
        caption_column: Description of the image. Default: `caption`, if there is such a column.
        instruction_column: Instruction that makes the image of its map. Default: `instruction`,
            likewise.
        subject_column: Subject of the image. Default: `subject`, likewise.
        id_column: Unique name of a row. Default: `id`, the name in a tar archive, or else a digest
            of the image.
        where: Conditions that a row must meet, such as `quality.score>=5`; the others are rejected.
        provenance_columns: Columns to keep with the record.
        split: The split of a folder with several, such as `train`.
        instruction: Instruction for images of a plain folder that have no caption.
    """

    image_column: str = "image"
    caption_column: str | None = None
    instruction_column: str | None = None
    subject_column: str | None = None
    id_column: str | None = None
    where: tuple[str, ...] = ()
    provenance_columns: tuple[str, ...] = ()
    split: str | None = None
    instruction: str = "Make a photograph of this depth map."

    def columns(self) -> ImportSettings:
        """The settings by which a row is read as a pair of the image with itself."""
        own = dataclasses.asdict(self)
        own.pop("instruction")
        image = own.pop("image_column")
        return ImportSettings(image, image, task=DEPTH.name, **own)


class _DepthReader(RowReader):
    """Reads images from rows, and pairs from rows whose maps are there."""

    flags: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("reference_column", "target_column"), "image_column"
    )

    def __init__(self, table: Table, settings: ImportSettings, maps: Path) -> None:
        super().__init__(table, settings)
        self._maps = maps

    def records(self, row: Row) -> list[PairRecord]:
        """The pair of a row: its map and its image.

        Raises:
            RowError: It cannot be used; the message says why.
        """
        path = self._map(row.position)
        if not path.exists():
            raise RowError(self._reason(row.position).read_text(encoding="utf-8"))
        size = (image := self.image(row)).target_size
        pair = dataclasses.replace(
            image, reference=path.read_bytes(), reference_size=size, task=DEPTH.name
        )
        return [pair]

    def image(self, row: Row) -> PairRecord:
        """The image of a row as both frames of a pair.

        Raises:
            RowError: It cannot be used; the message says why.
        """
        try:
            (record,) = super().records(row)
        except RowError as error:
            raise RowError(str(error).removeprefix("reference: ")) from None
        return record

    def known(self, position: Position) -> bool:
        """Whether the map of a row is there, or the reason why there is none."""
        return self._map(position).exists() or self._reason(position).exists()

    def keep(self, row: Row, picture: bytes) -> None:
        """Writes the map of a row.

        Raises:
            UserError: It cannot be written.
        """
        self._write(self._map(row.position), picture)

    def refuse(self, row: Row, reason: str) -> None:
        """Writes the reason why a row has no map.

        Raises:
            UserError: It cannot be written.
        """
        self._write(self._reason(row.position), reason.encode(errors="backslashreplace"))

    def _write(self, path: Path, content: bytes) -> None:
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, content)

    def _map(self, position: Position) -> Path:
        file, number = position
        return self._maps / f"{file:05d}-{number // _PER_FOLDER:05d}" / f"{number}.png"

    def _reason(self, position: Position) -> Path:
        return self._map(position).with_suffix(".txt")


def make_depth_pairs(
    source: epath.PathLike,
    target: Path,
    tower: DepthTower,
    settings: DepthSettings,
    *,
    share: WorkerShare = ALL,
    batch: int = 1,
) -> Imported | None:
    """Makes depth pairs of all images of a source; resumes where an interrupted run stopped.

    Args:
        source: A folder of images, a table of images in any format that `dsd_jax.rows.open_table`
            reads, or the hub id of a dataset that holds one.
        target: Folder for the maps and the dataset, new or unfinished.
        tower: The depth model.
        settings: Meaning of the columns.
        share: Images that this worker does. The worker that finds all maps there packs.
        batch: Images of one size per call of the model, a multiple of the number of parts that the
            mesh splits a batch into.

    Returns:
        Counts of the dataset; None if other workers are still making maps, or packing.

    Raises:
        UserError: No image, a missing column, or a folder that cannot be written or belongs to
            another source or model.
    """
    table = _images(find_table(source), settings)
    maps, packed = target / _MAPS, target / DATASET
    reader = _DepthReader(table, settings.columns(), maps)
    files = [[str(path.relative_to(table.folder)), path.stat().st_size] for path in table.files]
    origin = {
        "source": Path(source).name,
        "files": hashlib.sha256(json.dumps(files).encode()).hexdigest(),
        "settings": dataclasses.asdict(settings),
        "weights": tower.sha256(),
    }
    mark = json.dumps(origin, indent=1) + "\n"
    begin_folder(target, _MARK, mark, _OTHER)
    if not (packed / MANIFEST).exists():
        rows = _make_maps(table, reader, tower, share, batch)
        positions = ((file, number) for file in rows for number in range(1, rows[file] + 1))
        if not all(map(reader.known, positions)):
            return None
    with (target / _LOCK).open("a+b") as lock:
        if not locked(lock):  # another worker packs
            return None
        with PairWriter(packed, origin=origin) as writer:
            before = writer.count
            if not writer.complete:
                copy_rows(table, reader, writer, os.cpu_count() or 1)
        remove_tree(epath.Path(maps))
    return Imported(writer.count, writer.rejected, before)


def _images(source: Path, settings: DepthSettings) -> Table:
    """The table of a source, or the image files of a folder that holds no single table of images.

    Raises:
        UserError: There are neither.
    """
    table, refusal = None, ""
    try:
        table = open_table(source, settings.split)
    except UserError as error:
        if not source.is_dir():
            raise
        refusal = str(error)
    if table and (not source.is_dir() or settings.image_column != DepthSettings.image_column):
        return table
    if table and any(map(table.has, (settings.image_column, FILE_NAME))):
        return table
    folder = PictureFolder.find(source, settings.instruction)
    if folder.files:
        return folder
    if table:
        return table  # its reader names the column that it lacks
    raise UserError(f"{source} holds neither images nor one table of images; as a table: {refusal}")


def _make_maps(
    table: Table, reader: _DepthReader, tower: DepthTower, share: WorkerShare, batch: int
) -> dict[int, int]:
    """Writes the maps of a worker's images that are not there, and counts the rows of each file."""
    counts: dict[int, int] = {}
    waiting: dict[tuple[int, ...], list[_Ready]] = {}

    def prepare(row: Row) -> tuple[tuple[int, int], Float32[np.ndarray, "H W 3"]]:
        image = open_image(reader.image(row).target)
        return image.size, tower.prepare(image)

    def flush(shape: tuple[int, ...]) -> None:
        ready = waiting.pop(shape)
        found = tower.disparities([pixels for _, _, pixels in ready], batch)
        for (row, (width, height), _), disparity in zip(ready, found, strict=True):
            picture = depth_picture(disparity, width, height)
            if picture is None:
                reader.refuse(row, "all points are equally near to the depth model")
            else:
                reader.keep(row, png_bytes(picture))
            advance(row.size)

    def missing() -> Iterator[Row]:
        for number, row in enumerate(table.rows()):
            file, counts[file] = row.position
            if number % share.count == share.number:
                if reader.known(row.position):
                    advance(row.size)
                else:
                    yield row

    with (
        progress("depth", table.left() / share.count, table.unit, "compiling") as advance,
        Stop("batch") as stop,
        contextlib.closing(
            in_order(prepare, missing(), threads=_THREADS, ahead=_THREADS + 2 * batch)
        ) as prepared,
    ):
        for row, future in prepared:
            try:
                size, pixels = future.result()
            except UserError as error:
                reader.refuse(row, str(error))
                advance(row.size)
                continue
            own = waiting.setdefault(pixels.shape, [])
            own.append((row, size, pixels))
            if len(own) == batch:
                flush(pixels.shape)
                stop.check()
            elif sum(map(len, waiting.values())) > _WAITING * batch:
                flush(next(iter(waiting)))  # many sizes: memory must not grow with them
                stop.check()
        for shape in list(waiting):
            flush(shape)
            stop.check()
    return counts
