"""Vision transformers: names at full size, files both ways, and what is refused."""

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers.core_model_loading import revert_weight_conversion

from dsd_jax.config import FLOAT32, VisionConfig
from dsd_jax.convert.jobs import to_jax, to_torch
from dsd_jax.convert.open import open_component
from dsd_jax.convert.vision.config import vision_from_json, vision_to_json
from dsd_jax.convert.vision.open import find_vision, open_captions, open_vision
from dsd_jax.convert.vision.preprocess import preprocess_from_json
from dsd_jax.convert.vision.tables import vision_table
from dsd_jax.errors import UserError
from dsd_jax.models import abstract
from dsd_jax.toy.making.random_pipeline import SMALL, random_tensors, write_model
from dsd_jax.vision.preprocess import Preprocess
from dsd_jax.weights import param_shapes


def vit(width: int, patch: int) -> dict[str, Any]:
    heads = width // 64
    return {
        "model_type": "vit",
        "hidden_size": width,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "patch_size": patch,
    }


def dinov2(kind: str, width: int, depth: int, *, gated: bool = False) -> dict[str, Any]:
    return {
        "model_type": kind,
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": width // 64,
        "image_size": 518,
        "patch_size": 14,
        "use_swiglu_ffn": gated,
    }


CLIP_L = {
    "model_type": "clip",
    "projection_dim": 768,
    "text_config": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
    "vision_config": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "patch_size": 14,
    },
}
SIGLIP = {
    "model_type": "siglip",
    "text_config": {},
    "vision_config": {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 384,
        "patch_size": 14,
    },
}
FULL_SIZE: dict[str, tuple[dict[str, Any], int]] = {
    # published config without the keys that have their defaults; parameters that are read
    "dino-vits8": (vit(384, 8), 21_670_272),
    "dino-vitb16": (vit(768, 16), 85_798_656),
    "dinov2-small": (dinov2("dinov2", 384, 12), 22_056_192),
    "dinov2-giant": (dinov2("dinov2", 1536, 40, gated=True), 1_136_479_232),
    "dinov2-with-registers-base": (dinov2("dinov2_with_registers", 768, 12), 86_582_784),
    "clip-vit-base-patch32": (
        {"model_type": "clip", "text_config": {}, "vision_config": {}},
        87_849_216,
    ),
    "clip-vit-large-patch14": (CLIP_L, 303_966_208),
    "siglip-so400m-patch14-384": (SIGLIP, 428_225_600),
}
CLASSES = {
    "vit": transformers.ViTModel,
    "dinov2": transformers.Dinov2Model,
    "dinov2_with_registers": transformers.Dinov2WithRegistersModel,
    "clip": transformers.CLIPModel,
    "siglip": transformers.SiglipModel,
}


