"""Model sizes: between our configs and the JSON of diffusers and transformers, and from tensors.

Reading refuses whatever our models do not do, rather than compute something else in silence.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from dsd_jax.config import AutoencoderConfig, ClipConfig, FluxConfig, T5Config
from dsd_jax.convert.table.refusals import Tensors
from dsd_jax.errors import UserError
from dsd_jax.flow import Schedule
from dsd_jax.types import Shape

__all__ = [
    "autoencoder_from_json",
    "autoencoder_from_tensors",
    "autoencoder_to_json",
    "clip_from_json",
    "clip_to_json",
    "detect_layout",
    "flux_absent",
    "flux_depths",
    "flux_dims",
    "flux_from_json",
    "flux_from_tensors",
    "flux_to_json",
    "schedule_from_json",
    "schedule_to_json",
    "t5_from_json",
    "t5_to_json",
]

Json = Mapping[str, Any]

_TIMESTEP_CHANNELS = 256  # sinusoids of time and guidance, in every FLUX model


# What the tables of FLUX need to know of a config


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
    """Modules that some FLUX models have and this one does not."""
    optional = {"guidance_in": config.guidance_embed, "cond_in": config.condition_embed}
    return tuple(name for name, present in optional.items() if not present)


# Which format


_MARKS = {
    "diffusers": re.compile(
        r"(single_)?transformer_blocks\.|x_embedder\.|(encoder|decoder)\.(down|up|mid)_block"
    ),
    "bfl": re.compile(r"(double|single)_blocks\.|img_in\.|(encoder|decoder)\.(down|up|mid)\."),
}


def detect_layout(names: Iterable[str]) -> str:
    """Either "diffusers" or "bfl", from the tensor names of a FLUX transformer or VAE.

    Raises:
        UserError: the names are of neither, or of both.
    """
    bare = [name.removeprefix("model.diffusion_model.") for name in names]
    layouts = [layout for layout, mark in _MARKS.items() if any(map(mark.match, bare))]
    if len(layouts) != 1:
        given = ", ".join(bare[:3]) or "no tensors"
        raise UserError(
            f"cannot tell the layout of these weights ({given}, ...): expected the tensors of a "
            f"FLUX transformer or autoencoder in diffusers or BFL layout"
        )
    return layouts[0]


# FLUX


_FLUX_CLASS = "FluxTransformer2DModel"
_FLUX_CONDITIONAL_CLASS = "FluxTransformer2DConditionalModel"  # of the DSD release


def flux_from_json(data: Json, names: Iterable[str] = ()) -> FluxConfig:
    """Reads `transformer/config.json` of a diffusers folder.

    Args:
        data: its content.
        names: tensor names of the weights beside it. The JSON does not always say whether there is
            a condition embedding; they do.

    Raises:
        UserError: the config is of another model, or asks for what this one does not do.
    """
    read = _Reader("FLUX transformer config", data)
    read.one_of("_class_name", _FLUX_CLASS, _FLUX_CONDITIONAL_CLASS)
    read.one_of("patch_size", 1, default=1)
    in_channels = read.number("in_channels", 64)
    try:
        config = FluxConfig(
            in_channels=in_channels,
            out_channels=read.number("out_channels", in_channels),
            num_heads=read.number("num_attention_heads", 24),
            head_dim=read.number("attention_head_dim", 128),
            double_depth=read.number("num_layers", 19),
            single_depth=read.number("num_single_layers", 38),
            txt_width=read.number("joint_attention_dim", 4096),
            vec_width=read.number("pooled_projection_dim", 768),
            guidance_embed=bool(read.one_of("guidance_embeds", True, False, default=False)),
            axes_dim=read.numbers("axes_dims_rope", (16, 56, 56)),
            condition_embed=data["_class_name"] == _FLUX_CONDITIONAL_CLASS
            or any(name.startswith("c_embedder.") for name in names),
        )
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{read.title}: {error}") from None
    read.nothing_else()
    return config


def flux_to_json(config: FluxConfig) -> dict[str, Any]:
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
        "_class_name": _FLUX_CONDITIONAL_CLASS if config.condition_embed else _FLUX_CLASS,
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
        UserError: the tensors that tell the size are missing, or the RoPE axes must be given.
    """
    shapes = _Shapes("FLUX transformer in BFL layout", weights, "model.diffusion_model.")
    width, in_channels = shapes["img_in.weight"]
    (head_dim,) = shapes["double_blocks.0.img_attn.norm.query_norm.scale"]
    if axes_dim is None and head_dim != 128:
        raise UserError(
            f"a BFL file does not tell its RoPE axes, and head size {head_dim} is not that of "
            f"FLUX.1 (128); convert from diffusers layout, whose config.json tells them"
        )
    return FluxConfig(
        in_channels=in_channels,
        out_channels=shapes["final_layer.linear.weight"][0],
        num_heads=width // head_dim,
        head_dim=head_dim,
        double_depth=shapes.count("double_blocks"),
        single_depth=shapes.count("single_blocks"),
        mlp_ratio=shapes["double_blocks.0.img_mlp.0.weight"][0] / width,
        txt_width=shapes["txt_in.weight"][1],
        vec_width=shapes["vector_in.in_layer.weight"][1],
        axes_dim=axes_dim or (16, 56, 56),
        guidance_embed="guidance_in.in_layer.weight" in shapes,
        condition_embed="cond_in.weight" in shapes,
    )


