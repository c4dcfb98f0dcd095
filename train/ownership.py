"""Keeps a second run out of the folder of a run.

The first process writes `owner.json` into the folder and renews it while it lives. Another `dsd
train` that finds the file checks whether its writer still lives: on the same machine by its
process, on another machine by changes of the file. No clocks are compared.
"""

import contextlib
import dataclasses
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from etils import epath

from dsd_jax.errors import UserError
from dsd_jax.files import write_object
from dsd_jax.processes import first_process, on_first, say
from dsd_jax.structured import build, read_json
from dsd_jax.train.config import RunConfig

__all__ = ["OWNER", "holding", "owned"]

OWNER = "owner.json"
RENEWED_EVERY = 10.0  # seconds
WAIT = 35.0  # for the file to change: three renewals and the delay of a network file system


@dataclasses.dataclass(frozen=True)
class Owner:
    """The process that trains in a folder.

    Attributes:
        token: different for every start.
        host: name of the machine of the first process.
        boot: identifies the machine's last start, so that process numbers mean something.
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


@contextlib.contextmanager
def owned(folder: str | Path) -> Iterator[None]:
    """Holds a folder, local or `gs://`, for this run with all its processes.

    Raises:
        UserError: another run holds it.
    """
    root = epath.Path(folder)
    own, made = Owner.this(), False

    def take() -> None:
        nonlocal made
        found, made = _read(root), not root.exists()
        if found is not None:
            if _lives(root, found):
                raise UserError(
                    f"another `dsd train` is running in {root} ({found}); wait for it, stop it, or "
                    "choose another output_dir"
                )
            say(f"the run before this one ended without a word ({found}); taking over its folder")
        _write(root, own)  # makes the folder too
        if _token(root) != own.token:
            raise UserError(f"another `dsd train` has just started in {root}; let one of them run")

    on_first(take)
    if not first_process():
        yield
        return
    ended = threading.Event()
    thread = threading.Thread(target=_renew, args=(root, own, ended), name="owner", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=RENEWED_EVERY)
        if _token(root) == own.token:
            with contextlib.suppress(OSError):
                (root / OWNER).unlink()
                if made and "://" not in str(root):
                    Path(root).rmdir()  # removes it only if it is empty


@contextlib.contextmanager
def holding(run: RunConfig) -> Iterator[None]:
    """Holds the folders that a run writes to.

    Raises:
        UserError: another run holds one of them, or it cannot be written.
    """
    with contextlib.ExitStack() as stack:
        for folder in dict.fromkeys((str(run.output_dir), run.checkpoint_dir)):
            if folder is not None:
                stack.enter_context(owned(folder))
        yield


def _renew(root: epath.Path, own: Owner, ended: threading.Event) -> None:
    while not ended.wait(RENEWED_EVERY):
        if _token(root) != own.token:
            return  # removed, or taken over because this process seemed dead
        own = dataclasses.replace(own, beat=own.beat + 1)
        with contextlib.suppress(OSError, UserError):  # other code reports a full disk
            _write(root, own)


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
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
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
