"""Compares students on the three tasks of the toy world: identity, relighting and depth.

    dsd quickstart --output_dir outputs/quickstart
    python -m benchmarks.toy.tasks outputs/quickstart [--student FILE] [--cases 300]
        [--steps 2000] [--captions 300]

It asks four questions. How good is the student that ships at relighting and at depth? Does one
model learn three tasks as well as three models, in equal steps? Which route makes the best
relighting pairs, at equal numbers of pairs and equal steps? Does a student follow orders as well as
descriptions?

Every row sees the same cases with the same noise, and the subjects are held out. Students are
trained here, `--steps` each, from the datasets of the quickstart and from pairs that are made here
by each route, from `--captions` captions. What is made, trained and measured stays in the folder
`tasks` of the quickstart; the same command goes on after a stop. It takes three hours on two cores.
"""

import argparse
import dataclasses
import functools
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results import save
from benchmarks.toy.study import (
    AnyScore,
    budget_of,
    intervals,
    load,
    scores_of,
    train,
    with_datasets,
)
from benchmarks.toy.world import autoencoder
from dsd_jax.cli import main as dsd
from dsd_jax.data.make.folder import begun_folder
from dsd_jax.data.make.pack import DATASET
from dsd_jax.data.make.parts import Parts
from dsd_jax.data.make.routes import ROUTES
from dsd_jax.data.make.stages import PAIRS
from dsd_jax.data.make.statistics import drifts, finished_rows, origins
from dsd_jax.data.pairs.store import PairStore
from dsd_jax.data.pairs.writer import PairWriter
from dsd_jax.errors import UserError
from dsd_jax.files import write_file
from dsd_jax.quickstart.inputs import IMAGE_SCALES, MAKING, Budget, write_inputs
from dsd_jax.quickstart.steps import Step, run_steps
from dsd_jax.tasks import DEPTH, IDENTITY, RELIGHT
from dsd_jax.toy.folder import toy_flux_path, toy_lora_path
from dsd_jax.toy.score import Case, make_cases, score
from dsd_jax.toy.words import describe_order

SECTIONS = {
    "": (
        "Relighting and depth on the toy world",
        """Held-out subjects. *Relight* asks for the same scene in another light: identity is right
if shape, both colours and the marking are, light if tint, side and strength are, colours if body,
marking and background have the reference's; *drift* is the median shift in pixels. *Depth* asks
for a picture by a depth map and words: order is right if subject, ground and background lie where
the map has them, prompt if colours, marking and background are those of the words. Means with 95 %
bootstrap intervals over cases. *Right drawings* went through the VAE alone: no student can do
better. The student of *identity alone* never saw a pair of another task.""",
    ),
    "models": (
        "One model for three tasks, or one for each",
        """Students with equal steps from the same grids; the mixture sees a pair of each task as
often as its share says, the others see one task alone. Columns as in the table before; of
identity, prompt is right if background and place are.""",
    ),
    "making": (
        "Yields of three routes to relighting pairs on the toy world",
        """`dsd data make` by each route from the same captions: prompts, grids, and pairs that are
left after each stage. *Yield*: described pairs among all pairs. Drift is that of all pairs of
panels, in pixels; by *backward* no pixel moves, so none is measured.""",
    ),
    "routes": (
        "Relighting from pairs of three routes on the toy world",
        """A student for each route, with equal numbers of pairs and equal steps. It is asked by a
description ("this thing on snow at northwest warm left hard") and by an order ("make the light warm
left hard"), because the routes teach other words: by *grid* a model describes the panels, by the
others the vocabulary words the light.""",
    ),
    "words": (
        "A light described, and a light ordered",
        """The student that ships, on the same relighting cases, asked by a description of the
picture that is wanted and by the vocabulary's order to change the light, which leaves out what both
lights have in common.""",
    ),
}

