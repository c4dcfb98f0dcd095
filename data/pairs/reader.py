"""Reads pairs from the rows of a table: the meaning of its columns, and the checks of its cells."""

import contextlib
import dataclasses
import hashlib
import json
import operator
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from dsd_jax.data.pairs.record import PairRecord, png_bytes
from dsd_jax.data.pairs.writer import SHARD_BYTES
from dsd_jax.errors import UserError, and_more, did_you_mean
from dsd_jax.images import open_still
from dsd_jax.inside import OutsideError, read_inside
from dsd_jax.rows import Row, Table, lookup, plain_path, plain_text
from dsd_jax.structured import MalformedError, parse_json
from dsd_jax.tables.tar import KEY

__all__ = ["FILE_NAME", "ImportSettings", "RowError", "RowReader"]

FILE_NAME = "file_name"
"""Image column, or the ending of one, in an image folder of the `datasets` library."""

MAX_FILE_BYTES = 2**28  # bound of an image file
_LISTED = 12  # columns that a message names
_PROVENANCE = "provenance"  # column that `dsd data export` writes
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
    """The meaning of each column.

    `column.member` names a member of a struct, `column.0` the first item of a list.

    Attributes:
        reference_column: Image of the subject: a path, file bytes, or {bytes, path}.
        target_column: Image that the model is to make from the reference.
        image_column: The one image that holds both panels; only with composite.
        caption_column: Description of the target. Default: `caption`, if there is such a column.
        instruction_column: Edit from reference to target. Default: `instruction`, likewise.
        subject_column: Subject that both images show. Default: `subject`, likewise.
        task_column: Task of a row. Default: `task`, likewise.
        id_column: Unique name of a row. Default: `id`, the name in a tar archive, or else a digest
            of the pair.
        task: Task of rows that name none.
        composite: Layout of one image that holds both: two_panels is [reference | target], with
            padding around each panel.
        padding: Pixels around and between the panels.
        reverse_caption_column: Description of the reference. Every pair is then stored in both
            directions.
        where: Conditions that a row must meet, such as `quality.score>=5`; the others are rejected.
        provenance_columns: Columns to keep with the record.
        split: The split to import from a folder with several, such as `train`.
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
    composite: Literal["two_panels"] | None = None
    padding: int = 16
    reverse_caption_column: str | None = None
    where: tuple[str, ...] = ()
    provenance_columns: tuple[str, ...] = ()
    split: str | None = None
    shard_bytes: int = SHARD_BYTES


class RowError(UserError):
    """The reason why a row cannot be used."""


@dataclasses.dataclass(frozen=True)
class _Condition:
    """The condition that `where` sets for a row."""

    text: str
    column: str
    compare: Callable[[Any, Any], bool]
    value: object

    def check(self, fields: Mapping[str, object]) -> None:
        held = lookup(fields, self.column)
        if isinstance(held, str) and not isinstance(self.value, str):
            with contextlib.suppress(MalformedError):  # a cell of CSV
                held = parse_json(held, self.column, object)
        try:
            met = held is not None and self.compare(held, self.value)
        except TypeError:
            met = False
        if not met:
            raise UserError(f"left out: {self.text} does not hold, {self.column} is {held!r}")


class RowReader:
    """Makes records from the rows of one table. Safe to use from many threads.

    Attributes:
        flags: Flag by which a command names a column, where it is not the setting's own name.
    """

    flags: ClassVar[Mapping[str, str]] = {}

    def __init__(self, table: Table, settings: ImportSettings) -> None:
        """Finds the columns.

        Raises:
            UserError: a column that is named or needed is missing.
        """
        self._table, self._settings = table, settings
        if settings.padding < 0:
            raise UserError(f"padding must not be negative, got {settings.padding}")
        if settings.composite:
            self._images = [self._image_column("image")]
        else:
            self._images = [self._image_column("reference"), self._image_column("target")]
        self._words = {
            role: self._optional(role) for role in ("caption", "instruction", "subject", "task")
        }
        self._id = self._optional("id") or (KEY if table.has(KEY) else None)
        if not (self._words["caption"] or self._words["instruction"]):
            raise UserError(
                f"{self._name} has neither a column 'caption' nor 'instruction' (it has "
                f"{self._listed}); name one with --caption_column or --instruction_column"
            )
        if settings.reverse_caption_column:
            self._require(settings.reverse_caption_column, "reverse_caption_column")
        for column in settings.provenance_columns:
            self._require(column, "provenance_columns")
        self._conditions = [self._condition(text) for text in settings.where]

    @property
    def _name(self) -> str:
        return self._table.files[0].name

    @property
    def _listed(self) -> str:
        return and_more(self._table.columns, _LISTED)

    def _require(self, column: str, flag: str) -> None:
        if not self._table.has(column):
            hint = did_you_mean(column, self._table.columns)
            raise UserError(
                f"{self._name} has no column {column!r}{hint} (it has {self._listed}); "
                f"name one with --{self.flags.get(flag, flag)}"
            )

    def _image_column(self, role: str) -> str:
        column: str = getattr(self._settings, f"{role}_column")
        named = FILE_NAME if column == "image" else f"{column}_{FILE_NAME}"
        if not self._table.has(column) and self._table.has(named):
            return named
        self._require(column, f"{role}_column")
        return column

    def _optional(self, role: str) -> str | None:
        column: str | None = getattr(self._settings, f"{role}_column")
        if column is None:
            return role if self._table.has(role) else None
        self._require(column, f"{role}_column")
        return column

    def _condition(self, text: str) -> _Condition:
        parts = _CONDITION.fullmatch(text)
        if not parts:
            raise UserError(
                f"cannot read the condition {text!r}; write COLUMN>=NUMBER, or <=, ==, !=, >, <"
            )
        column, sign, literal = parts.groups()
        self._require(column, "where")
        try:
            value = parse_json(literal, text, object)
        except MalformedError:
            value = literal
        return _Condition(text, column, _OPERATORS[sign], value)

    def name(self, row: Row) -> str:
        """The id that a row states, or None."""
        return (plain_text(lookup(row.fields, self._id)) if self._id else None) or ""

    def records(self, row: Row) -> list[PairRecord]:
        """The records of a row.

        Raises:
            RowError: it cannot be used; the message says why.
        """
        try:
            if row.error:
                raise UserError(row.error)
            for condition in self._conditions:
                condition.check(row.fields)
            return self._pairs(row)
        except UserError as error:
            raise RowError(str(error)) from None

    def _pairs(self, row: Row) -> list[PairRecord]:
        settings, fields = self._settings, row.fields
        source = [self._image(row, column) for column in self._images]
        left, right = _panels(source[0], settings.padding) if settings.composite else source
        caption, instruction, subject, task = (
            self._text(fields, self._words[role])
            for role in ("caption", "instruction", "subject", "task")
        )
        task = task or settings.task
        pair = PairRecord.from_images(
            id=self._text(fields, self._id) or _digest(source, caption, instruction, task),
            reference=left,
            target=right,
            caption=caption,
            instruction=instruction,
            subject=subject,
            task=task,
            provenance=self._provenance(row),
        )
        if settings.reverse_caption_column is None:
            return [pair]
        # An instruction leads one way only.
        reverse = dataclasses.replace(
            pair,
            id=f"{pair.id}-reverse",
            reference=pair.target,
            target=pair.reference,
            reference_size=pair.target_size,
            target_size=pair.reference_size,
            caption=self._text(fields, settings.reverse_caption_column),
            instruction="",
        )
        return [pair, reverse]

    def _text(self, fields: Mapping[str, object], column: str | None) -> str:
        value = lookup(fields, column) if column else None
        if value is None:
            return ""
        text = plain_text(value)
        if text is None:
            raise UserError(
                f"column {column} must hold text, got {type(value).__name__}{_item(value, column)}"
            )
        return text.strip()

    def _image(self, row: Row, column: str) -> bytes:
        """Reads the file bytes of an image cell."""
        value = lookup(row.fields, column)
        if isinstance(value, Mapping):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes) and value:
            return value
        if not isinstance(value, str) or not value:
            raise UserError(f"column {column} holds no image{_item(value, column)}")
        value = plain_path(value)
        # A table from elsewhere must not reach files outside its own folder. Reasons are kept in
        # the dataset, which may be shared: of an absolute path they tell the name alone.
        root = self._table.folder
        shown = Path(value).name if Path(value).is_absolute() else value
        try:
            return read_inside(root, row.folder.relative_to(root) / value, MAX_FILE_BYTES)
        except OutsideError:
            raise UserError(
                f"{shown} is outside of the folder of {self._name}; import a folder that holds both"
            ) from None
        except UserError as error:
            raise UserError(str(error).replace(value, shown)) from None
        except FileNotFoundError:
            raise UserError(f"there is no image {shown}") from None
        except OSError as error:
            raise UserError(f"cannot read {shown}: {error.strerror}") from None

    def _provenance(self, row: Row) -> dict[str, object]:
        kept: dict[str, object] = {
            name: lookup(row.fields, name) for name in self._settings.provenance_columns
        }
        own = lookup(row.fields, _PROVENANCE)
        if own is not None and _PROVENANCE not in kept:
            if isinstance(own, str) and own.startswith("{"):
                with contextlib.suppress(MalformedError):
                    own = parse_json(own, _PROVENANCE, dict)
            if isinstance(own, Mapping):
                return {**own, **kept}
            kept[_PROVENANCE] = own
        return {"file": row.file, "row": row.number, **kept}


def _item(value: object, column: str | None) -> str:
    return f"; name an item of the list, as {column}.0" if isinstance(value, list) else ""


def _panels(data: bytes, padding: int) -> tuple[bytes, bytes]:
    """Cuts out left and right panel; `padding` lies around both, and once between them."""
    try:
        image = open_still(data).image
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


def _digest(images: list[bytes], *words: str) -> str:
    """A name that depends only on the pair, so that a repeated pair is noticed."""
    parts = [*(hashlib.sha256(image).hexdigest() for image in images), *words]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
