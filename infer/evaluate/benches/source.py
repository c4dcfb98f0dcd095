"""Folders of a benchmark as an adapter reads them, and its pictures, which are all opened."""

import dataclasses
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from dsd_jax.errors import UserError, and_more
from dsd_jax.files import file_sha256
from dsd_jax.images import open_image
from dsd_jax.infer.evaluate.cases import Picture
from dsd_jax.structured import read_bytes

__all__ = [
    "ENDINGS",
    "Source",
    "check_count",
    "check_released",
    "file_name",
    "picture",
    "pictures_sha256",
    "text_lines",
    "visible",
]

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")
"""Endings of the files that count as pictures, in lower case."""


_LONGEST_TEXT = 1 << 20  # bytes
_OTHER = re.compile(r"[^A-Za-z0-9_.'-]+")


@dataclasses.dataclass(frozen=True)
class Source:
    """Places of a benchmark, and choices about its cases.

    Attributes:
        roots: Folders of the benchmark, in the order that it states; a file for a table.
        pictures: Folder for pictures that are not files yet.
        count: Number of cases, for a benchmark that draws them.
        seed: Seed of that draw.
        released: Refuse pictures other than those that were released, where their digests are
            known.
    """

    roots: tuple[Path, ...]
    pictures: Path
    count: int = 100
    seed: int = 0
    released: bool = True

    @property
    def root(self) -> Path:
        """The first folder."""
        return self.roots[0]


def picture(path: Path, mask: Path | None = None) -> Picture:
    """Opens a picture in full, so that no later step meets a damaged one.

    Raises:
        UserError: It is missing, damaged, or no picture; so for the mask.
    """
    for each in (path, mask):
        if each is not None:
            open_image(each)
    return Picture(path.absolute(), file_sha256(path), None if mask is None else mask.absolute())


def visible(folder: Path, *endings: str) -> Iterator[Path]:
    """Files of a folder in the order of their names, without hidden ones such as `._00.jpg`.

    Args:
        folder: A folder.
        endings: Endings in lower case; files with others are left out.
    """
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if not path.name.startswith(".") and path.suffix.lower() in endings and path.is_file():
            yield path


def text_lines(path: Path) -> list[str]:
    """Lines of a text file without the spaces around them, and without empty ones.

    Raises:
        UserError: It cannot be read, has no text, or is not UTF-8.
    """
    try:
        text = read_bytes(path, _LONGEST_TEXT).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8; the download is damaged") from None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise UserError(f"{path} is empty; the download is damaged")
    return lines


def file_name(text: str) -> str:
    """A text as part of a file name: other signs than letters, digits and -_.' become `_`."""
    return _OTHER.sub("_", text.strip())


def check_count(what: str, where: Path, counted: int, expected: int) -> None:
    """Checks a number that a benchmark is known to have.

    Raises:
        UserError: It differs.
    """
    if counted != expected:
        raise UserError(
            f"{where} has {counted} {what}, expected {expected}; the download is incomplete, or it "
            "is another benchmark"
        )


def pictures_sha256(pictures: Iterable[Picture]) -> str:
    """The first 16 hex digits of the digest of all digests, in the order given."""
    joined = "".join(each.sha256 for each in pictures)
    return hashlib.sha256(joined.encode()).hexdigest()[:16]


def check_released(known: Mapping[str, tuple[Iterable[Picture], str]], where: Path) -> None:
    """Checks digests of groups of pictures against those of the release.

    Args:
        known: Pictures and the digest of each group, by the name of the group.
        where: Folder of the benchmark.

    Raises:
        UserError: A group differs.
    """
    wrong = [name for name, (held, digest) in known.items() if pictures_sha256(held) != digest]
    if wrong:
        raise UserError(
            f"{where}: the pictures of {and_more(wrong)} are not those that were released; "
            "download them again, or accept them with --other_pictures"
        )
