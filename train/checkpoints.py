"""Checkpoints of the training state: written in the background, checked before they are used.

    00000500/state/         Orbax: parameters, moments, averages, step
    00000500/run.json       the recipe, the data's and the base's fingerprints, versions
    00000500/manifest.json  size and SHA-256 of every file; written last, by rename

A folder without a manifest is left from an interrupted save, and is removed. Orbax has no digest of
its content, so it would load a flipped bit; the manifest reveals it, and the checkpoint before is
used.

Parameters are stored under per-layer paths, whatever the layout in memory, and restored onto any
mesh and any number of processes.
"""

import contextlib
import dataclasses
import logging
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint.experimental.v1 as ocp
from etils import epath

from dsd_jax.checkpoint import OrbaxSource, nest
from dsd_jax.errors import UserError
from dsd_jax.files import remove_tree
from dsd_jax.processes import agree, barrier, first_process, say
from dsd_jax.runs import (
    MANIFEST,
    RUN,
    SCHEMA,
    STATE,
    digests,
    folder_of,
    folders,
    read_run,
    steps_of,
    verify,
    write_json,
)
from dsd_jax.train.leaves import join_layers, names_of, split_layers, split_shapes
from dsd_jax.train.state import TrainState

__all__ = ["Checkpoints", "Keep"]


@dataclasses.dataclass(frozen=True)
class Keep:
    """The finished checkpoints to keep: the last few, and those of round steps."""

    last: int = 2
    every: int = 0

    def drops(self, steps: list[int]) -> list[int]:
        """Chooses, among ascending `steps`, those to delete."""
        old = steps[: -self.last]
        return [step for step in old if not (self.every and step % self.every == 0)]


