"""The names of tensors in LoRA files: dialects, what each tensor is, and what a model can hold.

A name is a prefix that tells the dialect, the name of a dense layer (with dots, or in kohya's
dialect underscores), and what the tensor is to that layer:

    transformer.            transformer_blocks.0.attn.to_q      .lora_A.weight           PEFT
    base_model.model.       transformer_blocks.0.attn.to_q      .lora_A.weight           raw PEFT
    lora_unet_              double_blocks_0_img_attn_qkv        .lora_down.weight        kohya
    lora_transformer_       transformer_blocks_0_attn_to_q      .alpha                   kohya
    diffusion_model.        double_blocks.0.img_attn.qkv        .lora_up.weight          ComfyUI
                            double_blocks.0.processor.qkv_lora1 .down.weight             XLabs

Prefixes and endings combine freely, because people's converters combine them freely.
"""

import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping

from dsd_jax.condition import CANVAS
from dsd_jax.config import FluxConfig
from dsd_jax.convert.flux.bfl import flux_bfl
from dsd_jax.convert.flux.diffusers import flux_diffusers
from dsd_jax.convert.lora.layout import XLABS, Dense, Slot, dense_layers
from dsd_jax.convert.table.rules import Piece

__all__ = ["REFUSED", "Name", "Vocabulary", "guess_model", "parse_name", "vocabulary"]


# What a model can hold


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Everything that a LoRA file for one size of model can name, from the tables of its weights.

    Attributes:
        diffusers, bfl: dense layers by name, as diffusers and BFL cut them.
        spelled: those and XLabs' by every spelling, with dots and with underscores.
        condition: name of a whole tensor of the condition embedding -> its rule.
    """

    diffusers: Mapping[str, Dense]
    bfl: Mapping[str, Dense]
    spelled: Mapping[str, Dense]
    condition: Mapping[str, Piece]

    @functools.cached_property
    def slots(self) -> tuple[Slot, ...]:
        """All our slots, each a dense layer of diffusers'."""
        return tuple(slot for dense in self.diffusers.values() for slot in dense.slots)


@functools.lru_cache(maxsize=4)
def vocabulary(config: FluxConfig) -> Vocabulary:
    """Collects the names for one size of model, the condition embedding's included.

    Where the base lacks that layer, an adapter may bring it.
    """
    config = dataclasses.replace(config, condition_embed=True)
    tables = flux_diffusers(config), flux_bfl(config)
    diffusers, bfl = (dense_layers(table.rules, config) for table in tables)
    by_name = diffusers | bfl | dense_layers(XLABS, config)
    return Vocabulary(
        diffusers,
        bfl,
        by_name | {name.replace(".", "_"): dense for name, dense in by_name.items()},
        {
            piece.theirs: piece
            for table in tables
            for piece in table.pieces
            if CANVAS.owns(piece.ours)
        },
    )


# What a name says


@dataclasses.dataclass(frozen=True)
class Name:
    """The parts of a tensor's name.

    Attributes:
        dialect: in whose manner it is written.
        kind: "a", "b" or "alpha" of a layer; "condition" for the condition embedding's own
            tensors; "aside" for what belongs to another model; else a key of `REFUSED`.
        layer: name of the dense layer; of the tensor for "condition"; what it is for "aside".
        adapter: PEFT's name of the adapter where the name has one.
        part: part of a change, for tensors that can be merged but are no factors.
    """

    dialect: str
    kind: str
    layer: str
    adapter: str = ""
    part: str = ""


_PREFIXES = {
    "base_model.model.": "raw PEFT",
    "transformer.": "PEFT",
    "model.diffusion_model.": "ComfyUI",
    "diffusion_model.": "ComfyUI",
    "lora_unet_": "kohya",
    "lora_transformer_": "kohya with diffusers names",
    "lycoris_": "kohya with diffusers names",
}
_KINDS = dict.fromkeys(("lora_A", "lora_down", "down"), "a")
_KINDS |= dict.fromkeys(("lora_B", "lora_up", "up"), "b")
# diffusers before PEFT: `attn.to_q.lora.down`, `attn.processor.to_q_lora.down`.
_OLD = re.compile(r"(?P<stem>.+)\.processor\.(?P<name>(to|add)_\w+)_lora")
# Parts of changes that `edits` can merge: ending -> our name of the part.
_PARTS = {
    r"(dora_scale|lora_magnitude_vector(\.\w+)??(\.weight)?)": "magnitude",
    r"(lokr_w[12](_[ab])?|hada_w[12]_[ab]|diff_b|diff)": "",
    r"(lora_B|lora_up|up)(\.\w+)?\.bias": "bias",
}
_FACTOR = re.compile(rf"(?P<layer>.+)\.(?P<kind>{'|'.join(_KINDS)})(\.(?P<adapter>\w+))?\.weight")
_ALPHA = re.compile(r"(?P<layer>.+)\.alpha")
_CONDITION = re.compile(
    rf"({CANVAS.diffusers}|{CANVAS.bfl})(\.modules_to_save(\.\w+)?)?(?P<tail>\.weight|\.bias)"
)

