"""The FLUX transformer as diffusers names it (`FluxTransformer2DModel`), and the DSD release.

Where diffusers differs from us and from the original: q, k and v are separate tensors, and the
last modulation is stored as (scale, shift).
"""

from dsd_jax.condition import CANVAS
from dsd_jax.config import FluxConfig
from dsd_jax.convert.flux.config import flux_absent, flux_depths, flux_dims
from dsd_jax.convert.table.engine import Table
from dsd_jax.convert.table.rules import Rule, linear

__all__ = ["flux_diffusers"]


def _qkv(theirs: str, names: tuple[str, str, str], ours: str) -> list[Rule]:
    """Three dense layers that are one of ours, with an axis of three."""
    return [
        rule
        for k, name in enumerate(names)
        for rule in linear(f"{theirs}.{name}", ours, f"(n h) d -> d {k} n h", f"(n h) -> {k} n h")
    ]


_EMBED = "time_text_embed"
_DOUBLE = "transformer_blocks.{i}"
_SINGLE = "single_transformer_blocks.{i}"

_RULES = (
    *linear("x_embedder", "img_in", "e c -> c e", "e -> e"),
    *linear(CANVAS.diffusers, CANVAS.module, "e c -> c e", "e -> e"),
    *linear("context_embedder", "txt_in", "e txt -> txt e", "e -> e"),
    *linear(f"{_EMBED}.timestep_embedder.linear_1", "time_in.in_layer", "e f -> f e", "e -> e"),
    *linear(f"{_EMBED}.timestep_embedder.linear_2", "time_in.out_layer", "e d -> d e", "e -> e"),
    *linear(f"{_EMBED}.text_embedder.linear_1", "vector_in.in_layer", "e vec -> vec e", "e -> e"),
    *linear(f"{_EMBED}.text_embedder.linear_2", "vector_in.out_layer", "e d -> d e", "e -> e"),
    *linear(f"{_EMBED}.guidance_embedder.linear_1", "guidance_in.in_layer", "e f -> f e", "e -> e"),
    *linear(
        f"{_EMBED}.guidance_embedder.linear_2", "guidance_in.out_layer", "e d -> d e", "e -> e"
    ),
    # Double blocks: the image stream, then the text stream.
    *linear(
        f"{_DOUBLE}.norm1.linear",
        "double_blocks.{i}.img_mod.lin",
        "(six e) d -> d six e",
        "(six e) -> six e",
    ),
    *_qkv(f"{_DOUBLE}.attn", ("to_q", "to_k", "to_v"), "double_blocks.{i}.img_attn.qkv"),
    Rule(f"{_DOUBLE}.attn.norm_q.weight", "double_blocks.{i}.img_attn.query_norm.scale", "h -> h"),
    Rule(f"{_DOUBLE}.attn.norm_k.weight", "double_blocks.{i}.img_attn.key_norm.scale", "h -> h"),
    *linear(
        f"{_DOUBLE}.attn.to_out.0",
        "double_blocks.{i}.img_attn.proj",
        "e (n h) -> n h e",
        "e -> e",
    ),
    *linear(
        f"{_DOUBLE}.ff.net.0.proj", "double_blocks.{i}.img_mlp.in_layer", "m d -> d m", "m -> m"
    ),
    *linear(f"{_DOUBLE}.ff.net.2", "double_blocks.{i}.img_mlp.out_layer", "e m -> m e", "e -> e"),
    *linear(
        f"{_DOUBLE}.norm1_context.linear",
        "double_blocks.{i}.txt_mod.lin",
        "(six e) d -> d six e",
        "(six e) -> six e",
    ),
    *_qkv(
        f"{_DOUBLE}.attn",
        ("add_q_proj", "add_k_proj", "add_v_proj"),
        "double_blocks.{i}.txt_attn.qkv",
    ),
    Rule(
        f"{_DOUBLE}.attn.norm_added_q.weight",
        "double_blocks.{i}.txt_attn.query_norm.scale",
        "h -> h",
    ),
    Rule(
        f"{_DOUBLE}.attn.norm_added_k.weight",
        "double_blocks.{i}.txt_attn.key_norm.scale",
        "h -> h",
    ),
    *linear(
        f"{_DOUBLE}.attn.to_add_out",
        "double_blocks.{i}.txt_attn.proj",
        "e (n h) -> n h e",
        "e -> e",
    ),
    *linear(
        f"{_DOUBLE}.ff_context.net.0.proj",
        "double_blocks.{i}.txt_mlp.in_layer",
        "m d -> d m",
        "m -> m",
    ),
    *linear(
        f"{_DOUBLE}.ff_context.net.2",
        "double_blocks.{i}.txt_mlp.out_layer",
        "e m -> m e",
        "e -> e",
    ),
    # Single blocks: one dense layer over the concatenation [attention, mlp] closes each.
    *linear(
        f"{_SINGLE}.norm.linear",
        "single_blocks.{i}.modulation.lin",
        "(three e) d -> d three e",
        "(three e) -> three e",
    ),
    *_qkv(f"{_SINGLE}.attn", ("to_q", "to_k", "to_v"), "single_blocks.{i}.qkv"),
    *linear(f"{_SINGLE}.proj_mlp", "single_blocks.{i}.mlp_in", "m d -> d m", "m -> m"),
    Rule(f"{_SINGLE}.attn.norm_q.weight", "single_blocks.{i}.query_norm.scale", "h -> h"),
    Rule(f"{_SINGLE}.attn.norm_k.weight", "single_blocks.{i}.key_norm.scale", "h -> h"),
    Rule(
        f"{_SINGLE}.proj_out.weight",
        "single_blocks.{i}.linear2.attn_kernel",
        "e (n h + m) -> n h e",
    ),
    Rule(
        f"{_SINGLE}.proj_out.weight", "single_blocks.{i}.linear2.mlp_kernel", "e (n h + m) -> m e"
    ),
    Rule(f"{_SINGLE}.proj_out.bias", "single_blocks.{i}.linear2.bias", "e -> e"),
    # diffusers keeps (scale, shift) where ours and the original are (shift, scale).
    *linear(
        "norm_out.linear", "final_layer.modulation", "(~two e) d -> d two e", "(~two e) -> two e"
    ),
    *linear("proj_out", "final_layer.linear", "out d -> d out", "out -> out"),
)


def flux_diffusers(config: FluxConfig) -> Table:
    """The table for a FLUX transformer of this size; reads the release of DSD as it is.

    The release carries LoRA tensors beside the weights (they belong to the adapter, which has its
    own file), and early copies have `base_layer.` in the names of the layers that had one.
    """
    return Table(
        "FLUX transformer in diffusers layout",
        _RULES,
        flux_dims(config),
        flux_depths(config),
        absent=flux_absent(config),
        ignored=((r"\.lora_[AB]\.", "LoRA tensors inside the model file; give the LoRA file too"),),
        respell=lambda name: name.replace(".base_layer.", "."),
    )
