"""Readers of weights, of what lies beside them, and of runs."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from safetensors.numpy import save_file

from dsd_jax.checkpoint import save_params
from dsd_jax.config import FluxConfig, VisionConfig
from dsd_jax.convert.io import open_weights
from dsd_jax.convert.jobs import to_jax
from dsd_jax.convert.lora.read import read_lora
from dsd_jax.convert.open import open_component, read_json
from dsd_jax.convert.quantised import dequantised
from dsd_jax.convert.schedule import schedule_from_json, schedule_to_json
from dsd_jax.convert.vision.preprocess import preprocess_from_json
from dsd_jax.flow import Schedule
from dsd_jax.models import Config
from dsd_jax.runs import MANIFEST, RUN, SCHEMA, STATE, digests, folder_of, read_trained, write_json
from dsd_jax.text.tokenize import Tokenizers
from dsd_jax.toy.making.random_pipeline import SMALL, random_tensors, write_model
from dsd_jax.toy.making.tokenizers import write_tiny_tokenizers
from tests.fuzz.reader import Reader, written
from tests.lora_dialects import DIALECTS, TINY, random_pairs, write_dialect

__all__ = ["WEIGHTS"]

# One block of each kind: what is read does not depend on their number.
_FLUX = dataclasses.replace(SMALL.transformer, double_depth=1, single_depth=1)
_BFL = FluxConfig(
    num_heads=1, double_depth=1, single_depth=1, txt_width=16, vec_width=8, condition_embed=False
)
_MODELS: dict[str, Config] = {
    "transformer": _FLUX,
    "vae": SMALL.vae,
    "clip": dataclasses.replace(SMALL.text_encoder, depth=1),
    "t5": dataclasses.replace(SMALL.text_encoder_2, depth=1),
    "vision": VisionConfig(patch=8, grid=2, width=16, depth=1, num_heads=2, mlp_width=32),
}
_PICTURES = {
    "image_processor_type": "CLIPImageProcessor",
    "size": {"shortest_edge": 24},
    "crop_size": {"height": 16, "width": 24},
    "image_mean": [0.5, 0.4, 0.3],
    "resample": 3,
}


def _weights(folder: Path) -> Path:
    path = folder / "model.safetensors"
    save_file({f"layer.{i}": np.ones((3, 4), np.float32) for i in range(4)}, path)
    return path


def _sharded(folder: Path) -> Path:
    names = [f"model-{i:05d}-of-00002.safetensors" for i in (1, 2)]
    for i, name in enumerate(names):
        save_file({f"layer.{i}": np.ones((3, 4), np.float32)}, folder / name)
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {f"layer.{i}": n for i, n in enumerate(names)}}))
    return path


def _tensors(path: Path) -> object:
    with open_weights(path) as weights:
        return {name: weights.read(name) for name in weights.tensors}


def _four_bits(folder: Path) -> Path:
    """A layer as bitsandbytes stores it in four bits."""
    told = {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [16, 8]}
    rng = np.random.default_rng(0)
    tensors: dict[str, np.ndarray] = {
        "a.weight": rng.integers(0, 256, (64, 1)).astype(np.uint8),
        "a.weight.absmax": np.ones(2, np.float32),
        "a.weight.quant_map": np.linspace(-1, 1, 16).astype(np.float32),
        "a.weight.quant_state.bitsandbytes__nf4": np.frombuffer(
            json.dumps(told).encode(), np.uint8
        ),
    }
    path = folder / "model.safetensors"
    save_file(tensors, path)
    return path


def _numbers(path: Path) -> object:
    with open_weights(path) as weights:
        held = dequantised(weights, str(path))
        return None if held is None else {name: held.read(name) for name in held.tensors}


# Adapters


def _lora(dialect: str, beside: str = "adapter_model.safetensors") -> Reader:
    def make(folder: Path) -> Path:
        write_dialect(folder / "lora", dialect, random_pairs(rank=1), TINY, alpha=2.0)
        return folder / "lora" / beside

    def read(path: Path) -> object:
        adapter, report = read_lora(path.parent, TINY)
        return [adapter.factors, adapter.full, report]

    return Reader(make, read)


# Models


def _model(config: Config, layout: str = "diffusers") -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        write_model(folder / "model", config, random_tensors(config, 0), layout)
        return folder / "model" / "config.json"

    return make


def _bfl(folder: Path) -> Path:
    (config := _model(_BFL, "bfl")(folder)).unlink()
    return next(config.parent.iterdir())


def _converted(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        source = _model(_FLUX)(folder).parent
        to_jax(source, folder / "jax")
        return folder / "jax" / name

    return make


def _opened(path: Path) -> object:
    """Opens the model of a folder, given any file or folder in it."""
    folder = next(own for own in (path, *path.parents) if (own / "config.json").exists())
    return _content(folder)


def _content(path: Path) -> object:
    found = open_component(path)
    source = found.source
    whole = {name: tuple(slice(0, n) for n in shape) for name, shape in source.shapes.items()}
    return [found.config, {name: source.read(name, index) for name, index in whole.items()}]


def _tokenizers(folder: Path) -> Path:
    write_tiny_tokenizers(folder / "flux", t5_length=16)
    return folder / "flux"


def _ids(path: Path) -> object:
    return Tokenizers.load(path).encode(["a red cat", "Ein Käfer im Schnee " * 20])


# Runs


def _run(folder: Path) -> Path:
    """The folder of a run with one finished checkpoint."""
    own = epath.Path(folder_of(folder / "run" / "checkpoints", 3))
    factors = np.random.default_rng(0).standard_normal((2, 8), np.float32)
    tensors: Mapping[str, Any] = {"params.img_in.lora_a": factors, "ema.img_in.lora_a": factors}
    save_params(own / STATE, tensors.items())
    write_json(own / RUN, {"schema": SCHEMA, "step": 3, "config": {"lora": {"rank": 2}}})
    write_json(own / MANIFEST, {"schema": SCHEMA, "files": digests(own)})
    return folder / "run"


WEIGHTS: dict[str, Reader] = {
    "safetensors": Reader(_weights, _tensors),
    "shard index": Reader(_sharded, lambda path: _tensors(path.parent)),
    "four bits": Reader(_four_bits, _numbers),
    **{f"LoRA {name}": _lora(name) for name in DIALECTS},
    "adapter config": _lora("raw PEFT", "adapter_config.json"),
    **{f"{name} config": Reader(_model(config), _opened) for name, config in _MODELS.items()},
    "BFL file": Reader(_bfl, _content, 0.5),
    "preprocessor": Reader(
        written("preprocessor_config.json", json.dumps(_PICTURES)),
        lambda path: preprocess_from_json(read_json(path), str(path)),
    ),
    "scheduler": Reader(
        written("scheduler_config.json", json.dumps(schedule_to_json(Schedule()))),
        lambda path: schedule_from_json(read_json(path)),
    ),
    "tokenizers": Reader(_tokenizers, _ids, 0.2),
    "converted": Reader(_converted("params"), _opened, 0.5, sealed=True),
    "source.json": Reader(_converted("source.json"), _opened, 0.5, sealed=True),
    "converted config": Reader(_converted("config.json"), _opened, 0.5, sealed=True),
    "run": Reader(_run, lambda path: read_trained(path / "checkpoints"), 0.5, sealed=True),
}
