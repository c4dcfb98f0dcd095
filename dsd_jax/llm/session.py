"""A run of questions over items: one coroutine per item, which asks and makes a row."""

import asyncio
import contextlib
import dataclasses
import functools
import itertools
import logging
import signal
import threading
from collections.abc import Awaitable, Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from dsd_jax.errors import UserError
from dsd_jax.llm.asking import Asker, Setting, Stop
from dsd_jax.llm.batched import Batched
from dsd_jax.llm.config import ProviderConfig
from dsd_jax.llm.ledger import Caps, Ledger
from dsd_jax.llm.messages import Ask
from dsd_jax.llm.online import Online
from dsd_jax.llm.prices import load_prices
from dsd_jax.llm.providers import way_to
from dsd_jax.llm.scrub import Scrubber, guard_logs
from dsd_jax.llm.transport import Access

__all__ = ["Session"]

T = TypeVar("T")
R = TypeVar("R")

GRACE_S = 20.0  # wait for answers that are on their way when the run ends
_log = logging.getLogger(__name__)


class Session:
    """Runs the coroutines of a stage against one provider, with one ledger.

        session = Session(provider, folder / "ledgers/judge-00012.sqlite")
        for pair, row in session.run(pairs, work): ...

    The same coroutines serve all modes of the provider.
    """

    def __init__(
        self, provider: ProviderConfig, ledger: Path | None, others: Sequence[Path] = ()
    ) -> None:
        """Checks what can be checked before anything is sent.

        Args:
            provider: The provider to ask.
            ledger: File of the ledger, named `<stage>-<part>.sqlite`; caps count all parts of the
                stage in that folder. None keeps it in memory, for questions that are asked once.
            others: Ledgers in other folders whose spending the caps count too.

        Raises:
            UserError: There is no key, or a cap on money for a model without a price.
        """
        self.provider, self.ledger, self._others = provider, ledger, tuple(others)
        if ledger is None and provider.mode != "online":
            raise UserError(f'mode "{provider.mode}" needs a ledger on disk; use mode "online"')
        self._access = Access(provider.key(), ledger)
        self._scrub = Scrubber(self._access.secret)
        for name, value in dataclasses.asdict(provider).items():
            if self._scrub.holds(str(value)):  # settings are stored, shown and shared
                raise UserError(f"{name} holds the key; take it out, the key is known already")
        self._prices = load_prices(provider.prices)
        if provider.max_cost is not None and provider.model not in self._prices.models:
            raise UserError(
                f"max_cost needs the price of `{provider.model}`, which the table of "
                f"{self._prices.date} does not have; give `prices`, a file with it, or cap "
                "max_calls and max_tokens instead"
            )
        self._undecided = self._noted = 0
        self._stop: Stop | None = None

    def note(self, undecided: bool) -> None:
        """Counts an answer as decided or undecided; too many undecided ones end the run."""
        self._noted += 1
        self._undecided += undecided
        share = self._undecided / self._noted
        if self._noted < self.provider.undecided_after or share <= self.provider.max_undecided:
            return
        if self._stop is not None:
            self._stop.set(
                UserError(
                    f"{self._undecided} of {self._noted} answers of `{self.provider.model}` were "
                    f"undecided, more than max_undecided = {self.provider.max_undecided:g}; look "
                    "at them, then change the model or the wording, or raise it"
                )
            )

    def run(
        self, items: Iterable[T], work: Callable[[T, Ask], Awaitable[R]]
    ) -> Generator[tuple[T, R], None, None]:
        """Makes a row of every item by `await work(item, ask)`, and yields rows as they finish.

        Items are taken only when there is room for them. Ctrl-C and SIGTERM stop the run: answers
        that are on their way are still kept, and KeyboardInterrupt is raised. Closing the generator
        stops it too.

        Raises:
            UserError: Nothing can be asked any more (bad key, spent quota, a cap, another model,
                too many undecided answers, a server that does not answer). Whatever `work` raises
                ends the run too.
        """
        if self._access.secret is not None:
            guard_logs(self._scrub)
        with asyncio.Runner() as runner, contextlib.closing(self._open_ledger()) as ledger:
            loop = runner.get_loop()
            run = runner.run(self._begin(ledger, items, work))
            self._stop = run.stop
            try:
                with _signals(loop, run):
                    while rows := loop.run_until_complete(run.step()):
                        yield from rows
                    loop.run_until_complete(run.close(GRACE_S))
            finally:
                self._stop = None
                loop.run_until_complete(run.close(0.0))

    def _open_ledger(self) -> Ledger:
        caps = Caps(self.provider.max_calls, self.provider.max_tokens, self.provider.max_cost)
        return Ledger(self.ledger, caps, self._others)

    async def _begin(
        self, ledger: Ledger, items: Iterable[T], work: Callable[[T, Ask], Awaitable[R]]
    ) -> "_Run[T, R]":
        provider = self.provider
        setting = Setting(provider, ledger, Stop(), self._prices, self._scrub)
        transport = way_to(provider.kind, provider.mode)(provider, self._access)
        if provider.mode == "online":
            return _Run(items, work, Online(setting, transport), live=2 * provider.max_in_flight)
        return _Run(items, work, Batched(setting, transport), live=provider.items_at_once)


