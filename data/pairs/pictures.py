"""Folders of images: the files, and the captions beside them."""

import dataclasses
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from dsd_jax.data.pairs.record import MAX_TEXT
from dsd_jax.images import FORMATS
from dsd_jax.rows import Position, Row, Table
from dsd_jax.text.plain import text_fault

__all__ = ["PictureFolder", "caption_beside", "image_files"]

_ENDINGS = frozenset({".jpg", ".tif", *(f".{name.lower()}" for name in FORMATS)})


def image_files(folder: Path) -> Iterator[Path]:
    """The image files of a folder and of those inside it, in no order."""
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix.lower() in _ENDINGS and path.is_file() and not hidden:
            yield path


def caption_beside(path: Path) -> str:
    """The caption in a text file beside an image; empty if there is none."""
    caption = path.with_suffix(".txt")
    if not caption.is_file():
        return ""
    with caption.open("rb") as file:
        return file.read(MAX_TEXT).decode("utf-8", "replace").strip()


@dataclasses.dataclass(frozen=True)
class PictureFolder(Table):
    """The image files of a folder as a table, in the order of their paths.

    Its columns are `id` (the path in the folder), `image`, `caption` and `instruction`.

    Attributes:
        instruction: Instruction of the images that have no caption.
    """

    instruction: str = ""

    @classmethod
    def find(cls, folder: Path, instruction: str) -> "PictureFolder":
        """The image files of a folder and of those inside it; there may be none."""
        files = tuple(sorted(image_files(folder)))
        return cls(folder, files, ("id", "image", "caption", "instruction"), instruction)

    @property
    def unit(self) -> str:
        """The unit of `left`."""
        return "images"

    def left(self, after: Position = (0, 0)) -> float:
        """Number of images after a position."""
        return len(self.files) - after[1]

    def rows(self, after: Position = (0, 0)) -> Iterator[Row]:
        """Yields the images after a position as rows."""
        for number, path in islice(enumerate(self.files, 1), after[1], None):
            name = str(path.relative_to(self.folder))
            if fault := text_fault(name):
                shown = ascii(name)
                error = f"the name of the file {shown} cannot be stored: {fault}"
                yield Row({}, shown, number, self.folder, (0, number), 1.0, error)
                continue
            caption = caption_beside(path)
            instruction = "" if caption else self.instruction
            fields = {"id": name, "image": name, "caption": caption, "instruction": instruction}
            yield Row(fields, name, number, self.folder, (0, number), 1.0)
