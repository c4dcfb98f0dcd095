"""Progress output while images are made, and models that are loaded at their first use."""

import contextlib
import gc
import sys
from collections.abc import Callable, Iterator
from typing import Generic, Literal, TypeVar

from dsd_jax.progress import phase

__all__ = ["Lazy", "Shown", "in_notebook", "shown_phase"]

Shown = Literal["nothing", "phases", "all"]
"""Amount of output: nothing, the phases (loading, encoding, ...), or sampling steps as well."""

T = TypeVar("T")


def in_notebook() -> bool:
    """Whether this runs in a Jupyter notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"


def shown_phase(title: str, show: Shown) -> contextlib.AbstractContextManager[None]:
    """`dsd_jax.progress.phase`, unless nothing is to be shown."""
    return contextlib.nullcontext() if show == "nothing" else phase(title)


class Lazy(Generic[T]):
    """A large object that is made at its first use, and again after it was dropped.

    Args:
        title: its name for the user.
        make: makes it.
        keep: keep it between its uses.

    Attributes:
        value: the object, while it is in memory.
    """

    def __init__(self, title: str, make: Callable[[], T], *, keep: bool) -> None:
        self._title, self._make, self._keep = title, make, keep
        self.value: T | None = None

    @contextlib.contextmanager
    def use(self, show: Shown) -> Iterator[T]:
        """Makes it if needed, and drops it at the end unless it is to be kept."""
        if self.value is None:
            with shown_phase(f"reading the {self._title}", show):
                if not self._keep:
                    # NNX modules lie in reference cycles, so dropped ones are collected now.
                    gc.collect()
                self.value = self._make()
        try:
            yield self.value
        finally:
            if not self._keep:
                self.value = None
