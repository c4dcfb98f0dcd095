"""`dsd data import`, `export`, `view`, `stats`, `verify` and `encode`."""

import dataclasses
import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import jax
import tyro

from dsd_jax.config import FLUX_DEV, PRECISIONS, default_execution
from dsd_jax.data.load.encoded import Binding, text_digest, weights_digest
from dsd_jax.data.pairs.export import Licence, export_pairs
from dsd_jax.data.pairs.importer import import_pairs
from dsd_jax.data.pairs.reader import ImportSettings
from dsd_jax.data.pairs.report import statistics, verify_folder
from dsd_jax.data.pairs.store import PairStore
from dsd_jax.errors import UserError
from dsd_jax.sharding import MeshConfig, batch_ways, make_mesh
from dsd_jax.shares import ShareFlags

__all__ = ["encode", "export", "import_dataset", "stats", "verify", "view"]


def import_dataset(
    source: tyro.conf.Positional[Path],
    target: tyro.conf.Positional[Path],
    columns: tyro.conf.OmitArgPrefixes[ImportSettings] = ImportSettings(),
    workers: int | None = None,
) -> None:
    """Import a table of images as a dataset. If it was stopped, start it again to resume.

    Rows that cannot be used are listed in rejected.jsonl with the reason.

    Args:
        source: A table (JSON, JSON Lines, CSV, TSV, Parquet, Arrow or WebDataset tar), a folder
            with one, or the hub id of a dataset.
        target: New folder for the dataset.
        columns: Meaning of the columns.
        workers: Threads that decode images. Default: one per core.
    """
    done = import_pairs(source, target, columns, workers=workers)
    before = f", {done.before:,} of them there before" if done.before else ""
    print(f"{done.pairs:,} pairs in {target}{before}; {done.rejected:,} rows rejected")
    if done.rejected:
        print(f"{target / 'rejected.jsonl'} says why")


def export(
    dataset: tyro.conf.Positional[Path],
    target: tyro.conf.Positional[Path],
    format: Literal["parquet", "folder"] = "parquet",  # noqa: A002 - the flag's name
    licence: tyro.conf.OmitArgPrefixes[Licence] = Licence(),
) -> None:
    """Export a dataset for other programs. If it was stopped, start it again to resume.

    Both formats open with `load_dataset` of the `datasets` library, and `dsd data import` gives
    back the same pairs.

    Args:
        dataset: Dataset folder.
        target: New folder for the export.
        format: Parquet files with image columns, or a folder of image files with metadata.jsonl.
        licence: The licence that the dataset card names.
    """
    store = PairStore.open(dataset)
    export_pairs(store, target, format, licence)
    print(f"{len(store):,} pairs in {target}")
    if licence.license == "unknown":
        print("the card says `license: unknown`; name one with --license before you share it")


def view(
    source: tyro.conf.Positional[Path], output_path: Path | None = None, limit: int = 200
) -> None:
    """Write a web page with the pictures and words of a dataset, in one file.

    For a work folder it shows grids, boxes, pairs and the judge's answers.

    Args:
        source: Configuration or work folder of `dsd data make`, dataset, table of pairs, or folder
            of images.
        output_path: HTML file to write. Default: one beside the source, with its name.
        limit: Largest number of grids, pairs or images; a sample is shown if there are more.
    """
    from dsd_jax.data.view import page_beside, write_view

    output = output_path or page_beside(source)
    shown = write_view(source, output, limit)
    print(f"{output} shows {shown}")


def stats(dataset: tyro.conf.Positional[Path], plot: Path | None = None) -> None:
    """Count the contents of a dataset, or the yields and costs of a work folder.

    Args:
        dataset: Dataset folder, or the work folder of `dsd data make`.
        plot: PNG file for a plot of yields, reasons, subjects and costs of a work folder.
    """
    from dsd_jax.data.make.folder import is_begun
    from dsd_jax.data.make.overview import plot_yields, tables

    if is_begun(dataset):
        print("\n\n".join(tables(dataset)))
        if plot is not None:
            plot_yields(dataset, plot)
        return
    if plot is not None:
        raise UserError(
            f"{dataset} is not a work folder of `dsd data make`; there is nothing to plot"
        )
    print(statistics(PairStore.open(dataset)))


