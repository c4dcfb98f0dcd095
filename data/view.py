"""Shows pictures on a web page: a work folder, a dataset, a table of pairs, or a folder of images.

A page is one file. Of much data it shows a sample.
"""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np

from dsd_jax.data.load.encoded import MANIFEST as ENCODED
from dsd_jax.data.make.config import load_config
from dsd_jax.data.make.folder import begun_folder, is_begun, open_parts
from dsd_jax.data.make.view import write_page
from dsd_jax.data.pairs.pictures import caption_beside, image_files
from dsd_jax.data.pairs.reader import ImportSettings, RowError, RowReader
from dsd_jax.data.pairs.record import PairRecord
from dsd_jax.data.pairs.store import MANIFEST, WRITING, PairStore
from dsd_jax.errors import UserError
from dsd_jax.images import open_image, read_parameters
from dsd_jax.page import Card, Page, Picture
from dsd_jax.rows import open_table

__all__ = ["page_beside", "write_view"]

T = TypeVar("T")


def page_beside(source: Path) -> Path:
    """Returns the default path of the page about a source."""
    whole = source.resolve()
    return whole.with_name(f"{whole.stem if whole.is_file() else whole.name}.html")


def write_view(source: Path, output: Path, limit: int) -> str:
    """Writes a page with the pictures of a source.

    Args:
        source: Configuration or work folder of `dsd data make`, dataset, table of pairs in the
            columns of `dsd data export`, or folder of images.
        output: HTML file to write.
        limit: Largest number of grids, pairs or images.

    Returns:
        The amount shown, in words.

    Raises:
        UserError: There is nothing to show, or the page cannot be written.
    """
    if limit < 1:
        raise UserError(f"limit must be at least 1, got {limit}")
    if source.suffix == ".toml" or is_begun(source):
        parts = open_parts(load_config(source)) if source.is_file() else begun_folder(source)
        shown, total = write_page(parts, output, limit, parts.root.resolve().name)
        return f"{shown:,} of {total:,} grids"
    if not source.exists():
        raise UserError(f"there is no file or folder {source}; check the path")
    if (source / ENCODED).exists():
        raise UserError(
            f"{source} holds what the VAE made of pictures; view the dataset that was encoded"
        )
    page = Page(source.resolve().name)
    if (source / MANIFEST).exists() or (source / WRITING).exists():
        words = _dataset(page, PairStore.open(source), limit)
    else:
        words = _others(page, source, limit)
    page.write(output)
    return words


def _dataset(page: Page, store: PairStore, limit: int) -> str:
    """Shows a dataset, one section for each of its tasks."""
    chosen = _sample(range(len(store)), limit)
    words = f"{len(chosen):,} of {len(store):,} pairs"
    page.text(f"{words}, from a reference to a target of the same subject.")
    tasks = store.index["task"]
    for task, count in store.manifest.tasks.items():
        own = [number for number in chosen if tasks[number] == task]
        if own:
            page.heading(f"{task}: {len(own):,} of {count:,} pairs")
            page.cards([_pair(store[number]) for number in own])
    return words


def _others(page: Page, source: Path, limit: int) -> str:
    """Shows a table of pairs, or a folder of images.

    Raises:
        UserError: The source is neither.
    """
    try:
        table = open_table(source)
        reader = RowReader(table, ImportSettings())
    except UserError as error:
        files = sorted(image_files(source))
        if not files:
            raise UserError(
                f"cannot show {source}: expected the configuration or work folder of `dsd data "
                f"make`, a dataset, a table of pairs, or a folder of images; as a table: {error}"
            ) from None
        chosen = _sample(files, limit)
        words = f"{len(chosen):,} of {len(files):,} images"
        page.text(f"{words}.")
        page.cards([_image(source, path) for path in chosen])
        return words
    cards: list[Card] = []
    for row in islice(table.rows(), limit):
        try:
            cards += [_pair(record) for record in reader.records(row)]
        except RowError as error:
            cards.append(Card([], str(error), [("row", f"{row.number} of {row.file}")]))
    words = f"the first {len(cards):,} rows"
    page.text(f"{words[:1].upper()}{words[1:]} of {table.files[0].name}.")
    page.cards(cards)
    return words


def _pair(record: PairRecord) -> Card:
    named = (("reference", record.reference), ("target", record.target))
    facts = ("instruction", record.instruction), ("subject", record.subject), ("id", record.id)
    return Card(
        [Picture(open_image(data), name) for name, data in named],
        record.caption,
        [(name, text) for name, text in facts if text],
    )


def _image(folder: Path, path: Path) -> Card:
    facts = [("file", str(path.relative_to(folder)))]
    try:
        return Card([Picture(open_image(path))], _words(path), facts)
    except UserError as error:
        return Card([], str(error), facts)


def _words(path: Path) -> str:
    """The caption beside an image, or the prompt of an image that dsd made."""
    return caption_beside(path) or str((read_parameters(path) or {}).get("text", ""))


def _sample(items: Sequence[T], count: int) -> Sequence[T]:
    """Draws at most `count` items with a fixed seed; they stay in order."""
    if len(items) <= count:
        return items
    drawn = np.random.default_rng(0).choice(len(items), count, replace=False)
    return [items[number] for number in sorted(drawn.tolist())]
