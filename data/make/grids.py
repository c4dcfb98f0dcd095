"""Stage 3 (`dsd data grids`): the teacher paints grids from the prompts that were kept.

A picture is written to `grids/part-00012/<grid id>.png` when its batch is done, with its parameters
inside; the rows of the part follow when all its pictures exist. A restarted run paints the missing
pictures; a kill loses one batch at most. Batches are cut from the sorted ids of a part, and the
last one is filled up, so every run paints a picture by the same program, in the same batch.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from PIL import Image

from dsd_jax.data.make.ids import GridId
from dsd_jax.data.make.parts import Parts
from dsd_jax.data.make.routes import Route, joined, lights_in, panel_prompts, route_named
from dsd_jax.data.make.stages import GRIDS, PROMPTS, Grid, Prompt
from dsd_jax.errors import UserError
from dsd_jax.files import PARTIAL, file_sha256
from dsd_jax.images import read_parameters, save_image
from dsd_jax.interrupt import Stop
from dsd_jax.lights import Light, Lights, load_lights
from dsd_jax.marks import GENERATED
from dsd_jax.progress import Advance, progress
from dsd_jax.shares import ALL, WorkerShare

__all__ = ["GridsConfig", "Teacher", "Teachers", "grid_seed", "paint_grids"]

_WRITERS = 4  # threads that compress pictures


@dataclasses.dataclass(frozen=True)
class GridsConfig:
    """`[grids]`.

    Attributes:
        per_prompt: Number of grids per prompt.
        height, width: Size of a grid in pixels.
        steps: Number of sampling steps.
        guidance: Distilled guidance scale.
        dtype: Precision of the weights and the computation.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    per_prompt: int = 1
    height: int = 1024
    width: int = 1024
    steps: int = 28
    guidance: float = 3.5
    dtype: Literal["bfloat16", "float32"] = "bfloat16"

    def __post_init__(self) -> None:
        if self.per_prompt < 1:
            raise UserError(f"per_prompt must be at least 1, got {self.per_prompt}")


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A text-to-image model. A picture depends only on its prompt and its seed.

    Attributes:
        batch_size: Number of grids that are painted at once.
        parameters: Everything else that a picture depends on, such as steps and model.
        paint: Paints the prompts of `batch_size` grids, those of a grid side by side, with a seed
            for each grid. It gives a picture for each prompt. None stands for one with values that
            are not finite.
    """

    batch_size: int
    parameters: Mapping[str, object]
    paint: Callable[[Sequence[str], Sequence[int]], Sequence[Image.Image | None]]


class _Plan(NamedTuple):
    """A grid to be painted, and the path of its picture."""

    id: GridId
    row: Prompt
    route: Route
    lights: Sequence[Light]
    path: Path

    @property
    def prompts(self) -> list[str]:
        """Prompts of the pictures that are painted for it."""
        assert self.row.prompt is not None  # a kept row has one
        return panel_prompts(self.route, self.row.prompt, self.lights)

    @property
    def seed(self) -> int:
        return grid_seed(self.id)


def grid_seed(grid: GridId) -> int:
    """Seed of a grid: 32 bits of the hash of its id."""
    return int(hashlib.sha256(f"grid {grid}".encode()).hexdigest()[:8], 16)


Teachers = Callable[[Route], Teacher]
"""Opens the teacher that paints for a route."""


def paint_grids(
    parts: Parts,
    config: GridsConfig,
    teachers: Teachers,
    share: WorkerShare = ALL,
    lights: Lights | None = None,
) -> None:
    """Finishes this worker's parts of `grids`.

    Args:
        parts: Folder in which this worker's parts of `prompts` are finished.
        config: Settings of the stage.
        teachers: Opens a teacher, once for each route for which there is something to paint.
        share: This worker.
        lights: Vocabulary of the lights in the rows. None takes ours.

    Raises:
        UserError: `prompts` is not finished, a picture was painted with other settings, or it
            cannot be written.
    """
    todo = [part for part in share.of(parts.count) if not parts.done(GRIDS, part)]
    total = config.per_prompt * sum(len(parts.kept(PROMPTS, part)) for part in todo)
    with (
        progress(GRIDS.name, total, "grids", "loading and compiling") as advance,
        Stop("batch of grids") as stop,
    ):

        def painted(amount: float = 1.0) -> None:
            advance(amount)
            stop.check()  # all painted pictures are on disk

        opened = functools.cache(teachers)
        for part in todo:
            with parts.writing(GRIDS, part):
                there = functools.partial(parts.check_there, GRIDS, part)
                rows = []
                for route, plans in _plans(parts, config, part, lights or load_lights()).items():
                    rows += _painted(plans, opened(route), painted, there)
                parts.write(GRIDS, part, rows)


def _plans(
    parts: Parts, config: GridsConfig, part: int, vocabulary: Lights
) -> dict[Route, list[_Plan]]:
    """The grids of a part by route, sorted by id; removes unfinished files of a killed run."""
    plans = []
    for row in parts.kept(PROMPTS, part):
        lights = lights_in(vocabulary, row.lights)
        for number in range(config.per_prompt):
            name = GridId(row.id, number)
            plans.append(_Plan(name, row, route_named(row.route), lights, parts.picture(name)))
    for folder in {plan.path.parent for plan in plans}:
        for partial in folder.glob(f".*{PARTIAL}"):
            partial.unlink()
    by_route: dict[Route, list[_Plan]] = {}
    for plan in sorted(plans, key=lambda plan: str(plan.id)):
        by_route.setdefault(plan.route, []).append(plan)
    return by_route


def _painted(
    plans: Sequence[_Plan], teacher: Teacher, advance: Advance, check_there: Callable[[], None]
) -> list[Grid]:
    """Paints a part's grids; returns their rows once the pictures are on disk."""
    rows: list[Grid] = []
    size = teacher.batch_size
    with ThreadPoolExecutor(_WRITERS) as writers:
        for start in range(0, len(plans), size):
            batch = plans[start : start + size]
            there = list(writers.map(lambda plan: _is_there(plan, teacher), batch))
            if not all(there):
                filled = [*batch, *[batch[-1]] * (size - len(batch))]
                pictures = teacher.paint(
                    [prompt for plan in filled for prompt in plan.prompts],
                    [plan.seed for plan in filled],
                )
                each = batch[0].route.painted
                own = [pictures[i : i + each] for i in range(0, len(pictures), each)]
                save = [
                    (plan, [picture for picture in painted if picture is not None])
                    for plan, painted, done in zip(batch, own, there, strict=False)
                    if None not in painted and not done
                ]
                check_there()
                list(writers.map(lambda each: _save(each[0], each[1], teacher), save))
            rows += writers.map(_row, batch)
            advance(len(batch))
    return rows


