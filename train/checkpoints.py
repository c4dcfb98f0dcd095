"""Checkpoints of what is trained: written in the background, checked before they are used.

    00000500/state/         Orbax: parameters, moments, averages, step
    00000500/run.json       the recipe, the data's and the base's fingerprints, versions
    00000500/manifest.json  size and SHA-256 of every file; written last, by rename

A folder without a manifest is the rest of a save that was cut off, and is removed. Orbax has no
digest of its content, so a flipped bit would load; here it shows, and the checkpoint before is
taken.

Parameters are stored under per-layer paths, whatever the layout in memory, and restored onto any
mesh and any number of processes.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec

from dsd_jax.checkpoint import OrbaxSource
from dsd_jax.train.cluster import agree, barrier, first_process, say
from dsd_jax.train.state import TrainState
from dsd_jax.types import UserError

__all__ = [
    "FOLDER",
    "SCHEMA",
    "Checkpoints",
    "Keep",
    "find_checkpoints",
    "read_run",
    "read_trained",
    "steps_of",
    "verify",
]

SCHEMA = 1  # of run.json and manifest.json
FOLDER = "checkpoints"  # in the folder of a run, unless told otherwise
STATE, RUN, MANIFEST = "state", "run.json", "manifest.json"
_HASHED_AT_ONCE = 2**22  # bytes
_HASHERS = 8


# Names of leaves


def _names(tree: Any) -> list[str]:
    """`opt_state.1.0.mu.double_blocks.img_attn.qkv.lora_a` and so on, in order of the leaves."""

    def name(key: Any) -> str:
        return str(
            next(getattr(key, part) for part in ("key", "name", "idx") if hasattr(key, part))
        )

    paths = (path for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0])
    return [".".join(map(name, path)).removesuffix(".value") for path in paths]


def _layers(name: str, shape: tuple[int, ...], stacks: Mapping[str, int]) -> list[str]:
    """Per-layer names of a leaf; `[name]` where it has no layer axis."""
    for stack, depth in stacks.items():
        found = re.fullmatch(rf"(.*\.{stack})\.(?!\d)(.*)", name)
        if found and shape[:1] == (depth,):
            return [f"{found[1]}.{layer}.{found[2]}" for layer in range(depth)]
    return [name]


def _split(tree: Any, stacks: Mapping[str, int]) -> dict[str, jax.Array]:
    """Copies of the leaves by per-layer name. Copies: the next step takes over the leaves."""
    flat: dict[str, jax.Array] = {}
    for name, leaf in zip(_names(tree), jax.tree.leaves(tree), strict=True):
        layers = _layers(name, leaf.shape, stacks)
        if layers == [name]:
            flat[name] = jnp.copy(leaf)
        else:
            flat |= {layer: leaf[i] for i, layer in enumerate(layers)}
    return flat


def _join(flat: Mapping[str, jax.Array], like: Any, stacks: Mapping[str, int]) -> Any:
    """The inverse of `_split`, with the structure of `like`."""
    leaves = []
    for name, leaf in zip(_names(like), jax.tree.leaves(like), strict=True):
        layers = _layers(name, leaf.shape, stacks)
        own = [flat[layer] for layer in layers]
        leaves.append(own[0] if layers == [name] else jnp.stack(own))
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _split_shapes(like: Any, stacks: Mapping[str, int]) -> dict[str, jax.ShapeDtypeStruct]:
    """What `_split` makes of `like`, with shardings."""
    flat: dict[str, jax.ShapeDtypeStruct] = {}
    for name, leaf in zip(_names(like), jax.tree.leaves(like), strict=True):
        layers = _layers(name, leaf.shape, stacks)
        shape, where = leaf.shape, leaf.sharding
        if layers != [name]:
            shape = shape[1:]
            if isinstance(where, NamedSharding):
                where = NamedSharding(where.mesh, PartitionSpec(*where.spec[1:]))
        own = jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=where)
        flat |= dict.fromkeys(layers, own)
    return flat


def _nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *parents, leaf = name.split(".")
        node = tree
        for part in parents:
            node = node.setdefault(part, {})
        node[leaf] = value
    return tree


# Files


def _write_json(path: epath.Path, content: object) -> None:
    """Complete or not at all; a bucket replaces objects whole."""
    text = json.dumps(content, indent=1) + "\n"
    if "://" in str(path):
        path.write_text(text)
        return
    partial = Path(path).with_name(f".{path.name}.part")
    with partial.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(Path(path))


def _files(folder: epath.Path) -> Iterator[epath.Path]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _files(entry)
        else:
            yield entry


def _digest(path: epath.Path) -> dict[str, Any]:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(_HASHED_AT_ONCE):
            digest.update(block)
            size += len(block)
    return {"size": size, "sha256": digest.hexdigest()}


def _digests(folder: epath.Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every file but the manifest."""
    files = {str(file.relative_to(folder)): file for file in _files(folder)}
    names = sorted(files.keys() - {MANIFEST, f".{MANIFEST}.part"})
    with ThreadPoolExecutor(_HASHERS) as pool:
        return dict(zip(names, pool.map(_digest, (files[name] for name in names)), strict=True))