def published_shapes(data: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes in the file of a published model."""
    kind = data["model_type"]
    config = transformers.AutoConfig.for_model(**data)
    options = {"add_pooling_layer": False} if kind == "vit" else {}
    with torch.device("meta"):
        model = CLASSES[kind](config, **options)
    saved = revert_weight_conversion(model, model.state_dict())
    return {name: tuple(tensor.shape) for name, tensor in saved.items()}


@pytest.mark.parametrize("name", FULL_SIZE)
def test_every_name_and_shape_at_full_size(name: str):
    data, parameters = FULL_SIZE[name]
    shapes = published_shapes(data)
    config = vision_from_json(data, shapes)
    table = vision_table(config)
    aside = {
        name for name in shapes if any(re.search(pattern, name) for pattern, _ in table.ignored)
    }
    assert table.their_shapes == {name: shapes[name] for name in shapes.keys() - aside}
    assert {name.split(".")[0] for name in aside} <= {
        *("embeddings", "text_model", "text_projection", "logit_scale", "logit_bias")
    }
    few = dataclasses.replace(config, depth=2)  # the blocks are all alike
    assert vision_table(few).our_shapes == param_shapes(abstract(few, precision=FLOAT32))
    assert sum(map(math.prod, table.our_shapes.values())) == parameters
    assert vision_from_json(vision_to_json(config), shapes) == config


TINY = {
    "vit": VisionConfig(6, 4, 24, 2, 3, 40),
    "gated": VisionConfig(6, 4, 24, 2, 3, 64, layer_scale=True, gated=True),
    "registers": VisionConfig(6, 4, 24, 2, 3, 96, layer_scale=True, registers=2, antialias=True),
    "clip": VisionConfig(6, 4, 24, 2, 3, 40, "quick_gelu", 1e-5, pre_norm=True, projection=16),
    "siglip": VisionConfig(6, 4, 24, 2, 3, 40, "gelu_tanh", 1e-6, "attention"),
}


@pytest.mark.parametrize("name", TINY)
def test_files_of_ours_are_read_by_transformers_and_by_us(name: str, tmp_path: Path):
    tensors = random_tensors(TINY[name], 0)
    write_model(tmp_path, TINY[name], tensors)
    component = open_component(tmp_path).expect(VisionConfig)
    assert component.config == TINY[name]
    for path, tensor in tensors.items():
        np.testing.assert_array_equal(component.source.read(path, ()), tensor, err_msg=path)
    architecture = json.loads((tmp_path / "config.json").read_text())["architectures"][0]
    options = {"add_pooling_layer": False} if architecture == "ViTModel" else {}
    _, found = getattr(transformers, architecture).from_pretrained(
        tmp_path, output_loading_info=True, **options
    )
    assert set(found["missing_keys"]) <= {"embeddings.mask_token"}
    assert not found["unexpected_keys"]
    assert not found["mismatched_keys"]


def test_a_converted_model_keeps_the_settings_of_its_preprocessing(tmp_path: Path):
    write_vit(tmp_path / "dino")
    settings = b'{"image_processor_type": "ViTImageProcessor", "size": {"height": 9, "width": 9}}'
    (tmp_path / "dino" / "preprocessor_config.json").write_bytes(settings)
    to_jax(tmp_path / "dino", tmp_path / "jax")
    to_torch(tmp_path / "jax", tmp_path / "torch")
    assert (tmp_path / "torch" / "preprocessor_config.json").read_bytes() == settings
    parts = [find_vision(tmp_path / name) for name in ("dino", "jax")]
    assert parts[0].preprocess == parts[1].preprocess
    assert parts[0].component.sha256() == parts[1].component.sha256()


# What is refused


def write_vit(folder: Path, **changes: Any) -> dict[str, Any]:
    """A tiny DINO in a folder, with changed entries of its config."""
    write_model(folder, TINY["vit"], random_tensors(TINY["vit"], 0))
    data = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(data))
    return data


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "relu"}, "hidden_act is 'relu', this program supports 'gelu' or"),
        ({"num_attention_heads": 5}, "hidden_size 24 and num_attention_heads 5 do not fit"),
        ({"patch_size": 0}, "patch_size is 0"),
        ({"image_size": [24, 24]}, "image_size is \\[24, 24\\], expected a whole number"),
        ({"num_channels": 1}, "num_channels is 1, this program supports 3"),
        ({"num_hidden_layers": 3}, "16 missing: encoder.layer.2"),
        ({"num_hidden_layers": 10**9}, "blocks are claimed, but the weights have"),
        ({"model_type": "dinov3_vit", "architectures": None}, "describes a dinov3_vit; expected"),
        ({"model_type": "clip"}, "the config of a clip model has no vision_config"),
    ],
)
def test_configs_that_are_refused(changes: dict[str, Any], message: str, tmp_path: Path):
    write_vit(tmp_path, **changes)
    with pytest.raises(UserError, match=message):
        open_component(tmp_path)


def test_the_file_that_is_missing_is_named(tmp_path: Path):
    with pytest.raises(UserError, match="there is no folder or file"):
        open_vision(tmp_path / "nowhere")
    with pytest.raises(
        UserError, match=r"has no config\.json; give a folder with config\.json and"
    ):
        open_vision(tmp_path)
    write_vit(tmp_path)
    with pytest.raises(UserError, match=r"has no preprocessor_config\.json; give a folder with"):
        open_vision(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="holds no safetensors weights"):
        open_vision(tmp_path, Preprocess())


def test_captions_need_the_text_encoder_of_clip(tmp_path: Path):
    write_vit(tmp_path)
    with pytest.raises(UserError, match="model_type is 'vit', this program supports 'clip' or"):
        open_captions(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(UserError, match="has no text_config; download it again"):
        open_captions(tmp_path)


def test_captions_need_a_projection_and_a_tokeniser(tmp_path: Path):
    config = dataclasses.replace(SMALL.text_encoder, projection=16)
    write_model(tmp_path / "a", SMALL.text_encoder, random_tensors(SMALL.text_encoder, 0))
    with pytest.raises(UserError, match=r"1 missing: text_projection\.weight"):
        open_captions(tmp_path / "a")
    write_model(tmp_path / "b", config, random_tensors(config, 0))
    with pytest.raises(UserError, match=r"is not a tokeniser: expected tokenizer\.json or vocab"):
        open_captions(tmp_path / "b")


def test_a_text_encoder_is_no_vision_transformer(tmp_path: Path):
    write_model(tmp_path, SMALL.text_encoder, random_tensors(SMALL.text_encoder, 0))
    with pytest.raises(UserError, match=r"holds a CLIP text encoder; a vision transformer is"):
        open_vision(tmp_path, Preprocess())


def test_settings_of_old_image_processors():
    """Published files state sizes as single numbers; what one number means, the kind decides."""
    shared = {"do_resize": True, "do_normalize": True, "size": 224}
    dino = {"feature_extractor_type": "ViTFeatureExtractor", "resample": 2, **shared}
    half = (0.5, 0.5, 0.5)
    bilinear = Image.Resampling.BILINEAR
    assert preprocess_from_json(dino, "p.json") == Preprocess(
        (224, 224), bilinear, None, mean=half, std=half
    )
    clip = {"feature_extractor_type": "CLIPFeatureExtractor", "crop_size": 224, **shared}
    assert preprocess_from_json(clip, "p.json") == Preprocess()
    fast = {"image_processor_type": "SiglipImageProcessorFast", "size": {"height": 9, "width": 7}}
    assert preprocess_from_json(fast, "p.json") == Preprocess(
        (9, 7), crop=None, mean=half, std=half
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "is for a None; expected an image processor of ViT, CLIP, Bit, Siglip"),
        ({"image_processor_type": "SamImageProcessor"}, "is for a SamImageProcessor; expected"),
        ({"size": 0}, "size is 0, expected sides from 1 to 4096"),
        ({"size": {"longest_edge": 7}}, "size is .*, expected sides"),
        ({"crop_size": {"height": 7}}, "crop_size is .*, expected sides"),
        ({"image_std": [1, 1, 0]}, "need three numbers each, std above 0"),
        ({"image_mean": "x"}, "image_mean is 'x', expected a list of numbers"),
        ({"do_rescale": False}, "do_rescale is False, this program supports True"),
        ({"resample": 9}, "resample is 9"),
    ],
)
def test_image_processors_that_are_refused(data: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        preprocess_from_json(
            {"image_processor_type": "CLIPImageProcessor"} | data if data else data, "p.json"
        )
