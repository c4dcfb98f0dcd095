"""The size of a FLUX transformer: from the JSON of diffusers or from tensors, and back to JSON."""

from collections.abc import Iterable

from dsd_jax.condition import CANVAS
from dsd_jax.config import FluxConfig
from dsd_jax.convert.fields import Fields, Json, Sizes
from dsd_jax.convert.table.refusals import Tensors
from dsd_jax.errors import UserError

__all__ = [
    "flux_absent",
    "flux_depths",
    "flux_dims",
    "flux_from_json",
    "flux_from_tensors",
    "flux_to_json",
]

_TIMESTEP_CHANNELS = 256  # sinusoids of time and guidance, in every FLUX model
_FLUX_CLASS = "FluxTransformer2DModel"


def flux_dims(config: FluxConfig) -> dict[str, int]:
    """Sizes of the letters in the FLUX tables: `d` and `e` are both the width."""
    return {
        "d": config.width,
        "e": config.width,
        "n": config.num_heads,
        "h": config.head_dim,
        "m": config.mlp_width,
        "c": config.in_channels,
        "out": config.out_channels,
        "txt": config.txt_width,
        "vec": config.vec_width,
        "f": _TIMESTEP_CHANNELS,
        "two": 2,
        "three": 3,
        "six": 6,
    }


def flux_depths(config: FluxConfig) -> dict[str, int]:
    """Number of blocks of each stack."""
    return {"double_blocks": config.double_depth, "single_blocks": config.single_depth}


def flux_absent(config: FluxConfig) -> tuple[str, ...]:
    """Modules that this FLUX model lacks though others have them."""
    optional = {"guidance_in": config.guidance_embed, CANVAS.module: config.condition_embed}
    return tuple(name for name, present in optional.items() if not present)


def flux_from_json(data: Json, names: Iterable[str] = ()) -> FluxConfig:
    """Reads `transformer/config.json` of a diffusers folder.

    Args:
        data: its content.
        names: tensor names of the weights beside it. The JSON does not always say whether there is
            a condition embedding; they do.

    Raises:
        UserError: the config is of another model, or has a setting that our model lacks.
    """
    read = Fields("FLUX transformer config", data)
    read.one_of("_class_name", _FLUX_CLASS, CANVAS.diffusers_class)
    read.one_of("patch_size", 1, default=1)
    in_channels = read.number("in_channels", 64)
    try:
        config = FluxConfig(
            in_channels=in_channels,
            out_channels=read.number("out_channels", in_channels),
            num_heads=read.number("num_attention_heads", 24),
            head_dim=read.number("attention_head_dim", 128),
            double_depth=read.number("num_layers", 19, least=0),
            single_depth=read.number("num_single_layers", 38, least=0),
            txt_width=read.number("joint_attention_dim", 4096),
            vec_width=read.number("pooled_projection_dim", 768),
            guidance_embed=bool(read.one_of("guidance_embeds", True, False, default=False)),
            axes_dim=read.numbers("axes_dims_rope", (16, 56, 56)),
            condition_embed=data["_class_name"] == CANVAS.diffusers_class
            or any(name.startswith(f"{CANVAS.diffusers}.") for name in names),
        )
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{read.title}: {error}") from None
    read.nothing_else()
    return config


def flux_to_json(config: FluxConfig) -> dict[str, object]:
    """`config.json` for diffusers, or with a condition embedding for the authors' own class.

    Raises:
        UserError: diffusers has no setting for a size of this model.
    """
    for name, value, fixed in (
        ("mlp_ratio", config.mlp_ratio, 4.0),
        ("theta", config.theta, 10_000),
    ):
        if value != fixed:
            raise UserError(f"diffusers fixes {name} at {fixed}; a model with {value} has no JSON")
    return {
        "_class_name": CANVAS.diffusers_class if config.condition_embed else _FLUX_CLASS,
        "attention_head_dim": config.head_dim,
        "axes_dims_rope": list(config.axes_dim),
        "guidance_embeds": config.guidance_embed,
        "in_channels": config.in_channels,
        "joint_attention_dim": config.txt_width,
        "num_attention_heads": config.num_heads,
        "num_layers": config.double_depth,
        "num_single_layers": config.single_depth,
        "out_channels": config.out_channels,
        "patch_size": 1,
        "pooled_projection_dim": config.vec_width,
    }


def flux_from_tensors(weights: Tensors, axes_dim: tuple[int, ...] | None = None) -> FluxConfig:
    """The size of a FLUX transformer from a file in BFL layout, which has no config.

    Args:
        axes_dim: RoPE channels per axis. No tensor shows them; FLUX.1 has (16, 56, 56).

    Raises:
        UserError: the tensors that show the size are missing, or the RoPE axes must be given.
    """
    shapes = Sizes("FLUX transformer in BFL layout", weights)
    width, in_channels = shapes.axes("img_in.weight", 2)
    (head_dim,) = shapes.axes("double_blocks.0.img_attn.norm.query_norm.scale", 1)
    if axes_dim is None and head_dim != 128:
        raise UserError(
            f"a BFL file does not tell its RoPE axes, and head size {head_dim} is not that of "
            f"FLUX.1 (128); convert from diffusers layout, whose config.json tells them"
        )
    return FluxConfig(
        in_channels=in_channels,
        out_channels=shapes.axes("final_layer.linear.weight", 2)[0],
        num_heads=width // head_dim,
        head_dim=head_dim,
        double_depth=shapes.count("double_blocks"),
        single_depth=shapes.count("single_blocks"),
        mlp_ratio=shapes.axes("double_blocks.0.img_mlp.0.weight", 2)[0] / width,
        txt_width=shapes.axes("txt_in.weight", 2)[1],
        vec_width=shapes.axes("vector_in.in_layer.weight", 2)[1],
        axes_dim=axes_dim or (16, 56, 56),
        guidance_embed="guidance_in.in_layer.weight" in shapes,
        condition_embed=f"{CANVAS.bfl}.weight" in shapes,
    )
