"""Measures the toy teacher: does it follow its prompts, and do its grids show one subject?

    python -m benchmarks.toy.teacher [--prompts 200] [--steps 28] [--sheet sheet.png]

Grids and single pictures of random subjects in random scenes, one row for subjects that it was
trained on and one for subjects that were held out. A panel is right if the pixel judge sees
everything that the prompt says about the subject (or about background and place). A pair of panels
is the same if the judge sees the complete subject in both and it agrees, whatever the prompt said;
a judge keeps such pairs.
"""

import argparse
import itertools
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.results import save
from dsd_jax.config import FLOAT32
from dsd_jax.data.make.panels import find_panels
from dsd_jax.infer import Pipeline
from dsd_jax.toy.folder import toy_flux_path
from dsd_jax.toy.judge import SUBJECT, Seen, judge
from dsd_jax.toy.words import OPENINGS, describe, describe_grid
from dsd_jax.toy.world import BACKGROUNDS, PANEL, Scene, Subject, subjects

__all__ = ["main"]

SECTIONS = {
    "": (
        "The toy teacher",
        """Pictures painted by the shipped toy FLUX, as the pixel judge sees them; unclear answers
count as not right. *Light*: one in eight pictures is asked for in another light than the usual
one. *Same*: both panels show the whole subject and agree. *Grids cut*: the check
of grids finds four panels. `dsd_jax/toy/flux/README.md` says how the teacher is made.""",
    ),
}

BATCH = 50


def scenes_of(rng: np.random.Generator, count: int) -> list[Scene]:
    """Scenes of different backgrounds."""
    return [
        Scene.draw(rng, background)
        for background in rng.permutation(list(BACKGROUNDS))[:count].tolist()
    ]


def panels_of(picture: np.ndarray) -> list[np.ndarray]:
    """The four panels of a grid, in reading order."""
    cut = [slice(0, PANEL), slice(PANEL, 2 * PANEL)]
    return [picture[row, column] for row in cut for column in cut]


def paint(pipeline: Pipeline, texts: list[str], side: int, steps: int) -> list[np.ndarray]:
    """Pictures of these texts; picture i has seed i."""
    seeds = list(range(len(texts)))
    made = pipeline(
        texts, seed=seeds, height=side, width=side, steps=steps, batch_size=min(BATCH, len(texts))
    )
    return [np.asarray(image) for image in made.images]


def _right(seen: Seen, subject: Subject, scene: Scene) -> dict[str, bool]:
    parts = {name: getattr(seen, name) == getattr(subject, name) for name in SUBJECT}
    whole = {"subject": all(parts.values()), "scene": seen.shows(scene)}
    return {**parts, **whole, "light": seen.light == scene.light}


def _share(values: list[bool]) -> str:
    return f"{np.mean(values):.3f}"


def _rates(right: list[dict[str, bool]]) -> dict[str, str]:
    return {name: _share([panel[name] for panel in right]) for name in right[0]}


def measure(
    pipeline: Pipeline, prompts: int, steps: int, *, held_out: bool
) -> tuple[dict[str, Any], dict[str, Any], list[np.ndarray]]:
    """Rows for grids and for single pictures, and the grids."""
    pool = subjects(held_out=held_out)
    rng = np.random.default_rng((7, held_out))
    asked = [(pool[rng.integers(len(pool))], scenes_of(rng, 4)) for _ in range(prompts)]
    texts = [
        describe_grid(subject, scenes, OPENINGS[i % len(OPENINGS)])
        for i, (subject, scenes) in enumerate(asked)
    ]
    grids = paint(pipeline, texts, 2 * PANEL, steps)
    right, same, whole, both = [], [], [], []
    for (subject, scenes), grid in zip(asked, grids, strict=True):
        seen = [judge(panel) for panel in panels_of(grid)]
        right += [_right(s, subject, scene) for s, scene in zip(seen, scenes, strict=True)]
        pairs = [a.subject is not None and a.subject == b.subject for a, b in _pairs(seen)]
        same += pairs
        whole.append(all(pairs))
        both += [a.subject == subject == b.subject for a, b in _pairs(seen)]
    kind = "held out" if held_out else "trained on"
    grid_row = {
        "subjects": kind,
        "pictures": "panels of grids",
        **_rates(right),
        "pairs the same": _share(same),
        "pairs the same and right": _share(both),
        "grids all the same": _share(whole),
        "grids that are cut": _share([bool(find_panels(Image.fromarray(g)).boxes) for g in grids]),
    }
    singles = paint(
        pipeline,
        [describe(subject, scenes[0]) for subject, scenes in asked],
        PANEL,
        steps,
    )
    right = [_right(judge(p), s, scenes[0]) for p, (s, scenes) in zip(singles, asked, strict=True)]
    none = dict.fromkeys(list(grid_row)[-4:], "")
    single_row = {"subjects": kind, "pictures": "single", **_rates(right), **none}
    return grid_row, single_row, grids


def _pairs(seen: list[Seen]) -> list[tuple[Seen, Seen]]:
    return list(itertools.combinations(seen, 2))


def write_sheet(path: Path, grids: list[np.ndarray], columns: int = 10) -> None:
    """The first grids, three times as large."""
    count = len(grids) // columns * columns
    rows = [np.concatenate(grids[i : i + columns], axis=1) for i in range(0, count, columns)]
    Image.fromarray(np.concatenate(rows)).resize(
        (3 * columns * 2 * PANEL, 3 * len(rows) * 2 * PANEL), Image.Resampling.NEAREST
    ).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--flux", type=Path, default=None, help="default: the package's")
    parser.add_argument("--sheet", type=Path, default=None, help="PNG of the first 40 grids")
    options = parser.parse_args()
    pipeline = Pipeline.load(options.flux or toy_flux_path(), precision=FLOAT32)
    rows: list[dict[str, Any]] = []
    for held_out in (False, True):
        *own, grids = measure(pipeline, options.prompts, options.steps, held_out=held_out)
        rows += own
        print(*own, sep="\n", flush=True)
        if options.sheet is not None and not held_out:
            write_sheet(options.sheet, grids[:40])
    if options.flux is None:
        save(__file__, rows, prompts=options.prompts, steps=options.steps)


if __name__ == "__main__":
    main()