def schedule_from_json(data: Json) -> Schedule:
    """Reads `scheduler/scheduler_config.json` of a diffusers folder.

    Raises:
        UserError: another sampler, or a spacing of times that this package does not have.
    """
    read = _Reader("scheduler config", data)
    read.one_of("_class_name", "FlowMatchEulerDiscreteScheduler")
    for key in ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"):
        read.one_of(key, False, None, default=False)
    read.one_of("invert_sigmas", False, default=False)
    read.one_of("stochastic_sampling", False, default=False)
    read.one_of("time_shift_type", "exponential", default="exponential")
    read.one_of("shift_terminal", None, default=None)
    read.skip("num_train_timesteps")
    schedule = Schedule(
        dynamic=read.one_of("use_dynamic_shifting", True, False, default=False),
        shift=read.real("shift", 1.0),
        base_shift=read.real("base_shift", 0.5),
        max_shift=read.real("max_shift", 1.15),
        base_tokens=read.number("base_image_seq_len", 256),
        max_tokens=read.number("max_image_seq_len", 4096),
    )
    read.nothing_else()
    return schedule


def schedule_to_json(schedule: Schedule) -> dict[str, Any]:
    """`scheduler_config.json` for diffusers."""
    return {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "base_image_seq_len": schedule.base_tokens,
        "base_shift": schedule.base_shift,
        "max_image_seq_len": schedule.max_tokens,
        "max_shift": schedule.max_shift,
        "num_train_timesteps": 1000,
        "shift": schedule.shift,
        "use_dynamic_shifting": schedule.dynamic,
    }


# Autoencoder


def autoencoder_from_json(data: Json) -> AutoencoderConfig:
    """Reads `vae/config.json` of a diffusers folder.

    Raises:
        UserError: the config is of another model, or asks for what this one does not do.
    """
    read = _Reader("autoencoder config", data)
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
    read.skip("sample_size", "force_upcast")  # about picture sizes and float16, not the model
    read.nothing_else()
    return config


