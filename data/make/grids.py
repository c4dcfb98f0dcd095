"""Stage 3 (`dsd data grids`): the teacher paints grids from the prompts that were kept.

A picture lies at `grids/part-00012/<grid id>.png` as soon as its batch is done, with its parameters
inside; the part's rows follow when all its pictures are there. A run that was killed looks for what
is missing and loses one batch at most. Batches are cut from the sorted ids of a part, and the last
one is filled up, so a picture is painted by the same program, next to the same others, whoever
paints it and when.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from PIL import Image

from dsd_jax.data.make.crops import grid_file
from dsd_jax.data.make.parts import Parts, Row, Shard
from dsd_jax.data.make.teacher import Teacher
from dsd_jax.data.pairs.shards import file_sha256
from dsd_jax.errors import UserError
from dsd_jax.images import read_parameters, save_png
from dsd_jax.progress import Advance, progress

__all__ = ["GridsConfig", "grid_seed", "paint_grids"]

STAGE = "grids"
_WRITERS = 4  # threads that compress pictures


@dataclasses.dataclass(frozen=True)
class GridsConfig:
    """`[grids]`.

    Attributes:
        per_prompt: grids of every prompt.
        height, width: of a grid in pixels.
        steps: of sampling.
        guidance: distilled guidance scale.
        dtype: of the weights and the computation.
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


class _Grid(NamedTuple):
    """A grid to be: its id, its prompt's row, and where its picture goes."""

    id: str
    prompt: Row
    path: Path

    @property
    def seed(self) -> int:
        return grid_seed(self.id)


def grid_seed(grid: str) -> int:
    """The seed of a grid, 32 bits of the hash of its id."""
    return int(hashlib.sha256(f"grid {grid}".encode()).hexdigest()[:8], 16)


def paint_grids(
    parts: Parts, config: GridsConfig, teacher: Callable[[], Teacher], shard: Shard = (0, 1)
) -> None:
    """Finishes this worker's parts of `grids`.

    Args:
        parts: with this worker's parts of `prompts` finished.
        config: of the stage.
        teacher: makes the teacher; called if there is something to paint.
        shard: this worker.

    Raises:
        UserError: `prompts` is not finished, a picture was painted with other settings, or there is
            no space.
    """
    todo = [part for part in parts.mine(shard) if not parts.done(STAGE, part)]
    prompts = {part: len(_kept(parts, part)) for part in todo}
    with progress(STAGE, sum(prompts.values()) * config.per_prompt, "grids") as advance:
        painter: Teacher | None = None
        for part in todo:
            with parts.writing(STAGE, part):
                grids = _grids_of(parts, config, part)
                if grids and painter is None:
                    painter = teacher()
                rows = _painted(grids, painter, advance) if painter else []
                parts.write(STAGE, part, rows)


def _kept(parts: Parts, part: int) -> list[Row]:
    return [row for row in parts.read("prompts", part) if row["status"] == "kept"]


def _grids_of(parts: Parts, config: GridsConfig, part: int) -> list[_Grid]:
    """Grids of a part in the order of their ids; what a killed run was writing is removed."""
    names = {
        f"{row['id']}-{k}": row for row in _kept(parts, part) for k in range(config.per_prompt)
    }
    grids = [_Grid(name, row, grid_file(parts, name)) for name, row in sorted(names.items())]
    for folder in {grid.path.parent for grid in grids}:
        for partial in folder.glob(".*.part"):
            partial.unlink()
    return grids


def _painted(grids: Sequence[_Grid], teacher: Teacher, advance: Advance) -> list[Row]:
    """Rows of a part's grids, with their pictures on disk."""
    rows: list[Row] = []
    with ThreadPoolExecutor(_WRITERS) as writers:
        for start in range(0, len(grids), teacher.batch_size):
            batch = grids[start : start + teacher.batch_size]
            there = list(writers.map(lambda grid: _is_there(grid, teacher), batch))
            pictures: list[Image.Image | None] = [None] * len(batch)
            if not all(there):
                filled = [*batch, *[batch[-1]] * (teacher.batch_size - len(batch))]
                pictures = teacher(
                    [grid.prompt["prompt"] for grid in filled], [grid.seed for grid in filled]
                )
            save = [
                (grid, picture)
                for grid, picture, done in zip(batch, pictures, there, strict=False)
                if picture is not None and not done
            ]
            list(writers.map(lambda each: _save(each[0], each[1], teacher), save))
            rows += writers.map(_row, batch)
            advance(len(batch))
    return rows


def _parameters(grid: _Grid, teacher: Teacher) -> dict[str, Any]:
    return {**teacher.parameters, "prompt": grid.prompt["prompt"], "seed": grid.seed}


def _save(grid: _Grid, picture: Image.Image, teacher: Teacher) -> None:
    save_png(picture, grid.path, _parameters(grid, teacher))


def _is_there(grid: _Grid, teacher: Teacher) -> bool:
    """Whether an earlier run painted this grid; a damaged file is painted again."""
    held = read_parameters(grid.path)
    expected = _parameters(grid, teacher)
    if held is None or held == expected:
        return held is not None
    name = next(name for name in sorted({*held, *expected}) if held.get(name) != expected.get(name))
    raise UserError(
        f"{grid.path} was painted with {name} {held.get(name)!r}, and now it is "
        f"{expected.get(name)!r}; change it back, or remove {grid.path.parent}"
    )


def _row(grid: _Grid) -> Row:
    row: Row = {
        "id": grid.id,
        "prompt_id": grid.prompt["id"],
        "task": grid.prompt["task"],
        "prompt": grid.prompt["prompt"],
        "seed": grid.seed,
    }
    if not grid.path.exists():
        return {**row, "status": "failed", "reason": "not_finite"}
    with Image.open(grid.path, formats=("PNG",)) as image:  # our own
        width, height = image.size
    sha256 = file_sha256(grid.path)
    return {**row, "status": "kept", "sha256": sha256, "width": width, "height": height}
