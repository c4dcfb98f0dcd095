"""What a training run is made of: the recipe, which fixes the numbers, and how it is run.

Presets are in `dsd_jax.train.presets`.
"""

import dataclasses
from pathlib import Path
from typing import Literal

from dsd_jax.errors import UserError
from dsd_jax.lora import LoraConfig
from dsd_jax.sharding import MeshConfig
from dsd_jax.stack import REMAT_POLICIES

__all__ = [
    "DataConfig",
    "DropoutConfig",
    "FlowConfig",
    "OptimizerConfig",
    "RunConfig",
    "TrainConfig",
]


@dataclasses.dataclass(frozen=True)
class FlowConfig:
    """The two-frame rectified-flow loss (paper, section 3.2).

    Attributes:
        t_sampling: distribution of times: "logit_normal" (SD3, section 3.1), "uniform", or
            "shifted": uniform, then warped by the sampling schedule of this canvas.
        t_mean, t_std: of the normal behind "logit_normal".
        reference_weight, target_weight: of the loss over each frame; the paper weighs them alike.
        guidance: value of the distilled guidance scale that the model is trained with.
        inpaint: without condition only: share of the samples whose reference frame, the left half,
            is given and bears no loss, so that the model learns to paint beside a given picture (as
            FLUX.1-dev can: Huang et al. 2024, "In-Context LoRA").
        inpaint_noise: largest time of a given frame, of which it is drawn uniformly, as a share of
            the other's; 0 shows it without noise.
    """

    t_sampling: Literal["logit_normal", "uniform", "shifted"] = "logit_normal"
    t_mean: float = 0.0
    t_std: float = 1.0
    reference_weight: float = 1.0
    target_weight: float = 1.0
    guidance: float = 1.0
    inpaint: float = 0.0
    inpaint_noise: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.inpaint < 1:
            raise UserError(f"inpaint must lie in [0, 1), got {self.inpaint}")
        if not 0 <= self.inpaint_noise < 1:
            raise UserError(f"inpaint_noise must lie in [0, 1), got {self.inpaint_noise}")
        weights = self.reference_weight, self.target_weight
        if min(weights) < 0 or sum(weights) <= 0:
            raise UserError(f"frame weights must not be negative, nor both zero; got {weights}")
        if self.t_std <= 0:
            raise UserError(f"t_std must be positive, got {self.t_std}")


