"""The data of a run: the loader of this process's rows, and the batch that validation uses."""

import dataclasses
from collections.abc import Sequence

from jax.sharding import Mesh

from dsd_jax.data.load.encoded import EncodedStore, text_digest, weights_digest
from dsd_jax.data.load.loader import Loader, LoaderConfig, PairBatch, Reading
from dsd_jax.data.load.mixture import Portion, by_task
from dsd_jax.data.load.prefetch import mesh_rows, to_mesh
from dsd_jax.data.pairs.store import PairStore
from dsd_jax.errors import UserError
from dsd_jax.parts import FluxParts
from dsd_jax.sharding import batch_ways
from dsd_jax.train.config import DataConfig, TrainConfig, task_shares

__all__ = ["frame_of", "held_out", "open_data"]


def frame_of(config: TrainConfig) -> tuple[int, int]:
    """Height and width of a frame in pixels."""
    if config.condition and config.width % 2:
        raise UserError(f"width must be even, it holds two frames; got {config.width}")
    return config.height, config.width // 2 if config.condition else config.width


def _digests(base: FluxParts, folders: Sequence[str]) -> dict[str, str]:
    """Digests of the weights that encoded data must come from."""
    digests = {"autoencoder": weights_digest(base.autoencoder.sha256())}
    if any(EncodedStore.open(folder).binding.text for folder in folders):
        digests["text"] = text_digest(base.text.t5.sha256(), base.text.clip.sha256())
    return digests


def open_data(data: DataConfig, config: TrainConfig, mesh: Mesh, base: FluxParts) -> Loader:
    """Opens the loader of this process's rows.

    Raises:
        UserError: no such data, or encoded by other weights than the base's.
    """
    portions = [Portion.parse(text) for text in data.data]
    if data.encoded:
        digests = _digests(base, data.encoded)
        tokens = base.text.tokenizers.t5_length
        portions = [
            dataclasses.replace(
                portion, encoded=EncodedStore.open(folder, text_tokens=tokens, **digests)
            )
            for portion, folder in zip(portions, data.encoded, strict=True)
        ]
    if config.tasks is not None:
        portions = by_task(portions, task_shares(config.tasks))
    return Loader(
        portions,
        LoaderConfig(
            seed=config.seed,
            sizes=(frame_of(config), *data.sizes),
            instruction=data.instruction,
            drop_text=config.dropout.text,
            drop_image=config.dropout.image,
            drop_both=config.dropout.both,
        ),
        batch=config.batch_size,
        rows=mesh_rows(mesh, config.batch_size),
        reading=Reading(threads=data.threads, skip_bad=data.skip_bad_records),
    )


def held_out(path: str, config: TrainConfig, count: int, mesh: Mesh) -> PairBatch:
    """Loads one batch of held-out pairs onto the mesh: always the same, with nothing dropped."""
    store = PairStore.open(path)
    ways = batch_ways(mesh)
    size = -(-min(count, len(store)) // ways) * ways
    loader = Loader(
        [store],
        LoaderConfig(sizes=(frame_of(config),)),
        batch=size,
        rows=mesh_rows(mesh, size),
        reading=Reading(threads=0),
    )
    return to_mesh(next(iter(loader)), mesh)
