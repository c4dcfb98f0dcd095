"""Stage 4 (`dsd data pairs`): grids are checked and cut, and their panels are put into pairs.

There are two halves. `panels/` holds a row per grid: where its four panels are and what they look
like, or why it cannot be used; every worker writes its parts. `pairs/` holds the pairs, and a panel
that repeats one of any other grid makes no pair; so its parts are written when all parts of
`panels/` are there, each by its worker, and all workers come to the same answer.

A grid that was rejected has one row under its own id, with the reason. The filters are free, and
all run before anybody is paid to judge.
"""

import dataclasses
import hashlib
import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from dsd_jax.data.make.crops import Box, grid_file
from dsd_jax.data.make.likeness import duplicates, hashes, similarity
from dsd_jax.data.make.panels import GridCheck, find_panels
from dsd_jax.data.make.parts import Parts, Row, Shard
from dsd_jax.data.pairs.record import png_bytes
from dsd_jax.errors import UserError
from dsd_jax.images import open_image
from dsd_jax.progress import progress
from dsd_jax.threads import in_order

__all__ = ["PairsConfig", "make_pairs", "panel_png"]

STAGE, HALF = "pairs", "panels"
PANELS = (1, 2, 3, 4)


@dataclasses.dataclass(frozen=True)
class PairsConfig:
    """`[pairs]`.

    Attributes:
        both_directions: a pair for either panel as the reference, each judged for itself. Without
            it there are six pairs of a grid, and chance says which panel is the reference; the
            kept ones are described in both directions all the same.
        max_similarity: of two panels, from 0 to 1; copies teach to copy.
        min_similarity: of two panels; 0: any. Views of one subject may have no pixel in common.
        check: what passes as a grid.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    both_directions: bool = False
    max_similarity: float = 0.94
    min_similarity: float = 0.0
    check: GridCheck = dataclasses.field(default_factory=GridCheck)

    def __post_init__(self) -> None:
        if not 0 <= self.min_similarity < self.max_similarity <= 1:
            raise UserError(
                "0 <= min_similarity < max_similarity <= 1 must hold, got "
                f"{self.min_similarity} and {self.max_similarity}"
            )


def panel_png(parts: Parts, grid: str, box: Box) -> bytes:
    """A panel of a grid as a PNG file.

    Args:
        grid: id of the grid.
        box: of the panel, from a row of pairs.

    Raises:
        UserError: the grid's picture is gone or damaged.
    """
    return png_bytes(open_image(grid_file(parts, grid)).crop(box))


def make_pairs(parts: Parts, config: PairsConfig, shard: Shard = (0, 1)) -> list[int]:
    """Cuts this worker's parts of the grids, and makes its pairs if all grids are cut.

    Args:
        parts: with this worker's parts of `grids` finished.
        config: of the stage.
        shard: this worker.

    Returns:
        Parts that other workers have not cut yet; if there are any, there are no new pairs.

    Raises:
        UserError: `grids` is not finished, a picture is missing, or there is no space.
    """
    mine = [part for part in parts.mine(shard) if not parts.done(STAGE, part)]
    if not mine:
        return []
    _cut_all(parts, config, [part for part in mine if not parts.done(HALF, part)])
    waiting = [part for part in range(parts.count) if not parts.done(HALF, part)]
    if not waiting:
        every = (row for part in range(parts.count) for row in _panels(parts, part))
        copies = duplicates({row["id"]: row["hashes"] for row in every if row["status"] == "kept"})
        for part in mine:
            with parts.writing(STAGE, part):
                rows = [
                    pair for row in _panels(parts, part) for pair in _pairs(row, config, copies)
                ]
                parts.write(STAGE, part, rows)
    return waiting


def _cut_all(parts: Parts, config: PairsConfig, todo: list[int]) -> None:
    grids = {
        part: [row for row in parts.read("grids", part) if row["status"] == "kept"] for part in todo
    }

    def cut(row: Row) -> Row:
        return _cut(grid_file(parts, row["id"]), row, config.check)

    with progress(HALF, sum(map(len, grids.values())), "grids") as advance:
        for part, rows in grids.items():
            with parts.writing(HALF, part):
                made = []
                for _, row in in_order(cut, rows, threads=min(os.cpu_count() or 1, 16)):
                    made.append(row.result())
                    advance()
                parts.write(HALF, part, made)


def _panels(parts: Parts, part: int) -> list[Row]:
    try:
        return parts.read(HALF, part)
    except UserError as error:  # which names the command after the folder
        raise UserError(str(error).replace(f"data {HALF}", f"data {STAGE}")) from None


def _cut(path: Path, grid: Row, check: GridCheck) -> Row:
    """Where a grid's panels are and what they look like, or why it is rejected."""
    row: Row = {name: grid[name] for name in ("id", "prompt_id", "task")}
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror}; copy it here, or remove {path.parent}.jsonl "
            "and run `dsd data grids` again"
        ) from None
    if hashlib.sha256(data).hexdigest() != grid["sha256"]:
        return {**row, "status": "rejected", "reason": "changed", "detail": "not as it was painted"}
    try:
        image = open_image(data)
    except UserError as error:
        return {**row, "status": "rejected", "reason": "unreadable", "detail": str(error)}
    boxes, reason, detail = find_panels(image, check)
    if reason:
        return {**row, "status": "rejected", "reason": reason, "detail": detail}
    panels = [image.crop(box) for box in boxes]
    return {
        **row,
        "status": "kept",
        "boxes": [list(box) for box in boxes],
        "hashes": [hashes(panel) for panel in panels],
        "similarity": {
            f"{a}{b}": similarity(panels[a - 1], panels[b - 1])
            for a, b in itertools.combinations(PANELS, 2)
        },
    }


def _pairs(row: Row, config: PairsConfig, copies: Mapping[str, str]) -> list[Row]:
    """Pairs of a grid, or its one row if it was rejected."""
    if row["status"] != "kept":
        return [row]
    return [
        pair
        for ends in itertools.combinations(PANELS, 2)
        for pair in _directions(row, ends, config, copies)
    ]


def _directions(
    row: Row, ends: tuple[int, int], config: PairsConfig, copies: Mapping[str, str]
) -> list[Row]:
    first, second = ends
    alike = row["similarity"][f"{first}{second}"]
    reason = detail = ""
    copied = next((f"{row['id']}-{n}" for n in ends if f"{row['id']}-{n}" in copies), None)
    if alike > config.max_similarity:
        reason = "near_copy"
    elif alike < config.min_similarity:
        reason = "unlike"
    elif copied:
        reason, detail = "duplicate", f"panel {copied[-1]} is {copies[copied]}"
    outcome = {"status": "rejected", "reason": reason} if reason else {"status": "kept"}
    if detail:
        outcome["detail"] = detail
    ways = [ends, (second, first)]
    if not config.both_directions:
        ways = [ways[_coin(f"{row['id']}-{first}{second}")]]
    return [
        {
            "id": f"{row['id']}-{reference}{target}",
            "grid_id": row["id"],
            "prompt_id": row["prompt_id"],
            "task": row["task"],
            "reference_box": row["boxes"][reference - 1],
            "target_box": row["boxes"][target - 1],
            "similarity": alike,
            **outcome,
        }
        for reference, target in ways
    ]


def _coin(name: str) -> int:
    return hashlib.sha256(f"direction {name}".encode()).digest()[0] % 2