@dataclasses.dataclass(frozen=True)
class DropoutConfig:
    """How often a sample is trained without its text, its image, or both: exclusive shares.

    Without it, the model has no unconditional branches, and true guidance means nothing.
    """

    text: float = 0.05
    image: float = 0.05
    both: float = 0.05

    def __post_init__(self) -> None:
        shares = self.text, self.image, self.both
        if min(shares) < 0 or sum(shares) > 1:
            raise UserError(f"dropout shares must lie in [0, 1] and sum to at most 1; got {shares}")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Optimiser and schedule.

    Attributes:
        name: a key of `dsd_jax.train.optimizer.OPTIMIZERS`.
        learning_rate: its peak.
        schedule: "constant", "cosine" or "linear" (to zero at the last step).
        warmup: steps of linear warm-up.
        weight_decay: decoupled, on every trained parameter.
        b1, b2: of Adam-like optimisers.
        clip: largest global gradient norm; 0: no clipping.
        accumulate: micro-batches per step; the effective batch is the data's batch size.
        ema: decay of the averaged parameters; 0: none are kept.
    """

    name: str = "adamw"
    learning_rate: float = 1e-4
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    warmup: int = 0
    weight_decay: float = 0.01
    b1: float = 0.9
    b2: float = 0.999
    clip: float = 1.0
    accumulate: int = 1
    ema: float = 0.0

    def __post_init__(self) -> None:
        if self.accumulate < 1:
            raise UserError(f"accumulate must be at least 1, got {self.accumulate}")
        if not 0 <= self.ema < 1:
            raise UserError(f"ema must be from 0 to below 1, got {self.ema}")
        if self.learning_rate <= 0:
            raise UserError(f"learning_rate must be positive, got {self.learning_rate}")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The recipe of one training run.

    Attributes:
        steps: updates of the parameters.
        batch_size: effective, over all devices.
        height, width: of the canvas in pixels, both frames together.
        seed: of the adapter, the data's order, times, noise and dropout.
        condition: pairs as reference and target on one canvas, conditioned on the reference; else
            the targets alone, as the text-to-image model that a teacher is.
        condition_init: how a base without condition embedding gets one: "zero", so that training
            starts from the teacher as it is, or "image", a copy of the kernel that embeds the
            canvas, so that the condition is read as a picture from the first step on; what the base
            then has to unlearn is that the picture has another half, which is black.
        lora: the adapter; None: full-parameter training.
        flow: the loss.
        dropout: of text and image.
        optimizer: optimiser and schedule.
        mesh: devices along each axis; -1: all that the other axes leave.
        remat: a key of `dsd_jax.stack.REMAT_POLICIES`.
        scan_layers: one program for all layers of a stack, see `dsd_jax.config.Execution`.
        base_dtype: of the frozen base; what is trained is float32.
        max_sequence_length: T5 tokens that a text is padded or cut to, at most what the tokeniser
            states; what was trained with fewer is sampled with as many.
        pad_to_longest: pad the texts of a batch, where they are not encoded already, to its longest
            one (a multiple of 16 tokens) instead of to `max_sequence_length`; on one process only,
            since each sees its own texts.
    """

    steps: int = 100_000
    batch_size: int = 160
    height: int = 512
    width: int = 1024
    seed: int = 0
    condition: bool = True
    condition_init: Literal["zero", "image"] = "zero"
    lora: LoraConfig | None = dataclasses.field(default_factory=LoraConfig)
    flow: FlowConfig = dataclasses.field(default_factory=FlowConfig)
    dropout: DropoutConfig = dataclasses.field(default_factory=DropoutConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    remat: str = "full"
    scan_layers: bool = True
    base_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    max_sequence_length: int = 512
    pad_to_longest: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1:
            raise UserError(
                f"steps and batch_size must be at least 1, got {self.steps} and {self.batch_size}"
            )
        if self.remat not in REMAT_POLICIES:
            raise UserError(
                f"unknown rematerialisation policy {self.remat!r}; choose one of "
                f"{', '.join(REMAT_POLICIES)}"
            )
        if self.batch_size % self.optimizer.accumulate:
            raise UserError(
                f"batch_size {self.batch_size} is not divisible by accumulate "
                f"{self.optimizer.accumulate}"
            )
        if self.condition_init == "image" and not self.condition:
            raise UserError("condition_init is for training with condition; leave it out")
        if self.condition and self.flow.inpaint:
            raise UserError("inpaint is for training without condition, which shows the reference")


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """How a recipe is run; nothing here changes the trained parameters, bad batches aside.

    Attributes:
        output_dir: the run's folder: checkpoints, logs, samples.
        checkpoint_dir: where the checkpoints go instead, such as `gs://BUCKET/RUN`; all processes
            must see it.
        resume: go on from the newest whole checkpoint of the folder, where there is one.
        save_every: steps between checkpoints; the last step is always saved.
        keep_last: checkpoints that are kept; older ones are deleted.
        keep_every: checkpoints of steps that this divides are kept for good; 0: none.
        eval_every: steps between validations; 0: none.
        eval_pairs: held-out pairs that the validation loss is taken over.
        eval_samples: of these, pairs that are sampled as a grid of pictures; 0: none.
        eval_steps: sampling steps of those pictures.
        log_every: steps between lines of metrics.
        tensorboard: write event files for TensorBoard as well.
        wandb: project to log to on Weights & Biases as well.
        peak_tflops: of one device, for MFU; default: by its name, where it is known.
        max_loss_ratio: a loss above this many times the running median stops the run; 0: never.
        skip_bad_batches: leave out updates whose loss or gradient is not finite, and count them,
            instead of stopping.
        profile: first and last step of a profiler trace, written to `profile/`.
        dump_hlo: write the compiled step's text to `hlo/`.
    """

    output_dir: Path
    checkpoint_dir: str | None = None
    resume: bool = True
    save_every: int = 500
    keep_last: int = 2
    keep_every: int = 0
    eval_every: int = 500
    eval_pairs: int = 16
    eval_samples: int = 4
    eval_steps: int = 28
    log_every: int = 10
    tensorboard: bool = True
    wandb: str | None = None
    peak_tflops: float | None = None
    max_loss_ratio: float = 10.0
    skip_bad_batches: bool = False
    profile: tuple[int, int] | None = None
    dump_hlo: bool = False

    def __post_init__(self) -> None:
        for name in ("save_every", "keep_last", "log_every"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("keep_every", "eval_every", "eval_pairs", "eval_samples", "max_loss_ratio"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.profile is not None and not 1 <= self.profile[0] <= self.profile[1]:
            raise UserError(f"profile takes the first and the last step, got {self.profile}")

    @property
    def checkpoints(self) -> str:
        """Folder of the checkpoints."""
        return self.checkpoint_dir or str(self.output_dir / "checkpoints")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What is trained on.

    Attributes:
        data: datasets: PATH, PATH#TASK, PATH=WEIGHT or PATH#TASK=WEIGHT.
        encoded: for each of them a folder that `dsd data encode` made of it; none: encode on the
            fly.
        eval_data: held-out dataset for validation.
        sizes: further frame sizes in pixels, height and width; a batch has one size, a pair the one
            nearest to its aspect ratio.
        instruction: how often a pair that has both texts shows its instruction, not its caption.
        threads: that read and decode, per process; they do not change the order.
        skip_bad_records: put the next record in the place of one that cannot be read, and list it,
            instead of stopping.
    """

    data: tuple[str, ...]
    encoded: tuple[str, ...] = ()
    eval_data: str | None = None
    sizes: tuple[tuple[int, int], ...] = ()
    instruction: float = 0.0
    threads: int = 16
    skip_bad_records: bool = False

    def __post_init__(self) -> None:
        if self.encoded and len(self.encoded) != len(self.data):
            raise UserError(
                f"{len(self.data)} datasets but {len(self.encoded)} encoded folders; give one for "
                "each, or none"
            )
