"""The FLUX transformer as Black Forest Labs name it: one file such as `flux1-dev.safetensors`.

Names are almost ours. Here q, k and v are one tensor, and a single block keeps q, k, v and the
first half of its mlp in one `linear1`.
"""

from dsd_jax.condition import CANVAS
from dsd_jax.config import FluxConfig
from dsd_jax.convert.flux.config import flux_absent, flux_depths, flux_dims
from dsd_jax.convert.table.engine import Table
from dsd_jax.convert.table.rules import Rule, linear

__all__ = ["flux_bfl"]


def _stream(name: str) -> tuple[Rule, ...]:
    """Rules of one stream (img or txt) of a double block."""
    block = f"double_blocks.{{i}}.{name}"
    return (
        *linear(f"{block}_mod.lin", f"{block}_mod.lin", "(six e) d -> d six e", "(six e) -> six e"),
        *linear(
            f"{block}_attn.qkv",
            f"{block}_attn.qkv",
            "(three n h) d -> d three n h",
            "(three n h) -> three n h",
        ),
        Rule(f"{block}_attn.norm.query_norm.scale", f"{block}_attn.query_norm.scale", "h -> h"),
        Rule(f"{block}_attn.norm.key_norm.scale", f"{block}_attn.key_norm.scale", "h -> h"),
        *linear(f"{block}_attn.proj", f"{block}_attn.proj", "e (n h) -> n h e", "e -> e"),
        *linear(f"{block}_mlp.0", f"{block}_mlp.in_layer", "m d -> d m", "m -> m"),
        *linear(f"{block}_mlp.2", f"{block}_mlp.out_layer", "e m -> m e", "e -> e"),
    )


_SINGLE = "single_blocks.{i}"

_RULES = (
    *linear("img_in", "img_in", "e c -> c e", "e -> e"),
    *linear(CANVAS.bfl, CANVAS.module, "e c -> c e", "e -> e"),
    *linear("txt_in", "txt_in", "e txt -> txt e", "e -> e"),
    *linear("time_in.in_layer", "time_in.in_layer", "e f -> f e", "e -> e"),
    *linear("time_in.out_layer", "time_in.out_layer", "e d -> d e", "e -> e"),
    *linear("vector_in.in_layer", "vector_in.in_layer", "e vec -> vec e", "e -> e"),
    *linear("vector_in.out_layer", "vector_in.out_layer", "e d -> d e", "e -> e"),
    *linear("guidance_in.in_layer", "guidance_in.in_layer", "e f -> f e", "e -> e"),
    *linear("guidance_in.out_layer", "guidance_in.out_layer", "e d -> d e", "e -> e"),
    *_stream("img"),
    *_stream("txt"),
    *linear(
        f"{_SINGLE}.modulation.lin",
        f"{_SINGLE}.modulation.lin",
        "(three e) d -> d three e",
        "(three e) -> three e",
    ),
    *linear(
        f"{_SINGLE}.linear1",
        f"{_SINGLE}.qkv",
        "(three n h + m) d -> d three n h",
        "(three n h + m) -> three n h",
    ),
    *linear(
        f"{_SINGLE}.linear1",
        f"{_SINGLE}.mlp_in",
        "(three n h + m) d -> d m",
        "(three n h + m) -> m",
    ),
    Rule(f"{_SINGLE}.norm.query_norm.scale", f"{_SINGLE}.query_norm.scale", "h -> h"),
    Rule(f"{_SINGLE}.norm.key_norm.scale", f"{_SINGLE}.key_norm.scale", "h -> h"),
    Rule(f"{_SINGLE}.linear2.weight", f"{_SINGLE}.linear2.attn_kernel", "e (n h + m) -> n h e"),
    Rule(f"{_SINGLE}.linear2.weight", f"{_SINGLE}.linear2.mlp_kernel", "e (n h + m) -> m e"),
    Rule(f"{_SINGLE}.linear2.bias", f"{_SINGLE}.linear2.bias", "e -> e"),
    *linear(
        "final_layer.adaLN_modulation.1",
        "final_layer.modulation",
        "(two e) d -> d two e",
        "(two e) -> two e",
    ),
    *linear("final_layer.linear", "final_layer.linear", "out d -> d out", "out -> out"),
)


def flux_bfl(config: FluxConfig) -> Table:
    """The table for a FLUX transformer of this size."""
    return Table(
        "FLUX transformer in BFL layout",
        _RULES,
        flux_dims(config),
        flux_depths(config),
        absent=flux_absent(config),
    )