def verify(folder: tyro.conf.Positional[Path], workers: int | None = None) -> None:
    """Check every digest and decode every image.

    Args:
        folder: Dataset folder, or a folder that `dsd data encode` wrote.
        workers: Threads. Default: one per core.
    """
    problems = verify_folder(folder, workers=workers or os.cpu_count() or 1)
    for problem in problems:
        print(problem)
    if problems:
        print(f"{len(problems):,} problems in {folder}")
        raise SystemExit(1)
    print(f"{folder} is complete and undamaged")


@dataclasses.dataclass(frozen=True)
class EncodeFlags:
    """The frames that are encoded, and the weights that encode them.

    Attributes:
        base_path: FLUX.1 in diffusers layout or converted: a folder or a hub id.
        sizes: Height and width of a frame, one pair or several (aspect ratio buckets), as the
            training will ask for.
        text: Also encode captions and instructions by T5 and CLIP.
        max_sequence_length: T5 tokens that a text is padded or cut to. Fewer are faster to train
            on; sample with the same number then.
        dtype: Dtype of the weights, of the computation and of the result.
        batch_size: Canvases encoded together. Default: one per device that shares the batch.
        compilation_cache: Folder for compiled programs. Default: one in the user's cache, at most 4
            GB. off keeps none.
    """

    base_path: str = FLUX_DEV
    sizes: tuple[tuple[int, int], ...] = ((512, 512),)
    text: bool = False
    max_sequence_length: int = 512
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    batch_size: int | None = None
    compilation_cache: str = "auto"


def encode(
    dataset: tyro.conf.Positional[Path],
    target: tyro.conf.Positional[Path],
    encoding: tyro.conf.OmitArgPrefixes[EncodeFlags] = EncodeFlags(),
    share: tyro.conf.OmitArgPrefixes[ShareFlags] = ShareFlags(),
    mesh: Annotated[MeshConfig, tyro.conf.arg(name="mesh")] = MeshConfig(),
) -> None:
    """Encode a dataset by the VAE once, for training. If it was stopped, start it again to resume.

    A pair of two 512 x 512 frames takes 1 MB in bfloat16, and 4.2 MB more for each text of 512
    tokens of T5-XXL.

    Args:
        dataset: Dataset folder.
        target: New folder for the moments.
        encoding: Frames to encode, and the weights.
        share: Shards of the dataset that this worker encodes; the last to finish completes the
            folder.
        mesh: Devices to use along each axis; -1 takes all that the other axes leave.
    """
    from dsd_jax.compiled import keep_compiled
    from dsd_jax.convert.open import open_autoencoder, open_text
    from dsd_jax.data.load.cache import encode_pairs
    from dsd_jax.encoders import ImageCodec, TextEncoder

    if kept := keep_compiled(encoding.compilation_cache):
        print(kept, file=sys.stderr)
    own = share.share()
    store = PairStore.open(dataset)
    vae = open_autoencoder(encoding.base_path, fingerprint=True)
    precision = PRECISIONS[encoding.dtype]
    devices = make_mesh(mesh)
    encode_text, digest, tokens = None, None, None
    if encoding.text:
        parts = open_text(encoding.base_path, encoding.max_sequence_length, fingerprint=True)
        execution = default_execution(jax.default_backend())
        encode_text = TextEncoder.load(
            parts, precision=precision, execution=execution, mesh=devices
        )
        digest = text_digest(parts.t5.sha256(), parts.clip.sha256())
        tokens = parts.tokenizers.t5_length
    weights = weights_digest(vae.sha256())
    binding = Binding(store.fingerprint, encoding.sizes, encoding.dtype, weights, digest, tokens)
    complete = encode_pairs(
        store,
        target,
        binding,
        ImageCodec.load(vae, precision=precision, mesh=devices),
        text=encode_text,
        batch=encoding.batch_size or batch_ways(devices),
        share=own,
    )
    print(
        f"{target} is complete"
        if complete
        else f"worker {own.number} of {own.count} has encoded its part of {target}"
    )
