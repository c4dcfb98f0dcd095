"""Two methods that fail in opposite ways: one returns the reference, one draws another subject."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from dsd_jax.images import save_image
from dsd_jax.infer.evaluate.cases import Case
from dsd_jax.toy.score import from_tags
from dsd_jax.toy.world import render, subjects

__all__ = ["write_copies", "write_scene_only"]


def write_copies(cases: Sequence[Case], folder: Path) -> None:
    """Writes the reference of every case as its image.

    Args:
        cases: Cases of any benchmark.
        folder: Folder for the images, each named after its case.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for case in cases:
        path = case.reference.path
        shutil.copyfile(path, folder / f"{case.id}{path.suffix}")


def write_scene_only(cases: Sequence[Case], folder: Path) -> None:
    """Draws the scene that every case asks for, with a subject that shares nothing with its own.

    Args:
        cases: Cases of the toy world.
        folder: Folder for the images, each named after its case.
    """
    pool = subjects(held_out=False)
    for number, case in enumerate(cases):
        asked = from_tags(case.id, case.tags)
        own = set(vars(asked.subject).values())
        turned = (*pool[number:], *pool[:number])
        other = next(subject for subject in turned if own.isdisjoint(vars(subject).values()))
        save_image(Image.fromarray(render(other, asked.after)), folder / f"{case.id}.png")
