"""The numbers of a run's steps: fetched one step late, checked, averaged, logged."""

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import jax

from dsd_jax.data.load.loader import PairBatch
from dsd_jax.errors import UserError, and_more
from dsd_jax.processes import say
from dsd_jax.progress import SECONDS_BETWEEN_LINES
from dsd_jax.train.checkpoints import Checkpoints
from dsd_jax.train.config import RunConfig
from dsd_jax.train.flops import peak_tflops
from dsd_jax.train.metrics import Log, Watch, memory
from dsd_jax.train.summary import at_risk
from dsd_jax.types import Array

__all__ = ["Counted", "StepLog", "StepMetrics"]

# Numbers of the lines on the screen; a line fits 80 columns.
_SHOWN = {
    "loss": "loss {:.4g}",
    "grad_norm": "gradient {:.3g}",
    "learning_rate": "lr {:.3g}",
    "samples_per_second_per_device": "{:.3g} samples/s a device",
    "mfu": "MFU {:.0%}",
}


@runtime_checkable
class StepMetrics(Protocol):
    """Numbers of a step, float32 scalars by name (a NamedTuple); one of them is `loss`."""

    @property
    def loss(self) -> Array: ...
    def _asdict(self) -> dict[str, Any]: ...


@runtime_checkable
class Counted(Protocol):
    """A program that takes the steps and knows their cost.

    Attributes:
        compiled_in: seconds that the last step spent on compiling.
    """

    compiled_in: float

    def flops(self, size: tuple[int, int]) -> float | None:
        """FLOPs of a step per sample. None if they are not counted."""

    def learning_rate(self, step: int) -> float:
        """Learning rate of update `step + 1`."""


class StepLog:
    """Numbers of the steps: fetched during the next step, checked, logged.

    Args:
        program: program that takes the steps.
        run: settings of logging, and of the numbers that stop a run.
        log: log that they are written to.
        checkpoints: named in the message when a step goes wrong.
        steps: number of steps; the last one is always logged.
    """

    def __init__(
        self, program: Counted, run: RunConfig, log: Log, checkpoints: Checkpoints, steps: int
    ) -> None:
        self._program, self._run, self._log, self._checkpoints = program, run, log, checkpoints
        self._last = steps
        self._watch = Watch(run.max_loss_ratio)
        self._open: tuple[int, StepMetrics, PairBatch, Sequence[str]] | None = None
        self._sums: dict[str, list[float]] = {}
        self._since = time.perf_counter()
        self._waited, self._steps, self._samples = 0.0, 0, 0
        self._warned = False
        self._said = -math.inf  # when a line was last on the screen
        self._warm = False  # the first step compiles and fills buffers, so its time does not count
        kind = jax.devices()[0].device_kind
        self._peak = run.peak_tflops or peak_tflops(kind)

    def timed(self, batches: Iterator[PairBatch]) -> PairBatch:
        """Takes the next batch; the time until it arrives counts as waiting."""
        start = time.perf_counter()
        batch = next(batches)
        self._waited += time.perf_counter() - start
        return batch

    def enter(self, step: int, metrics: StepMetrics, batch: PairBatch, ids: Sequence[str]) -> None:
        """Takes in update `step`, whose numbers are still being computed."""
        self._open = step, metrics, batch, ids
        self._log.batch(step, ids)
        if batch.skipped:
            say(f"step {step}: unreadable records were replaced: {and_more(batch.skipped)}")

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
            skips = self._log.skips
            say(f"step {step} is left out: {problem}; {skips} so far; it was {and_more(ids)}")
        elif problem:
            raise UserError(
                f"step {step}: {problem}; the batch was {and_more(ids)}; {self._checkpoints.last}; "
                "lower the learning rate, or look at those records"
                + ("" if finite else "; --skip_bad_batches leaves such updates out")
            )
        else:
            for name, value in values.items():
                self._sums.setdefault(name, []).append(value)
        self._steps += 1
        self._samples += batch.global_size
        if step % self._run.log_every == 0 or step == self._last:
            self._write(step, batch)
        if not self._warm or self._program.compiled_in:
            self._warm = True
            self._restart()

    @contextlib.contextmanager
    def settled(self) -> Iterator[None]:
        """Surrounds work between steps: settles numbers first, and does not count its time."""
        self.settle()
        start = time.perf_counter()
        yield
        self._since += time.perf_counter() - start

    def _write(self, step: int, batch: PairBatch) -> None:
        values = {name: math.fsum(all_) / len(all_) for name, all_ in self._sums.items()}
        self._sums.clear()
        values["learning_rate"] = self._program.learning_rate(step - 1)
        if self._log.skips:
            values["skipped"] = self._log.skips
        if self._warm and self._steps:
            elapsed = time.perf_counter() - self._since
            speed = self._samples / elapsed / jax.device_count()
            self._warn(elapsed / self._steps)
            values |= {
                "step_seconds": elapsed / self._steps,
                "data_wait_seconds": self._waited / self._steps,
                "samples_per_second_per_device": speed,
            }
            flops = self._program.flops(batch.size)
            if self._peak and flops is not None:
                values["mfu"] = speed * flops / (self._peak * 1e12)
            self._restart()
        self._log.metrics(step, values | memory(jax.local_devices()))
        now = time.perf_counter()
        if step == self._last or now - self._said >= SECONDS_BETWEEN_LINES:
            self._said = now
            shown = (form.format(values[name]) for name, form in _SHOWN.items() if name in values)
            say(f"step {step}: " + ", ".join(shown))

    def _warn(self, seconds: float) -> None:
        """Warns once how much a crash would lose, as soon as the time of a step is known."""
        note = None if self._warned else at_risk(self._run.save_every, self._last, seconds)
        self._warned = True
        if note is not None:
            say(note)

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
