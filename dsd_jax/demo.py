"""`make demo`: a small random FLUX through every command there is, on any machine.

Writes a random pipeline in diffusers layout, converts it to JAX and back, compares the bytes, and
generates images from it, with a reference and without. The weights are random, so the images are
noise; what is shown is that the way through works, and the commands that go it.
"""

import argparse
import dataclasses
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from dsd_jax.cli import main as dsd
from dsd_jax.convert.io import open_weights
from dsd_jax.convert.random_pipeline import (
    SMALL,
    random_tensors,
    write_model,
    write_random_pipeline,
)

__all__ = ["main"]


def _run(command: str) -> None:
    """Runs a `dsd` command and shows it as one would type it."""
    print(f"\n$ dsd {command}", flush=True)
    if status := dsd(shlex.split(command)):
        raise SystemExit(status)


def _reference(path: Path) -> None:
    """A drawing to serve as reference image."""
    image = Image.new("RGB", (240, 200), "#f4e3c1")
    draw = ImageDraw.Draw(image)
    draw.ellipse((70, 40, 170, 150), fill="#c8553d")
    draw.polygon([(85, 60), (95, 15), (120, 48)], fill="#c8553d")
    draw.polygon([(155, 60), (145, 15), (120, 48)], fill="#c8553d")
    draw.ellipse((95, 80, 108, 95), fill="#2d3047")
    draw.ellipse((132, 80, 145, 95), fill="#2d3047")
    image.save(path)


def _same_tensors(first: Path, second: Path) -> int:
    """Number of tensors of two weight folders, which must be equal bit for bit."""
    with open_weights(first) as a, open_weights(second) as b:
        if a.tensors.keys() != b.tensors.keys():
            raise SystemExit(f"{first} and {second} hold different tensors")
        for name in a.tensors:
            if not np.array_equal(a.read(name).view(np.uint8), b.read(name).view(np.uint8)):
                raise SystemExit(f"{name} differs between {first} and {second}")
        return len(a.tensors)


def main() -> None:
    """The whole demo; a few seconds on two cores."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/demo"))
    folder: Path = parser.parse_args().output_dir
    shutil.rmtree(folder, ignore_errors=True)
    flux, dsd_model = folder / "flux", folder / "dsd" / "transformer"
    write_random_pipeline(flux)
    conditional = dataclasses.replace(SMALL.transformer, condition_embed=True)
    write_model(dsd_model, conditional, random_tensors(conditional, seed=0))
    reference = folder / "reference.png"
    _reference(reference)
    print(f"wrote a random FLUX in diffusers layout to {flux}")

    _run(f"convert to-jax {flux} {folder}/flux-jax")
    _run(f"convert to-torch {folder}/flux-jax {folder}/flux-torch")
    for name in ("transformer", "vae", "text_encoder", "text_encoder_2"):
        count = _same_tensors(flux / name, folder / "flux-torch" / name)
        print(f"{name}: {count} tensors, there and back, equal bit for bit")

    options = "--steps 8 --dtype float32 --seed 0"
    _run(
        f"generate --base_path {folder}/flux-jax --text 'a cat on a beach' "
        f"--height 128 --width 128 --output_path {folder}/text.png {options}"
    )
    _run(
        f"generate --base_path {folder}/flux-jax --model_path {dsd_model} "
        f"--image_path {reference} --text 'this cat in the snow' --i_guidance 1.5 "
        f"--height 128 --width 256 --save_frames --output_path {folder}/target.png {options}"
    )
    sys.stdout.flush()
    print(f"\nthe images are in {folder}; with the weights of FLUX.1-dev they would show the cat")


if __name__ == "__main__":
    main()
