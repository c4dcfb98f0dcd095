"""Writes the pages of a story as pictures, as a PDF and as a comic book archive (CBZ).

The same pages give the same bytes.
"""

import io
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from PIL import Image

from dsd_jax.files import write_file
from dsd_jax.images import encode_image
from dsd_jax.marks import SOURCE_TYPE, Mark

__all__ = ["write_book"]

_RESOLUTION = 150.0  # pixels per inch: the width of most layouts is that of A4
_BEGINNING = (1980, 1, 1, 0, 0, 0)  # the first time that an archive can hold


def write_book(
    folder: Path,
    title: str,
    pages: Sequence[Image.Image],
    mark: Mark | None,
    *,
    right_to_left: bool = False,
) -> list[Path]:
    """Writes `page-1.png` and so on, `story.pdf` and `story.cbz`.

    Args:
        folder: where they go.
        title: of the story.
        pages: RGB.
        mark: says that a model made the pages; a PDF says so among its keywords.
        right_to_left: tells readers of the archive to turn pages as in manga.

    Raises:
        UserError: the operating system refuses.
    """
    content = {
        f"page-{number}.png": encode_image(page, "PNG", {"title": title, "page": number}, mark)
        for number, page in enumerate(pages, start=1)
    }
    content |= {
        "story.pdf": _pdf(title, pages, mark),
        "story.cbz": _archive(title, content, right_to_left=right_to_left),
    }
    for stale in folder.glob("page-*.png"):  # of a story that had more pages
        if stale.name not in content:
            stale.unlink()
    for name, data in content.items():
        write_file(folder / name, data)
    return [folder / name for name in content]


def _pdf(title: str, pages: Sequence[Image.Image], mark: Mark | None) -> bytes:
    file, date = io.BytesIO(), time.gmtime(0)
    pages[0].save(
        file, "PDF", save_all=True, append_images=pages[1:], resolution=_RESOLUTION, quality=95,
        title=title, producer="dsd-jax", keywords="" if mark is None else SOURCE_TYPE,
        creationDate=date, modDate=date,
    )  # fmt: skip
    return file.getvalue()


def _archive(title: str, pages: dict[str, bytes], *, right_to_left: bool) -> bytes:
    manga = "YesAndRightToLeft" if right_to_left else "No"
    about = (
        '<?xml version="1.0" encoding="utf-8"?>\n'
        f"<ComicInfo><Title>{escape(title)}</Title><PageCount>{len(pages)}</PageCount>"
        f"<Manga>{manga}</Manga></ComicInfo>\n"
    )
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:  # pictures are compressed already
        for name, data in {**pages, "ComicInfo.xml": about.encode()}.items():
            archive.writestr(zipfile.ZipInfo(name, _BEGINNING), data)
    return file.getvalue()
