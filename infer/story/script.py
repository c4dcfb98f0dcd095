"""The story file: panels and their texts. People edit it and draw again what changed."""

import dataclasses
import json
from pathlib import Path
from typing import Any, ClassVar

from dsd_jax.errors import UserError
from dsd_jax.files import write_file
from dsd_jax.infer.settings import check_seed
from dsd_jax.infer.story.place import Fractions, Words
from dsd_jax.structured import build, read_json

__all__ = ["STORY", "Panel", "Story", "read_story", "write_story"]

STORY = "story.json"
"""Name of the file in the folder of a story."""


@dataclasses.dataclass(frozen=True)
class Panel:
    """One panel.

    Attributes:
        prompt: Text that the panel is painted from. It says all that is seen, so that the panel can
            be painted alone.
        caption: Text of the narrator.
        speech: Texts of balloons, in reading order.
        seed: Seed of the panel.
        subject: Box of the hero that texts keep off, from 0 to 1. None finds what stands out.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    prompt: str
    caption: str = ""
    speech: tuple[str, ...] = ()
    seed: int = 0
    subject: Fractions | None = None

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise UserError("prompt is empty; describe all that the panel shows")
        check_seed(self.seed)
        if self.subject is not None:
            left, top, right, bottom = self.subject
            if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
                raise UserError(
                    "subject is left, top, right, bottom from 0 to 1, got "
                    f"{', '.join(f'{edge:g}' for edge in self.subject)}"
                )

    @property
    def words(self) -> tuple[Words, ...]:
        """Its texts, in reading order."""
        told = (Words("caption", self.caption), *(Words("balloon", said) for said in self.speech))
        return tuple(one for one in told if one.text.strip())


@dataclasses.dataclass(frozen=True)
class Story:
    """A story.

    Attributes:
        title: Its title.
        panels: The panels, in reading order.
        reference: File of the hero's picture, beside the story file.
        layout: Name of the layout of its pages.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    title: str
    panels: tuple[Panel, ...]
    reference: str = "reference.png"
    layout: str = "2x4"

    def __post_init__(self) -> None:
        if not self.panels:
            raise UserError("a story needs at least one panel")
        if not self.title.isprintable():
            raise UserError(f"title must be one line of printable text, got {self.title!r}")

    def with_new_seed(self, number: int) -> "Story":
        """The story with the next seed for a panel, counted from 1.

        Raises:
            UserError: there is no such panel.
        """
        if not 1 <= number <= len(self.panels):
            raise UserError(f"there is no panel {number}; panels are 1 to {len(self.panels)}")
        panels, old = list(self.panels), self.panels[number - 1]
        panels[number - 1] = dataclasses.replace(old, seed=(old.seed + 1) % 2**32)
        return dataclasses.replace(self, panels=tuple(panels))


def read_story(folder: Path) -> Story:
    """The story of a folder.

    Raises:
        UserError: there is none, or the file holds something else.
    """
    path = folder / STORY
    if not path.exists():
        raise UserError(f"there is no {path}; write one with dsd story write")
    table = read_json(path, dict)
    panels = table.get("panels")
    if isinstance(panels, list):  # here, since a message names a panel by its number from 1
        table["panels"] = [
            _panel(each, f"{path}: panel {number}") for number, each in enumerate(panels, start=1)
        ]
    return build(Story, table, str(path))


def _panel(value: object, where: str) -> Panel:
    if not isinstance(value, dict):
        raise UserError(f'{where} must be an object such as {{"prompt": "a cat on a roof"}}')
    return build(Panel, value, where)


def write_story(folder: Path, story: Story) -> None:
    """Writes the file of a story.

    Raises:
        UserError: the operating system refuses.
    """
    content = json.dumps(dataclasses.asdict(story), ensure_ascii=False, indent=2)
    write_file(folder / STORY, f"{content}\n")
