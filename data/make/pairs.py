"""Stage 4 (`dsd data pairs`): cuts grids into panels and puts the panels into pairs.

It has two halves. `panels/` holds a row per grid: the places and hashes of its four panels, or the
reason why it cannot be used; every worker writes its parts. `pairs/` holds the pairs. A panel that
repeats one of any other grid makes no pair, so the parts of `pairs/` are written when all parts of
`panels/` exist, each by its worker; all workers get the same result.

A grid that was rejected has one row under its own id, with the reason. These filters cost nothing
and run before a judge is paid.
"""

import dataclasses
import hashlib
import itertools
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

from dsd_jax.data.make.grid_check import GridCheck
from dsd_jax.data.make.ids import PANELS as NUMBERS
from dsd_jax.data.make.ids import PairId, PanelId
from dsd_jax.data.make.likeness import duplicates, hashes, similarity
from dsd_jax.data.make.panels import find_panels
from dsd_jax.data.make.parts import Parts
from dsd_jax.data.make.routes import quarters, route_named
from dsd_jax.data.make.stages import GRIDS, PAIRS, PANELS, CutGrid, Grid, Named, Pair, PanelDrift
from dsd_jax.drift import measure_drift
from dsd_jax.errors import UserError
from dsd_jax.images import open_image
from dsd_jax.progress import progress
from dsd_jax.shares import ALL, WorkerShare
from dsd_jax.tasks import TASKS, Similarity, Task, task_named
from dsd_jax.threads import in_order

__all__ = ["PairsConfig", "make_pairs"]


@dataclasses.dataclass(frozen=True)
class PairsConfig:
    """`[pairs]`.

    Attributes:
        both_directions: Makes a pair for either panel as the reference, each with its own
            judgement. Without it there are six pairs per grid, and the reference is chosen at
            random; kept pairs are described in both directions all the same.
        max_similarity: Largest similarity of the two panels, from 0 to 1, for all tasks. None takes
            each task's own (0.94). Copies teach a model to copy.
        min_similarity: Smallest similarity. None takes each task's own (0, no limit). Views of one
            subject may have no pixel in common.
        max_drift: Longest shift in pixels of any part between the panels of a pair, by task; `inf`
            does not measure it. Tasks that are not named take their own: 2 for relight, no limit
            for the others.
        check: Limits within which a picture passes as a grid.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    both_directions: bool = False
    max_similarity: float | None = None
    min_similarity: float | None = None
    max_drift: Mapping[str, float] = dataclasses.field(default_factory=dict)
    check: GridCheck = dataclasses.field(default_factory=GridCheck)

    def __post_init__(self) -> None:
        for task in TASKS.values():
            self.similarity(task)
        for name, most in self.max_drift.items():
            task_named(name)
            if not most > 0:
                raise UserError(
                    f"max_drift of {name} must be a number of pixels > 0, or inf, got {most}"
                )

    def drift(self, task: Task) -> float | None:
        """The longest shift for pairs of a task; None if it is not measured."""
        most = self.max_drift.get(task.name, task.max_drift)
        return None if most == math.inf else most

    def similarity(self, task: Task) -> Similarity:
        """The bounds for pairs of a task."""
        least, most = self.min_similarity, self.max_similarity
        return Similarity(
            task.similarity.least if least is None else least,
            task.similarity.most if most is None else most,
        )


def make_pairs(parts: Parts, config: PairsConfig, share: WorkerShare = ALL) -> list[int]:
    """Cuts this worker's parts of the grids, and makes its pairs if all grids are cut.

    Args:
        parts: Folder in which this worker's parts of `grids` are finished.
        config: Settings of the stage.
        share: This worker.

    Returns:
        Parts that other workers have not cut yet. If there are any, no pairs are made.

    Raises:
        UserError: `grids` is not finished, a picture is missing, or a file cannot be written.
    """
    mine = [part for part in share.of(parts.count) if not parts.done(PAIRS, part)]
    if not mine:
        return []
    _cut_all(parts, config, [part for part in mine if not parts.done(PANELS, part)])
    waiting = [part for part in range(parts.count) if not parts.done(PANELS, part)]
    if not waiting:
        looks = {}
        for row in parts.rows(PANELS):
            if row.hashes is not None:
                looks[row.id] = row.hashes
        copies = duplicates(looks)
        for part in mine:
            with parts.writing(PAIRS, part):
                rows = [
                    pair for row in parts.read(PANELS, part) for pair in _pairs(row, config, copies)
                ]
                parts.write(PAIRS, part, rows)
    return waiting


def _cut_all(parts: Parts, config: PairsConfig, todo: list[int]) -> None:
    grids = {part: parts.kept(GRIDS, part) for part in todo}

    def cut(row: Grid) -> CutGrid:
        return _cut(parts.picture(row.id), row, config)

    with progress(PANELS.name, sum(map(len, grids.values())), "grids") as advance:
        for part, rows in grids.items():
            with parts.writing(PANELS, part):
                made = []
                for _, row in in_order(cut, rows, threads=min(os.cpu_count() or 1, 16)):
                    made.append(row.result())
                    advance()
                parts.write(PANELS, part, made)


def _cut(path: Path, grid: Grid, config: PairsConfig) -> CutGrid:
    """Finds the places and looks of a grid's panels, or the reason to reject it."""

    def rejected(reason: str, detail: str) -> CutGrid:
        return dataclasses.replace(row, status="rejected", reason=reason, detail=detail)

    row = CutGrid(
        id=grid.id,
        prompt_id=grid.prompt_id,
        task=grid.task,
        route=grid.route,
        lights=grid.lights,
        status="kept",
    )
    route = route_named(grid.route)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror}; copy it here, or remove {path.parent}.jsonl "
            "and run `dsd data grids` again"
        ) from None
    if hashlib.sha256(data).hexdigest() != grid.sha256:
        return rejected("changed", "not as it was painted")
    try:
        image = open_image(data)
    except UserError as error:
        return rejected("unreadable", str(error))
    if route.of_scene:
        boxes = quarters(image.width, image.height)
    else:
        boxes, reason, detail = find_panels(image, config.check)
        if reason:
            return rejected(reason, detail)
    panels = dict(zip(NUMBERS, (image.crop(box) for box in boxes), strict=True))
    pairs = {_both(a, b): (panels[a], panels[b]) for a, b in itertools.combinations(NUMBERS, 2)}
    return dataclasses.replace(
        row,
        boxes=boxes,
        hashes=tuple(hashes(panel) for panel in panels.values()),
        similarity={key: similarity(*pair) for key, pair in pairs.items()},
        drift=(
            {key: _drift(*pair) for key, pair in pairs.items()}
            if config.drift(task_named(grid.task)) is not None and not route.exact
            else None
        ),
    )


