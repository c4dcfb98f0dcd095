"""`config.json` of vision transformers in transformers, both ways."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from dsd_jax.config import VisionConfig
from dsd_jax.convert.fields import Fields, Json
from dsd_jax.convert.vision.tables import kind_of
from dsd_jax.errors import UserError

__all__ = ["VISION_KINDS", "vision_from_json", "vision_to_json"]

_ACTIVATIONS = {"gelu": "gelu", "quick_gelu": "quick_gelu", "gelu_pytorch_tanh": "gelu_tanh"}
"""Their names of activations and ours."""
_PAIRS = {"clip": "clip_vision_model", "siglip": "siglip_vision_model"}
"""Models of two encoders, whose config has one inside for pictures, and its `model_type`."""
VISION_KINDS = frozenset({"vit", "dinov2", "dinov2_with_registers", *_PAIRS, *_PAIRS.values()})
"""Every `model_type` that is read."""
_ARCHITECTURES = {
    "vit": "ViTModel",
    "dinov2": "Dinov2Model",
    "dinov2_with_registers": "Dinov2WithRegistersModel",
    "clip_vision_model": "CLIPVisionModel",
    "siglip_vision_model": "SiglipVisionModel",
}


def vision_from_json(data: Json, names: Iterable[str]) -> VisionConfig:
    """Reads `config.json` of a vision transformer, or of a pair of encoders for text and pictures.

    Args:
        data: The content of the file.
        names: Names of the tensors, which tell whether there is a projection.

    Raises:
        UserError: The config is of another model, or has a setting that our model lacks.
    """
    kind = data.get("model_type")
    if kind in _PAIRS:
        inner = data.get("vision_config")
        if not isinstance(inner, Mapping):
            raise UserError(f"the config of a {kind} model has no vision_config; download it again")
        # The Linear lies outside the encoder, so the size outside it is the true one.
        outer = {key: data[key] for key in ("projection_dim",) if key in data}
        data = {**inner, **outer, "model_type": _PAIRS[kind]}
        kind = _PAIRS[kind]
    read = Fields(f"{kind} config", data)
    read.one_of("num_channels", 3, default=3)
    match kind:
        case "vit":
            return _vit(read)
        case "dinov2" | "dinov2_with_registers":
            return _dinov2(read, registers=kind == "dinov2_with_registers")
        case "clip_vision_model":
            return _clip(read, projected="visual_projection.weight" in set(names))
        case "siglip_vision_model":
            return _siglip(read)
    kinds = ", ".join(sorted(VISION_KINDS))
    raise UserError(f"there is no vision transformer of model_type {kind!r}; expected {kinds}")


@dataclasses.dataclass(frozen=True)
class _Size:
    """Sizes that every kind states alike."""

    patch: int
    grid: int
    width: int
    depth: int
    num_heads: int


def _size(read: Fields, patch: int) -> _Size:
    image = read.number("image_size", 224)
    side, width = read.number("patch_size", patch), read.number("hidden_size", 768)
    heads = read.number("num_attention_heads", 12)
    if not 0 < side <= image or not heads or width % heads:
        raise UserError(
            f"{read.title}: image_size {image}, patch_size {side}, hidden_size {width} and "
            f"num_attention_heads {heads} do not fit together; download it again"
        )
    return _Size(side, image // side, width, read.number("num_hidden_layers", 12, least=0), heads)


def _activation(read: Fields, default: str) -> str:
    return _ACTIVATIONS[read.one_of("hidden_act", *_ACTIVATIONS, default=default)]


def _vit(read: Fields) -> VisionConfig:
    read.one_of("qkv_bias", True, default=True)
    return VisionConfig(
        **vars(_size(read, 16)),
        mlp_width=read.number("intermediate_size", 3072),
        activation=_activation(read, "gelu"),
        eps=read.real("layer_norm_eps", 1e-12),
    )


def _dinov2(read: Fields, *, registers: bool) -> VisionConfig:
    read.one_of("qkv_bias", True, default=True)
    # transformers' own defaults, which differ; the published models state 14 both times.
    size = _size(read, 16 if registers else 14)
    gated = read.one_of("use_swiglu_ffn", False, True, default=False)
    mlp = int(size.width * read.real("mlp_ratio", 4))
    return VisionConfig(
        **vars(size),
        # Two thirds of the width, in multiples of 8: gate and value together cost what one did.
        mlp_width=-(-int(mlp * 2 / 3) // 8) * 8 if gated else mlp,
        activation=_activation(read, "gelu"),
        eps=read.real("layer_norm_eps", 1e-6),
        registers=read.number("num_register_tokens", 4, least=0) if registers else 0,
        layer_scale=True,
        gated=gated,
        antialias=registers,
    )


def _clip(read: Fields, *, projected: bool) -> VisionConfig:
    return VisionConfig(
        **vars(_size(read, 32)),
        mlp_width=read.number("intermediate_size", 3072),
        activation=_activation(read, "quick_gelu"),
        eps=read.real("layer_norm_eps", 1e-5),
        pre_norm=True,
        projection=read.number("projection_dim", 512) if projected else None,
    )


def _siglip(read: Fields) -> VisionConfig:
    read.one_of("vision_use_head", True, default=True)
    return VisionConfig(
        **vars(_size(read, 16)),
        mlp_width=read.number("intermediate_size", 3072),
        activation=_activation(read, "gelu_pytorch_tanh"),
        eps=read.real("layer_norm_eps", 1e-6),
        pool="attention",
    )


def vision_to_json(config: VisionConfig) -> dict[str, object]:
    """`config.json` for transformers."""
    kind = kind_of(config)
    theirs = {ours: name for name, ours in _ACTIVATIONS.items()}
    data: dict[str, Any] = {
        "architectures": [_ARCHITECTURES[kind]],
        "hidden_act": theirs[config.activation],
        "hidden_size": config.width,
        "image_size": config.grid * config.patch,
        "layer_norm_eps": config.eps,
        "model_type": kind,
        "num_attention_heads": config.num_heads,
        "num_channels": 3,
        "num_hidden_layers": config.depth,
        "patch_size": config.patch,
    }
    if kind.startswith("dinov2"):
        # Half as much again undoes the two thirds; the rounding to 8 comes out the same.
        ratio = config.mlp_width / config.width * (1.5 if config.gated else 1)
        data["mlp_ratio"] = int(ratio) if ratio.is_integer() else ratio
        data["use_swiglu_ffn"] = config.gated
    else:
        data["intermediate_size"] = config.mlp_width
    if config.registers:
        data["num_register_tokens"] = config.registers
    if config.projection:
        data["architectures"] = ["CLIPVisionModelWithProjection"]
        data["projection_dim"] = config.projection
    return data
