"""Progress that a person can follow: a bar on a terminal, plain lines elsewhere."""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

__all__ = ["SECONDS_BETWEEN_LINES", "Advance", "clock_time", "phase", "progress"]

SECONDS_BETWEEN_LINES = 10.0
MOST_SECONDS_BETWEEN_LINES = 60.0  # for a long job, whose log is read later
SECONDS_BETWEEN_SIGNS = 60.0  # of life, in a long phase


@runtime_checkable
class Advance(Protocol):
    """Reports `amount` more units done."""

    def __call__(self, amount: float = 1.0) -> None: ...


def clock_time(seconds: float) -> str:
    """Hours and minutes: `0:07`, `12:30`."""
    minutes = round(seconds / 60)
    return f"{minutes // 60}:{minutes % 60:02}"


class _Job:
    """Progress of a job, and the time that it still takes.

    The pace is measured from the first unit on; work before that, such as compiling, comes once.
    """

    def __init__(self, total: float, unit: str) -> None:
        self.total, self.done, self._unit = total, 0.0, unit
        # Time at which the first units were done, and their number.
        self._first: tuple[float, float] | None = None
        self._latest = 0.0

    def advance(self, amount: float) -> None:
        self.done += amount
        self._latest = time.monotonic()
        if self._first is None and self.done > 0:
            self._first = self._latest, self.done

    @property
    def counted(self) -> str:
        """`12/1,200 images`; parts of a unit are shown only where the total has them."""
        done, total = self.done, self.total
        if float(total).is_integer():
            shown = f"{int(done + 1e-6):,}/{int(total):,}"
        else:
            form = ",.0f" if total >= 1000 else ".4g"
            shown = f"{done:{form}}/{total:{form}}"
        return f"{shown} {self._unit}".rstrip()

    @property
    def left(self) -> str:
        """Time left, or nothing before the second unit."""
        if self._first is None or not self._first[1] < self.done < self.total:
            return ""
        since, before = self._first
        seconds = (self._latest - since) * (self.total - self.done) / (self.done - before)
        return "less than a minute left" if seconds < 60 else f"about {clock_time(seconds)} h left"


class _Elapsed(ProgressColumn):
    """Shows the time left of a job, or the time that a phase has taken."""

    def render(self, task: Task) -> Text:
        job = task.fields["job"]
        return Text(f"{task.elapsed or 0:.0f} s" if job is None else job.left)


_bar: Progress | None = None  # the bar on the terminal; further jobs become lines of it


@contextmanager
def _on_terminal() -> Iterator[Progress]:
    global _bar  # noqa: PLW0603 - a terminal has one bar
    if _bar is not None:
        yield _bar
        return
    console = Console(stderr=True)
    words, counted = (
        TextColumn(text, table_column=Column(no_wrap=True))  # the bar yields
        for text in ("{task.description}", "{task.fields[counted]}")
    )
    columns = words, BarColumn(bar_width=None), counted, _Elapsed()
    with Progress(*columns, console=console, expand=True) as _bar:
        try:
            yield _bar
        finally:
            _bar = None


@contextmanager
def progress(title: str, total: float, unit: str = "", first: str = "") -> Iterator[Advance]:
    """Shows the progress of a job of `total` units, on standard error.

    On a terminal this is a bar with the time left; elsewhere a line at the start, every ten
    seconds (every minute of a long job), and at the end.

    Args:
        title: name of the work.
        total: number of units.
        unit: name of a unit, in the plural.
        first: a phase that lasts until the first units are done, such as "compiling".
    """
    with contextlib.ExitStack() as before, _counted(title, _Job(total, unit)) as advance:
        if first:
            before.enter_context(phase(first))

        def step(amount: float = 1.0) -> None:
            before.close()
            advance(amount)

        yield step


@contextmanager
def _counted(title: str, job: _Job) -> Iterator[Advance]:
    if sys.stderr.isatty():
        with _on_terminal() as bar:
            task = bar.add_task(title, total=job.total, counted=job.counted, job=job)

            def show(amount: float = 1.0) -> None:
                job.advance(amount)
                bar.update(task, advance=amount, counted=job.counted)

            yield show
        return

    start = last = time.monotonic()

    def say(text: str) -> None:
        print(f"{title}: {job.counted}{text}", file=sys.stderr, flush=True)

    def advance(amount: float = 1.0) -> None:
        nonlocal last
        job.advance(amount)
        now = time.monotonic()
        pause = max(SECONDS_BETWEEN_LINES, min(MOST_SECONDS_BETWEEN_LINES, (now - start) / 60))
        if now - last >= pause and 0 < job.done < job.total:
            last = now
            say(f", {job.left}" if job.left else "")

    say("")
    yield advance
    say(f" in {time.monotonic() - start:.1f} s")


@contextmanager
def phase(title: str) -> Iterator[None]:
    """Shows the name of a phase without units to count, and how long it has taken.

    On a terminal this is a line that goes away at the end; elsewhere a line at the start, every
    minute, and at the end of what took more than a second.
    """
    if sys.stderr.isatty():
        with _on_terminal() as bar:
            task = bar.add_task(title, total=None, counted="", job=None)
            try:
                yield
            finally:
                bar.remove_task(task)
        return
    print(f"{title} ...", file=sys.stderr, flush=True)
    start, ended = time.monotonic(), threading.Event()

    def sign() -> None:
        while not ended.wait(SECONDS_BETWEEN_SIGNS):
            spent = clock_time(time.monotonic() - start)
            with contextlib.suppress(ValueError):  # closed meanwhile
                print(f"{title}: {spent} h so far", file=sys.stderr, flush=True)

    threading.Thread(target=sign, name="phase", daemon=True).start()
    try:
        yield
    finally:
        ended.set()
    seconds = time.monotonic() - start
    if seconds >= 1:
        print(f"{title}: done in {seconds:.1f} s", file=sys.stderr, flush=True)