SHOWN = {IDENTITY.name: ("identity", "prompt")}  # of the other tasks, all metrics
STAGES = ("captions", "prompts", "grids", "pairs", "judge", "caption", "pack")
PICTURES = 32  # painted at once
# Below the preset's 3e-3, at which a student of identity alone diverged.
RATE = ("--optimizer.learning_rate", "2e-3")

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Bench:
    """The settings that all tables share.

    Attributes:
        quickstart: Folder of a finished quickstart with all three tasks.
        cases: Cases of each task.
        sampling_steps: Steps of an image.
        steps: Training steps of a student.
        captions: Captions that each route makes pairs from.
    """

    quickstart: Path
    cases: Mapping[str, Sequence[Case]]
    sampling_steps: int
    steps: int
    captions: int

    @property
    def work(self) -> Path:
        """Folder of everything that is made here."""
        return self.quickstart / "tasks"

    @functools.cached_property
    def budget(self) -> Budget:
        """The amounts of the quickstart.

        Raises:
            UserError: It leaves out a task.
        """
        budget = budget_of(self.quickstart)
        if missing := [name for name in self.cases if name not in budget.tasks]:
            raise UserError(
                f"{self.quickstart} was made without {', '.join(missing)}; make one with all tasks "
                "by `dsd quickstart --output_dir FOLDER`"
            )
        return budget

    def kept(self, name: str, make: Callable[[], Row], **settings: object) -> Row:
        """The row of a name: what `make` gave once with the same settings."""
        path = self.work / "rows" / f"{name}.json"
        told = {"teacher": digest(toy_flux_path()), **settings}
        if path.exists() and (found := json.loads(path.read_text()))["settings"] == told:
            return found["row"]
        row = make()
        write_file(path, json.dumps({"settings": told, "row": row}, indent=1))
        print(row, flush=True)
        return row

    def scored(self, model: Path, task: str, orders: Sequence[str] | None = None) -> Row:
        """The scores of a student in a task.

        Args:
            model: Its folder, or its file.
            task: The task.
            orders: Texts to ask by, in place of those of the cases.
        """
        cases = self.cases[task]

        def make() -> Row:
            scale = IMAGE_SCALES[task]
            return intervals(
                scores_of(load(model), cases, self.sampling_steps, i_guidance=scale, texts=orders)
            )

        name = f"{digest(model)[:16]}-{task}" + ("" if orders is None else "-ordered")
        return self.kept(name, make, cases=len(cases), sampling_steps=self.sampling_steps)


def digest(model: Path) -> str:
    """SHA-256 of a file, or of all files in a folder."""
    paths = sorted(path for path in (model, *model.rglob("*")) if path.is_file())
    files = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    return hashlib.sha256("".join(files).encode()).hexdigest()


def columns(rows: Mapping[str, Row]) -> Row:
    """The rows of several tasks as one, with the names of the tasks before those of metrics."""
    return {
        f"{task}: {metric}": value
        for task, row in rows.items()
        for metric, value in row.items()
        if metric in SHOWN.get(task, row)
    }


def right_drawings(cases: Sequence[Case]) -> list[AnyScore]:
    """The scores of the pictures that would be right, encoded and decoded by the VAE."""
    through = autoencoder()
    return [score(c, through(c.ideal(), np.random.default_rng(c.seed))) for c in cases]


# Students


def student_of(bench: Bench, name: str, tasks: Mapping[str, float]) -> Path:
    """Trains a student from the datasets of the quickstart, with these shares of the tasks."""
    folder = with_datasets(bench.quickstart, bench.work / f"{name}-{bench.steps}")
    budget = dataclasses.replace(bench.budget, tasks=tasks, train_steps=bench.steps)
    return train(folder, budget, *RATE)


def multi_task(bench: Bench) -> dict[str, Path]:
    """A student of each task alone, and one of the quickstart's mixture."""
    shares = {f"{name} alone": {name: 1.0} for name in bench.cases}
    shares["mixture"] = dict(bench.budget.tasks)
    return {name: student_of(bench, name.replace(" ", "-"), own) for name, own in shares.items()}


# Routes


def make_pairs(bench: Bench, route: str) -> Path:
    """Makes relighting pairs by a route; returns the work folder."""
    folder = bench.work / f"{route}-{bench.captions}"
    alone = {RELIGHT.name: 1.0}
    budget = dataclasses.replace(
        bench.budget, tasks=alone, captions=bench.captions, maps=0, cases={}
    )
    write_inputs(folder, budget, {})
    making = folder / f"{MAKING}.toml"
    text, found = re.subn(r"(?m)^routes = .*$", f"routes = {{ {route} = 1 }}", making.read_text())
    assert found == 1
    write_file(making, text)
    batch = {"grids": ["--batch_size", str(PICTURES)]}
    steps = [
        Step(f"Pairs by {route}: {stage}", ["data", stage, str(making), *batch.get(stage, ())])
        for stage in STAGES
    ]
    run_steps(steps, dsd, print)
    return folder / MAKING


def made_by(parts: Parts, route: str) -> Row:
    """Yields and drift of a making."""
    name = f"{RELIGHT.name} by {route}"
    own, drift = origins(parts)[name], drifts(finished_rows(parts, PAIRS)).get(name)
    row: Row = {
        "route": route, "prompts": own.prompts, "grids": own.grids, "pairs": own.pairs,
        "after filters": own.filtered, "after the judge": own.judged, "described": own.described,
        "yield": f"{own.described / own.pairs:.3f}" if own.pairs else "",
    }  # fmt: skip
    if drift is None:
        return {**row, "still": "", "median drift": ""}
    still = drift.verdicts["still"] / drift.verdicts.total()
    median = "" if math.isnan(drift.median_px) else f"{drift.median_px:.2f}"
    return {**row, "still": f"{still:.3f}", "median drift": median}