def _parameters(plan: _Plan, teacher: Teacher) -> dict[str, object]:
    prompts = plan.prompts
    told = prompts if len(prompts) > 1 else prompts[0]
    return {**teacher.parameters, "prompt": told, "seed": plan.seed}


def _save(plan: _Plan, pictures: Sequence[Image.Image], teacher: Teacher) -> None:
    picture = joined(plan.route, pictures, plan.lights, plan.id)
    save_image(picture, plan.path, _parameters(plan, teacher), GENERATED)


def _is_there(plan: _Plan, teacher: Teacher) -> bool:
    """Whether an earlier run painted this grid; a damaged file is painted again."""
    held = read_parameters(plan.path)
    expected = _parameters(plan, teacher)
    if held is None or held == expected:
        return held is not None
    name = next(name for name in sorted({*held, *expected}) if held.get(name) != expected.get(name))
    raise UserError(
        f"{plan.path} was painted with {name} {held.get(name)!r}, and now it is "
        f"{expected.get(name)!r}; change it back, or remove {plan.path.parent}"
    )


def _row(plan: _Plan) -> Grid:
    assert plan.row.prompt is not None  # a kept row has one
    row = Grid(
        id=plan.id,
        prompt_id=plan.id.prompt,
        task=plan.id.prompt.task,
        prompt=plan.row.prompt,
        seed=plan.seed,
        route=plan.row.route,
        lights=plan.row.lights,
        status="kept",
    )
    if not plan.path.exists():
        return dataclasses.replace(row, status="failed", reason="not_finite")
    with Image.open(plan.path, formats=("PNG",)) as image:  # a file of our own
        width, height = image.size
    return dataclasses.replace(row, sha256=file_sha256(plan.path), width=width, height=height)
