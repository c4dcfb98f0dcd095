"""Tensors that other programs leave out of our files, so that an export can name them.

`docs/compatibility.md` lists the programs, the versions that were tried and the tests.
"""

from collections.abc import Sequence

from dsd_jax.condition import CANVAS
from dsd_jax.errors import and_more

__all__ = ["lora_notices", "model_notices"]

_EMBEDDERS = ("img_in", "txt_in", "time_in", "vector_in", "guidance_in")


def lora_notices(layers: Sequence[str], layout: str, *, embedding: bool) -> list[str]:
    """Notices about programs that read only a part of a LoRA file.

    Args:
        layers: the dense layers in it, by the names of its layout.
        layout: "peft" or "kohya".
        embedding: the file also holds the condition embedding.
    """
    notices = []
    if layout == "kohya":
        notices.append(
            "the authors' generate.py, ComfyUI's DSD nodes and diffusers' load_lora_adapter apply "
            "nothing of a file with kohya's names, and do not say so; --layout peft is for them"
        )
        last = [name for name in layers if name.startswith("final_layer")]
        outside = [name for name in layers if name.startswith(_EMBEDDERS)] + last
        if last:
            notices.append(f"sd-scripts has no place for {and_more(last)} and drops it")
        if outside:
            notices.append(
                f"diffusers drops {and_more(outside)} of a file with kohya's names; --layout peft "
                "keeps all layers there"
            )
    if embedding:
        refusal = "refuse a LoRA file that holds the condition embedding; leave out --single_file"
        if layout == "peft":
            notices.append(
                f"the authors' generate.py and ComfyUI's DSD nodes {refusal} for them; ComfyUI's "
                "own LoRA loader drops the embedding"
            )
        else:
            notices.append(
                f"diffusers up to 0.32 {refusal} for it; later versions, sd-scripts and ComfyUI "
                "drop the embedding"
            )
    return notices


def model_notices(layout: str) -> list[str]:
    """Notices about programs that read a transformer without its condition embedding."""
    if layout == "bfl":
        notice = (
            f"no other program reads {CANVAS.bfl} in this layout: the classes of Black Forest Labs "
            "and ComfyUI drop it and with it the reference image"
        )
    else:
        notice = (
            f"the authors' generate.py and ComfyUI's DSD nodes read {CANVAS.diffusers}; diffusers' "
            "own FluxTransformer2DModel and ComfyUI's FLUX loader drop it and with it the "
            "reference image"
        )
    return [notice]
