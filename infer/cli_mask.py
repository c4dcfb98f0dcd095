"""`dsd mask`: its flags, and what it prints."""

from pathlib import Path
from typing import Annotated

import tyro

from dsd_jax.files import write_file
from dsd_jax.infer.batch import read_manifest
from dsd_jax.infer.cli import ModelFlags
from dsd_jax.infer.find_mask import find_mask, prepare_rows
from dsd_jax.infer.mask import mask_text
from dsd_jax.infer.outputs import check_place
from dsd_jax.infer.settings import Settings

__all__ = ["mask"]

_PLAIN = tyro.conf.arg(name="")


def mask(
    manifest: tyro.conf.Positional[Path],
    output_path: Path,
    full: int,
    images: int = 8,
    trials: int = 100,
    model: Annotated[ModelFlags, _PLAIN] = ModelFlags(),
    settings: Annotated[Settings, _PLAIN] = Settings(),
) -> None:
    """Find the steps of sampling that must run all blocks, for `--step_mask`.

    Args:
        manifest: Table of images as for `dsd batch`, with equal settings.
        output_path: File to write.
        full: Number of steps that run all blocks. The others run the first one.
        images: Number of images to search on, the first of the manifest.
        trials: Number of masks to try. Each samples all images once.
        model: The model.
        settings: Settings of sampling, which the mask is for.
    """
    check_place(output_path)
    rows = read_manifest(manifest, settings)
    pipeline = model.load()
    prepared = prepare_rows(pipeline, rows, images)
    found = find_mask(pipeline, prepared, full, trials)
    chosen = prepared.settings
    words = (
        f"{len(prepared.texts)} images, solver {chosen.solver}, i_guidance {chosen.i_guidance:g}, "
        f"guidance_every {chosen.guidance_every}"
    )
    write_file(output_path, mask_text(found, words))
    print(
        f"wrote {output_path}: {full} of {chosen.steps} steps run all blocks, error "
        f"{found.error:.4f} ({found.even:.4f} at even distances)"
    )
