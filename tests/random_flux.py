"""A small random FLUX on disk and a DSD transformer beside it, for tests of whole folders."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from jax.experimental.compilation_cache import compilation_cache
from PIL import Image

from dsd_jax.config import FLOAT32, FluxConfig
from dsd_jax.convert.lora.write import write_lora
from dsd_jax.lora import Adapter, LoraConfig, initialise
from dsd_jax.models import abstract
from dsd_jax.toy.making.random_pipeline import (
    SMALL,
    PipelineConfig,
    random_tensors,
    write_model,
    write_random_pipeline,
)

__all__ = [
    "CONDITIONAL",
    "TEXT",
    "compile_once",
    "picture",
    "random_adapter",
    "write_flux",
    "write_random_lora",
]

TEXT = "a red cat sitting on the blue table in the snow"
CONDITIONAL = dataclasses.replace(SMALL.transformer, condition_embed=True)


def compile_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keeps compiled programs in one folder, so that equal models in one session share them.

    A test that gives `--compilation_cache off` would end this for all tests after it.
    """
    folder = tmp_path_factory.getbasetemp() / "compiled-programs"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    compilation_cache.reset_cache()  # whether there is one is decided at the first compilation


def write_flux(folder: Path, config: PipelineConfig = SMALL) -> Path:
    """A pipeline without condition embedding in `flux/`, and `dsd/transformer/`; the folder itself.

    The DSD transformer is the base with a condition embedding, so that LoRA files fit both.
    """
    write_random_pipeline(folder / "flux", config)
    base = random_tensors(config.transformer, seed=0)
    conditional = dataclasses.replace(config.transformer, condition_embed=True)
    write_model(folder / "dsd" / "transformer", conditional, random_tensors(conditional, 0) | base)
    return folder


def random_adapter(config: FluxConfig, seed: int = 0, *, full: bool = False) -> Adapter:
    """Rank 4 on every attention linear; `full`: with a condition embedding of its own."""
    rng = np.random.default_rng(seed)

    def shapes(rngs: nnx.Rngs) -> nnx.Module:
        model = abstract(config, precision=FLOAT32)
        initialise(model, LoraConfig(rank=4), rngs)
        return model

    flat = nnx.to_flat_state(nnx.state(nnx.eval_shape(lambda: shapes(nnx.Rngs(0)))))
    factors = {
        ".".join(map(str, path)): (0.3 * rng.standard_normal(v.shape)).astype(np.float32)
        for path, v in flat
        if str(path[-1]).startswith("lora")
    }
    extra = {
        "cond_in.kernel": rng.standard_normal((config.in_channels, config.width)) / 8,
        "cond_in.bias": rng.standard_normal(config.width) / 8,
    }
    own = {path: value.astype(np.float32) for path, value in extra.items()} if full else {}
    return Adapter(factors, own)


def write_random_lora(path: Path, config: FluxConfig, seed: int = 0, *, full: bool = False) -> Path:
    """A LoRA file of that adapter."""
    return write_lora(path, random_adapter(config, seed, full=full), config)


def picture(seed: int = 0, size: tuple[int, int] = (150, 120)) -> Image.Image:
    """Coarse random colours."""
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (8, 10, 3), dtype=np.uint8)).resize(size)
