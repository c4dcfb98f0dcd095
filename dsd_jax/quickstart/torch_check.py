"""Compares our images of an export with PyTorch's, where PyTorch is installed."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from dsd_jax.config import FLOAT32
from dsd_jax.extras import missing
from dsd_jax.images import to_array
from dsd_jax.infer.pipeline import Pipeline
from dsd_jax.toy.score import Case

__all__ = ["largest_difference"]


def largest_difference(
    base: Path, export: Path, cases: Sequence[Case], *, steps: int, max_sequence_length: int
) -> int | None:
    """Measures how far a pixel (0 to 255) of our images differs from PyTorch's at most.

    Both start from the same noise and encode the reference by the posterior's mode.

    Args:
        base: Pipeline that training started from.
        export: Folder that `dsd convert lora` wrote.
        cases: Cases that are painted.
        steps: Sampling steps.
        max_sequence_length: T5 tokens of a text.

    Returns:
        The difference, or None if PyTorch, diffusers or PEFT is not installed.
    """
    if missing("torch"):
        return None
    from transformers.utils import logging as transformers

    transformers.set_verbosity_error()  # before diffusers is imported, which warns of other uses
    transformers.disable_progress_bar()
    from dsd_jax.quickstart.torch_reference import TorchConditional, silence

    silence()

    theirs = TorchConditional.from_export(base, export, max_sequence_length=max_sequence_length)
    ours = Pipeline.load(
        base,
        model_path=export / "transformer",
        lora_path=export,
        max_sequence_length=max_sequence_length,
        precision=FLOAT32,
    )
    config = ours.autoencoder_config
    worst = 0
    for case in cases:
        reference = Image.fromarray(case.reference())
        height, width = reference.height, 2 * reference.width
        shape = (1, config.latent_channels, height // config.downscale, width // config.downscale)
        noise = np.random.default_rng(case.seed).standard_normal(shape, np.float32)
        made = ours(
            case.text, reference, height=height, width=width, steps=steps, latents=noise,
            vae_sample=False,
        )  # fmt: skip
        _, pixels = theirs(case.text, to_array(reference), noise, steps=steps, guidance=3.5)
        expected = np.rint((np.clip(pixels, -1, 1) + 1) * 127.5)[:, reference.width :]
        worst = max(worst, int(np.abs(np.asarray(made[0], float) - expected).max()))
    return worst
