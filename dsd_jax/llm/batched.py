"""Questions in batches: every coroutine runs until it waits, then all their questions go out."""

import asyncio
import dataclasses
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import TypeVar

from dsd_jax.errors import UserError
from dsd_jax.llm.asking import NOT_IN_FORM, Asker, Setting
from dsd_jax.llm.ledger import Batch
from dsd_jax.llm.messages import Answer, Request, Unanswered
from dsd_jax.llm.online import PATIENCE_S, wait_before
from dsd_jax.llm.transport import AnswersPending, BatchTransport, Failed, Raw

__all__ = ["Batched"]

T = TypeVar("T")

SETTLE_S = 20.0  # seconds until an unconfirmed batch is looked for in the provider's list


@dataclasses.dataclass
class _Waiting:
    """A question, the items that wait for its answer, and how often it failed."""

    request: Request
    future: asyncio.Future[Answer]
    items: set[int]
    failures: int = 0


class Batched(Asker):
    """Asks in rounds: each sends every question that the live coroutines wait for."""

    def __init__(self, setting: Setting, transport: BatchTransport) -> None:
        super().__init__(setting, transport)
        self._transport = transport
        self._waiting: dict[str, _Waiting] = {}
        self._round: asyncio.Task[None] | None = None
        self._unsent, self._trouble = 0, ""

    async def ask(self, item: int, request: Request) -> Answer:
        """As `Asker.ask`, by one of the next rounds."""
        key = self._key(item, request)
        if (known := self._known(key)) is not None:
            return known
        waiting = self._waiting.get(key)
        if waiting is None:
            future = asyncio.get_running_loop().create_future()
            waiting = self._waiting[key] = _Waiting(request, future, set())
        waiting.items.add(item)
        self.stop.wake.set()
        return await waiting.future

    def on_idle(self, live: int) -> None:
        """As `Asker.on_idle`: begins a round if all coroutines wait for answers."""
        if self._round is None:
            items = {item for each in self._waiting.values() for item in each.items}
            if live and len(items) >= live:
                self._round = asyncio.ensure_future(self._run_round())

    async def close(self) -> None:
        """As `Asker.close`; batches go on at the provider, and the next run takes them up."""
        if self._round is not None:
            self._round.cancel()
            await asyncio.gather(self._round, return_exceptions=True)
        await self._transport.close()

    async def _run_round(self) -> None:
        try:
            for batch in self._ledger.open_batches():  # those of a stopped run, too
                await self._finish(batch)
            self._resolve()
            batches = []
            for questions, lines in self._packed():
                if self.stop.error is not None:
                    break
                task = asyncio.ensure_future(self._hand_over(questions, lines))
                self.sending.add(task)
                task.add_done_callback(self.sending.discard)
                batches.append(await asyncio.shield(task))
            await asyncio.gather(*(self._finish(batch) for batch in batches))
            self._resolve()
        except Exception as error:  # noqa: BLE001 - raised again where the run is driven
            self.stop.set(error)
        self._round = None
        self.stop.wake.set()

    def _packed(self) -> Iterator[tuple[dict[str, Request], list[bytes]]]:
        """The waiting questions in portions that the provider takes."""
        questions: dict[str, Request] = {}
        lines: list[bytes] = []
        size = 0
        for key, waiting in sorted(self._waiting.items()):
            line = self._transport.line(key, waiting.request)
            full = len(lines) == self._transport.most
            if lines and (full or size + len(line) + 1 > self._transport.most_bytes):
                yield questions, lines
                questions, lines, size = {}, [], 0
            questions[key] = waiting.request
            lines.append(line)
            size += len(line) + 1
        if lines:
            yield questions, lines

    async def _hand_over(self, questions: dict[str, Request], lines: list[bytes]) -> Batch:
        """Writes the intents, hands the batch over, and stores its name if it gets one."""
        asked = [(key, each, *self._expected(each)) for key, each in questions.items()]
        batch = await self._ledger.begin_batch(secrets.token_hex(8), asked, self._provider.model)
        try:
            remote = await self._transport.submit(batch.tag, lines)
        except Failed as error:
            self._trouble = self._scrub.text(str(error))
            if error.kind != "retry":
                await self._ledger.end_batch(batch, {}, f"not accepted: {self._trouble}")
                raise UserError(
                    f"{self._provider.url} did not accept a batch: {self._trouble}"
                ) from None
            await asyncio.sleep(min(error.retry_after or 0.0, PATIENCE_S))
            return batch  # it may have arrived, so the provider's list is searched for it
        self._unsent = 0
        return await self._name(batch, remote)

    async def _name(self, batch: Batch, remote: str) -> Batch:
        """Stores the provider's name of a batch."""
        if self._scrub.holds(remote):
            raise UserError(
                f"{self._provider.url} puts the key into the name of a batch, which is not stored; "
                "ask another server"
            )
        return await self._ledger.handed_over(batch, remote)

    async def _finish(self, batch: Batch) -> None:
        """Waits for a batch and keeps its answers."""
        if batch.remote is None:
            await asyncio.sleep(max(0.0, batch.begun_at + SETTLE_S - time.time()))
            remote = await self._patiently(lambda: self._transport.find(batch.tag))
            if remote is None:
                await self._ledger.end_batch(batch, {}, "the batch was never handed over")
                self._unsent += 1
                if self._unsent > self._provider.retries:
                    raise UserError(
                        f"{self._provider.url} took no batch in {self._unsent} attempts, the last "
                        f"time: {self._trouble}; start again when it works, nothing is lost"
                    )
                return
            batch = await self._name(batch, remote)
        name = batch.remote
        assert name is not None
        while (state := await self._patiently(lambda: self._transport.state(name))) is None:
            await asyncio.sleep(self._provider.poll_seconds)
        found = await self._patiently(lambda: self._transport.results(name))
        await self._keep(batch, found, self._scrub.text(state))
        if state not in {"completed", "expired"}:
            raise UserError(
                f"the batch {name} is {self._scrub.text(state)}; what it answered is kept"
            )

    async def _keep(self, batch: Batch, found: Mapping[str, Raw | Failed], state: str) -> None:
        """Keeps the outcomes of a batch as they came, then reads the answers."""
        missing = f"the batch ended without it: {state}"
        results: dict[str, Raw | str] = {}
        for key in self._ledger.keys_of(batch):
            result = found.get(key)
            if isinstance(result, Raw):
                results[key] = self._clean(result)
            else:
                results[key] = missing if result is None else self._scrub.text(str(result))
        attempts = await self._ledger.end_batch(batch, results, state)
        for key, outcome in results.items():
            if isinstance(outcome, str):
                await self._weigh(key, outcome, found.get(key))
            elif self._taken(attempts[key], outcome) is None:
                await self._weigh(key, NOT_IN_FORM, None)

    async def _weigh(self, key: str, reason: str, result: Raw | Failed | None) -> None:
        """Decides whether a question without an answer stays for the next round or has failed."""
        if isinstance(result, Failed) and result.kind == "fatal":
            self.stop.set(UserError(reason))
        elif isinstance(result, Failed) and result.kind == "invalid":
            await self._refuse(key, reason)
        elif unreadable := self._unreadable(key):
            await self._refuse(key, unreadable)
        elif (waiting := self._waiting.get(key)) is not None:
            waiting.failures += 1
            if waiting.failures > self._provider.retries:
                words = f"no answer in {waiting.failures} attempts: {reason}"
                await self._refuse(key, words)

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        """Repeats a call until it works; too many failures in a row end the run."""
        failures = 0
        while True:
            try:
                return await call()
            except AnswersPending:
                raise
            except Failed as error:
                failures += 1
                reason = self._scrub.text(str(error))
                if error.kind != "retry" or failures > self._provider.retries:
                    raise UserError(
                        f"cannot ask {self._provider.url} about a batch: {reason}; it goes on "
                        "there, start again to take it up"
                    ) from None
                await asyncio.sleep(wait_before(failures, error))

    def _resolve(self) -> None:
        """Wakes the coroutines whose questions have been answered, or never will be."""
        if self.stop.error is not None:
            return
        for key, waiting in list(self._waiting.items()):
            if waiting.future.done():
                del self._waiting[key]
                continue
            try:
                answer = self._known(key)
            except Unanswered as error:
                waiting.future.set_exception(error)
                del self._waiting[key]
                continue
            if answer is not None:
                waiting.future.set_result(answer)
                del self._waiting[key]
