"""The training loop: validate -> save -> next batch -> step, and numbers one step late.

The position is the step and nothing else: batches, noise, dropout and times are functions of
(seed, step), so a run that goes on from a checkpoint takes the steps that it would have taken.
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, Protocol, runtime_checkable

import jax
from jax.sharding import Mesh
from PIL import Image

from dsd_jax.data.load.encoded import Embedding
from dsd_jax.data.load.loader import PairBatch
from dsd_jax.data.load.prefetch import prefetch_to_mesh
from dsd_jax.errors import UserError
from dsd_jax.images import save_png
from dsd_jax.processes import Stop, first_process, on_first, say
from dsd_jax.progress import progress
from dsd_jax.train.checkpoints import Checkpoints, Keep
from dsd_jax.train.config import RunConfig
from dsd_jax.train.flops import peak_tflops
from dsd_jax.train.metrics import Log, Watch, memory
from dsd_jax.train.record import Origin, Recipe, check_base, check_recipe, record
from dsd_jax.train.state import TrainState
from dsd_jax.train.validate import Validation

__all__ = ["BatchSource", "Outcome", "Program", "StepMetrics", "train"]


@runtime_checkable
class BatchSource(Protocol):
    """What the loop asks of the data; `dsd_jax.data.load.loader.Loader` has it.

    Attributes:
        start_step: where iterating begins.
        identity: all that decides what a step loads; JSON.
        null_text: embedding of the empty prompt, where embeddings are loaded.
    """

    start_step: int

    @property
    def identity(self) -> Mapping[str, Any]: ...
    @property
    def null_text(self) -> Embedding | None: ...
    def ids_of(self, step: int) -> Sequence[str]:
        """Ids of the global batch of a step."""

    def check_resume(self, saved: Mapping[str, Any]) -> None:
        """Refuses to go on from a run with another identity."""

    def __iter__(self) -> Iterator[PairBatch]:
        """This process's rows of every batch, from `start_step` on, without end."""


@runtime_checkable
class StepMetrics(Protocol):
    """Numbers of a step, float32 scalars by name (a NamedTuple); one of them is `loss`."""

    @property
    def loss(self) -> Any: ...
    def _asdict(self) -> dict[str, Any]: ...


