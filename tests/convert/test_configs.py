"""Model sizes to and from the JSON of diffusers and transformers."""

import json
from typing import Any

import pytest
import torch

from dsd_jax.config import (
    AutoencoderConfig,
    ClipConfig,
    FluxConfig,
    T5Config,
    flux_dev,
    flux_schnell,
)
from dsd_jax.convert.flux.config import flux_to_json
from dsd_jax.errors import UserError
from tests.convert.published import CLIP, DEV, SCHNELL, SMALL, T5, VAE, build, parts_for, shapes_of


@pytest.mark.parametrize(
    ("data", "config"),
    [
        (DEV, flux_dev(condition_embed=False)),
        (SCHNELL, flux_schnell()),
        (DEV | {"_class_name": "FluxTransformer2DConditionalModel"}, flux_dev()),
        (VAE, AutoencoderConfig()),
        (T5, T5Config()),
        (CLIP, ClipConfig()),
    ],
)
def test_published_configs_are_our_defaults(data: dict[str, Any], config: Any) -> None:
    read, _, write = parts_for(data)
    assert read(data) == config
    assert read(write(config)) == config
    assert read(json.loads(json.dumps(write(config)))) == config


def test_a_config_we_write_builds_the_same_module() -> None:
    for data in SMALL.values():
        read, _, write = parts_for(data)
        with torch.device("meta"):
            assert shapes_of(build(write(read(data)))) == shapes_of(build(data))


@pytest.mark.parametrize(
    ("data", "change", "message"),
    [
        (DEV, {"_class_name": "SD3Transformer2DModel"}, "_class_name is 'SD3Transformer2DModel'"),
        (DEV, {"patch_size": 2}, "patch_size is 2, this program supports 1"),
        (DEV, {"num_layers": "19"}, "num_layers is '19', expected a whole number"),
        (DEV, {"axes_dims_rope": [16, 56]}, "axes_dim must be even numbers that sum to head_dim"),
        (DEV, {"axes_dims_rope": 3}, "axes_dims_rope is 3, expected a list of whole numbers"),
        (DEV, {"qk_norm": "layer"}, "settings this program does not know: {'qk_norm': 'layer'}"),
        (DEV, {"quantization_config": {}}, "does not know: {'quantization_config'"),
        (VAE, {"use_quant_conv": True}, "use_quant_conv is True, this program supports False"),
        (VAE, {"act_fn": "relu"}, "act_fn is 'relu', this program supports 'silu'"),
        (VAE, {"up_block_types": ["AttnUpDecoderBlock2D"] * 4}, "up_block_types is"),
        (VAE, {"scaling_factor": "0.3"}, "scaling_factor is '0.3', expected a number"),
        (VAE, {"latents_mean": [0.0]}, "does not know: {'latents_mean'"),
        (T5, {"feed_forward_proj": "relu"}, "this program supports 'gated-gelu'"),
        (T5, {"model_type": "mt5"}, "model_type is 'mt5', this program supports 't5'"),
        (CLIP, {"hidden_act": "relu"}, "hidden_act is 'relu', this program supports 'quick_gelu'"),
    ],
)
def test_unsupported_configs(data: dict[str, Any], change: dict[str, Any], message: str) -> None:
    read, _, _ = parts_for(data)
    with pytest.raises(UserError) as error:
        read(data | change)
    assert message in str(error.value)


def test_a_size_that_diffusers_has_no_setting_for() -> None:
    with pytest.raises(UserError, match=r"diffusers fixes mlp_ratio at 4.0; a model with 2.0"):
        flux_to_json(FluxConfig(mlp_ratio=2.0))
