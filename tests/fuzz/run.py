"""Damages files and reads them, every reader in a process of its own.

    python -m tests.fuzz.run --minutes 60        # `make fuzz`
    python -m tests.fuzz.run --only csv --seed 17 --mutations 1

A reader may refuse a damaged file with a `UserError`; or return what it returns for the sound file;
or return something else, if the format has nothing that could show the damage. Anything else is a
failure: another exception, more than five seconds, more than a gigabyte, a file that is opened
outside of the folder, the end of the process, or damage that a digest should have shown.
"""

import argparse
import dataclasses
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any

from dsd_jax.errors import UserError
from tests.fuzz.digest import digest
from tests.fuzz.mutate import mutated
from tests.fuzz.reader import Reader
from tests.fuzz.readers import READERS

__all__ = ["Outcome", "fuzz"]

_SECONDS = 5
_HANGS = 60  # seconds after which a reader that does not even hear the clock is ended
_MEGABYTES = 1_000
_LIMIT = 2**32  # bytes; protects the machine
_ROOT = Path(__file__).parents[2]
# Besides its own folder, a reader may open the program, its libraries, and the system's answers.
_OPEN = (
    *(str(_ROOT), sys.prefix, sys.base_prefix),
    *("/proc/", "/sys/", "/usr/", "/etc/localtime", "/dev/null", "/dev/urandom"),
)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The mutations of one reader, by what became of them.

    Attributes:
        refused: a message said that the file cannot be used.
        equal: the same was read as from the sound file.
        unseen: something else was read, and the format could not have told.
        failures: what broke the rule, a line each.
    """

    refused: int
    equal: int
    unseen: int
    failures: tuple[str, ...]

    @property
    def count(self) -> int:
        """Number of mutations."""
        return self.refused + self.equal + self.unseen + len(self.failures)


@dataclasses.dataclass(frozen=True)
class _Extent:
    """The mutations to make: from which seed on, how many, and for how long at most."""

    seed: int
    mutations: int
    seconds: float


class _OutOfTime(BaseException):
    """Not an `Exception`, so that no reader takes it for a damaged file."""


def fuzz(name: str, mutations: int, seed: int = 0, seconds: float = float("inf")) -> Outcome:
    """Damages the files of a reader, in a process of its own; in another one after each that ends.

    Args:
        name: of the reader.
        mutations: how many; number i is made with seed `seed + i`.
        seed: of the first mutation.
        seconds: after which no further mutation is begun.
    """
    counts: Counter[str] = Counter()
    failures: list[str] = []
    end = time.monotonic() + seconds
    done = 0
    while done < mutations and (done == 0 or time.monotonic() < end):
        extent = _Extent(seed + done, mutations - done, end - time.monotonic())
        for outcome, why in _outcomes(name, extent):
            done += 1
            counts[outcome] += 1
            if outcome == "failed":
                failures.append(f"{name} {seed + done - 1}: {why}")
    return Outcome(counts["refused"], counts["equal"], counts["unseen"], tuple(failures))


def _outcomes(name: str, extent: _Extent) -> Iterator[tuple[str, str]]:
    """The outcome of each mutation, with the reason; ends early if the process does."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(theirs, READERS[name], extent))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # JAX has threads as soon as it computes, and not before
        process.start()
    theirs.close()
    try:
        while ours.poll(_HANGS):
            outcome, why = ours.recv()
            if outcome == "done":
                return
            if outcome == "unsound":
                raise RuntimeError(f"{name}: the sound file cannot be read: {why}")
            yield outcome, why
        process.kill()
        yield "failed", f"more than {_HANGS} s in a library"
    except EOFError:
        process.join()
        yield "failed", f"the process ended with {process.exitcode}"
    finally:
        process.join()


def _work(pipe: Connection, reader: Reader, extent: _Extent) -> None:
    signal.signal(signal.SIGALRM, _out_of_time)
    resource.setrlimit(resource.RLIMIT_DATA, (_LIMIT, _LIMIT))
    # Libraries print what they find wrong, and panics of Rust; the table has room for neither.
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "there")
        root.mkdir()
        (root / "outside").write_text('{"secret": 1}\n')
        sound, own = root / "sound", root / "own"
        sound.mkdir()
        try:
            target = reader.make(sound).relative_to(sound)
            expected = digest(reader.read(_copied(sound, own) / target))
        except Exception:  # noqa: BLE001 - whatever it is, it is reported
            pipe.send(("unsound", traceback.format_exc()))
            return
        reading = _Reading(reader, own, expected)
        end = time.monotonic() + extent.seconds
        for seed in range(extent.seed, extent.seed + extent.mutations):
            _damage(_copied(sound, own) / target, seed)
            pipe.send(reading.outcome(target))
            if time.monotonic() > end:
                break
    pipe.send(("done", ""))