class _Run(Generic[T, R]):
    """One run: the live coroutines and their rows."""

    def __init__(
        self,
        items: Iterable[T],
        work: Callable[[T, Ask], Awaitable[R]],
        asker: Asker,
        live: int,
    ) -> None:
        self.stop = asker.stop
        self._items, self._work, self._asker, self._live = iter(items), work, asker, live
        self._numbers = itertools.count()
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._rows: list[tuple[T, R]] = []
        self._closed = False
        self.heard: signal.Signals | None = None

    async def step(self) -> list[tuple[T, R]]:
        """Rows that are finished, at least one; none at the end.

        Raises:
            BaseException: The reason that ends the run.
        """
        while True:
            if self.stop.error is not None:
                await self.close(GRACE_S)
                raise self.stop.error
            if self._rows:
                rows, self._rows = self._rows, []
                return rows
            self._fill()
            if not self._tasks:
                return []
            self._asker.on_idle(len(self._tasks))
            await self.stop.wake.wait()
            self.stop.wake.clear()

    def _fill(self) -> None:
        while len(self._tasks) < self._live:
            try:
                item = next(self._items)
            except StopIteration:
                return
            number = next(self._numbers)
            self._tasks[number] = asyncio.ensure_future(self._one(number, item))

    async def _one(self, number: int, item: T) -> None:
        try:
            row = await self._work(item, functools.partial(self._asker.ask, number))
            self._asker.note_row(number, row)
            self._rows.append((item, row))  # looked up after the wait: the list is replaced
        except Exception as error:  # noqa: BLE001 - raised again where the run is driven
            self.stop.set(error)
        del self._tasks[number]
        self.stop.wake.set()

    def interrupt(self, number: signal.Signals) -> None:
        """Handles Ctrl-C: the first waits for answers on their way, the second does not."""
        self.heard = number
        if isinstance(self.stop.error, KeyboardInterrupt):
            for task in self._asker.sending:
                task.cancel()
        elif self._asker.sending:
            _log.warning("waiting for %d answers on their way", len(self._asker.sending))
        self.stop.set(KeyboardInterrupt())

    async def close(self, grace: float) -> None:
        """Keeps answers that come within `grace` seconds, then ends everything."""
        if self._closed:
            return
        self._closed = True
        if self._asker.sending and grace:
            await asyncio.wait(set(self._asker.sending), timeout=grace)
        tasks = {*self._asker.sending, *self._tasks.values()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._asker.close()


@contextlib.contextmanager
def _signals(loop: asyncio.AbstractEventLoop, run: _Run[Any, Any]) -> Iterator[None]:
    """Lets Ctrl-C and SIGTERM end the run between its steps; only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    # `dsd_jax.interrupt` has set it; the event loop sets its own.
    listener = signal.set_wakeup_fd(-1)
    for number in before:
        loop.add_signal_handler(number, run.interrupt, number)
    try:
        yield
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)
        signal.set_wakeup_fd(listener, warn_on_full_buffer=False)
        if run.heard is not None and callable(handler := before[run.heard]):
            handler(run.heard, None)  # now that the answers are stored, the program handles it too
