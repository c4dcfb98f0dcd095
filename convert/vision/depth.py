"""Depth Anything as transformers saves it: `config.json` both ways, and the names in its files."""

import dataclasses
from collections.abc import Mapping

from dsd_jax.config import DepthConfig
from dsd_jax.convert.fields import Fields, Json
from dsd_jax.convert.table.engine import Table
from dsd_jax.convert.table.rules import Rule, linear
from dsd_jax.convert.vision.config import vision_from_json, vision_to_json
from dsd_jax.convert.vision.tables import vision_table
from dsd_jax.errors import UserError

__all__ = ["DEPTH_KIND", "depth_from_json", "depth_table", "depth_to_json"]

DEPTH_KIND = "depth_anything"
"""The `model_type` of these models."""
_AGAIN = "download it again"
_LARGEST_SCALE = 16  # of a map against the patches, either way


def depth_from_json(data: Json) -> DepthConfig:
    """Reads `config.json` of Depth Anything, version 1 or 2, for relative depth.

    Raises:
        UserError: The config is damaged, or has a setting that our model lacks.
    """
    inner = data.get("backbone_config")
    if not isinstance(inner, Mapping):
        raise UserError(f"the config of a {DEPTH_KIND} model has no backbone_config; {_AGAIN}")
    backbone = Fields(f"{DEPTH_KIND} backbone_config", inner)
    backbone.one_of("model_type", "dinov2")
    backbone.one_of("apply_layernorm", True, default=True)
    taps = backbone.numbers("out_indices", ())
    vision = vision_from_json(inner, ())
    read = Fields(f"{DEPTH_KIND} config", data)
    read.one_of("depth_estimation_type", "relative", default="relative")
    read.one_of("head_in_index", -1, default=-1)
    read.one_of("max_depth", 1, default=1)
    read.one_of("patch_size", vision.patch, default=14)
    read.one_of("reassemble_hidden_size", vision.width, default=384)
    config = DepthConfig(
        vision,
        taps,
        read.numbers("neck_hidden_sizes", DepthConfig.widths),
        read.reals("reassemble_factors", DepthConfig.scales),
        read.number("fusion_hidden_size", DepthConfig.fusion_width, least=2),
        read.number("head_hidden_size", DepthConfig.head_width),
    )
    _check(config, read.title)
    return config


def _check(config: DepthConfig, title: str) -> None:
    """Refuses sizes that do not fit together."""
    taps, depth = config.taps, config.vision.depth
    rising = all(a < b for a, b in zip((0, *taps), (*taps, depth + 1), strict=True))
    scales = [max(scale, 1 / scale) if scale > 0 else 0 for scale in config.scales]
    if (
        not taps
        or not rising
        or not len(taps) == len(config.widths) == len(scales)
        or min(config.widths) < 1
        or any(scale not in range(1, _LARGEST_SCALE + 1) for scale in scales)
    ):
        raise UserError(
            f"{title}: out_indices {list(taps)} of {depth} blocks, neck_hidden_sizes "
            f"{list(config.widths)} and reassemble_factors {list(config.scales)} do not fit "
            f"together; {_AGAIN}"
        )


def depth_to_json(config: DepthConfig) -> dict[str, object]:
    """`config.json` for transformers."""
    vision = vision_to_json(config.vision)
    return {
        "architectures": ["DepthAnythingForDepthEstimation"],
        "backbone_config": {
            **vision,
            "out_features": [f"stage{tap}" for tap in config.taps],
            "out_indices": list(config.taps),
            "reshape_hidden_states": False,
        },
        "depth_estimation_type": "relative",
        "fusion_hidden_size": config.fusion_width,
        "head_hidden_size": config.head_width,
        "head_in_index": -1,
        "max_depth": 1,
        "model_type": DEPTH_KIND,
        "neck_hidden_sizes": list(config.widths),
        "patch_size": config.vision.patch,
        "reassemble_factors": [int(s) if s.is_integer() else s for s in map(float, config.scales)],
        "reassemble_hidden_size": config.vision.width,
    }


def _conv(theirs: str, ours: str, ins: int, out: int, size: int = 3) -> tuple[Rule, Rule]:
    sizes = {"k": size, "l": size, "i": ins, "o": out}
    return linear(theirs, ours, "o i k l -> k l i o", "o -> o", sizes)


def _pixelwise(theirs: str, ours: str, ins: int, out: int) -> tuple[Rule, Rule]:
    """A convolution with one pixel, which is a Linear of ours."""
    return linear(theirs, ours, "o i 1 1 -> i o", "o -> o", {"i": ins, "o": out})


def _reassemble(config: DepthConfig, number: int) -> list[Rule]:
    theirs, ours = f"neck.reassemble_stage.layers.{number}", f"reassemble.{number}"
    channels, scale = config.widths[number], config.scales[number]
    rows = [*_pixelwise(f"{theirs}.projection", f"{ours}.project", config.vision.width, channels)]
    if scale < 1:
        rows += _conv(f"{theirs}.resize", f"{ours}.resize", channels, channels)
    elif scale > 1:
        sizes = {"k": int(scale), "l": int(scale), "i": channels, "o": channels}
        rows += [
            Rule(
                f"{theirs}.resize.weight",
                f"{ours}.resize.pixels.kernel",
                "i o k l -> i k l o",
                sizes,
            ),
            Rule(f"{theirs}.resize.bias", f"{ours}.resize.bias", "o -> o", sizes),
        ]
    weight, _ = _conv(f"neck.convs.{number}", f"{ours}.conv", channels, config.fusion_width)
    return [*rows, weight]


def _fusion(number: int, width: int) -> list[Rule]:
    theirs, ours = f"neck.fusion_stage.layers.{number}", f"fusions.{number}"
    rows = [*_pixelwise(f"{theirs}.projection", f"{ours}.project", width, width)]
    for place, name in enumerate(("fine", "fused"), 1):
        for conv in (1, 2):
            inner = f"{theirs}.residual_layer{place}.convolution{conv}"
            rows += _conv(inner, f"{ours}.{name}.conv{conv}", width, width)
    return rows


def depth_table(config: DepthConfig) -> Table:
    """The table for Depth Anything in transformers layout."""
    inner, width, count = vision_table(config.vision), config.fusion_width, len(config.taps)
    rows = [
        dataclasses.replace(rule, theirs=f"backbone.{rule.theirs}", ours=f"vision.{rule.ours}")
        for rule in inner.rules
    ]
    for number in range(count):
        rows += [*_reassemble(config, number), *_fusion(number, width)]
    rows += [
        *_conv("head.conv1", "conv1", width, width // 2),
        *_conv("head.conv2", "conv2", width // 2, config.head_width),
        *_pixelwise("head.conv3", "last", config.head_width, 1),
    ]
    return Table(
        "Depth Anything model in transformers layout",
        rows,
        inner.dims,
        {f"vision.{stack}": depth for stack, depth in inner.depths.items()},
        absent=[f"vision.{module}" for module in inner.absent],
        ignored=((r"^backbone\.embeddings\.mask_token$", "the mask token of pre-training"),),
    )
