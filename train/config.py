"""Settings of a training run: the recipe, which fixes its numbers, and everything else.

Presets are in `dsd_jax.train.presets`.
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from dsd_jax.config import FLUX_DEV
from dsd_jax.errors import UserError
from dsd_jax.infer.mask import read_mask
from dsd_jax.lora import LoraConfig
from dsd_jax.quantise import WeightKind
from dsd_jax.sharding import MeshConfig
from dsd_jax.stack import REMAT_POLICIES
from dsd_jax.tasks import task_named

__all__ = [
    "BaseConfig",
    "DataConfig",
    "DistillConfig",
    "DropoutConfig",
    "FlowConfig",
    "OptimizerConfig",
    "RunConfig",
    "TrainConfig",
    "task_shares",
]


@dataclasses.dataclass(frozen=True)
class FlowConfig:
    """The two-frame rectified-flow loss (paper, section 3.2).

    Attributes:
        t_sampling: Distribution of the times: "logit_normal" (SD3, section 3.1), "uniform", or
            "shifted" (uniform, then warped by the sampling schedule of this canvas).
        t_mean: Mean of the normal distribution behind "logit_normal".
        t_std: Standard deviation of that distribution.
        reference_weight: Weight of the loss over the reference frame.
        target_weight: Weight of the loss over the target frame; the paper weighs both alike.
        guidance: Distilled guidance scale that the model is trained with.
    """

    t_sampling: Literal["logit_normal", "uniform", "shifted"] = "logit_normal"
    t_mean: float = 0.0
    t_std: float = 1.0
    reference_weight: float = 1.0
    target_weight: float = 1.0
    guidance: float = 1.0

    def __post_init__(self) -> None:
        weights = self.reference_weight, self.target_weight
        if min(weights) < 0 or sum(weights) <= 0:
            raise UserError(f"frame weights must not be negative, nor both zero; got {weights}")
        if self.t_std <= 0:
            raise UserError(f"t_std must be positive, got {self.t_std}")


@dataclasses.dataclass(frozen=True)
class DropoutConfig:
    """Shares of the samples trained without text, image, or both; they exclude each other.

    Without them the model learns no unconditional predictions, and true guidance has no meaning.

    Attributes:
        text: Share trained without text.
        image: Share trained without reference.
        both: Share trained without either.
    """

    text: float = 0.05
    image: float = 0.05
    both: float = 0.05

    def __post_init__(self) -> None:
        shares = self.text, self.image, self.both
        if min(shares) < 0 or sum(shares) > 1:
            raise UserError(f"dropout shares must lie in [0, 1] and sum to at most 1; got {shares}")


@dataclasses.dataclass(frozen=True)
class DistillConfig:
    """Teacher of a distillation: the model as the run begins, sampled with true guidance.

    Attributes:
        i_guidance: True image guidance scale of the teacher.
        t_guidance: True text guidance scale of the teacher.
        steps: Steps of the teacher's sampler, whose first two have no true guidance.
        mask: Step mask that the student samples with (see `dsd mask`): 1 for each of the few steps
            that run all blocks, 0 for each step between them. Without one all steps run them.
    """

    i_guidance: float = 1.5
    t_guidance: float = 1.0
    steps: int = 28
    mask: str | None = None

    def __post_init__(self) -> None:
        if self.mask is not None:
            object.__setattr__(self, "mask", read_mask(self.mask))
        if not 1 < self.i_guidance < math.inf:
            raise UserError(
                f"distill.i_guidance must be a number above 1, got {self.i_guidance}: at 1 the "
                "teacher has no true guidance to learn"
            )
        if not 0 <= self.t_guidance < math.inf:
            raise UserError(f"distill.t_guidance must be a number from 0 up, got {self.t_guidance}")
        if self.steps < 3:
            raise UserError(
                f"distill.steps must be at least 3, since true guidance begins with the third "
                f"step; got {self.steps}"
            )


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Optimiser and schedule.

    Attributes:
        name: Name of the optimiser: adamw, adafactor, lion, prodigy or sgd.
        learning_rate: Peak of the learning rate.
        schedule: Course of the learning rate after the warm-up; "cosine" and "linear" end at zero.
        warmup: Steps of linear warm-up.
        weight_decay: Decoupled weight decay of every trained parameter.
        b1: Decay of the first moment.
        b2: Decay of the second moment.
        clip: Largest global norm of the gradient. 0 clips nothing.
        accumulate: Micro-batches per step; together they are one batch.
        ema: Decay of the averaged parameters. 0 keeps no average.
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


def task_shares(tasks: Sequence[str]) -> dict[str, float]:
    """Shares by task, from texts such as `relight=3`.

    Raises:
        UserError: A text is not of this form, there is no such task, or it is there twice.
    """
    shares: dict[str, float] = {}
    for text in tasks:
        name, _, number = text.partition("=")
        task = task_named(name)
        try:
            share = float(number)
        except ValueError:
            share = 0.0
        if not 0 < share < math.inf:
            raise UserError(f"tasks take TASK=SHARE with a share above 0, got {text!r}")
        if task.name in shares:
            raise UserError(f"tasks has {task.name!r} twice; give each task one share")
        shares[task.name] = share
    return shares


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The recipe of one training run.

    Attributes:
        steps: Updates of the parameters.
        batch_size: Samples per update, over all devices.
        height: Height of the canvas in pixels.
        width: Width of the canvas in pixels, both frames together.
        seed: Seed of the adapter, the order of the data, times, noise and dropout.
        condition: Train pairs, conditioned on the reference. Without it, train the targets alone,
            as a text-to-image teacher.
        condition_init: Start of the condition embedding if the base has none: "zero" leaves the
            teacher as it is; "image" copies the embedding of the canvas, so that the condition is
            read as a picture from the first step on.
        tasks: Shares of the tasks in the samples, TASK=SHARE each, over all datasets; pairs of
            other tasks are left out. None takes the datasets as they are given.
        lora: The adapter; without one, every parameter is trained.
        flow: The loss.
        dropout: Samples trained without text or reference.
        distill: Teacher whose velocity is learned instead of that of the data.
        optimizer: Optimiser and schedule.
        mesh: Devices along each axis. -1 takes all that the other axes leave.
        remat: Activations that are kept for the backward pass instead of computed again: none
            (keeps all), dots, attention+qkv, attention or full (keeps none).
        scan_layers: Compile one program for all layers of a stack.
        base_dtype: Precision of the frozen base. Trained parameters are float32.
        weights: Hold the kernels of the frozen base's blocks in few bits, int8 or int4, and those
            of T5 in int8. The adapter learns beside them, in float32.
        max_sequence_length: T5 tokens that a text is padded or cut to, at most the tokeniser's own
            limit. Sample with the same number.
        pad_to_longest: Pad the texts of a batch to its longest one, in steps of 16 tokens, instead
            of to `max_sequence_length`. Works on one process, for texts that are not encoded yet.
    """

    steps: int = 100_000
    batch_size: int = 160
    height: int = 512
    width: int = 1024
    seed: int = 0
    condition: bool = True
    condition_init: Literal["zero", "image"] = "zero"
    tasks: tuple[str, ...] | None = None
    lora: LoraConfig | None = dataclasses.field(default_factory=LoraConfig)
    flow: FlowConfig = dataclasses.field(default_factory=FlowConfig)
    dropout: DropoutConfig = dataclasses.field(default_factory=DropoutConfig)
    distill: DistillConfig | None = None
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    remat: str = "full"
    scan_layers: bool = True
    base_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    weights: WeightKind | None = None
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
        if self.weights is not None and self.lora is None:
            raise UserError(
                f"{self.weights} weights are frozen, so a training of all parameters cannot have "
                "them; leave out --weights, or train a LoRA"
            )
        if self.condition_init == "image" and not self.condition:
            raise UserError("condition_init is for training with condition; leave it out")
        if self.tasks is not None and not task_shares(self.tasks):
            raise UserError("tasks needs a task such as relight=1, or None for all of the data")
        if self.distill is not None:
            self._check_distill()

    def _check_distill(self) -> None:
        if self.lora is None or not self.condition:
            raise UserError("distill trains a LoRA of a model with a condition; leave both on")
        if self.dropout != DropoutConfig(0, 0, 0):
            raise UserError(
                "distill trains every sample with text and reference; set dropout.text, "
                "dropout.image and dropout.both to 0"
            )


