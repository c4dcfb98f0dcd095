"""Other people's datasets to a pair store: rows in, records and rejected rows out, in order.

Images are decoded by several threads, but rows are stored in the order of the source, so that an
interrupted import goes on behind its last whole shard and ends with the same bytes.
"""

import contextlib
import dataclasses
import hashlib
import json
import operator
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from dsd_jax.data.pairs.record import PairRecord, png_bytes
from dsd_jax.data.pairs.writer import SHARD_BYTES, PairWriter
from dsd_jax.errors import UserError
from dsd_jax.images import open_image
from dsd_jax.progress import progress
from dsd_jax.rows import Row, Table, lookup, nearest, open_table
from dsd_jax.threads import in_order

__all__ = ["ImportSettings", "Imported", "import_pairs"]

Composite = Literal["two_panels"]

MAX_FILE_BYTES = 2**28  # of an image file, read whole
_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}
_CONDITION = re.compile(r"\s*([^<>=!]+?)\s*(>=|<=|==|!=|>|<)\s*(.+?)\s*")


@dataclasses.dataclass(frozen=True)
class ImportSettings:
    """Which columns mean what. `column.member` names a member of a struct.

    Attributes:
        reference_column: Image of the subject: a path, file bytes, or {bytes, path}.
        target_column: Image to be made from it.
        image_column: The one image that holds both panels; only with composite.
        caption_column: What the target shows; default: `caption` if there is such a column.
        instruction_column: How to get from reference to target; default: `instruction` if there.
        subject_column: What both show; default: `subject` if there.
        task_column: Task of a row; default: `task` if there.
        id_column: Unique name of a row; default: `id` if there, else a digest of the pair.
        task: Task of rows that do not say.
        composite: How one image holds both: two_panels is [reference | target], with padding around
            each panel.
        padding: Pixels around and between the panels.
        reverse_caption_column: What the reference shows; every pair is stored in both directions.
        where: Conditions that a row must meet, such as `quality.score>=5`; the others are rejected.
        provenance_columns: Columns to keep with the record.
        shard_bytes: Size of a shard.
    """

    reference_column: str = "reference"
    target_column: str = "target"
    image_column: str = "image"
    caption_column: str | None = None
    instruction_column: str | None = None
    subject_column: str | None = None
    task_column: str | None = None
    id_column: str | None = None
    task: str = "identity"
    composite: Composite | None = None
    padding: int = 16
    reverse_caption_column: str | None = None
    where: tuple[str, ...] = ()
    provenance_columns: tuple[str, ...] = ()
    shard_bytes: int = SHARD_BYTES


@dataclasses.dataclass(frozen=True)
class Imported:
    """What an import did: pairs and rejected rows in all, and pairs that were there before."""

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
    """Makes a pair store of a table of images; goes on where an interrupted import stopped.

    Args:
        source: a JSONL, CSV or Parquet file, or a folder with one of the first two or any number
            of the last.
        target: dataset folder, new or unfinished.
        settings: which columns mean what.
        workers: threads that decode; default: as many as there are cores.

    Raises:
        UserError: no table, columns that are not there, no usable row, or a folder that cannot be
            written.
    """
    settings = settings or ImportSettings()
    table = open_table(source)
    reader = _Reader(table, settings)
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
            _copy(table, reader, writer, workers)
    return Imported(writer.count, writer.rejected, before)


def _copy(table: Table, reader: "_Reader", writer: PairWriter, workers: int) -> None:
    file, number = writer.position or (0, 0)
    left = table.left((file, number))
    with (
        progress("import", left, table.unit) as advance,
        contextlib.closing(
            in_order(reader.records, table.rows((file, number)), threads=workers)
        ) as done,
    ):
        for row, result in done:
            try:
                records = result.result()
                for record in records:
                    if record.id in writer:
                        raise _RowError(f"the id {record.id!r} is there already")
            except _RowError as error:
                name = lookup(row.fields, reader.id_column or "")
                known = {} if name in (None, "") else {"id": str(name)}
                writer.reject(str(error), file=row.file, row=row.number, **known)
            else:
                writer.add(*records, position=list(row.position))
            step = min(row.size, left)
            left -= step
            advance(step)
        advance(left)  # the estimate was too high


class _RowError(UserError):
    """Why a row is not taken."""


