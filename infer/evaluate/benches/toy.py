"""The toy world as a benchmark: its pictures are drawn, so every answer is known exactly."""

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from dsd_jax.errors import UserError
from dsd_jax.images import save_image
from dsd_jax.infer.evaluate.benches.source import Source, picture
from dsd_jax.infer.evaluate.cases import Case, Picture
from dsd_jax.toy.score import make_cases
from dsd_jax.toy.words import describe_subject
from dsd_jax.toy.world import Scene, Subject, layers, render

__all__ = ["read_toy"]


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