def autoencoder_to_json(config: AutoencoderConfig) -> dict[str, Any]:
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
        UserError: the tensors that tell the size are missing.
    """
    shapes = _Shapes("FLUX autoencoder in BFL layout", weights)
    stages = shapes.count("encoder.down")
    return AutoencoderConfig(
        in_channels=shapes["encoder.conv_in.weight"][1],
        latent_channels=shapes["decoder.conv_in.weight"][1],
        block_channels=tuple(
            shapes[f"encoder.down.{i}.block.0.conv1.weight"][0] for i in range(stages)
        ),
        layers_per_block=shapes.count("encoder.down.0.block"),
    )


# Text encoders


def t5_from_json(data: Json) -> T5Config:
    """Reads `text_encoder_2/config.json`, the T5 encoder of transformers.

    Raises:
        UserError: the config is of another model, or asks for what this one does not do.
    """
    read = _Reader("T5 config", data)
    read.one_of("model_type", "t5")
    read.one_of("feed_forward_proj", "gated-gelu", default="relu")
    return T5Config(
        vocab=read.number("vocab_size", 32_128),
        width=read.number("d_model", 512),
        depth=read.number("num_layers", 6),
        num_heads=read.number("num_heads", 8),
        head_dim=read.number("d_kv", 64),
        mlp_width=read.number("d_ff", 2048),
        relative_buckets=read.number("relative_attention_num_buckets", 32),
        relative_max_distance=read.number("relative_attention_max_distance", 128),
        eps=read.real("layer_norm_epsilon", 1e-6),
    )


def t5_to_json(config: T5Config) -> dict[str, Any]:
    """`config.json` for transformers."""
    return {
        "architectures": ["T5EncoderModel"],
        "d_ff": config.mlp_width,
        "d_kv": config.head_dim,
        "d_model": config.width,
        "decoder_start_token_id": 0,
        "dense_act_fn": "gelu_new",
        "eos_token_id": 1,
        "feed_forward_proj": "gated-gelu",
        "is_encoder_decoder": True,
        "is_gated_act": True,
        "layer_norm_epsilon": config.eps,
        "model_type": "t5",
        "num_heads": config.num_heads,
        "num_layers": config.depth,
        "pad_token_id": 0,
        "relative_attention_max_distance": config.relative_max_distance,
        "relative_attention_num_buckets": config.relative_buckets,
        "vocab_size": config.vocab,
    }


def clip_from_json(data: Json) -> ClipConfig:
    """Reads `text_encoder/config.json`, the CLIP text encoder of transformers.

    Raises:
        UserError: the config is of another model, or asks for what this one does not do.
    """
    read = _Reader("CLIP text config", data)
    read.one_of("model_type", "clip_text_model")
    return ClipConfig(
        vocab=read.number("vocab_size", 49_408),
        width=read.number("hidden_size", 512),
        depth=read.number("num_hidden_layers", 12),
        num_heads=read.number("num_attention_heads", 8),
        mlp_width=read.number("intermediate_size", 2048),
        max_length=read.number("max_position_embeddings", 77),
        eos_token_id=read.number("eos_token_id", 49_407),
        activation=read.one_of("hidden_act", "quick_gelu", "gelu", default="quick_gelu"),
        eps=read.real("layer_norm_eps", 1e-5),
    )


def clip_to_json(config: ClipConfig) -> dict[str, Any]:
    """`config.json` for transformers."""
    return {
        "architectures": ["CLIPTextModel"],
        "bos_token_id": 0,
        "eos_token_id": config.eos_token_id,
        "hidden_act": config.activation,
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "layer_norm_eps": config.eps,
        "max_position_embeddings": config.max_length,
        "model_type": "clip_text_model",
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.depth,
        "pad_token_id": 1,
        "projection_dim": config.width,
        "vocab_size": config.vocab,
    }


class _Reader:
    """Takes values out of a JSON config, checks them, and knows what was left."""

    def __init__(self, title: str, data: Json) -> None:
        self.title = title
        self._data = data
        self._used: set[str] = set()

    def _get(self, key: str, default: Any) -> Any:
        self._used.add(key)
        value = self._data.get(key)
        return default if value is None else value

    def one_of(self, key: str, *allowed: Any, default: Any = None) -> Any:
        value = self._get(key, default)
        if value not in allowed:
            expected = " or ".join(map(repr, allowed))
            raise UserError(f"{self.title}: {key} is {value!r}, this program supports {expected}")
        return value

    def number(self, key: str, default: int) -> int:
        value = self._get(key, default)
        if type(value) is not int or value < 0:
            raise UserError(f"{self.title}: {key} is {value!r}, expected a whole number")
        return value

    def real(self, key: str, default: float) -> float:
        value = self._get(key, default)
        if type(value) not in (int, float):
            raise UserError(f"{self.title}: {key} is {value!r}, expected a number")
        return float(value)

    def numbers(self, key: str, default: tuple[int, ...]) -> tuple[int, ...]:
        values = self._get(key, default)
        if not isinstance(values, list | tuple) or any(type(n) is not int for n in values):
            raise UserError(f"{self.title}: {key} is {values!r}, expected a list of whole numbers")
        return tuple(values)

    def skip(self, *keys: str) -> None:
        self._used.update(keys)

    def nothing_else(self) -> None:
        """diffusers writes every setting it has: one that is on and not known here matters."""
        rest = {
            key: value
            for key, value in self._data.items()
            if key not in self._used and not key.startswith("_") and value not in (None, False)
        }
        if rest:
            raise UserError(f"{self.title}: settings this program does not know: {rest}")


class _Shapes:
    """Shapes of named tensors, with a plain message for one that is not there."""

    def __init__(self, title: str, weights: Tensors, prefix: str = "") -> None:
        self._title = title
        self._shapes = {
            name.removeprefix(prefix): tuple(spec.shape) for name, spec in weights.tensors.items()
        }

    def __contains__(self, name: str) -> bool:
        return name in self._shapes

    def __getitem__(self, name: str) -> Shape:
        if name not in self._shapes:
            raise UserError(
                f"not a {self._title}: it has no {name}; check that it is the right file"
            )
        return self._shapes[name]

    def count(self, stack: str) -> int:
        """Number of blocks `stack.0`, `stack.1`, ..."""
        found = (re.match(rf"{re.escape(stack)}\.(\d+)\.", name) for name in self._shapes)
        return 1 + max((int(match[1]) for match in found if match), default=-1)
