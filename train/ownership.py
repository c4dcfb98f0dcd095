"""Keeps a second run out of the folder of a run.

The first process writes `owner.json` into the folder and renews it while it lives. Another `dsd
train` that finds the file checks whether its writer still lives: on the same machine by its
process, on another machine by changes of the file. No clocks are compared.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from etils import epath

from dsd_jax.errors import UserError
from dsd_jax.files import explained, write_object
from dsd_jax.processes import first_process, on_first, say
from dsd_jax.structured import build, read_json
from dsd_jax.train.config import RunConfig

__all__ = ["OWNER", "holding", "owned"]

OWNER = "owner.json"
RENEWED_EVERY = 10.0  # seconds
WAIT = 35.0  # for the file to change: three renewals and the delay of a network file system
SETTLED = 1.0  # after two starts at once, without locks, the later one has overwritten the other


@dataclasses.dataclass(frozen=True)
class Owner:
    """The process that trains in a folder.

    Attributes:
        token: different for every start.
        host: name of the machine of the first process.
        boot: identifies the machine's last start and the container, so that process numbers mean
            something.
        process: its number there.
        started: start of the process in the system's own unit, since process numbers are reused.
        since: time of the start, for people.
        beat: number of renewals.
    """

    token: str
    host: str
    boot: str
    process: int
    started: str
    since: str
    beat: int = 0

    @classmethod
    def this(cls) -> "Owner":
        """Describes this process."""
        return cls(
            token=secrets.token_hex(8),
            host=socket.gethostname(),
            boot=_boot(),
            process=os.getpid(),
            started=_started(os.getpid()),
            since=time.strftime("%Y-%m-%d %H:%M:%S"),
        )

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}, since {self.since}"


class _Hold:
    """The hold of this process on a folder, which a thread renews until `end`."""

    def __init__(self, root: epath.Path, own: Owner) -> None:
        self._root, self._own = root, own
        self._lost: str | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="owner", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises a UserError once the folder has vanished or belongs to another run."""
        if self._lost is not None:
            raise UserError(self._lost)

    def end(self) -> None:
        """Stops renewing, and looks once more."""
        self._ended.set()
        self._thread.join(timeout=RENEWED_EVERY)
        self._look()

    def _renew(self) -> None:
        while not self._ended.wait(RENEWED_EVERY) and self._look():
            self._own = dataclasses.replace(self._own, beat=self._own.beat + 1)
            with contextlib.suppress(OSError, UserError):  # other code reports a full disk
                _write(self._root, self._own)

    def _look(self) -> bool:
        """Whether the folder still belongs to this run."""
        with contextlib.suppress(OSError):  # a network that fails for a moment
            found = _read(self._root)
            if found is not None and found.token != self._own.token:
                self._lost = (
                    f"another `dsd train` ({found}) has taken over {self._root}, since this one "
                    f"gave no sign of life for {WAIT:.0f} s; let that one run"
                )
            elif found is None and not (self._root / OWNER).exists():
                self._lost = (
                    f"{self._root / OWNER} has vanished during the training: the folder was "
                    "removed, moved or replaced; run the same command again, which goes on from "
                    "the newest checkpoint that is there"
                )
        return self._lost is None


@contextlib.contextmanager
def owned(folder: str | Path) -> Iterator[Callable[[], None]]:
    """Holds a folder, local or `gs://`, for this run with all its processes.

    Yields:
        A check that raises a UserError once the folder is lost: it vanished, or another run took
        it over while this process seemed dead.

    Raises:
        UserError: another run holds it, it cannot be written, or it was lost in the end.
    """
    root = epath.Path(folder)
    own, made = Owner.this(), not root.exists()
    try:
        on_first(lambda: _take(root, own))
    except BaseException:
        _leave(root, made=made)
        raise
    if not first_process():
        yield lambda: None
        return
    hold = _Hold(root, own)
    try:
        yield hold.check
    finally:
        hold.end()
        if _token(root) == own.token:
            with contextlib.suppress(OSError):
                (root / OWNER).unlink()
            _leave(root, made=made)
    hold.check()


