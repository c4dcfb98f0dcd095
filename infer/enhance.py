"""A user's prompt enriched by what the reference image shows, as the released program does.

A vision model describes the cropped reference, then puts the subject's details into the user's
words.
"""

import functools
import io
import re
import tomllib
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from PIL import Image

__all__ = ["NotEnhanced", "Vlm", "enhance", "wording"]

_QUOTES = "\"'`“”‘’"
_FENCE = re.compile(r"^```\w*\s*|\s*```$")


class NotEnhanced(Exception):  # noqa: N818 - the plain prompt is used, and that is said
    """The vision model gave nothing that can be used; says what."""


@runtime_checkable
class Vlm(Protocol):
    """A vision model: one question, one whole answer."""

    def __call__(self, system: str, user: str, image: bytes | None) -> str:
        """Answers `user`, perhaps about a PNG.

        Raises:
            NotEnhanced: no whole answer.
        """
        ...


@functools.cache
def wording() -> dict[str, Any]:
    """The texts by which the model is asked, with their `name`."""
    return tomllib.loads(Path(__file__).with_name("enhance.toml").read_text(encoding="utf-8"))


def enhance(text: str, image: Image.Image, vlm: Vlm) -> str:
    """The prompt with details of the subject, on one line.

    The user's words are kept: should the model have dropped one, they are put before its answer.

    Args:
        text: the user's prompt.
        image: the reference as the pipeline crops it.
        vlm: is asked twice.

    Raises:
        NotEnhanced: there was no usable answer.
    """
    texts = wording()
    file = io.BytesIO()
    image.save(file, "PNG")
    caption = _line(vlm(texts["caption"]["system"], texts["caption"]["user"], file.getvalue()))
    if not caption:
        raise NotEnhanced("the description of the reference is empty")
    fields = {"text": _line(text), "caption": caption}
    user = re.sub(r"\{(\w+)\}", lambda field: fields[field[1]], texts["merge"]["user"])
    merged = _line(vlm(texts["merge"]["system"], user, None))
    if not merged:
        raise NotEnhanced("the enriched prompt is empty")
    return merged if _keeps(merged, text) else f"{_line(text).rstrip('. ')}. {merged}"


def _line(answer: str) -> str:
    """An answer on one line, without the fences and quotation marks that models like to add."""
    line = " ".join(_FENCE.sub("", answer.strip()).split())
    if len(line) > 1 and line[0] in _QUOTES and line[-1] in _QUOTES:
        line = line[1:-1].strip()
    return line


def _keeps(merged: str, text: str) -> bool:
    """Whether all words of the user are there, in their order."""
    left = iter(_words(merged))
    return all(word in left for word in _words(text))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())
