"""Runs `dsd` commands one after another, as somebody would type them."""

import dataclasses
import shlex
import time
from collections.abc import Callable, Sequence

__all__ = ["Dsd", "Show", "Step", "run_steps"]

Dsd = Callable[[Sequence[str]], int]
"""The command line: the words after `dsd` to the exit status."""
Show = Callable[[str], None]
"""Gets a few lines before every step."""


@dataclasses.dataclass(frozen=True)
class Step:
    """A `dsd` command.

    Attributes:
        title: A few words for what it does.
        words: Its command line after `dsd`.
        prepare: Called before it.
    """

    title: str
    words: Sequence[str]
    prepare: Callable[[], None] = lambda: None

    @property
    def command(self) -> str:
        """The command as it is typed."""
        return f"dsd {shlex.join(self.words)}"


def run_steps(steps: Sequence[Step], dsd: Dsd, show: Show) -> list[tuple[str, float]]:
    """Runs steps in order.

    Returns:
        Each command, and the seconds that it took.

    Raises:
        SystemExit: A step failed or was stopped.
    """
    timed = []
    for number, step in enumerate(steps, start=1):
        step.prepare()
        show(f"\n[{number}/{len(steps)}] {step.title}\n$ {step.command}")
        start = time.monotonic()
        if status := dsd(step.words):
            raise SystemExit(status)
        timed.append((step.command, time.monotonic() - start))
    return timed