class _Reader:
    """Rows of one table to records."""

    def __init__(self, table: Table, settings: ImportSettings) -> None:
        self.table, self.settings = table, settings
        if settings.padding < 0:
            raise UserError(f"padding must not be negative, got {settings.padding}")
        images = ["image"] if settings.composite else ["reference", "target"]
        for role in images:
            self._require(getattr(settings, f"{role}_column"), f"{role}_column")
        self.caption_column = self._optional("caption")
        self.instruction_column = self._optional("instruction")
        self.subject_column = self._optional("subject")
        self.task_column = self._optional("task")
        self.id_column = self._optional("id")
        if not (self.caption_column or self.instruction_column):
            raise UserError(
                f"{self._name} has neither a column 'caption' nor 'instruction' (it has "
                f"{self._listed}); name one with --caption_column or --instruction_column"
            )
        if settings.reverse_caption_column:
            self._require(settings.reverse_caption_column, "reverse_caption_column")
        for column in settings.provenance_columns:
            self._require(column, "provenance_columns")
        self.conditions = [self._condition(text) for text in settings.where]

    @property
    def _name(self) -> str:
        return self.table.files[0].name

    @property
    def _listed(self) -> str:
        return ", ".join(self.table.columns)

    def _require(self, column: str, flag: str) -> None:
        if column not in self.table.columns:
            hint = nearest(column, self.table.columns)
            raise UserError(
                f"{self._name} has no column {column!r}{hint} (it has {self._listed}); "
                f"name one with --{flag}"
            )

    def _optional(self, role: str) -> str | None:
        column: str | None = getattr(self.settings, f"{role}_column")
        if column is None:
            return role if role in self.table.columns else None
        self._require(column, f"{role}_column")
        return column

    def _condition(self, text: str) -> tuple[str, Callable[[Any, Any], bool], Any, str]:
        parts = _CONDITION.fullmatch(text)
        if not parts:
            raise UserError(
                f"cannot read the condition {text!r}; write COLUMN>=NUMBER, or <=, ==, !=, >, <"
            )
        column, sign, literal = parts.groups()
        self._require(column, "where")
        try:
            value = json.loads(literal)
        except ValueError:
            value = literal
        return column, _OPERATORS[sign], value, text

    def records(self, row: Row) -> list[PairRecord]:
        """The records of a row.

        Raises:
            _RowError: it cannot be used; the message says why.
        """
        try:
            if row.error:
                raise UserError(row.error)
            self._check(row.fields)
            return self._pairs(row)
        except UserError as error:
            raise _RowError(str(error)) from None

    def _check(self, fields: Mapping[str, Any]) -> None:
        for column, compare, value, text in self.conditions:
            held = lookup(fields, column)
            if isinstance(held, str) and not isinstance(value, str):
                with contextlib.suppress(ValueError):  # a cell of CSV
                    held = json.loads(held)
            try:
                met = held is not None and compare(held, value)
            except TypeError:
                met = False
            if not met:
                raise UserError(f"left out: {text} does not hold, {column} is {held!r}")

    def _pairs(self, row: Row) -> list[PairRecord]:
        settings, fields = self.settings, row.fields
        if settings.composite:
            image = self._image(fields, settings.image_column)
            left, right = _panels(image, settings.padding)
            source = [image]
        else:
            left = self._image(fields, settings.reference_column)
            right = self._image(fields, settings.target_column)
            source = [left, right]
        words = {
            "caption": self._text(fields, self.caption_column),
            "instruction": self._text(fields, self.instruction_column),
            "subject": self._text(fields, self.subject_column),
            "task": self._text(fields, self.task_column) or settings.task,
            "provenance": self._provenance(row),
        }
        name = self._text(fields, self.id_column) or _digest(source, words)
        pair = PairRecord.from_images(id=name, reference=left, target=right, **words)
        if settings.reverse_caption_column is None:
            return [pair]
        # An instruction leads one way only.
        caption = self._text(fields, settings.reverse_caption_column)
        reverse = dataclasses.replace(
            pair,
            id=f"{name}-reverse",
            reference=pair.target,
            target=pair.reference,
            reference_size=pair.target_size,
            target_size=pair.reference_size,
            caption=caption,
            instruction="",
        )
        return [pair, reverse]

    def _text(self, fields: Mapping[str, Any], column: str | None) -> str:
        value = lookup(fields, column) if column else None
        if value is None:
            return ""
        if isinstance(value, bytes | Mapping | list | float) or value is True or value is False:
            raise UserError(f"column {column} must hold text, got {type(value).__name__}")
        return str(value).strip()

    def _image(self, fields: Mapping[str, Any], column: str) -> bytes:
        """File bytes of an image cell."""
        value = lookup(fields, column)
        if isinstance(value, Mapping):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes) and value:
            return value
        if not isinstance(value, str) or not value:
            raise UserError(f"column {column} holds no image")
        # A table from elsewhere must not reach files outside its own folder.
        inside = Path(os.path.normpath(value.replace("\0", "")))
        if inside.is_absolute() or inside.parts[:1] == ("..",):
            raise UserError(
                f"{value} is outside of the folder of {self._name}; use a relative path"
            )
        path = self.table.folder / inside
        try:
            if path.stat().st_size > MAX_FILE_BYTES:
                raise UserError(f"{value} has more than {MAX_FILE_BYTES:,} bytes")
            return path.read_bytes()
        except FileNotFoundError:
            raise UserError(f"there is no image {value}") from None
        except OSError as error:
            raise UserError(f"cannot read {value}: {error.strerror}") from None

    def _provenance(self, row: Row) -> dict[str, Any]:
        kept = {name: lookup(row.fields, name) for name in self.settings.provenance_columns}
        try:
            json.dumps(kept)
        except (TypeError, ValueError):
            raise UserError("provenance columns must hold numbers or text") from None
        return {"file": row.file, "row": row.number, **kept}


def _panels(data: bytes, padding: int) -> tuple[bytes, bytes]:
    """Left and right panel of a picture: `padding` around both, and once between them."""
    try:
        image = open_image(data)
    except UserError as error:
        raise UserError(f"image: {error}") from None
    spare = image.width - 3 * padding
    width, height = spare // 2, image.height - 2 * padding
    if spare % 2 or min(width, height) < 1:
        raise UserError(
            f"a picture of {image.width}x{image.height} pixels (width x height) does not hold two "
            f"equal panels with a padding of {padding}"
        )
    lefts = (padding, 2 * padding + width)
    left, right = (png_bytes(image.crop((x, padding, x + width, padding + height))) for x in lefts)
    return left, right


def _digest(images: list[bytes], words: Mapping[str, Any]) -> str:
    """A name that depends on nothing but the pair, so that a repeated pair is seen."""
    parts = [hashlib.sha256(image).hexdigest() for image in images]
    parts += [words["caption"], words["instruction"], words["task"]]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
