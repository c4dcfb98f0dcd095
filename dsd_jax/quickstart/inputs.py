"""Writes the files that the commands of a quickstart read."""

import csv
import dataclasses
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from dsd_jax.convert.hub import TOY
from dsd_jax.errors import UserError
from dsd_jax.files import begin_folder, write_file
from dsd_jax.images import save_image
from dsd_jax.toy.score import Case
from dsd_jax.toy.words import describe
from dsd_jax.toy.world import BACKGROUNDS, PANEL, Scene, subjects

__all__ = ["IMAGE_SCALE", "MAKING", "STUDENT", "TEACHER", "TEXT_TOKENS", "Budget", "write_inputs"]

MAKING = "making"
STUDENT, TEACHER = "student", "teacher"
IMAGE_SCALE = 2.0  # true guidance: it strengthens the effect of the reference
TEXT_TOKENS = 16  # T5 tokens: texts about one picture are short, and fewer tokens take less time
_BUDGET = "budget.json"


@dataclasses.dataclass(frozen=True)
class Budget:
    """The amounts that a quickstart makes.

    Attributes:
        captions: Reference captions; each gives one grid.
        train_steps: Training steps of the student.
        cases: Held-out subjects in new scenes.
        steps: Sampling steps of an image.
    """

    captions: int
    train_steps: int
    cases: int
    steps: int = 16

    @classmethod
    def of(cls, minutes: float) -> "Budget":
        """Estimates the amounts that two cores make in so many minutes.

        Raises:
            UserError: The minutes are not more than 0, or more than 600.
        """
        if not 0 < minutes <= 600:
            raise UserError(f"minutes must be more than 0 and at most 600, got {minutes:g}")
        return cls(
            captions=max(16, round(30 * minutes)),
            train_steps=max(4, round(225 * minutes)),
            cases=max(4, round(12 * minutes)),
        )


def write_inputs(folder: Path, budget: Budget, cases: Sequence[Case]) -> None:
    """Writes captions, the configuration of the dataset, and the cases with their references.

    Raises:
        UserError: The folder was begun with another budget, holds something else, or cannot be
            written.
    """
    other = "was begun with another budget; give the same --minutes, or another --output_dir"
    begin_folder(folder, _BUDGET, json.dumps(dataclasses.asdict(budget)), other)
    write_file(folder / "captions.csv", _captions(budget.captions))
    write_file(folder / f"{MAKING}.toml", _configuration(budget))
    _write_manifests(folder, cases, budget.steps)


def _captions(count: int) -> str:
    """A table such as LAION's, with captions of subjects that are not held out."""
    rng = np.random.default_rng(0)
    pool = subjects(held_out=False)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["TEXT"])
    for number in rng.choice(len(pool), count, replace=False):
        background = list(BACKGROUNDS)[rng.integers(len(BACKGROUNDS))]
        table.writerow([describe(pool[number], Scene(background, "northwest"))])
    return text.getvalue()


def _configuration(budget: Budget) -> str:
    return f"""# `dsd data make` reads this file. With FLUX.1-dev as base_path, grids of 1024 x 1024
# pixels and a provider such as kind = "openai", it makes pairs of real pictures.
root = "{MAKING}"
base_path = "{TOY}"
parts = 4

[providers.toy]
kind = "toy"
model = "toy"

[captions]
source = ["captions.csv"]
count = {budget.captions}
similarity = 1.0  # the toy world has few words

[prompts]
provider = "toy"

[grids]
height = {2 * PANEL}
width = {2 * PANEL}
steps = {budget.steps}
dtype = "float32"

[pairs.check]
margin = 0.0  # panels touch, and nothing blurs between them

[judge]
provider = "toy"

[caption]
provider = "toy"

[pack]
size = [{PANEL}, {PANEL}]
"""


def _write_manifests(folder: Path, cases: Sequence[Case], steps: int) -> None:
    """The cases for `dsd batch`: the student gets the reference, the teacher the text alone."""
    with_reference, without = [], []
    for case in cases:
        reference = folder / "references" / f"{case.id}.png"
        if not reference.exists():
            save_image(Image.fromarray(case.reference()), reference)
        row = {"id": case.id, "text": case.text, "seed": case.seed, "steps": steps, "height": PANEL}
        image = str(reference.relative_to(folder))
        with_reference.append(row | {"image": image, "width": 2 * PANEL, "i_guidance": IMAGE_SCALE})
        without.append(row | {"width": PANEL})
    for name, rows in ((STUDENT, with_reference), (TEACHER, without)):
        write_file(folder / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
