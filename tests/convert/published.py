"""The published configurations, small ones of the same kind, and the PyTorch modules of both."""

from collections.abc import Callable, Mapping
from typing import Any

import diffusers
import torch
import transformers

from dsd_jax.convert.flux.config import flux_from_json, flux_to_json
from dsd_jax.convert.flux.diffusers import flux_diffusers
from dsd_jax.convert.table.engine import Table
from dsd_jax.convert.text import (
    clip_from_json,
    clip_table,
    clip_to_json,
    t5_from_json,
    t5_table,
    t5_to_json,
)
from dsd_jax.convert.vae import (
    autoencoder_diffusers,
    autoencoder_from_json,
    autoencoder_to_json,
)

__all__ = ["CLIP", "DEV", "SCHNELL", "SMALL", "T5", "VAE", "build", "parts_for", "shapes_of"]

# The published config.json files, without the keys that change no tensor.

DEV = {
    "_class_name": "FluxTransformer2DModel",
    "_diffusers_version": "0.30.0.dev0",
    "_name_or_path": "../checkpoints/flux-dev/transformer",
    "attention_head_dim": 128,
    "guidance_embeds": True,
    "in_channels": 64,
    "joint_attention_dim": 4096,
    "num_attention_heads": 24,
    "num_layers": 19,
    "num_single_layers": 38,
    "patch_size": 1,
    "pooled_projection_dim": 768,
}
SCHNELL = DEV | {"guidance_embeds": False}
VAE = {
    "_class_name": "AutoencoderKL",
    "_diffusers_version": "0.30.0.dev0",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "force_upcast": True,
    "in_channels": 3,
    "latent_channels": 16,
    "latents_mean": None,
    "latents_std": None,
    "layers_per_block": 2,
    "mid_block_add_attention": True,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 1024,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "use_post_quant_conv": False,
    "use_quant_conv": False,
}
T5 = {
    "architectures": ["T5EncoderModel"],
    "d_ff": 10240,
    "d_kv": 64,
    "d_model": 4096,
    "decoder_start_token_id": 0,
    "dense_act_fn": "gelu_new",
    "dropout_rate": 0.1,
    "feed_forward_proj": "gated-gelu",
    "is_encoder_decoder": True,
    "is_gated_act": True,
    "layer_norm_epsilon": 1e-06,
    "model_type": "t5",
    "num_heads": 64,
    "num_layers": 24,
    "relative_attention_max_distance": 128,
    "relative_attention_num_buckets": 32,
    "vocab_size": 32128,
}
CLIP = {
    "architectures": ["CLIPTextModel"],
    "bos_token_id": 0,
    "eos_token_id": 2,
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77,
    "model_type": "clip_text_model",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 1,
    "projection_dim": 768,
    "vocab_size": 49408,
}


def build(data: Mapping[str, Any]) -> torch.nn.Module:
    """The PyTorch module of a config.json; the condition embedding as the DSD authors add it."""
    match data.get("_class_name", data.get("model_type")):
        case "FluxTransformer2DModel" | "FluxTransformer2DConditionalModel" as name:
            model = diffusers.FluxTransformer2DModel.from_config(dict(data))
            if name == "FluxTransformer2DConditionalModel":
                width = data["num_attention_heads"] * data["attention_head_dim"]
                model.c_embedder = torch.nn.Linear(data["in_channels"], width)
            return model
        case "AutoencoderKL":
            return diffusers.AutoencoderKL.from_config(dict(data))
        case "t5":
            return transformers.T5EncoderModel(transformers.T5Config(**data))
        case "clip_text_model":
            return transformers.CLIPTextModel(transformers.CLIPTextConfig(**data))
    raise AssertionError(data)


def shapes_of(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


SMALL_FLUX = DEV | {
    "attention_head_dim": 8,
    "axes_dims_rope": [2, 2, 4],
    "in_channels": 12,
    "joint_attention_dim": 10,
    "num_attention_heads": 3,
    "num_layers": 2,
    "num_single_layers": 3,
    "pooled_projection_dim": 7,
}
SMALL: dict[str, dict[str, Any]] = {
    "dev": SMALL_FLUX,
    "schnell": SMALL_FLUX | {"guidance_embeds": False},
    "dsd": SMALL_FLUX | {"_class_name": "FluxTransformer2DConditionalModel"},
    "vae": VAE
    | {"block_out_channels": [8, 16, 16], "norm_num_groups": 4, "latent_channels": 5}
    | {"down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3},
    "t5": T5
    | {"d_ff": 20, "d_kv": 4, "d_model": 16, "num_heads": 3, "num_layers": 2}
    | {"vocab_size": 33},
    "clip": CLIP
    | {"hidden_size": 24, "intermediate_size": 20, "num_attention_heads": 3}
    | {"num_hidden_layers": 2, "vocab_size": 33, "bos_token_id": 0, "pad_token_id": 1},
}
Reader = Callable[[Mapping[str, Any]], Any]
READERS: dict[str, tuple[Reader, Callable[[Any], Table], Callable[[Any], dict[str, Any]]]] = {
    "FluxTransformer2DModel": (flux_from_json, flux_diffusers, flux_to_json),
    "AutoencoderKL": (
        autoencoder_from_json,
        autoencoder_diffusers,
        autoencoder_to_json,
    ),
    "t5": (t5_from_json, t5_table, t5_to_json),
    "clip_text_model": (clip_from_json, clip_table, clip_to_json),
}
READERS["FluxTransformer2DConditionalModel"] = READERS["FluxTransformer2DModel"]


def parts_for(data: Mapping[str, Any]) -> tuple[Reader, Callable[[Any], Table], Any]:
    return READERS[data.get("_class_name", data.get("model_type", ""))]