@dataclasses.dataclass(frozen=True)
class BaseConfig:
    """The weights that a run starts from.

    Attributes:
        base_path: FLUX.1 in diffusers layout or converted: a folder or a hub id.
        model_path: Another transformer to start from, such as the DSD release's.
        lora_path: LoRA file that the adapter starts from. Its rank and targets must be the run's.
        from_scratch: Start from random weights of the base's size.
    """

    base_path: str = FLUX_DEV
    model_path: str | None = None
    lora_path: str | None = None
    from_scratch: bool = False


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """The way a recipe is run. Apart from bad batches, nothing here changes the trained parameters.

    Attributes:
        output_dir: Folder of the run: settings, checkpoints, logs, samples.
        checkpoint_dir: Folder of the checkpoints, such as `gs://BUCKET/RUN`, instead of one in
            `output_dir`. All processes must see it.
        resume: Resume from the newest undamaged checkpoint in the folder.
        save_every: Steps between checkpoints; the last step is always saved. A crash loses the
            steps since the last one.
        keep_last: Number of checkpoints to keep; older ones are deleted.
        keep_every: Never delete the checkpoints of steps that this number divides. 0 deletes all
            older ones.
        eval_every: Steps between validations. 0 never validates.
        eval_pairs: Number of held-out pairs for the validation loss.
        eval_samples: Number of held-out pairs that are sampled as a sheet of pictures. 0 samples
            none.
        eval_steps: Sampling steps of those pictures.
        sample_prompts: File of prompts to sample at every validation: a manifest as for `dsd batch`
            (.jsonl or .csv), or a text file with a prompt per line, which get held-out references.
        log_every: Steps between lines of metrics.jsonl. The screen shows one every ten seconds.
        tensorboard: Write event files for TensorBoard as well (extra: tensorboard).
        wandb: Project to log to on Weights & Biases as well.
        peak_tflops: Peak of one device in TFLOP/s, for MFU; by default the known peak of a device
            of its name.
        max_loss_ratio: Stop at a loss above this many times the running median. 0 never stops.
        skip_bad_batches: Skip updates whose loss or gradient is not finite, and count them, instead
            of stopping.
        profile: First and last step of a profiler trace, written to `profile/`.
        dump_hlo: Write the text of the compiled step to `hlo/`.
        compilation_cache: Folder for compiled programs, so that the next start need not compile.
            Default: one in the user's cache, at most 4 GB; none if there are several processes.
            off keeps none.
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
    sample_prompts: Path | None = None
    log_every: int = 10
    tensorboard: bool = False
    wandb: str | None = None
    peak_tflops: float | None = None
    max_loss_ratio: float = 10.0
    skip_bad_batches: bool = False
    profile: tuple[int, int] | None = None
    dump_hlo: bool = False
    compilation_cache: str = "auto"

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
    """The data that a run trains on.

    Attributes:
        data: Datasets: PATH, PATH#TASK, PATH=WEIGHT or PATH#TASK=WEIGHT.
        encoded: For each dataset the folder that `dsd data encode` made of it. Without them, pairs
            are encoded during training.
        eval_data: Held-out dataset for validation.
        sizes: Further frame sizes in pixels, height and width. A batch has one size; a pair goes
            to the one nearest to its aspect ratio.
        instruction: Share of the pairs with both texts for which the instruction is used, not the
            caption.
        threads: Threads per process that read and decode. They do not change the order.
        skip_bad_records: Replace a record that cannot be read by the next one, and list it, instead
            of stopping.
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
