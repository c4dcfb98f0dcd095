"""`dsd data depth`."""

import sys
from pathlib import Path
from typing import Annotated

import tyro

from dsd_jax.compiled import keep_compiled
from dsd_jax.convert.vision.open import DEPTH_SMALL, find_depth
from dsd_jax.data.depth import DATASET, DepthSettings, make_depth_pairs
from dsd_jax.errors import UserError
from dsd_jax.sharding import MeshConfig, batch_ways, make_mesh
from dsd_jax.shares import ShareFlags

__all__ = ["depth"]


def depth(
    images: tyro.conf.Positional[Path],
    output_dir: Path,
    weights: str | None = None,
    columns: tyro.conf.OmitArgPrefixes[DepthSettings] = DepthSettings(),
    share: tyro.conf.OmitArgPrefixes[ShareFlags] = ShareFlags(),
    batch_size: int | None = None,
    mesh: Annotated[MeshConfig, tyro.conf.arg(name="mesh")] = MeshConfig(),
    compilation_cache: str = "auto",
) -> None:
    """Make pairs of depth maps and images. If it was stopped, start it again to resume.

    The depth map is the reference, the image is the target, and the task is depth. Captions come
    from the table; in a plain folder, from text files of the same name beside the images. Images
    that cannot be used are listed in rejected.jsonl with the reason.

    Args:
        images: A folder of images, a table of images in any format that `dsd data import` reads, a
            folder with one, or the hub id of a dataset.
        output_dir: Folder for the result; the dataset is in `dataset` there.
        weights: Depth Anything as transformers saves it: a folder or a hub id.
        columns: Meaning of the columns.
        share: Images that this worker does; the last to finish writes the dataset.
        batch_size: Images of one size computed together. Default: one per device that shares the
            batch.
        mesh: Devices along each axis; -1 takes all that the other axes leave.
        compilation_cache: Folder for compiled programs. Default: one in the user's cache, at most 4
            GB. off keeps none.
    """
    if weights is None:
        raise UserError(
            "the depth model is missing; give --weights FOLDER with the config.json, "
            f"preprocessor_config.json and model.safetensors of {DEPTH_SMALL}, or --weights "
            f"{DEPTH_SMALL}"
        )
    own = share.share()
    if kept := keep_compiled(compilation_cache):
        print(kept, file=sys.stderr)
    devices = make_mesh(mesh)
    ways = batch_ways(devices)
    batch = batch_size or ways
    if batch < 1 or batch % ways:
        raise UserError(f"--batch_size must be a multiple of {ways} on this mesh, got {batch}")
    tower = find_depth(weights).load(mesh=devices)
    done = make_depth_pairs(images, output_dir, tower, columns, share=own, batch=batch)
    if done is None:
        print(
            f"worker {own.number} of {own.count} has made its depth maps in {output_dir}; the last "
            "to finish writes the dataset"
        )
        return
    folder = output_dir / DATASET
    print(f"{done.pairs:,} pairs in {folder}; {done.rejected:,} images rejected")
    if done.rejected:
        print(f"{folder / 'rejected.jsonl'} says why")
