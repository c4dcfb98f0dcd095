"""Paints the panels of a story and puts them on pages.

The panels are rows of `dsd_jax.infer.batch`, so a stopped run goes on, and a panel is painted again
only if its prompt, its seed, the name of the reference or the model changed. Every panel has the
same reference: one that followed the panel before it would drift away from the hero.
"""

from pathlib import Path

from PIL import Image

from dsd_jax.errors import UserError
from dsd_jax.images import open_frame
from dsd_jax.infer.batch import Row, run_batch
from dsd_jax.infer.pipeline import Pipeline
from dsd_jax.infer.settings import Settings
from dsd_jax.infer.story.book import write_book
from dsd_jax.infer.story.layout import Layout
from dsd_jax.infer.story.letters import Letters
from dsd_jax.infer.story.page import Picture, draw_pages
from dsd_jax.infer.story.script import STORY, Story
from dsd_jax.inside import OutsideError, real_inside
from dsd_jax.marks import Mark

__all__ = ["PANELS", "bind", "check", "paint"]

PANELS = "panels"
"""Folder of the painted panels within the folder of a story."""


def check(story: Story, folder: Path, layout: Layout, letters: Letters) -> None:
    """Reads the reference and sets all texts on blank panels, before anything is painted.

    Raises:
        UserError: a reference that cannot be read or lies outside the folder, or a text that
            cannot be set.
    """
    try:
        real_inside(folder, story.reference)
    except OutsideError:  # the story may be from elsewhere; pages would show a private picture
        raise UserError(
            f"{folder / STORY}: the reference {story.reference} is outside of the story's folder; "
            "copy the picture into it and give its new name"
        ) from None
    open_frame(folder / story.reference, 1, 1)
    blank = Image.new("RGB", (64, 64), "white")
    draw_pages(
        [Picture(blank, panel.words, panel.subject) for panel in story.panels], layout, letters
    )


def paint(
    pipeline: Pipeline, story: Story, folder: Path, settings: Settings, mark: Mark | None
) -> bool:
    """Paints the panels that are missing; False if it was stopped before the last.

    Args:
        pipeline: the pipeline.
        story: the story.
        folder: folder of the story.
        settings: settings of sampling.
        mark: says in each panel that a model made it.

    Raises:
        UserError: a panel that cannot be painted, or the folder cannot be written.
    """
    rows = [
        Row(
            id=f"panel-{number:02d}",
            text=panel.prompt,
            image=story.reference,
            seed=panel.seed,
            settings=settings,
            folder=folder,
        )
        for number, panel in enumerate(story.panels, start=1)
    ]
    failed: list[str] = []

    def report(entry: dict[str, object]) -> None:
        if entry["status"] == "error":
            failed.append(f"{entry['id']}: {entry['error']}")

    summary = run_batch(
        pipeline, rows, folder / PANELS, retry_failed=True, on_result=report, mark=mark
    )
    if failed:
        raise UserError(f"{len(failed)} of {len(rows)} panels were not painted; {failed[0]}")
    return not summary.stopped


def bind(
    story: Story, folder: Path, layout: Layout, letters: Letters, mark: Mark | None
) -> list[Path]:
    """Puts the painted panels on pages; returns the files written.

    Raises:
        UserError: a panel is missing, a text does not fit, or the folder cannot be written.
    """
    pictures = []
    for number, panel in enumerate(story.panels, start=1):
        path = folder / PANELS / f"panel-{number:02d}.png"
        if not path.exists():
            raise UserError(f"there is no {path}; paint the panels with dsd story draw")
        with Image.open(path) as image:
            pictures.append(Picture(image.convert("RGB"), panel.words, panel.subject))
    pages = draw_pages(pictures, layout, letters)
    return write_book(folder, story.title, pages, mark, right_to_left=layout.right_to_left)
