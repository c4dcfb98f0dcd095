"""The FLUX VAE: as diffusers names it (`AutoencoderKL`) and as BFL do (`ae.safetensors`).

Both formats hold the same modules under other names, so the modules are listed once, with their
widths, and each format is a list of renamings. Two differ in more than the name: BFL store the
dense layers of the attention as 1x1 convolutions, and number the decoder's blocks backwards.
"""

import re
from collections.abc import Callable, Iterator, Sequence

from dsd_jax.config import AutoencoderConfig
from dsd_jax.convert.fields import Fields, Json, Sizes
from dsd_jax.convert.table.engine import Table
from dsd_jax.convert.table.refusals import Tensors
from dsd_jax.convert.table.rules import Rule, linear

__all__ = [
    "autoencoder_bfl",
    "autoencoder_diffusers",
    "autoencoder_from_json",
    "autoencoder_from_tensors",
    "autoencoder_to_json",
]

_Module = tuple[str, str, int, int]
"""Our name, kind, channels in, channels out."""


def _modules(config: AutoencoderConfig) -> Iterator[_Module]:
    widths = config.block_channels
    first, last = widths[0], widths[-1]
    yield "encoder.conv_in", "conv", config.in_channels, first
    yield from _stages("encoder.down", "downsample", widths, first, config.layers_per_block)
    yield from _middle("encoder.mid", last)
    yield "encoder.norm_out", "norm", last, last
    yield "encoder.conv_out", "conv", last, 2 * config.latent_channels  # mean and log variance
    yield "decoder.conv_in", "conv", config.latent_channels, last
    yield from _middle("decoder.mid", last)
    # The decoder has one residual block more per resolution than the encoder.
    yield from _stages("decoder.up", "upsample", widths[::-1], last, config.layers_per_block + 1)
    yield "decoder.norm_out", "norm", first, first
    yield "decoder.conv_out", "conv", first, config.in_channels


def _stages(
    prefix: str, resample: str, widths: Sequence[int], width: int, depth: int
) -> Iterator[_Module]:
    """Residual blocks of every resolution in order of execution, each but the last resampled."""
    for i, out in enumerate(widths):
        for j in range(depth):
            yield from _residual(f"{prefix}.{i}.block.{j}", width, out)
            width = out
        if i < len(widths) - 1:
            yield f"{prefix}.{i}.{resample}", "conv", out, out


def _middle(prefix: str, width: int) -> Iterator[_Module]:
    yield from _residual(f"{prefix}.block_1", width, width)
    yield f"{prefix}.attn.norm", "norm", width, width
    for name in ("q", "k", "v", "proj"):
        yield f"{prefix}.attn.{name}", "dense", width, width
    yield from _residual(f"{prefix}.block_2", width, width)


def _residual(prefix: str, width: int, out: int) -> Iterator[_Module]:
    yield f"{prefix}.norm1", "norm", width, width
    yield f"{prefix}.conv1", "conv", width, out
    yield f"{prefix}.norm2", "norm", out, out
    yield f"{prefix}.conv2", "conv", out, out
    if width != out:
        yield f"{prefix}.shortcut", "pointwise", width, out


_Renaming = tuple[str, str | Callable[[re.Match[str]], str]]

_DIFFUSERS: tuple[_Renaming, ...] = (
    (r"\.(down|up)\.(\d+)\.block\.", r".\1_blocks.\2.resnets."),
    (r"\.(down|up)\.(\d+)\.(down|up)sample$", r".\1_blocks.\2.\3samplers.0.conv"),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn\.norm$", ".mid_block.attentions.0.group_norm"),
    (r"\.mid\.attn\.proj$", ".mid_block.attentions.0.to_out.0"),
    (r"\.mid\.attn\.", ".mid_block.attentions.0.to_"),
    (r"\.shortcut$", ".conv_shortcut"),
    (r"\.norm_out$", ".conv_norm_out"),
)


def _bfl(config: AutoencoderConfig) -> tuple[_Renaming, ...]:
    highest = len(config.block_channels) - 1
    return (
        (r"\.up\.(\d+)\.", lambda match: f".up.{highest - int(match[1])}."),
        (r"\.(down|up)sample$", r".\1sample.conv"),
        (r"\.mid\.attn\.proj$", ".mid.attn_1.proj_out"),
        (r"\.mid\.attn\.", ".mid.attn_1."),
        (r"\.shortcut$", ".nin_shortcut"),
    )


