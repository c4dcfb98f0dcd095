"""Writes the files that the commands of a quickstart read."""

import csv
import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from dsd_jax.convert.hub import TOY
from dsd_jax.errors import UserError, did_you_mean
from dsd_jax.files import begin_folder, write_file
from dsd_jax.images import save_image
from dsd_jax.tasks import DEPTH, IDENTITY, RELIGHT, task_named
from dsd_jax.toy.folder import toy_lights_path
from dsd_jax.toy.score import METRICS_OF, Case, make_cases
from dsd_jax.toy.words import describe
from dsd_jax.toy.world import BACKGROUNDS, PANEL, Scene, subjects
from dsd_jax.train.config import task_shares

__all__ = [
    "IMAGE_SCALE",
    "IMAGE_SCALES",
    "MAKING",
    "STUDENT",
    "TASKS",
    "TEACHER",
    "TEXT_TOKENS",
    "Budget",
    "Cases",
    "write_inputs",
]

MAKING = "making"
STUDENT, TEACHER = "student", "teacher"
TASKS = (f"{IDENTITY.name}=6", f"{RELIGHT.name}=2", f"{DEPTH.name}=2")
IMAGE_SCALE = 2.0  # true guidance: it strengthens the effect of the reference
TEXT_TOKENS = 16  # T5 tokens: texts about one picture are short, and fewer tokens take less time
IMAGE_SCALES = {IDENTITY.name: IMAGE_SCALE, RELIGHT.name: IMAGE_SCALE, DEPTH.name: 1.0}
"""Image guidance by task. At 1, a step takes one pass of the model, not three."""
Cases = Mapping[str, Sequence[Case]]
"""The cases of each task."""
_BUDGET = "budget.json"
_CASES = {IDENTITY.name: 12}  # in a minute
_OTHER_CASES = 4


@dataclasses.dataclass(frozen=True)
class Budget:
    """The amounts that a quickstart makes.

    Attributes:
        tasks: Share of each task in the training. Grids are divided likewise among their tasks.
        captions: Reference captions; each gives one grid.
        maps: Panels that get a depth map, if they are clear.
        train_steps: Training steps of the student.
        cases: Held-out subjects of each task.
        steps: Sampling steps of an image.
    """

    tasks: Mapping[str, float]
    captions: int
    maps: int
    train_steps: int
    cases: Mapping[str, int]
    steps: int = 16

    @classmethod
    def of(cls, minutes: float, tasks: Sequence[str] = TASKS) -> "Budget":
        """Estimates the amounts that two cores make in so many minutes.

        Args:
            minutes: Approximate minutes of the whole run.
            tasks: Shares of the tasks, such as `relight=2`.

        Raises:
            UserError: The minutes are not more than 0, or more than 600; or a task is none of the
                toy world's, or has no share.
        """
        if not 0 < minutes <= 600:
            raise UserError(f"minutes must be more than 0 and at most 600, got {minutes:g}")
        captions = max(24, round(30 * minutes))
        return cls(
            tasks=(shares := _shares(tasks)),
            captions=captions,
            maps=2 * captions if DEPTH.name in shares else 0,
            train_steps=max(4, round(225 * minutes)),
            cases={
                name: max(4, round(_CASES.get(name, _OTHER_CASES) * minutes)) for name in shares
            },
        )

    @property
    def grids(self) -> Mapping[str, float]:
        """Share of each task in the grids. Depth maps are made of panels of any grid."""
        own = {name: share for name, share in self.tasks.items() if task_named(name).grid}
        return own or {IDENTITY.name: 1.0}

    def make_cases(self) -> Cases:
        """The cases of each task."""
        return {name: make_cases(count, task=name) for name, count in self.cases.items()}


def _shares(tasks: Sequence[str]) -> dict[str, float]:
    """Shares by task.

    Raises:
        UserError: There is none, or a text is no share of a task of the toy world.
    """
    for text in tasks:
        name = text.partition("=")[0]
        if name not in METRICS_OF:
            raise UserError(
                f"the toy world has no task {name!r}; expected {', '.join(METRICS_OF)}"
                f"{did_you_mean(name, METRICS_OF)}"
            )
    if not tasks:
        raise UserError(f"tasks needs one at least, such as {' '.join(TASKS)}")
    return task_shares(tasks)


def write_inputs(folder: Path, budget: Budget, cases: Cases) -> None:
    """Writes captions, the configuration of the dataset, and the cases with their references.

    Raises:
        UserError: The folder was begun with another budget, holds something else, or cannot be
            written.
    """
    other = (
        "was begun with another budget; give the same --minutes and --tasks, or another "
        "--output_dir"
    )
    begin_folder(folder, _BUDGET, json.dumps(dataclasses.asdict(budget)), other)
    write_file(folder / "captions.csv", _captions(budget.captions))
    write_file(folder / "lights.toml", toy_lights_path().read_text(encoding="utf-8"))
    write_file(folder / f"{MAKING}.toml", _configuration(budget))
    _write_manifests(folder, cases, budget.steps)


def _captions(count: int) -> str:
    """A table such as LAION's, with captions of subjects that are not held out.

    Once all subjects have been named, they come again, each on another background.
    """
    rng = np.random.default_rng(0)
    pool, backgrounds = subjects(held_out=False), list(BACKGROUNDS)
    order = rng.permutation(len(pool))
    first = rng.integers(len(backgrounds), size=len(pool))
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["TEXT"])
    for number in range(count):
        again, place = divmod(number, len(pool))
        background = backgrounds[(first[place] + again) % len(backgrounds)]
        table.writerow([describe(pool[order[place]], Scene(background, "northwest"))])
    return text.getvalue()


def _configuration(budget: Budget) -> str:
    tasks = ", ".join(f"{name} = {share!r}" for name, share in budget.grids.items())
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
tasks = {{ {tasks} }}

[relight]
routes = {{ grid = 1 }}  # the teacher paints all four lights itself
lights = "lights.toml"
usual = "day from here"
aspects = 3

[grids]
height = {2 * PANEL}
width = {2 * PANEL}
steps = {budget.steps}
dtype = "float32"

[pairs.check]
margin = 0.0  # panels touch, and nothing blurs between them

[judge]
provider = "toy"
light = {{ relight = 6 }}  # both pictures show the lights that were asked for

[caption]
provider = "toy"

[pack]
size = [{PANEL}, {PANEL}]
"""


def _write_manifests(folder: Path, cases: Cases, steps: int) -> None:
    """The cases for `dsd batch`: the student gets the reference, the teacher the text alone."""
    rows: dict[str, list[str]] = {STUDENT: [], TEACHER: []}
    for task, case in ((task, case) for task, own in cases.items() for case in own):
        reference = folder / "references" / f"{case.id}.png"
        if not reference.exists():
            save_image(Image.fromarray(case.reference()), reference)
        row = {"id": case.id, "text": case.text, "seed": case.seed, "steps": steps, "height": PANEL}
        given = {"image": str(reference.relative_to(folder)), "i_guidance": IMAGE_SCALES[task]}
        rows[STUDENT].append(json.dumps({**row, **given, "width": 2 * PANEL}) + "\n")
        if task == IDENTITY.name:
            rows[TEACHER].append(json.dumps({**row, "width": PANEL}) + "\n")
    for name, lines in rows.items():
        if lines:
            write_file(folder / f"{name}.jsonl", "".join(lines))
