"""The training loop: validate, save, next batch, step; numbers are read one step late.

Batches, noise, dropout and times are functions of (seed, step) alone, so a resumed run takes the
same steps as an uninterrupted one.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh

from dsd_jax.compiled import keep_compiled
from dsd_jax.data.load.encoded import Embedding
from dsd_jax.data.load.loader import PairBatch
from dsd_jax.data.load.prefetch import prefetch_to_mesh
from dsd_jax.errors import UserError
from dsd_jax.images import save_image
from dsd_jax.interrupt import Stop
from dsd_jax.marks import GENERATED
from dsd_jax.processes import busy, first_process, on_first, say
from dsd_jax.progress import Advance, progress
from dsd_jax.train.checkpoints import Checkpoints, Keep
from dsd_jax.train.config import RunConfig
from dsd_jax.train.metrics import Log
from dsd_jax.train.record import (
    Origin,
    Recipe,
    check_base,
    check_recipe,
    check_teacher,
    record,
)
from dsd_jax.train.state import TrainState
from dsd_jax.train.steplog import Counted, StepLog, StepMetrics
from dsd_jax.train.validate import Validation

__all__ = ["BatchSource", "Outcome", "Program", "train"]


@runtime_checkable
class BatchSource(Protocol):
    """Batches for the loop, from files (`dsd_jax.data.load.loader.Loader`) or drawn at random.

    Attributes:
        start_step: first step of the iteration.
        identity: everything that a step's batch depends on; JSON.
        null_text: embedding of the empty prompt, where embeddings are loaded.
    """

    start_step: int

    @property
    def identity(self) -> Mapping[str, object]: ...
    @property
    def null_text(self) -> Embedding | None: ...
    def ids_of(self, step: int) -> Sequence[str]:
        """Ids of the global batch of a step."""

    def check_resume(self, saved: Mapping[str, object]) -> None:
        """Refuses to resume a run with another identity."""

    def __iter__(self) -> Iterator[PairBatch]:
        """This process's rows of every batch, from `start_step` on, without end."""


@runtime_checkable
class Program(Counted, Protocol):
    """A model and the programs that train it.

    A transformer (`dsd_jax.train.trainer.Trainer`) or an autoencoder trains by the same loop.

    Attributes:
        mesh: all devices of the run.
    """

    mesh: Mesh

    @property
    def config(self) -> Recipe:
        """The recipe."""

    @property
    def origin(self) -> Origin:
        """The weights that training starts from."""

    @property
    def stacks(self) -> Mapping[str, int]:
        """Path and depth of the stacks of blocks."""

    def state(self, restore: Callable[[TrainState], TrainState] | None = None) -> TrainState:
        """The state to resume from."""

    def step(
        self, state: TrainState, batch: PairBatch, step: int
    ) -> tuple[TrainState, StepMetrics]:
        """Makes one update; `state` is used up."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The end of a run: after `step` updates, before its last one if it was `stopped`."""

    step: int
    stopped: bool
    state: TrainState


