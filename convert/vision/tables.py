"""The names of vision transformers in the files of transformers.

The modules of transformers 5 have other names in memory, but it reads and writes these names.
"""

import dataclasses
import re

from dsd_jax.config import VisionConfig
from dsd_jax.convert.table.engine import Table
from dsd_jax.convert.table.rules import Rule, linear, norm

__all__ = ["kind_of", "vision_table"]


@dataclasses.dataclass(frozen=True)
class _Block:
    """Names of the parts of block `{i}` in files."""

    place: str
    norms: tuple[str, str]
    qkv: tuple[str, str, str]
    proj: str
    mlp: tuple[str, str]

    def rules(self) -> list[Rule]:
        """The rows of everything that blocks of every kind have."""
        rows = [
            row
            for number, name in enumerate(self.norms, 1)
            for row in norm(f"{self.place}.{name}", f"blocks.{{i}}.norm{number}")
        ]
        for part, name in enumerate(self.qkv):
            rows += linear(
                f"{self.place}.{name}",
                "blocks.{i}.attn.qkv",
                f"(n h) d -> d {part} n h",
                f"(n h) -> {part} n h",
            )
        rows += linear(
            f"{self.place}.{self.proj}", "blocks.{i}.attn.proj", "d (n h) -> n h d", "d -> d"
        )
        return rows + _mlp(self.mlp, self.place, "blocks.{i}.mlp")


def _mlp(names: tuple[str, str], theirs: str, ours: str) -> list[Rule]:
    return [
        *linear(f"{theirs}.{names[0]}", f"{ours}.in_layer", "m d -> d m", "m -> m"),
        *linear(f"{theirs}.{names[1]}", f"{ours}.out_layer", "d m -> m d", "d -> d"),
    ]


_QKV = ("attention.attention.query", "attention.attention.key", "attention.attention.value")
_VIT_BLOCK = _Block(
    "encoder.layer.{i}",
    ("layernorm_before", "layernorm_after"),
    _QKV,
    "attention.output.dense",
    ("intermediate.dense", "output.dense"),
)
_DINOV2_BLOCK = _Block(
    "encoder.layer.{i}",
    ("norm1", "norm2"),
    _QKV,
    "attention.output.dense",
    ("mlp.fc1", "mlp.fc2"),
)
_CLIP_BLOCK = _Block(
    "vision_model.encoder.layers.{i}",
    ("layer_norm1", "layer_norm2"),
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attn.out_proj",
    ("mlp.fc1", "mlp.fc2"),
)

_VIT_ENDS = (
    Rule("embeddings.cls_token", "class_token.embedding", "1 c d -> c d"),
    Rule("embeddings.position_embeddings", "class_position.embedding", "1 (c + l) d -> c d"),
    Rule("embeddings.position_embeddings", "positions.embedding", "1 (c + l) d -> l d"),
    *linear(
        "embeddings.patch_embeddings.projection", "patch_in", "d rgb p q -> p q rgb d", "d -> d"
    ),
    *norm("layernorm", "final_norm"),
)
_REGISTERS = Rule("embeddings.register_tokens", "registers.embedding", "1 r d -> r d")
_SCALES = tuple(
    Rule(f"encoder.layer.{{i}}.layer_scale{k}.lambda1", f"blocks.{{i}}.scale{k}.scale", "d -> d")
    for k in (1, 2)
)
# In place of the two Linears of another mlp.
_GATED = (
    *linear(
        "encoder.layer.{i}.mlp.weights_in",
        "blocks.{i}.mlp.in_layer",
        "(g m) d -> d g m",
        "(g m) -> g m",
    ),
    *linear(
        "encoder.layer.{i}.mlp.weights_out", "blocks.{i}.mlp.out_layer", "d m -> m d", "d -> d"
    ),
)
_EMBEDDINGS = "vision_model.embeddings"
_PATCH = Rule(f"{_EMBEDDINGS}.patch_embedding.weight", "patch_in.kernel", "d rgb p q -> p q rgb d")
_CLIP_ENDS = (
    Rule(f"{_EMBEDDINGS}.class_embedding", "class_token.embedding", "d -> 0 d"),
    Rule(
        f"{_EMBEDDINGS}.position_embedding.weight", "class_position.embedding", "(c + l) d -> c d"
    ),
    Rule(f"{_EMBEDDINGS}.position_embedding.weight", "positions.embedding", "(c + l) d -> l d"),
    _PATCH,
    *norm("vision_model.pre_layrnorm", "pre_norm"),  # their spelling
    *norm("vision_model.post_layernorm", "final_norm"),
    Rule("visual_projection.weight", "projection.kernel", "e d -> d e"),
)
_HEAD = "vision_model.head"
_SIGLIP_ENDS = (
    Rule(f"{_EMBEDDINGS}.position_embedding.weight", "positions.embedding", "l d -> l d"),
    _PATCH,
    Rule(f"{_EMBEDDINGS}.patch_embedding.bias", "patch_in.bias", "d -> d"),
    *norm("vision_model.post_layernorm", "final_norm"),
    Rule(f"{_HEAD}.probe", "pool.query.embedding", "1 c d -> c d"),
    Rule(f"{_HEAD}.attention.in_proj_weight", "pool.q.kernel", "(n h + g w) d -> d n h"),
    Rule(f"{_HEAD}.attention.in_proj_weight", "pool.kv.kernel", "(w + g n h) d -> d g n h"),
    Rule(f"{_HEAD}.attention.in_proj_bias", "pool.q.bias", "(n h + g w) -> n h"),
    Rule(f"{_HEAD}.attention.in_proj_bias", "pool.kv.bias", "(w + g n h) -> g n h"),
    *linear(f"{_HEAD}.attention.out_proj", "pool.proj", "d (n h) -> n h d", "d -> d"),
    *norm(f"{_HEAD}.layernorm", "pool.norm"),
    *_mlp(("mlp.fc1", "mlp.fc2"), _HEAD, "pool.mlp"),
)

