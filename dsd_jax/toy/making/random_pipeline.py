"""Writes a small FLUX pipeline of random weights, for tests and benchmarks.

It is a complete folder in diffusers layout, so that every command treats it as it would treat
FLUX.1-dev. Its images are noise.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np

from dsd_jax.config import (
    FLOAT32,
    AutoencoderConfig,
    ClipConfig,
    FluxConfig,
    T5Config,
)
from dsd_jax.convert.open import config_to_json, of_transformers, table_for
from dsd_jax.convert.schedule import schedule_to_json
from dsd_jax.convert.writer import DIFFUSERS_STEM, TRANSFORMERS_STEM, write_weights
from dsd_jax.flow import Schedule
from dsd_jax.models import Config, abstract
from dsd_jax.toy.making.tokenizers import CLIP_VOCAB, T5_VOCAB, write_tiny_tokenizers
from dsd_jax.types import DTypeLike
from dsd_jax.weights import param_shapes

__all__ = [
    "SMALL",
    "PipelineConfig",
    "random_tensors",
    "write_model",
    "write_random_pipeline",
    "write_small_files",
]


@dataclasses.dataclass(frozen=True)
class PipelineConfig:
    """Sizes of the four models and the schedule."""

    transformer: FluxConfig
    vae: AutoencoderConfig
    text_encoder: ClipConfig
    text_encoder_2: T5Config
    schedule: Schedule = dataclasses.field(default_factory=Schedule)


SMALL = PipelineConfig(
    transformer=FluxConfig(
        num_heads=4,
        head_dim=16,
        axes_dim=(4, 6, 6),
        double_depth=2,
        single_depth=3,
        txt_width=32,
        vec_width=24,
        condition_embed=False,
    ),
    vae=AutoencoderConfig(block_channels=(8, 8, 16, 16), layers_per_block=1, norm_groups=4),
    text_encoder=ClipConfig(vocab=CLIP_VOCAB, width=24, depth=2, num_heads=2, mlp_width=48),
    text_encoder_2=T5Config(
        vocab=T5_VOCAB, width=32, depth=2, num_heads=2, head_dim=16, mlp_width=64
    ),
)


def random_tensors(
    config: Config, seed: int, dtype: DTypeLike = np.float32
) -> dict[str, np.ndarray]:
    """Draws parameters by per-layer path. None is zero, and norms scale by about 1."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for path, shape in param_shapes(abstract(config, precision=FLOAT32)).items():
        leaf = path.rpartition(".")[2]
        if leaf == "scale":
            value = 1 + 0.1 * rng.standard_normal(shape)
        elif leaf == "bias":
            value = 0.02 * rng.standard_normal(shape)
        elif leaf == "embedding":
            value = rng.standard_normal(shape)
        else:
            value = rng.standard_normal(shape) / np.sqrt(_fan_in(path, shape))
        tensors[path] = value.astype(dtype)
    return tensors


def _fan_in(path: str, shape: tuple[int, ...]) -> int:
    """Number of inputs of each output of a kernel: all axes but the outputs'."""
    outputs = {"qkv": 3, "q": 2, "k": 2, "v": 2, "lin": 2, "modulation": 2}
    module = path.split(".")[-2]
    return int(np.prod(shape[: len(shape) - outputs.get(module, 1)]))


def write_model(
    folder: Path, config: Config, tensors: dict[str, np.ndarray], layout: str = "diffusers"
) -> None:
    """Writes one model as a folder of safetensors and `config.json`."""
    table = table_for(config, layout)
    specs = table.their_specs({path: tensor.dtype for path, tensor in tensors.items()})
    stem = TRANSFORMERS_STEM if of_transformers(config) else DIFFUSERS_STEM
    write_weights(folder, specs, table.iter_theirs(tensors.__getitem__), stem=stem)
    (folder / "config.json").write_text(json.dumps(config_to_json(config), indent=2) + "\n")


def write_random_pipeline(
    folder: str | Path,
    config: PipelineConfig = SMALL,
    *,
    seed: int = 0,
    dtype: DTypeLike = np.float32,
) -> None:
    """Writes a pipeline: four models, two tokenisers, the scheduler and `model_index.json`."""
    folder = Path(folder)
    models: dict[str, Config] = {
        "transformer": config.transformer,
        "vae": config.vae,
        "text_encoder": config.text_encoder,
        "text_encoder_2": config.text_encoder_2,
    }
    for number, (name, model) in enumerate(models.items()):
        write_model(folder / name, model, random_tensors(model, seed + number, dtype))
    write_small_files(folder, config)


def write_small_files(folder: Path, config: PipelineConfig, *, t5_length: int = 512) -> None:
    """Writes the files of a pipeline other than its models.

    Args:
        folder: Folder of the pipeline.
        config: Its sizes and schedule.
        t5_length: T5 tokens that a prompt is padded to.
    """
    write_tiny_tokenizers(folder, t5_length=t5_length)
    (folder / "scheduler").mkdir(exist_ok=True)
    schedule = json.dumps(schedule_to_json(config.schedule), indent=2)
    (folder / "scheduler" / "scheduler_config.json").write_text(schedule + "\n")
    index = {
        "_class_name": "FluxPipeline",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "T5TokenizerFast"],
        "transformer": ["diffusers", "FluxTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