def verify(folder: str | Path | epath.Path) -> str | None:
    """What is wrong with a checkpoint, or None.

    Raises:
        UserError: it was written by a newer program.
    """
    root = epath.Path(folder)
    try:
        manifest = json.loads((root / MANIFEST).read_text())
        schema, listed = manifest["schema"], manifest["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return f"{MANIFEST} cannot be read"
    _check_schema(root / MANIFEST, schema)
    held = _digests(root)
    for name, expected in listed.items():
        found = held.get(name)
        if found is None:
            return f"{name} is missing"
        if found["size"] != expected["size"]:
            return f"{name} has {found['size']} bytes, expected {expected['size']}"
        if found != expected:
            return f"{name} has another sha256 than it was written with"
    extra = sorted(held.keys() - listed.keys())
    return f"{extra[0]} does not belong there" if extra else None


def _check_schema(path: epath.Path, schema: object) -> None:
    if not isinstance(schema, int) or schema > SCHEMA:
        raise UserError(
            f"{path} has schema {schema}, but this program knows schemas up to {SCHEMA}; install a "
            "newer dsd-jax"
        )


def find_checkpoints(run: epath.PathLike) -> epath.Path | None:
    """The folder of the checkpoints of a run, given that or the run's own; None: neither."""
    for root in (epath.Path(run) / FOLDER, epath.Path(run)):
        if _folders(root):
            return root
    return None


def steps_of(root: epath.PathLike) -> list[int]:
    """Steps of the finished checkpoints in a folder, ascending; not verified."""
    return [step for step, folder in _folders(root) if (folder / MANIFEST).exists()]


def _folders(root: epath.PathLike) -> list[tuple[int, epath.Path]]:
    root = epath.Path(root)
    if not root.is_dir():
        return []
    found = [(int(p.name), p) for p in root.iterdir() if re.fullmatch(r"\d{8}", p.name)]
    return sorted(found)


def _folder(root: epath.PathLike, step: int) -> epath.Path:
    return epath.Path(root) / f"{step:08d}"


def read_run(folder: epath.Path) -> dict[str, Any]:
    """`run.json` of a checkpoint.

    Raises:
        UserError: unreadable, or written by a newer program.
    """
    path = folder / RUN
    try:
        content = json.loads(path.read_text())
        schema = content["schema"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}); take an older checkpoint") from None
    _check_schema(path, schema)
    return dict(content)


