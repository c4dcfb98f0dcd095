"""LoRA files of every dialect, all of one adapter, written by names spelled out here.

The package derives the names of layers from its conversion tables; this list does not, so the two
check each other.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from dsd_jax.config import FluxConfig
from dsd_jax.convert.writer import write_weights

__all__ = [
    "DIALECTS",
    "TINY",
    "Dialect",
    "Pairs",
    "attention_only",
    "random_pairs",
    "save",
    "split",
]

TINY = FluxConfig(
    in_channels=8,
    out_channels=8,
    num_heads=2,
    head_dim=16,
    double_depth=2,
    single_depth=2,
    txt_width=24,
    vec_width=20,
    axes_dim=(4, 6, 6),
    condition_embed=False,
)

Pairs: TypeAlias = dict[str, tuple[np.ndarray, np.ndarray]]
"""Name of a dense layer -> A [rank, in], B [out, rank]."""
Tensors: TypeAlias = dict[str, np.ndarray]


def _bfl_shapes(config: FluxConfig) -> dict[str, tuple[int, int]]:
    """[out, in] of every dense layer of a FLUX of Black Forest Labs."""
    d, m = config.width, config.mlp_width
    shapes = {"img_in": (d, config.in_channels), "txt_in": (d, config.txt_width)}
    for name, width in (("time", 256), ("vector", config.vec_width), ("guidance", 256)):
        shapes |= {f"{name}_in.in_layer": (d, width), f"{name}_in.out_layer": (d, d)}
    for i in range(config.double_depth):
        for stream in ("img", "txt"):
            block = f"double_blocks.{i}.{stream}"
            shapes |= {
                f"{block}_mod.lin": (6 * d, d),
                f"{block}_attn.qkv": (3 * d, d),
                f"{block}_attn.proj": (d, d),
                f"{block}_mlp.0": (m, d),
                f"{block}_mlp.2": (d, m),
            }
    for i in range(config.single_depth):
        shapes |= {
            f"single_blocks.{i}.modulation.lin": (3 * d, d),
            f"single_blocks.{i}.linear1": (3 * d + m, d),
            f"single_blocks.{i}.linear2": (d, d + m),
        }
    return shapes | {
        "final_layer.adaLN_modulation.1": (2 * d, d),
        "final_layer.linear": (config.out_channels, d),
    }


def random_pairs(
    config: FluxConfig = TINY, rank: int = 4, dtype: Any = np.float32, seed: int = 0
) -> Pairs:
    """Random factors for every layer, named as BFL do."""
    rng = np.random.default_rng(seed)
    return {
        name: (
            rng.normal(0, inputs**-0.5, (rank, inputs)).astype(dtype),
            rng.normal(0, 0.2, (out, rank)).astype(dtype),
        )
        for name, (out, inputs) in _bfl_shapes(config).items()
    }


def attention_only(pairs: Pairs, config: FluxConfig = TINY) -> Pairs:
    """The layers that XLabs' trainer adapts: no mlp, but the last layer of single blocks."""
    kept = {k: v for k, v in pairs.items() if "_attn." in k or "linear" in k}
    kept = {k: v for k, v in kept.items() if "blocks" in k}
    for name, (a, b) in kept.items():
        if name.endswith("linear1"):
            rows = np.arange(len(b))[:, None]
            kept[name] = (a, np.where(rows < 3 * config.width, b, 0).astype(b.dtype))
    return kept


_DOUBLE = {
    "img_mod.lin": ["norm1.linear"],
    "img_attn.qkv": ["attn.to_q", "attn.to_k", "attn.to_v"],
    "img_attn.proj": ["attn.to_out.0"],
    "img_mlp.0": ["ff.net.0.proj"],
    "img_mlp.2": ["ff.net.2"],
    "txt_mod.lin": ["norm1_context.linear"],
    "txt_attn.qkv": ["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"],
    "txt_attn.proj": ["attn.to_add_out"],
    "txt_mlp.0": ["ff_context.net.0.proj"],
    "txt_mlp.2": ["ff_context.net.2"],
}
_SINGLE = {
    "modulation.lin": ["norm.linear"],
    "linear1": ["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"],
    "linear2": ["proj_out"],
}
_OTHER = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "final_layer.linear": "proj_out",
}


def split(pairs: Pairs, config: FluxConfig = TINY) -> Pairs:
    """The same adapter on the layers of diffusers: A repeated, B cut, the last shift swapped."""
    result: Pairs = {}
    for name, (a, b) in pairs.items():
        kind, _, rest = name.partition(".")
        if kind in ("double_blocks", "single_blocks"):
            number, _, layer = rest.partition(".")
            double = kind == "double_blocks"
            stack = "transformer_blocks" if double else "single_transformer_blocks"
            parts = (_DOUBLE if double else _SINGLE)[layer]
            cuts = [config.width * k for k in range(1, len(parts))]
            for part, piece in zip(parts, np.split(b, cuts), strict=True):
                result[f"{stack}.{number}.{part}"] = (a, piece)
        elif name == "final_layer.adaLN_modulation.1":
            shift, scale = np.split(b, 2)
            result["norm_out.linear"] = (a, np.concatenate([scale, shift]))
        else:
            result[_OTHER[name]] = (a, b)
    return result