def _damage(path: Path, seed: int) -> None:
    """Damages a file, or one of the files in a folder."""
    if path.is_dir():
        files = sorted(own for own in path.rglob("*") if own.is_file())
        path = random.Random(seed).choice(files)
    path.write_bytes(mutated(path.read_bytes(), seed))


class _Reading:
    """Reads damaged files, and watches what is opened and how much memory is taken."""

    def __init__(self, reader: Reader, own: Path, expected: str) -> None:
        self._reader, self._own, self._expected = reader, own, expected
        self._peak = _peak()
        self._outside: list[str] = []
        self._watching = False
        sys.addaudithook(self._heard)

    def outcome(self, target: Path) -> tuple[str, str]:
        self._outside.clear()
        self._watching = True
        signal.alarm(_SECONDS)
        try:
            found = self._reader.read(self._own / target)
            signal.alarm(0)
            outcome = "equal" if digest(found) == self._expected else "unseen"
        except UserError:
            outcome = "refused"
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is reported
            place = traceback.extract_tb(error.__traceback__)[-1]
            words = f"{type(error).__name__}: {str(error)[:200]}"
            return "failed", f"{words} ({place.filename}:{place.lineno})"
        finally:
            signal.alarm(0)
            self._watching = False
        if self._outside:
            return "failed", f"opened {self._outside[0]}"
        if _peak() - self._peak > _MEGABYTES:
            self._peak = _peak()
            return "failed", f"more than {_MEGABYTES} MB"
        if outcome == "unseen" and self._reader.sealed:
            return "failed", "the digests did not show the damage"
        return outcome, ""

    def _heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and self._watching and isinstance(arguments[0], str | bytes):
            path = os.path.realpath(os.fsdecode(arguments[0]))
            if not path.startswith((str(self._own), *_OPEN)):
                self._outside.append(path)


def _copied(source: Path, target: Path) -> Path:
    shutil.rmtree(target, ignore_errors=True)
    return Path(shutil.copytree(source, target))


def _peak() -> float:
    """Megabytes that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def _out_of_time(_number: int, _frame: FrameType | None) -> None:
    raise _OutOfTime(f"more than {_SECONDS} s")


def main() -> int:
    """Runs every reader, prints a table, and returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--mutations", type=int, help="of each reader; fewer of slow ones")
    parser.add_argument("--minutes", type=float, help="for all readers, in equal parts")
    parser.add_argument("--seed", type=int, default=0, help="of the first mutation")
    parser.add_argument("--only", choices=list(READERS), help="one reader")
    parser.add_argument("--json", action="store_true", help="one line of JSON for each reader")
    given = parser.parse_args()
    if (given.mutations is None) == (given.minutes is None):
        parser.error("give either --mutations or --minutes")
    names = [given.only] if given.only else list(READERS)
    if not given.json:
        print(_line("reader", "mutations", "refused", "equal", "unseen", "broken"))
    found = []
    for name in names:
        if given.minutes is None:
            outcome = fuzz(name, max(3, round(given.mutations * READERS[name].share)), given.seed)
        else:
            outcome = fuzz(name, sys.maxsize, given.seed, 60 * given.minutes / len(names))
        found.append(outcome)
        if given.json:
            print(json.dumps({"reader": name, **dataclasses.asdict(outcome)}), flush=True)
            continue
        print(_row(name, [outcome]), flush=True)
        for failure in outcome.failures[:20]:
            print(f"    {failure}", flush=True)
    if not given.json:
        print(_row("all", found))
    return int(any(outcome.failures for outcome in found))


def _row(name: str, outcomes: list[Outcome]) -> str:
    counts = [(o.count, o.refused, o.equal, o.unseen, len(o.failures)) for o in outcomes]
    return _line(name, *(f"{sum(column):,}" for column in zip(*counts, strict=True)))


def _line(name: str, *cells: str) -> str:
    return f"{name:24}" + "".join(f"{cell:>11}" for cell in cells)


if __name__ == "__main__":
    sys.exit(main())
