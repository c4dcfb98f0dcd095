"""The text encoders as transformers names them: T5EncoderModel and CLIPTextModel."""

from dsd_jax.config import ClipConfig, T5Config
from dsd_jax.convert.fields import Fields, Json
from dsd_jax.convert.table.engine import Table
from dsd_jax.convert.table.rules import Rule, linear, norm

__all__ = [
    "clip_from_json",
    "clip_table",
    "clip_to_json",
    "t5_from_json",
    "t5_table",
    "t5_to_json",
]

_ATTENTION = "encoder.block.{i}.layer.0"
_MLP = "encoder.block.{i}.layer.1"

_T5_RULES = (
    Rule("shared.weight", "shared.embedding", "v d -> v d"),
    Rule(
        # Only the first block has this table; all blocks use it.
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        "relative_bias.embedding",
        "buckets n -> buckets n",
    ),
    Rule(f"{_ATTENTION}.layer_norm.weight", "blocks.{i}.attn_norm.scale", "d -> d"),
    Rule(f"{_ATTENTION}.SelfAttention.q.weight", "blocks.{i}.attn.q.kernel", "(n h) d -> d n h"),
    Rule(f"{_ATTENTION}.SelfAttention.k.weight", "blocks.{i}.attn.k.kernel", "(n h) d -> d n h"),
    Rule(f"{_ATTENTION}.SelfAttention.v.weight", "blocks.{i}.attn.v.kernel", "(n h) d -> d n h"),
    Rule(f"{_ATTENTION}.SelfAttention.o.weight", "blocks.{i}.attn.o.kernel", "d (n h) -> n h d"),
    Rule(f"{_MLP}.layer_norm.weight", "blocks.{i}.mlp_norm.scale", "d -> d"),
    Rule(f"{_MLP}.DenseReluDense.wi_0.weight", "blocks.{i}.mlp.wi_0.kernel", "m d -> d m"),
    Rule(f"{_MLP}.DenseReluDense.wi_1.weight", "blocks.{i}.mlp.wi_1.kernel", "m d -> d m"),
    Rule(f"{_MLP}.DenseReluDense.wo.weight", "blocks.{i}.mlp.wo.kernel", "d m -> m d"),
    Rule("encoder.final_layer_norm.weight", "final_norm.scale", "d -> d"),
)


def t5_table(config: T5Config) -> Table:
    """The table for a T5-v1.1 encoder. Some files hold the embedding under two names."""
    return Table(
        "T5 encoder in transformers layout",
        _T5_RULES,
        {
            "v": config.vocab,
            "d": config.width,
            "n": config.num_heads,
            "h": config.head_dim,
            "m": config.mlp_width,
            "buckets": config.relative_buckets,
        },
        {"blocks": config.depth},
        tied={"encoder.embed_tokens.weight": "shared.weight"},
    )


def t5_from_json(data: Json) -> T5Config:
    """Reads `text_encoder_2/config.json`, the T5 encoder of transformers.

    Raises:
        UserError: the config is of another model, or has a setting that our model lacks.
    """
    read = Fields("T5 config", data)
    read.one_of("model_type", "t5")
    read.one_of("feed_forward_proj", "gated-gelu", default="relu")
    return T5Config(
        vocab=read.number("vocab_size", 32_128),
        width=read.number("d_model", 512),
        depth=read.number("num_layers", 6, least=0),
        num_heads=read.number("num_heads", 8),
        head_dim=read.number("d_kv", 64),
        mlp_width=read.number("d_ff", 2048),
        relative_buckets=read.number("relative_attention_num_buckets", 32),
        relative_max_distance=read.number("relative_attention_max_distance", 128),
        eps=read.real("layer_norm_epsilon", 1e-6),
    )


def t5_to_json(config: T5Config) -> dict[str, object]:
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


# CLIP


_LAYER = "text_model.encoder.layers.{i}"


_CLIP_RULES = (
    Rule("text_model.embeddings.token_embedding.weight", "token_embedding.embedding", "v d -> v d"),
    Rule(
        "text_model.embeddings.position_embedding.weight",
        "position_embedding.embedding",
        "l d -> l d",
    ),
    *norm(f"{_LAYER}.layer_norm1", "blocks.{i}.norm1"),
    *linear(f"{_LAYER}.self_attn.q_proj", "blocks.{i}.attn.q", "(n h) d -> d n h", "(n h) -> n h"),
    *linear(f"{_LAYER}.self_attn.k_proj", "blocks.{i}.attn.k", "(n h) d -> d n h", "(n h) -> n h"),
    *linear(f"{_LAYER}.self_attn.v_proj", "blocks.{i}.attn.v", "(n h) d -> d n h", "(n h) -> n h"),
    *linear(f"{_LAYER}.self_attn.out_proj", "blocks.{i}.attn.proj", "d (n h) -> n h d", "d -> d"),
    *norm(f"{_LAYER}.layer_norm2", "blocks.{i}.norm2"),
    *linear(f"{_LAYER}.mlp.fc1", "blocks.{i}.mlp.in_layer", "m d -> d m", "m -> m"),
    *linear(f"{_LAYER}.mlp.fc2", "blocks.{i}.mlp.out_layer", "d m -> m d", "d -> d"),
    *norm("text_model.final_layer_norm", "final_norm"),
    Rule("text_projection.weight", "projection.kernel", "e d -> d e"),
)


def _with_prefix(name: str) -> str:
    """Published files say `text_model.…`; transformers 5 saves the same tensors without it."""
    bare = name.startswith(("embeddings.", "encoder.", "final_layer_norm."))
    return f"text_model.{name}" if bare else name


def clip_table(config: ClipConfig) -> Table:
    """The table for a CLIP text encoder; what a file adds is left aside."""
    projection = r"^text_projection\.weight$"
    unused = (projection, "CLIP's projection to the space of images, unused here")
    return Table(
        "CLIP text encoder in transformers layout",
        _CLIP_RULES,
        {
            "v": config.vocab,
            "l": config.max_length,
            "d": config.width,
            "n": config.num_heads,
            "h": config.head_dim,
            "m": config.mlp_width,
            "e": config.projection or 0,
        },
        {"blocks": config.depth},
        absent=[] if config.projection else ["projection"],
        ignored=(
            (r"embeddings\.position_ids$", "a buffer that counts positions"),
            (r"^(vision_model\.|visual_projection\.|logit_scale$)", "the image encoder beside it"),
            *([] if config.projection else [unused]),
        ),
        respell=_with_prefix,
    )


def clip_from_json(data: Json) -> ClipConfig:
    """Reads `text_encoder/config.json`, the CLIP text encoder of transformers.

    Raises:
        UserError: the config is of another model, or has a setting that our model lacks.
    """
    read = Fields("CLIP text config", data)
    read.one_of("model_type", "clip_text_model")
    return ClipConfig(
        vocab=read.number("vocab_size", 49_408),
        width=read.number("hidden_size", 512),
        depth=read.number("num_hidden_layers", 12, least=0),
        num_heads=read.number("num_attention_heads", 8),
        mlp_width=read.number("intermediate_size", 2048),
        max_length=read.number("max_position_embeddings", 77),
        eos_token_id=read.number("eos_token_id", 49_407, least=0),
        activation=read.one_of("hidden_act", "quick_gelu", "gelu", default="quick_gelu"),
        eps=read.real("layer_norm_eps", 1e-5),
    )


def clip_to_json(config: ClipConfig) -> dict[str, object]:
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
        "projection_dim": config.projection or config.width,
        "vocab_size": config.vocab,
    }
