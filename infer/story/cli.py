"""`dsd story write` and `dsd story draw`."""

from pathlib import Path
from typing import Annotated

import tyro

from dsd_jax.infer.cli import ModelFlags
from dsd_jax.infer.settings import Settings
from dsd_jax.infer.story.draw import bind, check, paint
from dsd_jax.infer.story.layout import load_layout
from dsd_jax.infer.story.letters import FONT, Letters
from dsd_jax.infer.story.script import STORY, read_story, write_story
from dsd_jax.infer.story.write import Plot, Writer, load_questions, spent_on, tell
from dsd_jax.marks import MarkFlags

__all__ = ["draw", "write"]

_PLAIN = tyro.conf.arg(name="")


def write(
    reference: tyro.conf.Positional[Path],
    folder: tyro.conf.Positional[Path],
    wanted: Annotated[Plot, _PLAIN] = Plot(),
    writer: Annotated[Writer, _PLAIN] = Writer(),
    layouts: Path | None = None,
    font: Path | None = None,
    wordings: Path | None = None,
) -> None:
    """Write a story about the hero of a picture. If it was stopped, start it again to resume.

    A vision model names the hero, tells a story in panels, and words each panel as a prompt that
    stands alone. What was paid for is never asked again.

    Args:
        reference: Picture of the hero. It is copied into the folder.
        folder: Folder that gets story.json for dsd story draw.
        wanted: The story that is wanted.
        writer: The vision model that writes.
        layouts: TOML file with more layouts.
        font: Font (.ttf or .otf) that the texts will be set in.
        wordings: TOML file with texts of the questions that replace ours.
    """
    layout, letters = load_layout(wanted.layout, layouts), Letters(font or FONT)
    try:
        story = tell(reference, folder, wanted, writer, layout, letters, load_questions(wordings))
    finally:
        if (spent := spent_on(folder)).calls:
            print(f"writing this story: {spent}")
    print(f"{story.title}: {len(story.panels)} panels")
    print(f"wrote {folder / STORY}")


def draw(
    folder: tyro.conf.Positional[Path],
    model: Annotated[ModelFlags, _PLAIN] = ModelFlags(),
    settings: Annotated[Settings, _PLAIN] = Settings(),
    redo: int | None = None,
    layouts: Path | None = None,
    font: Path | None = None,
    marks: Annotated[MarkFlags, _PLAIN] = MarkFlags(),
) -> None:
    """Paint the panels of a story and put them on pages. Panels that are there stay.

    Args:
        folder: Folder with story.json and the hero's picture. It gets panels/, page-1.png and so
            on, story.pdf and story.cbz.
        model: The model.
        settings: Settings of sampling.
        redo: Number of a panel to paint again, with another seed.
        layouts: TOML file with more layouts.
        font: Font (.ttf or .otf) of captions and balloons. Default: one for Latin, Greek and
            Cyrillic.
        marks: Marks of generated pictures.
    """
    story = read_story(folder)
    layout, letters = load_layout(story.layout, layouts), Letters(font or FONT)
    if redo is not None:
        story = story.with_new_seed(redo)
    check(story, folder, layout, letters)
    mark = marks.open()
    pipeline = model.load()
    if redo is not None:
        write_story(folder, story)
    if not paint(pipeline, story, folder, settings, mark):
        print("stopped before the last panel; start again without --redo to paint the rest")
        raise SystemExit(130)
    for path in bind(story, folder, layout, letters, mark):
        print(f"wrote {path}")