def write_pairs(dataset: Path, target: Path, count: int) -> None:
    """Writes so many pairs of a dataset, drawn at random, as another one."""
    store = PairStore.open(dataset)
    numbers = np.random.default_rng(0).permutation(len(store))[:count].tolist()
    with PairWriter(target, origin={"of": store.fingerprint, "count": count}) as writer:
        if not writer.complete:
            for position in range(writer.position or 0, count):
                writer.add(store[numbers[position]], position=position + 1)


def student_by(bench: Bench, route: str, dataset: Path, pairs: int) -> Path:
    """Trains a student on so many pairs of a route."""
    folder = bench.work / f"{route}-{bench.captions}-{pairs}-{bench.steps}"
    write_pairs(dataset, folder / MAKING / DATASET, pairs)
    alone = {RELIGHT.name: 1.0}
    return train(
        folder, dataclasses.replace(bench.budget, tasks=alone, train_steps=bench.steps), *RATE
    )


# Tables


def orders_of(bench: Bench) -> list[str]:
    """Orders in place of the descriptions of the relighting cases: `make the light left hard`.

    They leave out what both lights have in common, and say so where the light is to come from the
    front, as those of the pairs do.
    """
    return [
        describe_order(case.before.light, case.after.light) for case in bench.cases[RELIGHT.name]
    ]


def asked_both_ways(bench: Bench, model: Path) -> Iterator[Row]:
    """The scores of a student in relighting, by the words that it is asked by."""
    yield {"asked by": "a description", **bench.scored(model, RELIGHT.name)}
    yield {"asked by": "an order", **bench.scored(model, RELIGHT.name, orders_of(bench))}


def ceiling(bench: Bench) -> Row:
    """The row of the right drawings."""
    found = {
        task: bench.kept(
            f"right-drawings-{task}",
            lambda cases=cases: intervals(right_drawings(cases)),
            cases=len(cases),
        )
        for task, cases in bench.cases.items()
        if task != IDENTITY.name
    }
    return {"model": "right drawings", **columns(found)}


def tables(bench: Bench, student: Path) -> Iterator[tuple[str, list[Row], dict[str, object]]]:
    """The variant, the rows and the further settings of each table, the cheapest first."""
    yield "words", list(asked_both_ways(bench, student)), {}
    models = multi_task(bench)
    others = [task for task in bench.cases if task != IDENTITY.name]
    compared = {"student that ships": student, "student, identity alone": models["identity alone"]}
    rows = [
        {"model": name, **columns({task: bench.scored(model, task) for task in others})}
        for name, model in compared.items()
    ]
    yield "", [*rows, ceiling(bench)], {"training_steps_of_identity_alone": bench.steps}
    rows = [
        {"model": name, **columns({task: bench.scored(model, task) for task in bench.cases})}
        for name, model in models.items()
    ]
    shares = " ".join(f"{name}={share:g}" for name, share in bench.budget.tasks.items())
    yield "models", rows, {"training_steps": bench.steps, "mixture": shares}
    made = {route: make_pairs(bench, route) for route in ROUTES}
    yields = [made_by(begun_folder(folder), route) for route, folder in made.items()]
    yield "making", yields, {"captions": bench.captions}
    pairs = min(len(PairStore.open(folder / DATASET)) for folder in made.values())
    rows = [
        {"route": route, **row}
        for route, folder in made.items()
        for row in asked_both_ways(bench, student_by(bench, route, folder / DATASET, pairs))
    ]
    yield "routes", rows, {"pairs": pairs, "training_steps": bench.steps}


def main() -> None:
    """Makes, trains, scores, prints and saves."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("quickstart", type=Path)
    parser.add_argument("--student", type=Path, default=None, help="default: the one that ships")
    parser.add_argument("--cases", type=int, default=300)
    parser.add_argument("--sampling_steps", type=int, default=16)
    parser.add_argument("--steps", type=int, default=2000, help="training steps of each student")
    parser.add_argument("--captions", type=int, default=300, help="that each route starts from")
    given = parser.parse_args()
    tasks = (IDENTITY.name, RELIGHT.name, DEPTH.name)
    cases = {name: make_cases(given.cases, task=name) for name in tasks}
    bench = Bench(given.quickstart, cases, given.sampling_steps, given.steps, given.captions)
    for variant, rows, settings in tables(bench, given.student or toy_lora_path()):
        print(variant or "tasks", *rows, sep="\n", flush=True)
        if given.student is None:
            own = {"cases": given.cases, "sampling_steps": given.sampling_steps}
            save(__file__, rows, variant, **own, **settings)


if __name__ == "__main__":
    main()