_TITLES = {
    "vit": "ViT or DINO model",
    "dinov2": "DINOv2 model",
    "dinov2_with_registers": "DINOv2 model with registers",
    "clip_vision_model": "CLIP image encoder",
    "siglip_vision_model": "SigLIP image encoder",
}
_ASIDE = (
    (r"^pooler\.", "a pooling layer, which features do not use"),
    (r"^classifier\.", "a classifier, which features do not use"),
    (r"^embeddings\.mask_token$", "the mask token of pre-training"),
    (r"embeddings\.position_ids$", "a buffer that counts positions"),
    (r"^(text_model\.|text_projection\.|logit_(scale|bias)$)", "the text encoder beside it"),
)


def kind_of(config: VisionConfig) -> str:
    """`model_type` of the configuration in transformers."""
    if config.pool == "attention":
        return "siglip_vision_model"
    if config.pre_norm:
        return "clip_vision_model"
    if config.layer_scale:
        return "dinov2_with_registers" if config.registers else "dinov2"
    return "vit"


def _rules(config: VisionConfig) -> list[Rule]:
    match kind_of(config):
        case "siglip_vision_model":
            return [*_CLIP_BLOCK.rules(), *_SIGLIP_ENDS]
        case "clip_vision_model":
            return [*_CLIP_BLOCK.rules(), *_CLIP_ENDS]
        case "vit":
            return [*_VIT_BLOCK.rules(), *_VIT_ENDS]
    rows = [*_DINOV2_BLOCK.rules(), *_SCALES]
    if config.gated:
        rows = [row for row in rows if ".mlp." not in row.ours] + list(_GATED)
    return [*rows, *_VIT_ENDS, _REGISTERS]


def _respell(name: str) -> str:
    """Drops the prefix of a model with a head; adds the one that an image encoder alone lacks."""
    bare = re.sub(r"^(vit|dinov2|dinov2_with_registers)\.", "", name)
    alone = re.match(
        r"(embeddings\.(class|patch|position)_embedding\b|encoder\.layers\.|pre_|post_|head\.)",
        bare,
    )
    return f"vision_model.{bare}" if alone else bare


def vision_table(config: VisionConfig) -> Table:
    """The table for a vision transformer; features need no other tensors of a file."""
    return Table(
        f"{_TITLES[kind_of(config)]} in transformers layout",
        _rules(config),
        {
            "rgb": 3,
            "p": config.patch,
            "q": config.patch,
            "c": 1,
            "l": config.grid**2,
            "r": config.registers,
            "d": config.width,
            "w": config.width,
            "n": config.num_heads,
            "h": config.head_dim,
            "m": config.mlp_width,
            "g": 2,
            "e": config.projection or 0,
        },
        {"blocks": config.depth},
        absent=[
            *([] if config.projection else ["projection"]),
            *([] if config.registers else ["registers"]),
        ],
        ignored=_ASIDE,
        respell=_respell,
    )
