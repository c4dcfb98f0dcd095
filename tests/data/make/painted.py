"""A teacher that paints small grids from seeds, and prompts for it."""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from dsd_jax.data.make.grids import Teacher
from dsd_jax.data.make.ids import CaptionId, PromptId
from dsd_jax.data.make.parts import Parts, part_of
from dsd_jax.data.make.stages import PROMPTS, Prompt

__all__ = ["SIDE", "Painter", "grid_picture", "tree", "write_prompts"]

SIDE = 64


def grid_picture(seed: int, side: int = SIDE, gutter: int = 2) -> Image.Image:
    """Four panels of different colours on white, a mark at its own place in each."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (side, side), "white")
    pen = ImageDraw.Draw(image)
    own = (side - gutter) // 2
    for i, j in np.ndindex(2, 2):
        left, top = i * (own + gutter), j * (own + gutter)
        red, green, blue, *place = (int(v) for v in rng.integers(0, 200, 5))
        pen.rectangle((left, top, left + own - 1, top + own - 1), fill=(red, green, blue))
        x, y = (
            corner + own * (20 + v // 2) // 200
            for corner, v in zip((left, top), place, strict=True)
        )
        pen.ellipse((x, y, x + own // 3, y + own // 3), fill=(250 - green, 40, 250 - red))
    return image


class Painter:
    """Paints from seeds; raises KeyboardInterrupt before the batch number `breaks`.

    Attributes:
        teacher: The teacher that paints so.
        broken: Prompts whose pictures are not finite.
        batches: Prompts of every batch that was painted.
    """

    def __init__(self, batch_size: int = 4, *, breaks: int | None = None, steps: int = 28) -> None:
        self.teacher = Teacher(batch_size, {"steps": steps, "model": "painter"}, self._paint)
        self.broken: set[str] = set()
        self.batches: list[list[str]] = []
        self._breaks = breaks

    def _paint(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image | None]:
        assert len(prompts) == len(seeds) == self.teacher.batch_size
        if len(self.batches) == self._breaks:
            raise KeyboardInterrupt
        self.batches.append(list(prompts))
        return [
            None if prompt in self.broken else grid_picture(seed)
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]


def write_prompts(parts: Parts, count: int, *, rejected: int = 1) -> None:
    """Finishes the parts of `prompts`."""
    rows: list[list[Prompt]] = [[] for _ in range(parts.count)]
    for number in range(count + rejected):
        caption = CaptionId(hashlib.sha256(f"caption {number}".encode()).hexdigest()[:16])
        row = Prompt(
            id=PromptId(caption, "identity"), task="identity", wording="v1", status="rejected"
        )
        if number < count:
            row = dataclasses.replace(row, prompt=f"a grid of pot {number}", status="kept")
        rows[part_of(caption, parts.count)].append(row)
    for part, own in enumerate(rows):
        parts.write(PROMPTS, part, own)


def tree(root: Path) -> dict[str, bytes]:
    """Every file but the locks."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.relative_to(root).parts[0] != "locks"
    }
