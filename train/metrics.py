"""The log files of a run, and the watch that notices when training goes wrong.

    metrics.jsonl      one line per logged step: {"step": 120, "loss": ...}
    batch_ids.jsonl    one line per step: {"step": 120, "ids": [...]}
    skipped.jsonl      one line per update that was left out
    tensorboard/       the same numbers as event files, where they are asked for

Step n is the n-th update. Every line is flushed at once, so a killed run has logged every step that
it finished. When the run resumes, the lines after its checkpoint are removed, so no step is logged
twice.
"""

import importlib
import json
import math
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from dsd_jax.errors import UserError
from dsd_jax.extras import require
from dsd_jax.structured import Limits, json_lines, parse_json

__all__ = [
    "BATCH_IDS",
    "METRICS",
    "SKIPPED",
    "Journal",
    "Log",
    "Watch",
    "memory",
    "read_metrics",
]

METRICS, BATCH_IDS, SKIPPED = "metrics.jsonl", "batch_ids.jsonl", "skipped.jsonl"
_LINE = Limits(lenient=True)  # a number of a run that went wrong may be NaN
_WINDOW = 100  # losses that the running median is taken over
_LEAST = 20  # losses before the median is used


class Journal:
    """A JSONL file in order of `step`, from which later steps can be removed.

    Args:
        path: the file.
        after: last step to keep; lines of later steps and a cut-off last line are removed.
    """

    def __init__(self, path: Path, after: int) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            with path.open("r+b") as file:
                file.truncate(_end_of(file, after))
        self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, **content: float | str | list[str]) -> None:
        """Appends a line."""
        self._file.write(json.dumps({"step": step, **content}, allow_nan=True) + "\n")
        self._file.flush()

    def count(self) -> int:
        """Counts the lines of the file."""
        with self.path.open("rb") as file:
            return sum(1 for _ in file)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _end_of(file: Any, step: int) -> int:
    """Counts the bytes of the lines up to `step`."""
    end = 0
    for line in file:
        try:
            own = parse_json(line, METRICS, dict, _LINE)["step"]
        except (ValueError, KeyError):
            break
        if type(own) is not int or own > step or not line.endswith(b"\n"):
            break
        end += len(line)
    return end


def read_metrics(output_dir: str | Path) -> list[dict[str, float]]:
    """Reads the numbers of `metrics.jsonl` line by line, without lines that are damaged.

    Raises:
        UserError: there is no such file, or nothing in it.
    """
    path = Path(output_dir) / METRICS
    if not path.is_file():
        raise UserError(f"{output_dir} is not the folder of a run: it has no {METRICS}")
    rows = [
        {name: own for name, own in row.items() if type(own) in (int, float)}
        for _, row in json_lines(path, _LINE)
        if isinstance(row, dict) and type(row.get("step")) is int
    ]
    if not rows:
        raise UserError(f"{path} is empty so far; wait until the run has logged a step")
    return rows


class Log:
    """The run's files and services; does nothing on any process but the first.

    Args:
        folder: the run's folder.
        after: step that the run resumes at; lines of later steps are removed.
        tensorboard: write event files.
        wandb: project on Weights & Biases.
        config: settings that are shown beside the curves there.

    Raises:
        UserError: tensorboardX or wandb is asked for and not installed.
    """

    def __init__(
        self,
        folder: Path,
        after: int,
        *,
        tensorboard: bool = False,
        wandb: str | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = folder
        self._active = jax.process_index() == 0
        self.skips = 0  # skipped updates so far
        self._board: Any = None
        self._wandb: Any = None
        if not self._active:
            return
        if tensorboard:
            require("tensorboard")
        if wandb is not None:
            try:
                module = importlib.import_module("wandb")
            except ImportError:
                raise UserError(
                    "wandb is not installed; `pip install wandb`, or leave out --wandb"
                ) from None
            self._wandb = module.init(
                project=wandb, dir=str(folder), name=folder.name, config=dict(config or {})
            )
        self._metrics = Journal(folder / METRICS, after)
        self._ids = Journal(folder / BATCH_IDS, after)
        self._skipped = Journal(folder / SKIPPED, after)
        self.skips = self._skipped.count()
        if tensorboard:
            from tensorboardX import SummaryWriter  # noqa: PLC0415 - an extra

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=after + 1)

    def batch(self, step: int, ids: Sequence[str]) -> None:
        """Logs the records that update `step` was made with."""
        if self._active:
            self._ids.write(step, ids=list(ids))

    def skipped(self, step: int, ids: Sequence[str]) -> None:
        """Logs a skipped update."""
        self.skips += 1
        if self._active:
            self._skipped.write(step, ids=list(ids))

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Logs numbers by name."""
        if not self._active:
            return
        self._metrics.write(step, **values)
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(dict(values), step=step)

    def picture(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Sends a picture, uint8 `[h, w, 3]`, to the services; the caller writes files."""
        if self._board is not None:
            self._board.add_image(name, pixels, step, dataformats="HWC")
        if self._wandb is not None:
            image = importlib.import_module("wandb").Image(pixels)
            self._wandb.log({name: image}, step=step)

    def __enter__(self) -> "Log":  # noqa: PYI034 - beartype wants the class
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._active:
            return
        for journal in (self._metrics, self._ids, self._skipped):
            journal.close()
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish(exit_code=int(error is not None))


class Watch:
    """Tells whether a step went wrong.

    Args:
        ratio: multiple of the median loss that is too large; 0 checks only for finite numbers.
    """

    def __init__(self, ratio: float) -> None:
        self._ratio = ratio
        self._losses: deque[float] = deque(maxlen=_WINDOW)

    def problem(self, values: Mapping[str, float]) -> str | None:
        """Describes what is wrong with the numbers of a step; None if nothing is."""
        for name, value in values.items():
            if not math.isfinite(value):
                return f"{name} is {value}"
        loss = values["loss"]
        if self._ratio and len(self._losses) >= _LEAST:
            median = statistics.median(self._losses)
            if loss > self._ratio * median:
                return f"the loss is {loss:.4g}, {loss / median:.1f} times its running median"
        self._losses.append(loss)
        return None


@runtime_checkable
class Measured(Protocol):
    """A device that tells how much of its memory is used; `jax.Device` is one."""

    def memory_stats(self) -> dict[str, int] | None: ...


def memory(devices: Sequence[Measured]) -> dict[str, float]:
    """GiB in use and peak GiB on the fullest local device; empty if devices do not tell."""
    found = [stats for d in devices if (stats := d.memory_stats())]
    names = {"memory_gib": "bytes_in_use", "memory_peak_gib": "peak_bytes_in_use"}
    return {
        ours: max(stats[theirs] for stats in found) / 2**30
        for ours, theirs in names.items()
        if found and all(theirs in stats for stats in found)
    }
