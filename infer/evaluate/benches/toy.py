"""The toy world as a benchmark: its pictures are drawn, so every answer is known exactly."""

import dataclasses
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from dsd_jax.errors import UserError
from dsd_jax.images import save_image
from dsd_jax.infer.evaluate.benches.source import Source, picture
from dsd_jax.infer.evaluate.cases import Case, Picture
from dsd_jax.toy.score import from_tags, make_cases
from dsd_jax.toy.words import describe_subject
from dsd_jax.toy.world import COLOURS, MARKINGS, SHAPES, Scene, Subject, layers, render

__all__ = ["changed_toys", "read_toy"]

_ATTRIBUTES: Mapping[str, Collection[str]] = {
    "shape": SHAPES,
    "body": COLOURS,
    "mark": COLOURS,
    "marking": MARKINGS,
}


def read_toy(source: Source) -> list[Case]:
    """Draws cases of held-out subjects, and writes their references, targets and masks.

    The target shows the subject in the scene that is asked for. `dsd_jax.toy.score.from_tags` gives
    the subject and both scenes of a case, by which its images are scored exactly.

    Raises:
        UserError: The pictures cannot be written, or no case is asked for.
    """
    if source.count < 1:
        raise UserError(f"count must be at least 1, got {source.count}")
    prompts: Counter[str] = Counter()
    cases = []
    for drawn in make_cases(source.count, seed=source.seed):
        subject = "-".join(dataclasses.astuple(drawn.subject))
        stem = source.pictures / drawn.id
        cases.append(
            Case(
                id=drawn.id,
                bench="toy",
                subject=subject,
                prompt=drawn.text,
                references=(_drawn(f"{stem}-reference", drawn.subject, drawn.before),),
                targets=(_drawn(f"{stem}-target", drawn.subject, drawn.after),),
                prompt_index=prompts[subject],
                subject_text=describe_subject(drawn.subject),
                tags=drawn.tags,
            )
        )
        prompts[subject] += 1
    return cases


def _drawn(stem: str, subject: Subject, scene: Scene) -> Picture:
    """Writes a picture and the mask of its subject."""
    path, mask = Path(f"{stem}.png"), Path(f"{stem}-mask.png")
    save_image(Image.fromarray(render(subject, scene)), path)
    cover = layers(subject.shape, subject.marking, scene.place, scene.size, scene.tilt)[..., 0]
    white = np.where(cover >= 0.5, 255, 0).astype(np.uint8)
    save_image(Image.fromarray(np.repeat(white[..., None], 3, axis=2)), mask)
    return picture(path, mask)


def changed_toys(case: Case, rng: np.random.Generator) -> Iterator[tuple[int, Image.Image]]:
    """Draws the subject of a case in the scene that is asked for, with 0 to 4 attributes changed.

    Yields:
        Number of changed attributes, and the picture.

    Raises:
        UserError: The tags of the case do not tell its subject.
    """
    toy = from_tags(case.id, case.tags)
    names = list(_ATTRIBUTES)
    for number in range(len(names) + 1):
        changed = _changed(toy.subject, rng.permutation(names)[:number].tolist(), rng)
        yield number, Image.fromarray(render(changed, toy.after))


def _changed(subject: Subject, names: Sequence[str], rng: np.random.Generator) -> Subject:
    """The subject with another value of each attribute in `names`."""
    while True:
        values = {}
        for name in names:
            others = [value for value in _ATTRIBUTES[name] if value != getattr(subject, name)]
            values[name] = others[rng.integers(len(others))]
        changed = dataclasses.replace(subject, **values)
        if changed.body != changed.mark:  # a mark of the body's colour cannot be seen
            return changed
