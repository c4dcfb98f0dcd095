"""Progress that a person can follow: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["Advance", "progress"]

SECONDS_BETWEEN_LINES = 10.0


@runtime_checkable
class Advance(Protocol):
    """Reports `amount` more units done."""

    def __call__(self, amount: float = 1.0) -> None: ...


@contextmanager
def progress(title: str, total: float, unit: str = "") -> Iterator[Advance]:
    """Shows how far a job of `total` units is, on standard error.

    On a terminal this is a bar with the time left; elsewhere a line at the start, every ten
    seconds, and at the end.
    """
    form = ",.0f" if total >= 1000 else ".4g"
    if sys.stderr.isatty():
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn(f"{{task.completed:{form}}}/{{task.total:{form}}} {unit}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        ) as bar:
            task = bar.add_task(title, total=total)
            yield lambda amount=1.0: bar.advance(task, amount)
        return

    start = last = time.monotonic()
    done = 0.0

    def say(text: str) -> None:
        counted = f"{done:{form}}/{total:{form}} {unit}".rstrip()
        print(f"{title}: {counted}{text}", file=sys.stderr, flush=True)

    def advance(amount: float = 1.0) -> None:
        nonlocal done, last
        done += amount
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES and 0 < done < total:
            last = now
            left = (now - start) * (total - done) / done
            say(f", about {left:.0f} s left")

    say("")
    yield advance
    say(f" in {time.monotonic() - start:.1f} s")