class Checkpoints:
    """Saves and restores the state of one run.

    Saves run in the background, one at a time; the next call raises the error of a failed one.

    Args:
        root: their folder, local or `gs://`, seen by all processes.
        run: content of `run.json`.
        stacks: path and depth of the model's stacks.
        keep: checkpoints to keep.
    """

    def __init__(
        self,
        root: epath.PathLike,
        run: Callable[[], Mapping[str, Any]],
        stacks: Mapping[str, int],
        keep: Keep | None = None,
    ) -> None:
        self.root = epath.Path(root)
        self._run, self._stacks, self._keep = run, dict(stacks), keep or Keep()
        self._program: Callable[[TrainState], dict[str, jax.Array]] | None = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._held: int | None = None  # step that was last saved or restored
        self._first = first_process()

    @property
    def last(self) -> str:
        """Names the newest finished checkpoint for a message; waits for a save under way."""
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        steps = steps_of(self.root)
        if not steps:
            return "there is no checkpoint yet"
        return f"the last good checkpoint is {folder_of(self.root, steps[-1])}"

    def save(self, step: int, state: TrainState) -> None:
        """Starts saving; returns when the state has been copied to the host.

        Does nothing for the step last saved or restored.

        Raises:
            UserError: this save, or the one before, cannot be written.
        """
        self.wait()
        if step == self._held:
            return
        self._held = step
        folder = folder_of(self.root, step)
        copies = self._copy(state)
        with self._writing(step):
            if self._first:
                if folder.exists():
                    folder.rmtree()
                folder.mkdir(parents=True)
            barrier(f"save {step}")
            response = ocp.save_async(_absolute(folder / STATE), nest(copies))
        self._thread = threading.Thread(
            target=self._finish, args=(step, folder, response), name="checkpoint"
        )
        self._thread.start()

    def _copy(self, state: TrainState) -> dict[str, jax.Array]:
        if self._program is None:
            shapes = split_shapes(state, self._stacks)
            where = {name: shape.sharding for name, shape in shapes.items()}
            self._program = jax.jit(
                lambda state: split_layers(state, self._stacks), out_shardings=where
            )
        return self._program(state)

    def _finish(self, step: int, folder: epath.Path, response: Any) -> None:
        try:
            with self._writing(step):
                response.result()
                if self._first:
                    write_json(folder / RUN, {"schema": SCHEMA, "step": step, **self._run()})
                    content = {"schema": SCHEMA, "files": digests(folder)}
                    write_json(folder / MANIFEST, content)
                    self._prune()
        except BaseException as error:  # noqa: BLE001 - raised again by the main thread
            self._error = error

    def _prune(self) -> None:
        for step in self._keep.drops(steps_of(self.root)):
            folder = folder_of(self.root, step)
            (folder / MANIFEST).unlink()  # first, so that the rest cannot pass for a checkpoint
            folder.rmtree()

    def wait(self) -> None:
        """Waits for the save under way, if there is one.

        Raises:
            UserError: it could not be written.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def check(self) -> None:
        """Raises the error of a failed save, if there is one."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    @contextlib.contextmanager
    def _writing(self, step: int) -> Iterator[None]:
        """Turns a failure to write into a message, and leaves nothing half-written."""
        log = logging.getLogger("absl")
        was, log.disabled = log.disabled, True  # Orbax logs a traceback for each of its threads
        try:
            yield
        except UserError:
            raise
        except (OSError, ValueError) as error:  # TensorStore has only ValueError
            folder = folder_of(self.root, step)
            with contextlib.suppress(OSError):
                if self._first:
                    remove_tree(folder)
            raise UserError(
                f"cannot save step {step} to {folder}: {_reason(error)}{_free(folder)}; "
                f"{self.last}; make room and run the same command again"
            ) from error
        finally:
            log.disabled = was

    def newest(self) -> int | None:
        """Finds the step of the newest undamaged checkpoint, the same on every process, or None.

        The rest of an interrupted save is removed. A damaged checkpoint is set aside with a line on
        standard error, and the one before it is used.

        Raises:
            UserError: every checkpoint is damaged.
        """
        chosen = self._choose() if self._first else None
        step = agree(-1 if chosen is None else chosen)
        return None if step == -1 else step

    def restore(self, step: int, like: TrainState) -> TrainState:
        """Loads a checkpoint onto the devices of `like`.

        Args:
            step: step of the checkpoint, from `newest`.
            like: structure, shapes, dtypes and shardings, abstract or with arrays.

        Raises:
            UserError: it does not fit `like`.
        """
        folder = folder_of(self.root, step)
        shapes = split_shapes(like, self._stacks)
        self._check_fit(folder, shapes)
        flat = ocp.load(_absolute(folder / STATE), nest(shapes))
        found = dict(zip(names_of(flat), jax.tree.leaves(flat), strict=True))
        where = jax.tree.map(lambda x: x.sharding, like)
        join = jax.jit(lambda flat: join_layers(flat, like, self._stacks), out_shardings=where)
        self._held = step
        return join(found)

    def run_of(self, step: int) -> dict[str, Any]:
        """`run.json` of a checkpoint."""
        return read_run(folder_of(self.root, step))

    def _choose(self) -> int | None:
        """Finds the step of the newest undamaged checkpoint."""
        problem = None
        for step, folder in reversed(folders(self.root)):
            if not (folder / MANIFEST).exists():
                folder.rmtree()
                continue
            problem = verify(folder)
            if problem is None:
                return step
            aside = folder.with_name(f"{folder.name}.damaged")
            if aside.exists():
                aside.rmtree()
            folder.rename(aside)
            say(
                f"checkpoint {folder.name} is damaged: {problem}; it is now {aside}, and the one "
                "before is taken"
            )
        if problem is not None:
            raise UserError(
                f"every checkpoint in {self.root} is damaged; the oldest: {problem}. Choose "
                "another folder to start anew"
            )
        return None

    def _check_fit(self, folder: epath.Path, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> None:
        held = OrbaxSource(str(folder / STATE)).shapes
        odd = [
            f"{name}: the checkpoint has {held.get(name, 'none')}, this run {expected}"
            for name, expected in sorted(
                {name: leaf.shape for name, leaf in wanted.items()}.items()
            )
            if held.get(name) != expected
        ]
        odd += [f"{name}: only in the checkpoint" for name in sorted(held.keys() - wanted.keys())]
        if odd:
            more = f"\n  and {len(odd) - 4} more" if len(odd) > 4 else ""
            listed = "\n  ".join(odd[:4])
            raise UserError(
                f"{folder} is of a run with another adapter or optimizer:\n  {listed}{more}"
            )


def _absolute(path: epath.Path) -> epath.Path:
    return path if "://" in str(path) else epath.Path(Path(path).absolute())


def _reason(error: BaseException) -> str:
    code = re.search(r"os_error_code='(\d+)'", str(error))
    if code:
        return os.strerror(int(code[1]))
    return getattr(error, "strerror", None) or str(error).split("\n")[0]


def _free(folder: epath.Path) -> str:
    if "://" in str(folder):
        return ""
    held = next(parent for parent in Path(folder).absolute().parents if parent.is_dir())
    return f" ({shutil.disk_usage(held).free / 1e9:.1f} GB free)"