def _drift(first: Image.Image, second: Image.Image) -> PanelDrift:
    """The drift of two panels, whose sizes may differ by the width of a separator."""
    size = (0, 0, min(first.width, second.width), min(first.height, second.height))
    found = measure_drift(first.crop(size), second.crop(size))
    return PanelDrift(verdict=found.verdict, largest_px=found.largest_px)


def _both(first: int, second: int) -> str:
    """Key of two panels in `CutGrid.similarity`."""
    return f"{first}{second}"


def _pairs(
    row: CutGrid, config: PairsConfig, copies: Mapping[PanelId, PanelId]
) -> Iterator[Pair | CutGrid]:
    """Pairs of a grid, or its one row if it was rejected."""
    if row.boxes is None or row.similarity is None:
        yield row
        return
    task, route = task_named(row.task), route_named(row.route)
    most, bounds = config.drift(task), config.similarity(task)
    lights: tuple[Named | None, ...] = row.lights or (None,) * len(NUMBERS)
    for first, second in itertools.combinations(NUMBERS, 2):
        ahead = PairId(row.id, first, second)
        pair = Pair(
            id=ahead,
            grid_id=row.id,
            prompt_id=row.prompt_id,
            task=row.task,
            reference_box=row.boxes[first - 1],
            target_box=row.boxes[second - 1],
            similarity=row.similarity[_both(first, second)],
            drift=row.drift[_both(first, second)] if row.drift else None,
            route=row.route,
            reference_light=lights[first - 1],
            target_light=lights[second - 1],
            status="kept",
        )
        pair = _checked(pair, bounds, most, copies)
        ways = [pair, _flipped(pair)]
        if route.exact:  # the first panel is the painted picture, and no other is a target
            yield from ways[1:] if first == NUMBERS[0] else []
        else:
            yield from ways if config.both_directions else [ways[_coin(ahead)]]


def _checked(
    pair: Pair, bounds: Similarity, most: float | None, copies: Mapping[PanelId, PanelId]
) -> Pair:
    """Applies the filters to a pair."""
    copied = next((panel for panel in pair.id.panels if panel in copies), None)
    if pair.reference_light is not None and pair.reference_light == pair.target_light:
        return dataclasses.replace(pair, status="rejected", reason="same_light")
    if pair.similarity > bounds.most:
        return dataclasses.replace(pair, status="rejected", reason="near_copy")
    if pair.similarity < bounds.least:
        return dataclasses.replace(pair, status="rejected", reason="unlike")
    if most is not None and pair.drift is not None:
        length = pair.drift.largest_px
        if length is None:
            return dataclasses.replace(
                pair, status="rejected", reason="drifted", detail=pair.drift.verdict
            )
        if length > most:
            detail = f"{pair.drift.verdict} by up to {length:.1f} px"
            return dataclasses.replace(pair, status="rejected", reason="drifted", detail=detail)
    if copied:
        detail = f"panel {copied.number} is {copies[copied]}"
        return dataclasses.replace(pair, status="rejected", reason="duplicate", detail=detail)
    return pair


def _flipped(pair: Pair) -> Pair:
    return dataclasses.replace(
        pair,
        id=pair.id.flipped(),
        reference_box=pair.target_box,
        target_box=pair.reference_box,
        reference_light=pair.target_light,
        target_light=pair.reference_light,
    )


def _coin(pair: PairId) -> int:
    return hashlib.sha256(f"direction {pair}".encode()).digest()[0] % 2