_ASIDE = (
    (re.compile(r"(lora_te\d?_|text_encoder(_\d|s)?\.|text_model\.)"), "of text encoders"),
    (re.compile(r"(bundle_emb|emb_params)\b"), "that are text embeddings"),
    (re.compile(r".*\.original_module\."), "that PEFT keeps from before the training"),
)

REFUSED = {
    "dora": (
        r".*\.(dora_scale|lora_magnitude_vector)\b",
        "magnitudes of DoRA, which factors cannot hold",
    ),
    "lycoris": (
        r".*\.(lokr_\w+|hada_\w+|oft_\w+|boft_\w+|glora\w*|lora_mid|[ab][12])\b",
        "LyCORIS (LoKr, LoHa, OFT, ...), which is no product of A and B",
    ),
    "bias": (
        rf".*\.({'|'.join(_KINDS)})(\.\w+)?\.bias$",
        "biases of factors, for which a DSD model has no place (control LoRAs have them)",
    ),
    "norm": (
        r".*norm\w*\.(scale|weight)$",
        "scales of norms, for which an adapter has no place (control LoRAs have them)",
    ),
    "difference": (
        r".*\.(diff|diff_b|w_norm|b_norm)$",
        "whole differences of weights or biases, for which an adapter has no place",
    ),
    "replacement": (
        r".*\.(set_weight|reshape_weight)$",
        "whole weights that replace the model's, for which an adapter has no place",
    ),
    "full": (
        r".*\.(weight|bias)$",
        (
            f"whole weights, of which an adapter holds only {CANVAS.diffusers}'s "
            "(is it the model's file?)"
        ),
    ),
    "unknown": (r".*", "of no known kind"),
}
"""Kind -> (pattern of the name after the prefix, what such tensors are and what to do)."""


def parse_name(name: str) -> Name:
    """Splits a tensor's name into its parts. It does not check that the layer exists."""
    for pattern, what in _ASIDE:
        if pattern.match(name.removeprefix("base_model.model.")):
            return Name("", "aside", what)
    prefix = next((prefix for prefix in _PREFIXES if name.startswith(prefix)), "")
    dialect = _PREFIXES.get(prefix, "PEFT")
    bare = name.removeprefix(prefix)
    if match := _CONDITION.fullmatch(bare):
        return Name(dialect, "condition", f"{CANVAS.module}{match['tail']}")
    if match := _FACTOR.fullmatch(bare):
        layer = _modern(match["layer"])
        if layer != match["layer"]:
            dialect = "diffusers before PEFT"
        elif not prefix and ".processor." in layer:
            dialect = "XLabs"
        elif not prefix and match["adapter"]:
            dialect = "raw PEFT"
        kind = _KINDS[match["kind"]]
        return Name(dialect, kind, layer, match["adapter"] or "")
    if match := _ALPHA.fullmatch(bare):
        return Name(dialect, "alpha", _modern(match["layer"]))
    kind = next(kind for kind, (pattern, _) in REFUSED.items() if re.match(pattern, bare))
    for ending, part in _PARTS.items():
        if match := re.fullmatch(rf"(?P<layer>.+?)\.(?P<part>{ending})", bare):
            return Name(dialect, kind, match["layer"], part=part or match["part"])
    return Name(dialect, kind, bare)


def _modern(layer: str) -> str:
    """Today's name of a layer, for names as diffusers before PEFT wrote them too."""
    if match := _OLD.fullmatch(layer):
        name = {"to_out": "to_out.0"}.get(match["name"], match["name"])
        return f"{match['stem']}.{name}"
    return layer.removesuffix(".lora")


_MODELS = (
    (r"(lora_)?unet[._].*(down|up|mid|input|middle|output)_block", "Stable Diffusion 1.5 or SDXL"),
    (r"(lora_unet_|diffusion_model\.)joint_blocks", "Stable Diffusion 3"),
    (r".*(double_stream_modulation|to_qkv_mlp_proj)", "FLUX.2"),
    (r".*(img_mlp[._]fc1|\.img_attn_qkv\.)", "HunyuanVideo"),
    (r".*\b(img_mod\.1|img_mlp\.net)\.", "Qwen-Image"),
    (r".*distilled_guidance_layer", "Chroma"),
    (r"(.*\.|lora_unet_)?blocks[._]\d+[._](self|cross)_attn", "Wan"),
)
_WIDTHS = {1536: "Stable Diffusion 3", 2432: "Stable Diffusion 3.5", 6144: "FLUX.2"}


def guess_model(names: Iterable[str], widths: Iterable[int] = ()) -> str:
    """Guesses the model of a LoRA by names that FLUX lacks, or by a wrong width; "" if unknown."""
    for name in names:
        for pattern, model in _MODELS:
            if re.match(pattern, name):
                return model
    return next((_WIDTHS[width] for width in widths if width in _WIDTHS), "")
