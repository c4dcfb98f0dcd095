"""Training recipes of the toy models; each says how it differs from the one it starts from."""

import dataclasses

from dsd_jax.errors import UserError
from dsd_jax.lora import LoraConfig
from dsd_jax.sharding import MeshConfig
from dsd_jax.toy.world import PANEL
from dsd_jax.train.config import DropoutConfig, FlowConfig, OptimizerConfig, TrainConfig
from dsd_jax.train.presets import preset

__all__ = [
    "PictureConfig",
    "toy",
    "toy_decoder",
    "toy_student",
    "toy_teacher",
    "toy_vae",
    "toy_vision",
]


@dataclasses.dataclass(frozen=True)
class PictureConfig:
    """Recipe of a model that is trained on pictures alone.

    Attributes:
        steps: Number of updates.
        batch_size: Pictures per update, over all devices.
        seed: Seed of the weights, the pictures and everything that the loss draws.
        optimizer: Optimiser and schedule.
        mesh: Devices along each axis. -1 takes all devices that the other axes leave.
    """

    steps: int
    batch_size: int
    optimizer: OptimizerConfig
    seed: int = 0
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1:
            raise UserError(
                f"steps and batch_size must be at least 1, got {self.steps} and {self.batch_size}"
            )


def toy() -> TrainConfig:
    """`full` for the toy FLUX: 64 px frames on one machine."""
    return dataclasses.replace(
        preset("full"),
        steps=20_000,
        batch_size=64,
        height=64,
        width=128,
        base_dtype="float32",
        remat="none",
        scan_layers=False,
        mesh=MeshConfig(),
        optimizer=OptimizerConfig(
            learning_rate=3e-4, schedule="cosine", warmup=500, weight_decay=0.0, ema=0.999
        ),
    )


def toy_vae() -> PictureConfig:
    """The autoencoder of the toy FLUX from random weights."""
    return PictureConfig(
        steps=2400,
        batch_size=16,
        optimizer=OptimizerConfig(
            learning_rate=2e-3, schedule="cosine", warmup=50, weight_decay=0.0, ema=0.995
        ),
    )


def toy_teacher() -> TrainConfig:
    """The toy FLUX from random weights, text to image.

    Times lie near noise, where text and neighbouring panels have something to decide
    (`TOY_SCHEDULE`). The loss is `dsd_jax.toy.making.inpaint.Inpaint`: most pairs give their left
    half, so that the model learns to read one panel for the other. FLUX.1-dev brings that along,
    and a student builds on it.
    """
    return dataclasses.replace(
        toy(),
        steps=24_000,
        batch_size=16,
        height=2 * PANEL,
        width=2 * PANEL,
        condition=False,
        pad_to_longest=True,
        dropout=DropoutConfig(text=0.05, image=0.0, both=0.0),
        flow=FlowConfig(t_mean=2.0, t_std=1.5),
        optimizer=OptimizerConfig(
            learning_rate=2e-3, schedule="cosine", warmup=100, weight_decay=0.0, b2=0.99, ema=0.998
        ),
    )


def toy_decoder() -> PictureConfig:
    """`toy_vae` for the decoder alone, which leaves latents, and so the teacher, as they are."""
    return dataclasses.replace(toy_vae(), steps=1200)


def toy_vision() -> PictureConfig:
    """The image encoder of the toy world from random weights."""
    return PictureConfig(
        steps=1000,
        batch_size=64,
        optimizer=OptimizerConfig(
            learning_rate=2e-3, schedule="cosine", warmup=50, weight_decay=0.01, ema=0.99
        ),
    )


def toy_student() -> TrainConfig:
    """`paper` at toy size: the toy teacher becomes a customiser, as in `dsd quickstart`.

    LoRA covers every projection, since a model so small has little to spare. The condition
    embedding trains in full and starts as a copy of the one that reads the canvas. Gradients have a
    norm of about 0.08; larger ones are clipped, since without that a long run diverged.
    """
    return dataclasses.replace(
        toy(),
        steps=900,
        batch_size=16,
        height=PANEL,
        width=2 * PANEL,
        condition_init="image",
        lora=LoraConfig(rank=32, targets="all"),
        flow=FlowConfig(t_sampling="shifted"),
        optimizer=OptimizerConfig(
            learning_rate=3e-3,
            schedule="cosine",
            warmup=50,
            weight_decay=0.0,
            b2=0.99,
            clip=0.2,
            ema=0.99,
        ),
    )
