"""The prompts that a run samples at every validation (`--sample_prompts`)."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jax.sharding import Mesh
from PIL import Image

from dsd_jax.data.load.loader import PairBatch
from dsd_jax.data.load.prefetch import mesh_rows, to_mesh
from dsd_jax.data.pairs.store import PairStore
from dsd_jax.errors import UserError
from dsd_jax.images import fit, open_image
from dsd_jax.infer.batch import read_manifest
from dsd_jax.infer.settings import Settings
from dsd_jax.sharding import batch_ways
from dsd_jax.tables.find import ENDINGS
from dsd_jax.types import UInt8

__all__ = ["Prompt", "prompts_on_mesh", "read_prompts"]

MOST = 64  # more would take longer than the training they show


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A text to sample, with a reference where there is a condition."""

    text: str
    reference: Image.Image | None = None
    seed: int = 0


def read_prompts(path: Path, pairs: str, *, condition: bool) -> list[Prompt]:
    """Reads the prompts of a file.

    Args:
        path: a manifest as for `dsd batch`, with the columns text, image and seed, or a text file
            with a prompt per line.
        pairs: dataset whose references serve, in turn, for prompts without an image.
        condition: whether references are needed at all.

    Raises:
        UserError: the file cannot be read, a row is wrong, or there are none or too many.
    """
    if path.suffix.lower() in ENDINGS:
        rows = read_manifest(path, Settings())
        for number, row in enumerate(rows):
            if row.error or not row.text.strip():
                raise UserError(f"{path}, row {number}: {row.error or 'there is no text'}")
        prompts = [
            Prompt(row.text, open_image(row.folder / row.image) if row.image else None, row.seed)
            for row in rows
        ]
    else:
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"cannot read the prompts {path}: {reason}") from None
        texts = [line.strip() for line in lines if line.strip()]
        prompts = [Prompt(text, None, seed) for seed, text in enumerate(texts)]
    if not 1 <= len(prompts) <= MOST:
        raise UserError(f"{path} holds {len(prompts)} prompts; give 1 to {MOST}")
    if not condition:
        return [dataclasses.replace(prompt, reference=None) for prompt in prompts]
    store = PairStore.open(pairs)
    return [
        prompt
        if prompt.reference is not None
        else dataclasses.replace(prompt, reference=open_image(store[number % len(store)].reference))
        for number, prompt in enumerate(prompts)
    ]


def prompts_on_mesh(prompts: Sequence[Prompt], frame: tuple[int, int], mesh: Mesh) -> PairBatch:
    """Makes a batch of prompts with black targets, repeated up to what the mesh divides.

    Args:
        prompts: all of them with a reference, or none.
        frame: height and width of a frame in pixels.
        mesh: devices for the batch.
    """
    ways = batch_ways(mesh)
    count = -(-len(prompts) // ways) * ways
    rows = mesh_rows(mesh, count)
    own = [prompts[min(int(row), len(prompts) - 1)] for row in rows]
    black = np.zeros((len(own), *frame, 3), np.uint8)
    shown = [prompt.reference for prompt in own if prompt.reference is not None]
    batch = PairBatch(
        0,
        count,
        rows,
        frame,
        [f"prompt-{row}" for row in rows],
        [prompt.text for prompt in own],
        np.zeros(len(own), bool),
        np.zeros(len(own), bool),
        reference=_fitted(shown, frame) if shown else None,
        target=black,
    )
    return to_mesh(batch, mesh)


def _fitted(
    pictures: Sequence[Image.Image], frame: tuple[int, int]
) -> UInt8[np.ndarray, "n h w 3"]:
    return np.stack([np.asarray(fit(picture, *frame)) for picture in pictures])
