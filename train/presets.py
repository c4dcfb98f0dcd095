"""Recipes as small functions. Each says how it differs from the one it starts from.

A preset fixes the recipe and a mesh that it fits on. Every field can be set from the command line.
"""

import dataclasses
from collections.abc import Callable

from dsd_jax.errors import UserError, did_you_mean
from dsd_jax.lora import LoraConfig
from dsd_jax.sharding import MeshConfig
from dsd_jax.tasks import DEPTH, RELIGHT, Task
from dsd_jax.train.config import (
    DistillConfig,
    DropoutConfig,
    FlowConfig,
    OptimizerConfig,
    TrainConfig,
)

__all__ = ["PRESETS", "preset"]

_change = dataclasses.replace


def _loss(task: Task) -> FlowConfig:
    """The loss of a model that is trained on a task alone."""
    weights = task.frame_weights
    return FlowConfig(reference_weight=weights.reference, target_weight=weights.target)


def paper() -> TrainConfig:
    """The paper's recipe (section 4) on 8 GPUs of 80 GB.

    Rank 512 on the attention projections, batch 160, AdamW at 1e-4, 100k steps, 512 px frames. The
    base is sharded over the 8 devices, which leaves room for 20 samples on each at once.
    """
    return TrainConfig(mesh=MeshConfig(data=1, fsdp=-1))


def h200() -> TrainConfig:
    """`paper` on 8 GPUs of 141 GB, without sharding the base.

    Every GPU holds the base, so no weight is gathered in a step.

    The outputs of attention are kept too, which are not computed again.
    """
    return _change(paper(), mesh=MeshConfig(data=-1), remat="attention")


def v5e_64() -> TrainConfig:
    """`paper` on a v5e-64 slice, 16 GB a chip.

    160 samples are 5 for each of 32 pairs of chips: a pair shares the tokens of a canvas. The base
    is sharded eightfold, and all 5 samples go at once, so that it is gathered once per pass. The
    outputs of attention are kept, so that they are not computed again.
    """
    return _change(
        paper(),
        mesh=MeshConfig(data=4, fsdp=8, context=2),
        remat="attention",
    )


def v5p_64() -> TrainConfig:
    """`v5e_64` on 64 chips of v5p, 95 GB each, without sharding the base.

    Every chip holds the base, so no weight is gathered in a step.
    """
    return _change(v5e_64(), mesh=MeshConfig(data=32, fsdp=1, context=2))


def v6e_64() -> TrainConfig:
    """`v5e_64` on a v6e-64 slice, 32 GB a chip."""
    return v5e_64()


def depth() -> TrainConfig:
    """`paper` for structure: from a depth map to a photo.

    The target says everything about what is wanted, so only its frame is in the loss; rank 128
    and 20k steps, since the map's layout is already the target's.
    """
    return _change(
        paper(),
        steps=20_000,
        lora=LoraConfig(rank=128),
        flow=_loss(DEPTH),
    )


def relight() -> TrainConfig:
    """`paper` for light: the same scene in another light.

    It takes the pairs of the task relight out of the data. Rank 128 and 20k steps, since everything
    but the light is already in the reference.
    """
    return _change(
        paper(),
        steps=20_000,
        tasks=(f"{RELIGHT.name}=1",),
        lora=LoraConfig(rank=128),
        flow=_loss(RELIGHT),
    )


def multi() -> TrainConfig:
    """`paper` for several tasks at once.

    Of ten samples, four are of identity, three of relight, two of depth and one of instruction.
    Identity has most, because it is the task that keeps least of the reference's pixels.
    """
    return _change(
        paper(),
        tasks=("identity=4", "relight=3", "depth=2", "instruction=1"),
    )


def grid_teacher() -> TrainConfig:
    """`paper` on whole grids, without reference (an ablation).

    It teaches the text-to-image model to paint more consistent grids (at a price in diversity,
    as the paper found). A grid is the target of its pair, 1024 x 1024, and there is no condition.
    """
    return _change(
        paper(),
        condition=False,
        height=1024,
        width=1024,
        dropout=DropoutConfig(text=0.1, image=0.0, both=0.0),
    )


def full() -> TrainConfig:
    """`paper` without adapter: every parameter in float32.

    Parameters, gradients and moments take about 190 GB, sharded over all devices.
    """
    return _change(
        paper(),
        lora=None,
        optimizer=OptimizerConfig(learning_rate=1e-5, warmup=500, accumulate=2),
    )


def distill() -> TrainConfig:
    """`paper` for a LoRA that makes in one pass what another makes in three, with true guidance.

    `--lora_path` gives the LoRA to start from. Start and teacher are the same model, so 5k steps
    with a small learning rate suffice. Times are spread as in sampling, and the distilled guidance
    scale is the one that images are sampled with.
    """
    return _change(
        paper(),
        steps=5_000,
        batch_size=64,
        flow=FlowConfig(t_sampling="shifted", guidance=3.5),
        dropout=DropoutConfig(text=0.0, image=0.0, both=0.0),
        distill=DistillConfig(),
        optimizer=OptimizerConfig(learning_rate=2e-5, warmup=100, ema=0.99),
    )


def tiny() -> TrainConfig:
    """A few steps of 64 px frames, to see that everything works."""
    return _change(
        paper(),
        steps=20,
        batch_size=8,
        height=64,
        width=128,
        lora=LoraConfig(rank=8),
        optimizer=OptimizerConfig(learning_rate=1e-3),
        mesh=MeshConfig(),
        remat="none",
        base_dtype="float32",
    )


PRESETS: dict[str, Callable[[], TrainConfig]] = {
    function.__name__: function
    for function in (
        paper, h200, v5e_64, v5p_64, v6e_64, depth, relight, multi, grid_teacher, distill, full,
        tiny,
    )
}  # fmt: skip


def preset(name: str) -> TrainConfig:
    """Finds the recipe of a name.

    Raises:
        UserError: there is none of this name.
    """
    if name not in PRESETS:
        raise UserError(
            f"unknown preset {name!r}; choose one of {', '.join(PRESETS)}"
            f"{did_you_mean(name, PRESETS)}"
        )
    return PRESETS[name]()
