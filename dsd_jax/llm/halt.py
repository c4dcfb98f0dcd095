"""The one switch that ends a run: whoever trips it first says why."""

import asyncio
from typing import NoReturn

__all__ = ["Halt"]


class Halt:
    """Why a run has to end.

    Attributes:
        error: what the run will raise, or None while it goes on.
        wake: set when it is tripped, and by whoever has something for the run.
    """

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.wake = asyncio.Event()

    def trip(self, error: BaseException) -> None:
        """Ends the run with an error, unless it is ending already."""
        if self.error is None:
            self.error = error
        self.wake.set()

    async def forever(self) -> NoReturn:
        """Where the coroutines of a run that ends wait to be cancelled.

        They never see its error, so no stage can take it for an item's.
        """
        await asyncio.Event().wait()
        raise AssertionError
