"""FLOPs of a training step, by the one convention that MFU uses.

Matrix products only, two FLOPs per multiplication; what rematerialisation computes again is never
counted. Frozen weights: forward and the gradient of their input (2x their forward). Adapters and
other trained weights: also their own gradient (3x). Attention's two products have no weights and
two inputs, so they take 3x in any case.
"""

import dataclasses
import math
import re
from collections.abc import Mapping

from dsd_jax.condition import CANVAS
from dsd_jax.config import FluxConfig
from dsd_jax.stack import kernel_of_scale, without_layers
from dsd_jax.topology import CHIPS
from dsd_jax.train.config import TrainConfig
from dsd_jax.types import Shape

__all__ = ["StepFlops", "peak_tflops", "step_flops", "teacher_flops"]

# Pattern of a parameter's path without layer numbers -> what its Linear runs over.
_TEXT = re.compile(r"txt_in\..*|double_blocks\.txt_(attn|mlp)\..*")
_IMAGE = re.compile(
    rf"(img_in|{CANVAS.module}|final_layer\.linear)\..*|double_blocks\.img_(attn|mlp)\..*"
)
_BOTH = re.compile(r"single_blocks\.(qkv|mlp_in|linear2)\..*")
_MATRIX = ("kernel", "lora_a", "lora_b")

# Names that JAX gives to devices, by their beginning; the first that fits counts.
_KINDS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v6": "v6e",
    "NVIDIA A100": "a100",
    "NVIDIA H100": "h100",
    "NVIDIA H200": "h200",
}


@dataclasses.dataclass(frozen=True)
class StepFlops:
    """FLOPs of one sample's forward pass, by what they are spent on."""

    frozen: float
    trained: float
    attention: float

    @property
    def total(self) -> float:
        """FLOPs of forward and backward pass."""
        return 2 * self.frozen + 3 * (self.trained + self.attention)


def step_flops(
    shapes: Mapping[str, Shape], trained: frozenset[str], config: FluxConfig, image: int, text: int
) -> StepFlops:
    """Counts the forward FLOPs of one sample.

    Args:
        shapes: path -> shape of every parameter, in either layout of `dsd_jax.stack`.
        trained: paths of the trained parameters.
        config: size of the model.
        image: tokens of the canvas.
        text: tokens of the prompt.
    """
    sums = {True: 0.0, False: 0.0}
    for path, shape in shapes.items():
        own = path.rpartition(".")[2]
        if any(name in own for name in _MATRIX) and not kernel_of_scale(path):
            key = without_layers(path)
            # Modulations, time, guidance and the pooled text see one vector per sample.
            tokens = 1
            for pattern, count in ((_TEXT, text), (_IMAGE, image), (_BOTH, image + text)):
                if pattern.fullmatch(key):
                    tokens = count
            sums[path in trained] += 2 * tokens * math.prod(shape)
    blocks = config.double_depth + config.single_depth
    attention = blocks * 4 * (image + text) ** 2 * config.width
    return StepFlops(frozen=sums[False], trained=sums[True], attention=attention)


def teacher_flops(config: TrainConfig, model: StepFlops) -> float:
    """FLOPs of the teacher's passes of a recipe per sample, by those of the model; mostly none."""
    if config.distill is None:
        return 0.0
    return 3 * (model.frozen + model.trained + model.attention)


def peak_tflops(device_kind: str) -> float | None:
    """Dense bfloat16 peak of a device in TFLOP/s; None if it is not known.

    The name does not always tell the variant: an H100 counts as SXM, whose peak is the higher one.
    """
    for beginning, chip in _KINDS.items():
        if device_kind.startswith(beginning):
            return CHIPS[chip].peak_tflops
    return None
