"""Writes the toy FLUX as a folder in diffusers layout."""

from pathlib import Path

import ml_dtypes
import numpy as np

from dsd_jax.config import AutoencoderConfig
from dsd_jax.models import Config
from dsd_jax.toy.making.encoders import encoder_tensors
from dsd_jax.toy.making.random_pipeline import (
    PipelineConfig,
    random_tensors,
    write_model,
    write_small_files,
)
from dsd_jax.toy.making.sizes import TOY_CLIP, TOY_FLUX, TOY_SCHEDULE, TOY_T5, TOY_VAE
from dsd_jax.toy.words import T5_LENGTH

__all__ = ["write_toy_pipeline"]

Tensors = dict[str, np.ndarray]
_DTYPE = ml_dtypes.bfloat16


def write_toy_pipeline(
    folder: Path,
    *,
    vae: tuple[AutoencoderConfig, Tensors] | None = None,
    transformer: Tensors | None = None,
) -> None:
    """Writes the toy FLUX, every weight in bfloat16.

    Args:
        folder: A new folder, or one to write over.
        vae: Trained autoencoder, with scale and shift of its latents. None takes random weights.
        transformer: Trained parameters by per-layer path. None takes random ones.
    """
    vae_config, vae_tensors = vae or (TOY_VAE, random_tensors(TOY_VAE, 0))
    parts: dict[str, tuple[Config, Tensors]] = {
        "transformer": (TOY_FLUX, transformer or random_tensors(TOY_FLUX, 0)),
        "vae": (vae_config, vae_tensors),
        "text_encoder": (TOY_CLIP, encoder_tensors(TOY_CLIP, seed=1)),
        "text_encoder_2": (TOY_T5, encoder_tensors(TOY_T5, seed=2)),
    }
    for name, (config, tensors) in parts.items():
        write_model(folder / name, config, {k: v.astype(_DTYPE) for k, v in tensors.items()})
    sizes = PipelineConfig(TOY_FLUX, vae_config, TOY_CLIP, TOY_T5, TOY_SCHEDULE)
    write_small_files(folder, sizes, t5_length=T5_LENGTH)