def _rules(config: AutoencoderConfig, renamings: Sequence[_Renaming], dense: str) -> Iterator[Rule]:
    layouts = {"conv": "o i y x -> y x i o", "pointwise": "o i 1 1 -> i o", "dense": dense}
    for ours, kind, width, out in _modules(config):
        theirs = ours
        for pattern, replacement in renamings:
            theirs = re.sub(pattern, replacement, theirs)
        sizes = {"i": width, "o": out}
        if kind == "norm":
            yield Rule(f"{theirs}.weight", f"{ours}.scale", "o -> o", sizes)
            yield Rule(f"{theirs}.bias", f"{ours}.bias", "o -> o", sizes)
        else:
            yield from linear(theirs, ours, layouts[kind], "o -> o", sizes)


def autoencoder_diffusers(config: AutoencoderConfig) -> Table:
    """The table for a VAE folder of diffusers."""
    rules = tuple(_rules(config, _DIFFUSERS, dense="o i -> i o"))
    return Table("FLUX autoencoder in diffusers layout", rules, {"x": 3, "y": 3})


def autoencoder_bfl(config: AutoencoderConfig) -> Table:
    """The table for BFL's `ae.safetensors`."""
    rules = tuple(_rules(config, _bfl(config), dense="o i 1 1 -> i o"))
    return Table("FLUX autoencoder in BFL layout", rules, {"x": 3, "y": 3})


def autoencoder_from_json(data: Json) -> AutoencoderConfig:
    """Reads `vae/config.json` of a diffusers folder.

    Raises:
        UserError: the config is of another model, or has a setting that our model lacks.
    """
    read = Fields("autoencoder config", data)
    read.one_of("_class_name", "AutoencoderKL")
    channels = read.numbers("block_out_channels", (64,))
    config = AutoencoderConfig(
        in_channels=read.number("in_channels", 3),
        latent_channels=read.number("latent_channels", 4),
        block_channels=channels,
        layers_per_block=read.number("layers_per_block", 1),
        norm_groups=read.number("norm_num_groups", 32),
        scale=read.real("scaling_factor", 0.18215),
        shift=read.real("shift_factor", 0.0),
    )
    # Absent keys have the defaults of diffusers, quant convolutions among them.
    for key, value, default in (
        ("out_channels", config.in_channels, 3),
        ("down_block_types", ["DownEncoderBlock2D"] * len(channels), ["DownEncoderBlock2D"]),
        ("up_block_types", ["UpDecoderBlock2D"] * len(channels), ["UpDecoderBlock2D"]),
        ("act_fn", "silu", "silu"),
        ("use_quant_conv", False, True),
        ("use_post_quant_conv", False, True),
        ("mid_block_add_attention", True, True),
    ):
        read.one_of(key, value, default=default)
    # They concern picture sizes and float16, not the model.
    read.skip("sample_size", "force_upcast")
    read.nothing_else()
    return config


def autoencoder_to_json(config: AutoencoderConfig) -> dict[str, object]:
    """`config.json` for diffusers."""
    stages = len(config.block_channels)
    return {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": list(config.block_channels),
        "down_block_types": ["DownEncoderBlock2D"] * stages,
        "force_upcast": True,
        "in_channels": config.in_channels,
        "latent_channels": config.latent_channels,
        "latents_mean": None,
        "latents_std": None,
        "layers_per_block": config.layers_per_block,
        "mid_block_add_attention": True,
        "norm_num_groups": config.norm_groups,
        "out_channels": config.in_channels,
        "sample_size": 1024,
        "scaling_factor": config.scale,
        "shift_factor": config.shift,
        "up_block_types": ["UpDecoderBlock2D"] * stages,
        "use_post_quant_conv": False,
        "use_quant_conv": False,
    }


def autoencoder_from_tensors(weights: Tensors) -> AutoencoderConfig:
    """The size of a VAE from a file in BFL layout; scale, shift and norm groups are FLUX.1's.

    Raises:
        UserError: the tensors that show the size are missing.
    """
    shapes = Sizes("FLUX autoencoder in BFL layout", weights)
    stages = shapes.count("encoder.down")
    return AutoencoderConfig(
        in_channels=shapes.axes("encoder.conv_in.weight", 4)[1],
        latent_channels=shapes.axes("decoder.conv_in.weight", 4)[1],
        block_channels=tuple(
            shapes.axes(f"encoder.down.{i}.block.0.conv1.weight", 4)[0] for i in range(stages)
        ),
        layers_per_block=shapes.count("encoder.down.0.block"),
    )