def train(
    trainer: Program,
    run: RunConfig,
    source: BatchSource,
    *,
    validation: Validation | None = None,
    preset: str = "",
    held: Callable[[], None] = lambda: None,
) -> Outcome:
    """Trains until the last step, or until the process is asked to stop (Ctrl-C or SIGTERM).

    Args:
        trainer: model and programs.
        run: how and where it runs.
        source: the data; it is set to the step that the run resumes at.
        validation: held-out pairs; None for no validation.
        preset: name of the preset, stored with checkpoints.
        held: called before every step; raises if the folder of the run is lost.

    Raises:
        UserError: the folder belongs to another run, a step went wrong, a record cannot be read,
            or a checkpoint cannot be written. Earlier checkpoints stay.
    """
    if kept := keep_compiled(run.compilation_cache):
        say(kept)
    steps = trainer.config.steps
    checkpoints = Checkpoints(
        run.checkpoints,
        lambda: record(trainer.config, trainer.origin, source.identity, preset),
        trainer.stacks,
        Keep(run.keep_last, run.keep_every),
    )
    found = checkpoints.newest()
    state = trainer.state(
        None if found is None else _restore(checkpoints, found, trainer, run, source)
    )
    source.start_step = start = found or 0
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.set_mesh(trainer.mesh))
        stop = stack.enter_context(Stop())
        log = stack.enter_context(_open_log(run, -1 if found is None else found, trainer))
        advance = _Shown(stack, steps - start)
        stack.callback(checkpoints.wait)  # a save under way is finished whatever happens below
        batches = stack.enter_context(closing(prefetch_to_mesh(source, trainer.mesh)))
        step_log = StepLog(trainer, run, log, checkpoints, steps)

        for step in range(start, steps + 1):
            held()
            last, stopped = step == steps, stop.asked(step)
            if validation and step != found and (last or _due(step, run.eval_every)):
                with step_log.settled():
                    _validate(validation, step, state, run, log)
            if stopped or last or (step and _due(step, run.save_every)):
                with step_log.settled():
                    checkpoints.save(step, state)
            if stopped or last:
                break
            checkpoints.check()
            with step_log.profiled(step):
                batch = step_log.timed(batches)
                state, metrics = trainer.step(state, batch, step)
            step_log.settle()
            step_log.enter(step + 1, metrics, batch, source.ids_of(step))
            advance()
    return Outcome(step, stopped and not last, state)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _restore(
    checkpoints: Checkpoints, step: int, trainer: Program, run: RunConfig, source: BatchSource
) -> Callable[[TrainState], TrainState]:
    """Prepares to restore a checkpoint of this run.

    Raises:
        UserError: it belongs to another run, or the run must not resume.
    """

    def check() -> None:
        if not run.resume:
            raise UserError(
                f"{run.checkpoints} holds checkpoints; leave out --no-resume to go on from them, "
                "or choose another output_dir"
            )
        saved = checkpoints.run_of(step)
        check_recipe(saved, trainer.config)
        source.check_resume(saved["data"])
        check_base(saved, trainer.origin.path, trainer.origin.sha256)
        check_teacher(saved, trainer.origin.teacher)
        if step > trainer.config.steps:
            raise UserError(f"the run is at step {step} already; give --steps above it to train on")

    on_first(check)
    say(f"going on from step {step}")

    def restore(like: TrainState) -> TrainState:
        with busy(f"restoring step {step}"):
            return checkpoints.restore(step, like)

    return restore


def _open_log(run: RunConfig, after: int, trainer: Program) -> Log:
    return Log(
        run.output_dir,
        after,
        tensorboard=run.tensorboard,
        wandb=run.wandb,
        config=dataclasses.asdict(trainer.config),
    )


def _validate(
    validation: Validation,
    step: int,
    state: TrainState,
    run: RunConfig,
    log: Log,
) -> None:
    with busy(f"validating step {step}"):
        losses, sheets = validation.loss(state), validation.draw(state)
    if losses:
        log.metrics(step, losses)
        say(f"step {step}: " + ", ".join(f"{name} {value:.4g}" for name, value in losses.items()))
    for name, sheet in sheets.items():
        if first_process():
            path = run.output_dir / name / f"{step:08d}.png"
            save_image(sheet.image, path, sheet.layout, GENERATED)
            log.picture(step, name, np.asarray(sheet.image))


class _Shown:
    """Progress from the first step on, shown by the first process alone."""

    def __init__(self, stack: contextlib.ExitStack, steps: int) -> None:
        self._stack, self._steps = stack, steps
        self._advance: Advance | None = None

    def __call__(self) -> None:
        if not first_process():
            return
        if self._advance is None:
            self._advance = self._stack.enter_context(progress("train", self._steps, "steps"))
        self._advance(1)
