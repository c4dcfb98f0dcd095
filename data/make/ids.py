"""Ids of the items in a work folder; each extends the id of the item that it was made from.

    9f0c6a1b2d3e4f50                 a caption: the hash of its text
    9f0c6a1b2d3e4f50-identity        its prompt for a task
    9f0c6a1b2d3e4f50-identity-0      a grid of that prompt
    9f0c6a1b2d3e4f50-identity-0-3    a panel of that grid
    9f0c6a1b2d3e4f50-identity-0-31   a pair of its panels, the reference first

Ids are written and compared as text. Only this file parses that text.
"""

import dataclasses
import hashlib
import re
import unicodedata

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from dsd_jax.errors import UserError

__all__ = ["PANELS", "CaptionId", "GridId", "Id", "PairId", "PanelId", "PromptId", "prompt_of"]

PANELS = (1, 2, 3, 4)
"""Top left, top right, bottom left, bottom right."""
_DIGEST = re.compile(r"[0-9a-f]{16}")
_TASK = re.compile(r"[a-z][a-z0-9_]*")
_NUMBER = re.compile(r"0|[1-9][0-9]*")


class _Parsed:
    """An id that is parsed from a text, and is a text in JSON."""

    @classmethod
    def parse(cls, text: str) -> "_Parsed":
        """Reads an id.

        Raises:
            UserError: the text is not an id of this kind.
        """
        raise NotImplementedError

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: type, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            lambda value: value if isinstance(value, cls) else cls.parse(value),
            serialization=core_schema.to_string_ser_schema(),
        )


def _fault(kind: str, text: object) -> UserError:
    return UserError(f"{text!r:.100} is not the id of a {kind}")


def _split(text: str, kind: str) -> tuple[str, str]:
    """Splits an id into the id that it extends and the rest."""
    if not isinstance(text, str):
        raise _fault(kind, text)
    before, _, last = text.rpartition("-")
    return before, last


@dataclasses.dataclass(frozen=True)
class CaptionId(_Parsed):
    """A caption, by 16 hex digits."""

    digest: str

    def __str__(self) -> str:
        return self.digest

    @property
    def caption(self) -> "CaptionId":
        return self

    @classmethod
    def of(cls, caption: str) -> "CaptionId":
        """The id of a text; texts that differ only in case and spaces share one."""
        normal = " ".join(unicodedata.normalize("NFKC", caption).casefold().split())
        return cls(hashlib.sha256(normal.encode()).hexdigest()[:16])

    @classmethod
    def parse(cls, text: str) -> "CaptionId":
        if not isinstance(text, str) or not _DIGEST.fullmatch(text):
            raise _fault("caption", text)
        return cls(text)


@dataclasses.dataclass(frozen=True)
class PromptId(_Parsed):
    """The prompt of a caption for a task."""

    caption: CaptionId
    task: str

    def __str__(self) -> str:
        return f"{self.caption}-{self.task}"

    @classmethod
    def parse(cls, text: str) -> "PromptId":
        before, task = _split(text, "prompt")
        if not _TASK.fullmatch(task):
            raise _fault("prompt", text)
        return cls(CaptionId.parse(before), task)


@dataclasses.dataclass(frozen=True)
class GridId(_Parsed):
    """A grid: `number` counts the grids of its prompt from 0."""

    prompt: PromptId
    number: int

    def __str__(self) -> str:
        return f"{self.prompt}-{self.number}"

    @property
    def caption(self) -> CaptionId:
        return self.prompt.caption

    @classmethod
    def parse(cls, text: str) -> "GridId":
        before, number = _split(text, "grid")
        if not _NUMBER.fullmatch(number):
            raise _fault("grid", text)
        return cls(PromptId.parse(before), int(number))


@dataclasses.dataclass(frozen=True)
class PanelId(_Parsed):
    """A panel of a grid, by its place in `PANELS`."""

    grid: GridId
    number: int

    def __str__(self) -> str:
        return f"{self.grid}-{self.number}"

    @property
    def caption(self) -> CaptionId:
        return self.grid.caption

    @classmethod
    def parse(cls, text: str) -> "PanelId":
        before, number = _split(text, "panel")
        if number not in map(str, PANELS):
            raise _fault("panel", text)
        return cls(GridId.parse(before), int(number))


@dataclasses.dataclass(frozen=True)
class PairId(_Parsed):
    """Two panels of a grid, by their places in `PANELS`."""

    grid: GridId
    reference: int
    target: int

    def __str__(self) -> str:
        return f"{self.grid}-{self.reference}{self.target}"

    @property
    def caption(self) -> CaptionId:
        return self.grid.caption

    @property
    def panels(self) -> tuple[PanelId, PanelId]:
        """Reference and target."""
        return PanelId(self.grid, self.reference), PanelId(self.grid, self.target)

    def flipped(self) -> "PairId":
        """The same panels with their roles exchanged."""
        return PairId(self.grid, self.target, self.reference)

    @classmethod
    def parse(cls, text: str) -> "PairId":
        before, ends = _split(text, "pair")
        if not (len(ends) == 2 and set(ends) <= set(map(str, PANELS)) and ends[0] != ends[1]):
            raise _fault("pair", text)
        return cls(GridId.parse(before), int(ends[0]), int(ends[1]))


def prompt_of(text: str) -> PromptId | None:
    """The prompt from which the item of an id was made; None for captions and what is no id."""
    try:
        return PromptId.parse("-".join(text.split("-")[:2]))
    except UserError:
        return None


Id = CaptionId | PromptId | GridId | PanelId | PairId
"""Any of them; its `caption` is the one that it began with."""
