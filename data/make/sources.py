"""Reads captions from tables in any format, or from lines of text, as a stream.

A line that cannot be read becomes a caption with a reason, so that it is counted; reading goes on
after it.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from dsd_jax.convert.hub import find_table
from dsd_jax.data.make.stages import Source
from dsd_jax.errors import UserError, and_more, did_you_mean
from dsd_jax.rows import Table, lookup, open_table

__all__ = ["Found", "read_captions"]

_CAPTION, _URL = ("TEXT", "caption", "text"), ("URL", "url")  # LAION's names first
_PLAIN = (".txt", ".text")


class Found(NamedTuple):
    """A caption of a source, or the reason why there is none, and its place."""

    text: str | None
    problem: str
    where: Source


def read_captions(
    sources: Sequence[Path],
    caption_column: str | None = None,
    url_column: str | None = None,
    split: str | None = None,
) -> Iterator[Found]:
    """Captions of files and folders, in order.

    Args:
        sources: `.txt` files, files and folders that `dsd_jax.rows.open_table` reads, or hub ids of
            datasets.
        caption_column: name of the column; default: the first of `TEXT`, `caption` and `text` that
            exists.
        url_column: name of the column; default: `URL` or `url`, if one exists.
        split: split of sources that have several.

    Raises:
        UserError: a source does not exist or has no such column.
    """
    for path in sources:
        if path.suffix in _PLAIN:
            for number, line in enumerate(_lines(path), start=1):
                yield Found(line, "", Source(file=path.name, row=number))
        else:
            table = open_table(find_table(path), split)
            yield from _from_table(table, caption_column, url_column)


def _lines(path: Path) -> Iterator[str]:
    """Lines, with U+FFFD for bytes that are not UTF-8."""
    try:
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            yield from file
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def _from_table(
    table: Table, caption_column: str | None, url_column: str | None
) -> Iterator[Found]:
    caption, url = _columns(table, caption_column, url_column)
    for row in table.rows():
        where = Source(file=row.file, row=row.number)
        if row.error:
            yield Found(None, "damaged", where)
        else:
            yield _found(row.fields, caption, url, where)


def _columns(table: Table, caption: str | None, url: str | None) -> tuple[str, str | None]:
    path = table.files[0]
    for column, option in ((caption, "caption_column"), (url, "url_column")):
        if column and not table.has(column):
            raise UserError(
                f"{path} has no column {column!r}{did_you_mean(column, table.columns)} (it has "
                f"{and_more(table.columns, 12)}); see {option} under [captions]"
            )
    caption = caption or next((name for name in _CAPTION if table.has(name)), None)
    if caption is None:
        raise UserError(
            f"{path} has none of the columns {', '.join(_CAPTION)} (it has "
            f"{and_more(table.columns, 12)}); name one by caption_column under [captions]"
        )
    return caption, url or next((name for name in _URL if table.has(name)), None)


def _found(fields: Mapping[str, object], caption: str, url: str | None, where: Source) -> Found:
    text = lookup(fields, caption)
    if text is None:
        return Found(None, "empty", where)
    if not isinstance(text, str):
        return Found(None, "not_text", where)
    link = lookup(fields, url) if url else None
    if isinstance(link, str) and link.isprintable() and len(link) <= 2_000:
        where = dataclasses.replace(where, url=link)
    return Found(text, "", where)