def _peft(pairs: Pairs, prefix: str, adapter: str = "") -> Tensors:
    return {
        f"{prefix}{name}.lora_{letter}{adapter}.weight": factor
        for name, pair in pairs.items()
        for letter, factor in zip("AB", pair, strict=True)
    }


def _kohya(pairs: Pairs, prefix: str, alpha: float | None, *, dots: bool = False) -> Tensors:
    tensors: Tensors = {}
    for name, (a, b) in pairs.items():
        spelled = prefix + (name if dots else name.replace(".", "_"))
        tensors |= {f"{spelled}.lora_down.weight": a, f"{spelled}.lora_up.weight": b}
        if alpha is not None:
            tensors[f"{spelled}.alpha"] = np.array(alpha, np.float32)
    return tensors


_XLABS = {
    "img_attn.qkv": "qkv_lora1",
    "img_attn.proj": "proj_lora1",
    "txt_attn.qkv": "qkv_lora2",
    "txt_attn.proj": "proj_lora2",
    "linear1": "qkv_lora",
    "linear2": "proj_lora",
}


def _xlabs(pairs: Pairs, config: FluxConfig) -> Tensors:
    tensors: Tensors = {}
    for name, (a, b) in attention_only(pairs, config).items():
        stack, number, layer = name.split(".", 2)
        spelled = f"{stack}.{number}.processor.{_XLABS[layer]}"
        rows = slice(3 * config.width) if layer == "linear1" else slice(None)
        tensors |= {f"{spelled}.down.weight": a, f"{spelled}.up.weight": b[rows]}
    return tensors


class Dialect(NamedTuple):
    """The writer of a dialect, whether it carries alpha, and our reader's name for it."""

    write: Callable[[Pairs, FluxConfig, float | None], Tensors]
    alpha: str  # "tensors", "header", "beside" or "" for a dialect without
    called: str


DIALECTS: dict[str, Dialect] = {
    "PEFT": Dialect(lambda p, c, _: _peft(split(p, c), "transformer."), "header", "PEFT"),
    "PEFT, no prefix": Dialect(lambda p, c, _: _peft(split(p, c), ""), "header", "PEFT"),
    "raw PEFT": Dialect(
        lambda p, c, _: _peft(split(p, c), "base_model.model."), "beside", "raw PEFT"
    ),
    "raw PEFT, BFL names": Dialect(
        lambda p, _, __: _peft(p, "base_model.model."), "beside", "raw PEFT"
    ),
    "raw PEFT, in a model": Dialect(
        lambda p, c, _: _peft(split(p, c), "", ".default"), "beside", "raw PEFT"
    ),
    "kohya": Dialect(lambda p, _, alpha: _kohya(p, "lora_unet_", alpha), "tensors", "kohya"),
    "OneTrainer": Dialect(
        lambda p, c, alpha: _kohya(split(p, c), "lora_transformer_", alpha),
        "tensors",
        "kohya with diffusers names",
    ),
    "SimpleTuner": Dialect(
        lambda p, c, alpha: _kohya(split(p, c), "lycoris_", alpha),
        "tensors",
        "kohya with diffusers names",
    ),
    "ComfyUI": Dialect(
        lambda p, _, alpha: _kohya(p, "diffusion_model.", alpha, dots=True), "tensors", "ComfyUI"
    ),
    "ComfyUI, PEFT endings": Dialect(lambda p, _, __: _peft(p, "diffusion_model."), "", "ComfyUI"),
    "XLabs": Dialect(lambda p, c, _: _xlabs(p, c), "", "XLabs"),
    "XLabs, in ComfyUI": Dialect(
        lambda p, c, _: {f"diffusion_model.{k}": v for k, v in _xlabs(p, c).items()}, "", "ComfyUI"
    ),
}


def save(path: Path, tensors: Tensors, header: Mapping[str, Any] | None = None) -> Path:
    """Writes tensors as safetensors, with a LoraConfig in the header as diffusers has it."""
    metadata = {} if header is None else {"lora_adapter_metadata": json.dumps(header)}
    write_weights(
        path,
        {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()},
        tensors.items(),
        metadata=metadata,
    )
    return path


def write_dialect(
    folder: Path, dialect: str, pairs: Pairs, config: FluxConfig, alpha: float | None
) -> Path:
    """A file of the dialect, with alpha where the dialect keeps it."""
    kind = DIALECTS[dialect]
    folder.mkdir(exist_ok=True)
    settings: dict[str, Any] = {"lora_alpha": alpha, "alpha_pattern": {}, "use_rslora": False}
    header = None
    if alpha is not None and kind.alpha == "header":
        dotted = {f"transformer.{key}": value for key, value in settings.items()}
        header = dotted if dialect == "PEFT" else settings
    if alpha is not None and kind.alpha == "beside":
        (folder / "adapter_config.json").write_text(json.dumps(settings))
    return save(folder / "adapter_model.safetensors", kind.write(pairs, config, alpha), header)
