"""Damages files and reads them, every reader in a process of its own.

    python -m tests.fuzz.run --mutations 20000       # about an hour; `make fuzz`
    python -m tests.fuzz.run --only csv --seed 17 --mutations 1

A reader may refuse a damaged file with a `UserError`, or read it. Any other exception, more than
five seconds or more than a gigabyte is a failure, and so is the end of its process.
"""

import argparse
import dataclasses
import json
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from types import FrameType

from dsd_jax.errors import UserError
from tests.fuzz.mutate import mutated
from tests.fuzz.readers import READERS

__all__ = ["Outcome", "fuzz"]

_SECONDS = 5
_MEGABYTES = 1_000
_LIMIT = 2**32  # bytes; protects the machine
_ROOT = Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of the mutations of one reader."""

    read: int
    refused: int
    failures: tuple[str, ...]


def fuzz(name: str, mutations: int, seed: int = 0) -> Outcome:
    """Runs the mutations `seed` to `seed + mutations - 1` of a reader in another process."""
    command = [sys.executable, "-m", "tests.fuzz.run", "--worker", name]
    command += ["--mutations", str(mutations), "--seed", str(seed)]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    counts = Counter(line["outcome"] for line in lines)
    failures = [f"{name} {line['seed']}: {line['why']}" for line in lines if line.get("why")]
    if done.returncode:
        failures.append(
            f"{name} {seed + len(lines)}: the process ended with {done.returncode}: "
            f"{done.stderr[-500:]}"
        )
    return Outcome(counts["read"], counts["refused"], tuple(failures))


def _work(name: str, seeds: Iterable[int]) -> None:
    reader = READERS[name]
    signal.signal(signal.SIGALRM, _out_of_time)
    resource.setrlimit(resource.RLIMIT_DATA, (_LIMIT, _LIMIT))
    with tempfile.TemporaryDirectory() as folder:
        sound = Path(folder, "sound")
        sound.mkdir()
        target = reader.make(sound).relative_to(sound)
        data = (sound / target).read_bytes()
        reader.read(_copied(sound, Path(folder, "first")) / target)
        before = _peak()
        for seed in seeds:
            own = _copied(sound, Path(folder, "own"))
            (own / target).write_bytes(mutated(data, seed))
            why = ""
            signal.alarm(_SECONDS)
            try:
                reader.read(own / target)
                outcome = "read"
            except UserError:
                outcome = "refused"
            except BaseException as error:  # noqa: BLE001 - whatever it is, it is reported
                outcome = "failed"
                place = traceback.extract_tb(error.__traceback__)[-1]
                why = (
                    f"{type(error).__name__}: {str(error)[:200]} ({place.filename}:{place.lineno})"
                )
            finally:
                signal.alarm(0)
            if _peak() - before > _MEGABYTES:
                why, before = f"more than {_MEGABYTES} MB", _peak()
            sys.stdout.write(json.dumps({"seed": seed, "outcome": outcome, "why": why}) + "\n")
            sys.stdout.flush()
            shutil.rmtree(own)


def _copied(source: Path, target: Path) -> Path:
    shutil.rmtree(target, ignore_errors=True)
    return Path(shutil.copytree(source, target))


def _peak() -> float:
    """Megabytes that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def _out_of_time(_number: int, _frame: FrameType | None) -> None:
    raise TimeoutError(f"more than {_SECONDS} s")


def main() -> int:
    """Runs every reader, prints a table, and returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--mutations", type=int, default=20_000, help="of each reader")
    parser.add_argument("--seed", type=int, default=0, help="of the first mutation")
    parser.add_argument("--only", choices=list(READERS), help="one reader")
    parser.add_argument("--worker", choices=list(READERS), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        _work(given.worker, range(given.seed, given.seed + given.mutations))
        return 0
    failed = False
    print(f"{'reader':14}{'read':>9}{'refused':>9}{'failed':>9}")
    for name in [given.only] if given.only else READERS:
        count = max(1, round(given.mutations * READERS[name].share))
        done = fuzz(name, count, given.seed)
        print(f"{name:14}{done.read:9,}{done.refused:9,}{len(done.failures):9,}", flush=True)
        for failure in done.failures[:20]:
            print(f"    {failure}")
        failed |= bool(done.failures)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