@runtime_checkable
class Program(Protocol):
    """What the loop asks of what is trained; `dsd_jax.train.trainer.Trainer` has it.

    Attributes:
        mesh: all devices of the run.
        compiled_in: seconds that the last step spent on compiling.
    """

    mesh: Mesh
    compiled_in: float

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
        """The state to go on from."""

    def step(
        self, state: TrainState, batch: PairBatch, step: int
    ) -> tuple[TrainState, StepMetrics]:
        """One update; `state` is used up."""

    def flops(self, size: tuple[int, int]) -> float | None:
        """FLOPs of a step per sample. None means that nobody counts them."""

    def learning_rate(self, step: int) -> float:
        """Of the update that follows `step` updates."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended: after `step` updates, before its last one if it was `stopped`."""

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
) -> Outcome:
    """Trains until the last step, or until the process is asked to stop (SIGTERM).

    Args:
        trainer: model and programs.
        run: where and how.
        source: the data; it is set to the step that the run goes on from.
        validation: held-out pairs; None: no validation.
        preset: for the record.

    Raises:
        UserError: the folder belongs to another run, a step went wrong, a record cannot be read,
            or a checkpoint cannot be written. What was saved before stays.
    """
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
        advance = stack.enter_context(_shown(start, steps))
        stack.callback(checkpoints.wait)  # a save under way is finished, whatever happens below
        batches = stack.enter_context(closing(prefetch_to_mesh(source, trainer.mesh)))
        ledger = Ledger(trainer, run, log, checkpoints)

        for step in range(start, steps + 1):
            last, stopped = step == steps, stop.asked(step)
            if validation and step != found and (last or _due(step, run.eval_every)):
                with ledger.settled():
                    _validate(validation, step, state, run, log)
            if stopped or last or (step and _due(step, run.save_every)):
                with ledger.settled():
                    checkpoints.save(step, state)
            if stopped or last:
                break
            checkpoints.check()
            with ledger.profiled(step):
                batch = ledger.timed(batches)
                state, metrics = trainer.step(state, batch, step)
            ledger.settle()
            ledger.enter(step + 1, metrics, batch, source.ids_of(step))
            advance()
    return Outcome(step, stopped and not last, state)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _restore(
    checkpoints: Checkpoints, step: int, trainer: Program, run: RunConfig, source: BatchSource
) -> Callable[[TrainState], TrainState]:
    """Restores a checkpoint of this run.

    Raises:
        UserError: it is another run's, or none is to be gone on from.
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
        check_base(saved, *trainer.origin)
        if step > trainer.config.steps:
            raise UserError(f"the run is at step {step} already; give --steps above it to train on")

    on_first(check)
    say(f"going on from step {step}")
    return lambda like: checkpoints.restore(step, like)


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
    losses = validation.loss(state)
    log.metrics(step, losses)
    say(f"step {step}: " + ", ".join(f"{name} {value:.4g}" for name, value in losses.items()))
    pixels = validation.pictures(state)
    if pixels is not None and first_process():
        save_png(Image.fromarray(pixels), run.output_dir / "samples" / f"{step:08d}.png")
        log.picture(step, "samples", pixels)


class Ledger:
    """Numbers of the steps: fetched when the next step is under way, checked, written down."""

    def __init__(
        self, trainer: Program, run: RunConfig, log: Log, checkpoints: Checkpoints
    ) -> None:
        self._trainer, self._run, self._log, self._checkpoints = trainer, run, log, checkpoints
        self._watch = Watch(run.max_loss_ratio)
        self._open: tuple[int, StepMetrics, PairBatch, Sequence[str]] | None = None
        self._sums: dict[str, list[float]] = {}
        self._since = time.perf_counter()
        self._waited, self._steps, self._samples = 0.0, 0, 0
        self._warm = False  # the first step's time is that of compiling and filling buffers
        kind = jax.devices()[0].device_kind
        self._peak = run.peak_tflops or peak_tflops(kind)

    def timed(self, batches: Iterator[PairBatch]) -> PairBatch:
        """The next batch; the time until it is there counts as waiting."""
        start = time.perf_counter()
        batch = next(batches)
        self._waited += time.perf_counter() - start
        return batch

    def enter(self, step: int, metrics: StepMetrics, batch: PairBatch, ids: Sequence[str]) -> None:
        """Notes update `step`, whose numbers are still being computed."""
        self._open = step, metrics, batch, ids
        self._log.batch(step, ids)
        if batch.skipped:
            say(f"step {step}: unreadable records were replaced: {_some(batch.skipped)}")

    def settle(self) -> None:
        """Fetches the numbers of the step entered last, if that has not been done.

        Raises:
            UserError: they show that training went wrong.
        """
        if self._open is None:
            return
        (step, metrics, batch, ids), self._open = self._open, None
        values = {name: float(value) for name, value in metrics._asdict().items()}
        problem = self._watch.problem(values)
        finite = all(map(math.isfinite, values.values()))
        if problem and not finite and self._run.skip_bad_batches:
            self._log.skipped(step, ids)
            say(
                f"step {step} is left out: {problem}; {self._log.skips} so far; it was {_some(ids)}"
            )
        elif problem:
            raise UserError(
                f"step {step}: {problem}; the batch was {_some(ids)}; {self._checkpoints.last}; "
                "lower the learning rate, or look at those records"
                + ("" if finite else "; --skip_bad_batches leaves such updates out")
            )
        else:
            for name, value in values.items():
                self._sums.setdefault(name, []).append(value)
        self._steps += 1
        self._samples += batch.global_size
        if step % self._run.log_every == 0 or step == self._trainer.config.steps:
            self._write(step, batch)
        if not self._warm or self._trainer.compiled_in:
            self._warm = True
            self._restart()

    @contextlib.contextmanager
    def settled(self) -> Iterator[None]:
        """For what comes between steps: numbers are settled before, and its time does not count."""
        self.settle()
        start = time.perf_counter()
        yield
        self._since += time.perf_counter() - start

    def _write(self, step: int, batch: PairBatch) -> None:
        values = {name: math.fsum(all_) / len(all_) for name, all_ in self._sums.items()}
        self._sums.clear()
        values["learning_rate"] = self._trainer.learning_rate(step - 1)
        if self._log.skips:
            values["skipped"] = self._log.skips
        if self._warm and self._steps:
            elapsed = time.perf_counter() - self._since
            speed = self._samples / elapsed / jax.device_count()
            values |= {
                "step_seconds": elapsed / self._steps,
                "data_wait_seconds": self._waited / self._steps,
                "samples_per_second_per_device": speed,
            }
            flops = self._trainer.flops(batch.size)
            if self._peak and flops is not None:
                values["mfu"] = speed * flops / (self._peak * 1e12)
            self._restart()
        self._log.metrics(step, values | memory(jax.local_devices()))
        shown = {name: values[name] for name in _SHOWN if name in values}
        say(f"step {step}: " + ", ".join(f"{name} {value:.4g}" for name, value in shown.items()))

    def _restart(self) -> None:
        self._since = time.perf_counter()
        self._waited, self._steps, self._samples = 0.0, 0, 0

    @contextlib.contextmanager
    def profiled(self, step: int) -> Iterator[None]:
        """Traces the steps of the profiler's window."""
        window = self._run.profile
        if window is not None and step + 1 == window[0]:
            jax.profiler.start_trace(str(self._run.output_dir / "profile"))
        yield
        if window is not None and step + 1 == window[1]:
            jax.block_until_ready(jax.live_arrays())
            jax.profiler.stop_trace()


_SHOWN = ("loss", "grad_norm", "learning_rate", "samples_per_second_per_device", "mfu")


def _some(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - 8} more" if len(ids) > 8 else ""
    return ", ".join(ids[:8]) + more


@contextlib.contextmanager
def _shown(start: int, steps: int) -> Iterator[Callable[[], None]]:
    """Progress, on the first process alone."""
    if not first_process():
        yield lambda: None
        return
    with progress("train", steps - start, "steps") as advance:
        yield lambda: advance(1)
