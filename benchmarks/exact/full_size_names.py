"""Compares names and shapes of the published models' tensors: PyTorch's modules and our tables.

    python -m benchmarks.exact.full_size_names

The reference modules are built on torch's `meta` device from the published configurations, so that
nothing is downloaded or allocated. In both directions: we would write exactly their names and
shapes, and reading them would fill exactly our modules.
"""

import dataclasses
import math
import re
from typing import Any

import torch
import transformers
from diffusers import AutoencoderKL, FluxTransformer2DModel
from transformers import CLIPTextConfig, CLIPTextModel, T5EncoderModel
from transformers import T5Config as TorchT5Config
from transformers.core_model_loading import revert_weight_conversion

from benchmarks.results import save
from dsd_jax.config import (
    FLOAT32,
    AutoencoderConfig,
    ClipConfig,
    DepthConfig,
    T5Config,
    VisionConfig,
    flux_dev,
    flux_schnell,
)
from dsd_jax.convert.open import config_to_json, table_for
from dsd_jax.models import Config, abstract
from dsd_jax.weights import param_shapes

SECTIONS = {
    "": (
        "Names and shapes at full size",
        """Modules of the published configurations on torch's `meta` device against our tables and
our modules.""",
    ),
}


_DINOV2 = VisionConfig(14, 37, eps=1e-6, layer_scale=True)
_CLIP_B = VisionConfig(32, 7, 768, 12, 12, 3072, "quick_gelu", 1e-5, pre_norm=True, projection=512)
VISION = {
    "DINO ViT-S/8": VisionConfig(8, 28),
    "DINO ViT-B/16": VisionConfig(16, 14, 768, 12, 12, 3072),
    "DINOv2 ViT-S/14": _DINOV2,
    "DINOv2 ViT-B/14 with registers": dataclasses.replace(
        _DINOV2, width=768, num_heads=12, mlp_width=3072, registers=4, antialias=True
    ),
    "DINOv2 ViT-g/14": dataclasses.replace(
        _DINOV2, width=1536, depth=40, num_heads=24, mlp_width=4096, gated=True
    ),
    "CLIP ViT-B/32 image encoder": _CLIP_B,
    "CLIP ViT-L/14 image encoder": dataclasses.replace(
        _CLIP_B, patch=14, grid=16, width=1024, depth=24, num_heads=16, mlp_width=4096,
        projection=768,
    ),
    "SigLIP so400m/14 image encoder": VisionConfig(
        14, 27, 1152, 27, 16, 4304, "gelu_tanh", 1e-6, "attention"
    ),
}  # fmt: skip


def vision_reference(config: VisionConfig | DepthConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes that transformers writes for a vision transformer, and for one of depth."""
    json: dict[str, Any] = config_to_json(config)
    (architecture,) = json.pop("architectures")
    options = {"add_pooling_layer": False} if architecture == "ViTModel" else {}
    with torch.device("meta"):
        settings = transformers.AutoConfig.for_model(**json)
        module = getattr(transformers, architecture)(settings, **options)
    saved = revert_weight_conversion(module, module.state_dict())
    aside = re.compile(r"mask_token$|position_ids$")
    prefix = "vision_model." if architecture.startswith(("CLIP", "Siglip")) else ""
    names = {name: tuple(own.shape) for name, own in saved.items() if not aside.search(name)}
    return {
        name if name.startswith((prefix, "visual_")) else f"{prefix}{name}": shape
        for name, shape in names.items()
    }


def reference(config: Config) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the PyTorch module of a config, from its own JSON."""
    json = {key: value for key, value in config_to_json(config).items() if key[0] != "_"}
    with torch.device("meta"):
        match config:
            case AutoencoderConfig():
                module: torch.nn.Module = AutoencoderKL(**json)
            case T5Config():
                module = T5EncoderModel(TorchT5Config(**json))
            case ClipConfig():
                module = CLIPTextModel(CLIPTextConfig(**json))
            case VisionConfig() | DepthConfig():
                return vision_reference(config)
            case _:
                module = FluxTransformer2DModel(**json)
    # The embedding that T5 shares with itself has two names; files have one.
    tied = {"encoder.embed_tokens.weight"}
    return {k: tuple(v.shape) for k, v in module.state_dict().items() if k not in tied}


def published(name: str) -> str:
    """Adds the prefix of CLIP's published files, which transformers 5 drops."""
    return name if name.startswith("text_model.") else f"text_model.{name}"


def main() -> None:
    """Compares, prints, saves; any difference is an error."""
    models: dict[str, Config] = {
        "FLUX.1-dev transformer": flux_dev(condition_embed=False),
        "FLUX.1-schnell transformer": flux_schnell(),
        "FLUX.1 autoencoder": AutoencoderConfig(),
        "T5-v1.1-XXL encoder": T5Config(),
        "CLIP-L text encoder": ClipConfig(),
        **VISION,
        "Depth Anything V2 Small": DepthConfig(),
    }
    rows = []
    for title, config in models.items():
        table, theirs = table_for(config, "diffusers"), reference(config)
        if isinstance(config, ClipConfig):
            theirs = {
                published(name): s for name, s in theirs.items() if "position_ids" not in name
            }
        if table.their_shapes != theirs:
            raise SystemExit(
                f"{title}: {sorted(set(table.their_shapes.items()) ^ set(theirs.items()))}"
            )
        ours = param_shapes(abstract(config, precision=FLOAT32))
        if table.our_shapes != ours:
            raise SystemExit(
                f"{title}: {sorted(set(table.our_shapes.items()) ^ set(ours.items()))}"
            )
        count = sum(map(math.prod, ours.values()))
        rows.append(
            {
                "model": title,
                "tensors": len(theirs),
                "parameters": f"{count:,}",
                "ours": len(ours),
                "equal": "names and shapes, both ways",
            }
        )
    save(__file__, rows)


if __name__ == "__main__":
    main()
