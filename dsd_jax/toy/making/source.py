"""Draws the batches that the toy's autoencoder, teacher and image encoder are trained on.

The batch of a step is a function of (seed, step) alone, as in the loader. It shows no subject
that is held out.
"""

import dataclasses
from collections.abc import Collection, Generator, Mapping, Sequence
from typing import Literal

import numpy as np

from dsd_jax.data.load.encoded import Embedding
from dsd_jax.data.load.loader import PairBatch
from dsd_jax.errors import UserError
from dsd_jax.toy.words import OPENINGS, PANELS, describe, describe_grid, describe_pair
from dsd_jax.toy.world import PANEL, SIZES, Scene, Subject, grid, render, subjects
from dsd_jax.types import Int

__all__ = ["SIZES_OF", "VIEWS_OF", "View", "WorldSource"]

View = Literal["single", "grid", "pair", "canvas"]
SIZES_OF: dict[View, tuple[int, int]] = {
    "single": (PANEL, PANEL),
    "grid": (2 * PANEL, 2 * PANEL),
    "pair": (PANEL, 2 * PANEL),
    "canvas": (PANEL, 2 * PANEL),
}
"""Height and width of a view. `single` is one picture, `grid` four of one subject. `pair` is two of
one subject, of which the words tell the right-hand scene alone. `canvas` is two frames."""
VIEWS_OF: dict[str, tuple[View, ...]] = {
    "toy_vae": ("grid", "canvas", "single"),
    "toy_teacher": ("pair", "grid", "pair", "single", "pair"),
    "toy_decoder": ("canvas", "single", "canvas", "grid"),
    "toy_vision": ("single",),
}
"""Views that the batches of each preset show, in turn."""
_UNNAMED = {"single": 0.15, "canvas": 0.15, "grid": 0.3}
"""Share of the samples whose words say "this thing", as those of a pair always do. Such a text does
not tell the subject, so the panels must tell each other, as those of FLUX do. Only so can a student
learn to look."""
_LOCKED = {"grid": 0.3, "pair": 0.4}
"""Share of the samples that show one scene in several lights before a camera that stands."""
_LIT = 0.5  # share of such lights that are not the usual one, and of single pictures and canvases
_BLACK = 0.5  # share of canvases whose right frame is black, as a condition's is


class WorldSource:
    """Endless batches from a step on; a `dsd_jax.train.loop.BatchSource`.

    Attributes:
        start_step: The step where iterating begins.
    """

    null_text: Embedding | None = None

    def __init__(
        self,
        views: Sequence[View],
        *,
        batch: int,
        seed: int,
        drop_text: float = 0.0,
        rows: Int[np.ndarray, " own"] | None = None,
    ) -> None:
        """Draws nothing yet.

        Args:
            views: Views that the batches show, in turn.
            batch: Samples per step, over all processes.
            seed: Seed of everything that is drawn.
            drop_text: Share of the samples without text.
            rows: Rows of every batch that this process draws. By default it draws all.
        """
        self.views, self.batch, self.seed, self.drop_text = tuple(views), batch, seed, drop_text
        self.rows = np.arange(batch) if rows is None else rows
        self.start_step = 0

    @property
    def identity(self) -> Mapping[str, object]:
        """Everything that decides what a step draws."""
        return {
            "world": 6,
            "views": list(self.views),
            "batch": self.batch,
            "seed": self.seed,
            "drop_text": self.drop_text,
        }

    def check_resume(self, saved: Mapping[str, object]) -> None:
        """Refuses to go on with other data.

        Raises:
            UserError: The world, the seed or the batch is another one.
        """
        if dict(saved) != self.identity:
            raise UserError(
                f"the saved run was trained on {dict(saved)}, now it is {self.identity}; use "
                "that, or start anew"
            )

    def ids_of(self, step: int) -> list[str]:
        return [f"{step}-{row}" for row in range(self.batch)]

    def __iter__(self) -> Generator[PairBatch, None, None]:
        step = self.start_step
        while True:
            yield self.batch_of(step)
            step += 1

    def batch_of(self, step: int) -> PairBatch:
        """Draws this process's rows of the batch of a step."""
        view = self.views[step % len(self.views)]
        drawn = [self._draw(view, step, int(row)) for row in self.rows]
        return PairBatch(
            step,
            self.batch,
            self.rows,
            SIZES_OF[view],
            [f"{step}-{row}" for row in self.rows],
            [text for _, text, _ in drawn],
            np.asarray([dropped for _, _, dropped in drawn]),
            np.zeros(len(drawn), bool),
            target=np.stack([picture for picture, _, _ in drawn]),
        )

    def _draw(self, view: View, step: int, row: int) -> tuple[np.ndarray, str, bool]:
        rng = np.random.default_rng((self.seed, step, row))
        dropped = bool(rng.random() < self.drop_text)
        known = subjects(held_out=False)
        subject, told = known[rng.integers(len(known))], Scene.draw(rng)
        locked = rng.random() < _LOCKED.get(view, 0.0)
        if locked:
            usual = dataclasses.replace(told, size=_any(rng, SIZES), light=Scene.light)
            scenes = [usual.relit(rng) if rng.random() < _LIT else usual for _ in PANELS]
            told = scenes[0]
        else:
            scenes = [told, *(Scene.draw(rng) for _ in PANELS[1:])]
        if view == "pair":
            panels = [render(subject, scene) for scene in (scenes[1], told)]
            return np.concatenate(panels, axis=1), describe_pair(told), dropped
        named: Subject | None = None if rng.random() < _UNNAMED[view] else subject
        if view == "grid":
            picture = grid(subject, scenes)
            opening = OPENINGS[int(rng.integers(len(OPENINGS)))]
            return picture, describe_grid(named, scenes, opening), dropped
        if rng.random() < _LIT:
            told = told.relit(rng)
        picture = render(subject, told)
        if view == "canvas":
            other = np.zeros_like(picture)
            if rng.random() >= _BLACK:
                other = render(subject, Scene.draw(rng).relit(rng))
            picture = np.concatenate([picture, other], axis=1)
        return picture, describe(named, told), dropped


def _any(rng: np.random.Generator, names: Collection[str]) -> str:
    return list(names)[int(rng.integers(len(names)))]