def _leave(root: epath.Path, *, made: bool) -> None:
    """Removes a folder that this run has made and left nothing in."""
    if made and first_process() and "://" not in str(root):
        with contextlib.suppress(OSError):
            Path(root).rmdir()


def _take(root: epath.Path, own: Owner) -> None:
    """Writes the owner into a folder.

    Raises:
        UserError: another run holds it, or it cannot be written.
    """
    with _turn(root) as alone:
        found = _read(root)
        if found is not None:
            if _lives(root, found):
                raise UserError(
                    f"another `dsd train` is running in {root} ({found}); wait for it, stop it, or "
                    "choose another output_dir"
                )
            say(f"the run before this one ended without a word ({found}); taking over its folder")
        _write(root, own)
        if not alone:
            time.sleep(SETTLED)
        if _token(root) != own.token:
            raise UserError(f"another `dsd train` has just started in {root}; let one of them run")


@contextlib.contextmanager
def _turn(root: epath.Path) -> Iterator[bool]:
    """Makes a folder and keeps other starts in it waiting.

    Yields:
        Whether they wait: buckets and some network file systems have no locks.

    Raises:
        UserError: it cannot be made.
    """
    if "://" in str(root):
        yield False
        return
    with explained(Path(root) / OWNER):
        Path(root).mkdir(parents=True, exist_ok=True)
        number = os.open(root, os.O_RDONLY | os.O_CLOEXEC)
    try:
        alone = False
        with contextlib.suppress(OSError):
            fcntl.flock(number, fcntl.LOCK_EX)
            alone = True
        yield alone
    finally:
        os.close(number)


@contextlib.contextmanager
def holding(run: RunConfig) -> Iterator[Callable[[], None]]:
    """Holds the folders that a run writes to; yields as `owned` does, for all of them.

    Raises:
        UserError: another run holds one of them, it cannot be written, or it was lost in the end.
    """
    with contextlib.ExitStack() as stack:
        folders = dict.fromkeys((str(run.output_dir), run.checkpoint_dir))
        checks = [stack.enter_context(owned(each)) for each in folders if each is not None]

        def check() -> None:
            for each in checks:
                each()

        yield check


def _write(root: epath.Path, own: Owner) -> None:
    write_object(root / OWNER, json.dumps(dataclasses.asdict(own), indent=1) + "\n")


def _read(root: epath.Path) -> Owner | None:
    """Reads the owner; None if there is none, or the file is damaged."""
    try:
        return build(Owner, read_json(root / OWNER, dict), OWNER)
    except UserError:
        return None


def _token(root: epath.Path) -> str | None:
    found = _read(root)
    return None if found is None else found.token


def _lives(root: epath.Path, found: Owner) -> bool:
    """Finds out whether the owner still lives."""
    here = Owner.this()
    if (found.host, found.boot) == (here.host, here.boot):
        return bool(found.started) and _started(found.process) == found.started
    say(f"{root} belongs to a run ({found}); waiting {WAIT:.0f} s to see if it is alive")
    deadline = time.monotonic() + WAIT
    while time.monotonic() < deadline:
        time.sleep(min(1.0, WAIT / 10))
        now = _read(root)
        if now is None:
            return False  # the other run has ended
        if now != found:
            return True
    return False


def _boot() -> str:
    with contextlib.suppress(OSError):
        # Containers may share the name of the machine, but do not see each other's processes.
        container = Path("/proc/self/ns/pid").readlink()
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {container}"
    return ""  # not Linux: the host's name is used instead


def _started(process: int) -> str:
    """Start of a process in ticks since the boot; empty if there is no such process."""
    try:
        # The name in parentheses may hold spaces; the start is the 20th field after it.
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except FileNotFoundError:
        return "" if Path("/proc/self/stat").exists() else _without_proc(process)
    except (OSError, IndexError):
        return ""


def _without_proc(process: int) -> str:
    """`there` where a system without `/proc` has such a process."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return ""
    except OSError:
        pass
    return "there"