def read_trained(
    root: epath.PathLike, step: int | None = None, *, ema: bool = True
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Trained parameters by per-layer path, on the host, and `run.json`.

    Args:
        root: folder of a run's checkpoints.
        step: which one; default: the newest whole one.
        ema: the averaged parameters, where the run keeps them.

    Raises:
        UserError: no checkpoint, or a damaged one.
    """
    steps = steps_of(root)
    if not steps:
        raise UserError(f"{root} holds no finished checkpoint; `dsd train` writes them")
    if step is not None and step not in steps:
        raise UserError(
            f"{root} has no checkpoint of step {step}; there are {', '.join(map(str, steps))}"
        )
    problems = {}
    for chosen in [step] if step is not None else reversed(steps):
        problem = verify(_folder(root, chosen))
        if problem is None:
            return _read_params(_folder(root, chosen), ema=ema)
        problems[chosen] = problem
        say(f"checkpoint {_folder(root, chosen)} is damaged: {problem}")
    newest = max(problems)
    raise UserError(f"{_folder(root, newest)} is damaged: {problems[newest]}; take another step")


def _read_params(folder: epath.Path, *, ema: bool) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    source = OrbaxSource(str(folder / STATE))
    averaged = ema and any(name.startswith("ema.") for name in source.shapes)
    prefix = "ema." if averaged else "params."
    tensors = {
        name.removeprefix(prefix): source.read(name, tuple(slice(0, n) for n in shape))
        for name, shape in source.shapes.items()
        if name.startswith(prefix)
    }
    return tensors, read_run(folder)


# The run's checkpoints


@dataclasses.dataclass(frozen=True)
class Keep:
    """Which finished checkpoints stay: the last few, and those of round steps."""

    last: int = 2
    every: int = 0

    def drops(self, steps: list[int]) -> list[int]:
        """Of ascending `steps`, those to delete."""
        old = steps[: -self.last]
        return [step for step in old if not (self.every and step % self.every == 0)]


class Checkpoints:
    """Saves and restores the state of one run.

    Saves run in the background, one at a time; an error of one is raised by the next call.

    Args:
        root: their folder, local or `gs://`, seen by all processes.
        run: content of `run.json`.
        stacks: path and depth of the model's stacks.
        keep: which of them stay.
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
        self._held: int | None = None  # the step last saved or restored
        self._first = first_process()

    @property
    def last(self) -> str:
        """The newest finished checkpoint, in words; waits for a save under way."""
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        steps = steps_of(self.root)
        if not steps:
            return "there is no checkpoint yet"
        return f"the last good checkpoint is {_folder(self.root, steps[-1])}"

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
        folder = _folder(self.root, step)
        copies = self._copy(state)
        with self._writing(step):
            if self._first:
                if folder.exists():
                    folder.rmtree()
                folder.mkdir(parents=True)
            barrier(f"save {step}")
            response = ocp.save_async(_absolute(folder / STATE), _nest(copies))
        self._thread = threading.Thread(
            target=self._finish, args=(step, folder, response), name="checkpoint"
        )
        self._thread.start()

    def _copy(self, state: TrainState) -> dict[str, jax.Array]:
        if self._program is None:
            shapes = _split_shapes(state, self._stacks)
            where = {name: shape.sharding for name, shape in shapes.items()}
            self._program = jax.jit(lambda state: _split(state, self._stacks), out_shardings=where)
        return self._program(state)

    def _finish(self, step: int, folder: epath.Path, response: Any) -> None:
        try:
            with self._writing(step):
                response.result()
                if self._first:
                    _write_json(folder / RUN, {"schema": SCHEMA, "step": step, **self._run()})
                    content = {"schema": SCHEMA, "files": _digests(folder)}
                    _write_json(folder / MANIFEST, content)
                    self._prune()
        except BaseException as error:  # noqa: BLE001 - raised again by the main thread
            self._error = error

    def _prune(self) -> None:
        for step in self._keep.drops(steps_of(self.root)):
            folder = _folder(self.root, step)
            (folder / MANIFEST).unlink()  # first, so that what is left cannot pass for whole
            folder.rmtree()

    def wait(self) -> None:
        """Returns when the save under way, if any, is finished.

        Raises:
            UserError: it could not be written.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def check(self) -> None:
        """Raises the error of a save that has failed meanwhile."""
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
            folder = _folder(self.root, step)
            with contextlib.suppress(OSError):
                if self._first and folder.exists():
                    folder.rmtree()
            raise UserError(
                f"cannot save step {step} to {folder}: {_reason(error)}{_free(folder)}; "
                f"{self.last}; make room and run the same command again"
            ) from error
        finally:
            log.disabled = was

    def newest(self) -> int | None:
        """Step of the newest whole checkpoint, the same on every process; None: there is none.

        What a cut-off save left is removed; a damaged checkpoint is set aside with a line on
        standard error, and the one before it is taken.

        Raises:
            UserError: every checkpoint is damaged.
        """
        chosen = self._choose() if self._first else None
        step = agree(-1 if chosen is None else chosen)
        return None if step == -1 else step

    def restore(self, step: int, like: TrainState) -> TrainState:
        """A checkpoint on the devices of `like`.

        Args:
            step: from `newest`.
            like: structure, shapes, dtypes and shardings, abstract or with arrays.

        Raises:
            UserError: it does not fit `like`.
        """
        folder = _folder(self.root, step)
        shapes = _split_shapes(like, self._stacks)
        self._check_fit(folder, shapes)
        flat = ocp.load(_absolute(folder / STATE), _nest(shapes))
        found = dict(zip(_names(flat), jax.tree.leaves(flat), strict=True))
        where = jax.tree.map(lambda x: x.sharding, like)
        join = jax.jit(lambda flat: _join(flat, like, self._stacks), out_shardings=where)
        self._held = step
        return join(found)

    def run_of(self, step: int) -> dict[str, Any]:
        """`run.json` of a checkpoint."""
        return read_run(_folder(self.root, step))

    def _choose(self) -> int | None:
        """Step of the newest whole checkpoint."""
        problem = None
        for step, folder in reversed(_folders(self.root)):
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
                f"no checkpoint in {self.root} is whole; the oldest: {problem}. Choose another "
                "folder to start anew"
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
