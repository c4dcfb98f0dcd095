"""Makes depth pairs of painted panels. The pixel judge plays the depth network.

For photographs `dsd data depth` does this.
"""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from dsd_jax.data.make.folder import begun_folder
from dsd_jax.data.make.ids import PANELS as NUMBERS
from dsd_jax.data.make.ids import PanelId
from dsd_jax.data.make.stages import PANELS
from dsd_jax.errors import UserError
from dsd_jax.files import write_file
from dsd_jax.images import open_image, save_image
from dsd_jax.progress import progress
from dsd_jax.quickstart.inputs import MAKING
from dsd_jax.tasks import DEPTH
from dsd_jax.toy.judge import SCENE, Seen, judge
from dsd_jax.toy.score import Case
from dsd_jax.toy.world import PANEL, Scene, is_held_out

__all__ = ["DEPTHS", "depth_table", "write_depths"]

DEPTHS = "depths"
"""Folder of the maps, the panels and the table of both."""


def depth_table(folder: Path) -> Path:
    """The table of pairs in the folder of a quickstart, for `dsd data import`."""
    return folder / DEPTHS / "pairs.jsonl"


def write_depths(folder: Path, count: int) -> None:
    """Writes depth pairs: a map, the panel that it belongs to, and words about all of it.

    A panel is left out if the judge finds any part of its subject or scene unclear, or if it shows
    a subject that is held out. Once the table is there, nothing is done.

    Args:
        folder: Folder of the quickstart, whose grids are cut.
        count: Panels to look at.

    Raises:
        UserError: No panel is clear, or a file is missing or cannot be written.
    """
    table = depth_table(folder)
    if table.exists():
        return
    rows = []
    with progress(DEPTHS, count, "maps") as advance:
        for name, panel in itertools.islice(_panels(folder / MAKING), count):
            advance()
            case = _case(name, judge(np.asarray(panel)))
            if case is None:
                continue
            images = {"reference": f"{name}-map.png", "target": f"{name}.png"}
            save_image(Image.fromarray(case.reference()), table.parent / images["reference"])
            save_image(panel, table.parent / images["target"])
            rows.append({"id": name, **images, "caption": case.text, "task": DEPTH.name})
    if not rows:
        raise UserError(
            f"no panel in {folder / MAKING} is clear enough for a depth map; give more --minutes, "
            "or leave depth out of --tasks, and another --output_dir"
        )
    write_file(table, "".join(json.dumps(row) + "\n" for row in rows))


def _panels(making: Path) -> Iterator[tuple[str, Image.Image]]:
    """All panels with their ids: the first of every grid, then the second of every grid."""
    parts = begun_folder(making)
    cut = [(row.id, row.boxes) for row in parts.rows(PANELS) if row.boxes]
    for number in NUMBERS:
        for grid, boxes in cut:
            panel = open_image(parts.picture(grid)).crop(boxes[number - 1])
            yield str(PanelId(grid, number)), panel.resize((PANEL, PANEL))


def _case(name: str, seen: Seen) -> Case | None:
    """The depth case that a panel answers, or None if it is not to be used."""
    known = [getattr(seen, part) for part in SCENE]
    if seen.subject is None or None in known or is_held_out(seen.subject):
        return None
    scene = Scene(*known)
    return Case(name, seen.subject, scene, scene, seed=0, task=DEPTH.name)
