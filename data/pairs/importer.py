"""Imports tables of images: turns rows into records and rejected rows, in order.

Several threads decode images, but rows are stored in the order of the source, so that an
interrupted import resumes after its last complete shard and ends with the same bytes.
"""

import contextlib
import dataclasses
import os
from pathlib import Path

from dsd_jax.convert.hub import find_table
from dsd_jax.data.pairs.reader import ImportSettings, RowError, RowReader
from dsd_jax.data.pairs.writer import PairWriter
from dsd_jax.progress import progress
from dsd_jax.rows import Position, Table, open_table
from dsd_jax.threads import in_order

__all__ = ["Imported", "copy_rows", "import_pairs"]


@dataclasses.dataclass(frozen=True)
class Imported:
    """Counts of an import: all pairs and rejected rows, and the pairs of earlier runs."""

    pairs: int
    rejected: int
    before: int


def import_pairs(
    source: str | Path,
    target: str | Path,
    settings: ImportSettings | None = None,
    *,
    workers: int | None = None,
) -> Imported:
    """Makes a dataset from a table of images; resumes where an interrupted import stopped.

    Args:
        source: a table in any format that `dsd_jax.rows.open_table` reads, or the hub id of a
            dataset that holds one.
        target: dataset folder, new or unfinished.
        settings: meaning of the columns.
        workers: threads that decode. None uses one per core.

    Raises:
        UserError: no table, a missing column, no usable row, or a folder that cannot be written.
    """
    settings = settings or ImportSettings()
    table = open_table(find_table(source), settings.split)
    reader = RowReader(table, settings)
    files = [[str(path.relative_to(table.folder)), path.stat().st_size] for path in table.files]
    chosen = {
        field.name: getattr(settings, field.name)
        for field in dataclasses.fields(settings)
        if field.name != "shard_bytes" and getattr(settings, field.name) != field.default
    }
    origin = {"source": Path(source).name, "files": files, "settings": chosen}
    workers = workers or os.cpu_count() or 1
    with PairWriter(target, origin=origin, shard_bytes=settings.shard_bytes) as writer:
        before = writer.count
        if not writer.complete:
            copy_rows(table, reader, writer, workers)
    return Imported(writer.count, writer.rejected, before)


def copy_rows(table: Table, reader: RowReader, writer: PairWriter, workers: int) -> None:
    """Stores the records of the rows after the writer's position, or the reasons against them.

    Args:
        table: rows of the source.
        reader: makes records of a row.
        writer: an unfinished dataset.
        workers: threads that decode.

    Raises:
        UserError: the source is damaged beyond its rows, or the disk is full.
    """
    begin: Position = (0, 0)
    if isinstance(writer.position, list):
        file, number = writer.position
        begin = file, number
    left = table.left(begin)
    with (
        progress("import", left, table.unit) as advance,
        contextlib.closing(in_order(reader.records, table.rows(begin), threads=workers)) as done,
    ):
        for row, result in done:
            try:
                records = result.result()
                for record in records:
                    if record.id in writer:
                        raise RowError(f"the id {record.id!r} is there already")
            except RowError as error:
                name = reader.name(row)
                known = {"id": name} if name else {}
                writer.reject(str(error), file=row.file, row=row.number, **known)
            else:
                writer.add(*records, position=list(row.position))
            step = min(row.size, left)
            left -= step
            advance(step)
        advance(left)  # the estimate was too high
