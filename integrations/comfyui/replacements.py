"""What stands for the nodes of ComfyUI-DSD, so that its workflows run.

Inputs and outputs that others are linked to keep their names and places: ComfyUI renames the links
of one node after the other, and fails if it meets a new name.
"""

import dataclasses

from .client import Server, default_address

__all__ = ["REPLACEMENTS", "Replacement"]

_Map = dict[str, str | int]


@dataclasses.dataclass(frozen=True)
class Replacement:
    """Arguments of ComfyUI's `NodeReplace`.

    Attributes:
        old_node_id: Old node.
        new_node_id: New node.
        old_widget_ids: Names of the old node's widgets, in their order in files.
        input_mapping: Old name or value of each new input.
        output_mapping: Old place of each new output. None drops the links.
    """

    old_node_id: str
    new_node_id: str
    old_widget_ids: list[str]
    input_mapping: list[_Map]
    output_mapping: list[_Map] | None = None


def _kept(*names: str) -> list[_Map]:
    return [{"new_id": name, "old_id": name} for name in names]


def _set(**values: str | int) -> list[_Map]:
    return [{"new_id": name, "set_value": value} for name, value in values.items()]


def _places(count: int) -> list[_Map]:
    return [{"new_idx": place, "old_idx": place} for place in range(count)]


_SCALES = ("guidance_scale", "image_guidance_scale", "text_guidance_scale")
_LOADING = ["device", "dtype", "low_cpu_mem_usage", "model_cpu_offload", "sequential_cpu_offload"]
_SERVER = _set(address=default_address(), key_env=Server.key_env)

REPLACEMENTS = (
    Replacement(
        "DSDImageGenerator",
        "DSDCustomise",
        [
            "prompt", "negative_prompt", "seed", "control_after_generate", *_SCALES,
            "num_inference_steps", "width", "height", "use_gemini_prompt",
        ],
        [
            *_kept("dsd_model", "image", "prompt", "negative_prompt", "seed", *_SCALES),
            *_kept("num_inference_steps"),
            *_set(images=1, size="auto", loras=""),
        ],
        _places(3),
    ),
    Replacement(
        "DSDGeminiPromptEnhancer",
        "DSDEnhance",
        ["prompt", "api_key"],  # the key goes nowhere
        _kept("image", "prompt"),
        _places(1),
    ),
    Replacement(
        "DSDModelLoader", "DSDServer", ["model_path", "lora_path", *_LOADING], _SERVER, _places(1)
    ),
    Replacement(
        "DSDModelDownloader",
        "DSDServer",
        ["repo_id", "force_download", *_LOADING],
        _SERVER,
        _places(1),
    ),
    Replacement(
        "DSDModelSelector",
        "PrimitiveStringMultiline",
        ["check_model_exists"],
        _set(value="Not needed any more: `dsd serve` opens the model."),
    ),
    Replacement(
        "DSDResizeSelector",
        "PrimitiveStringMultiline",
        ["resize_method", "interpolation", "pad_r", "pad_g", "pad_b"],
        _set(
            value="Without effect: the server cuts the margins of a reference to the shape of the "
            "images. Crop, pad or stretch the image before it reaches DSD Customise."
        ),
    ),
)  # fmt: skip
"""One for each of the six old nodes."""
