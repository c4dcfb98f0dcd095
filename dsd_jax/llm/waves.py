"""Questions in batches: all coroutines run until they wait, then what they wait for goes out."""

import asyncio
import collections
import dataclasses
import secrets
import time
from collections.abc import Iterator
from typing import Any

from dsd_jax.errors import UserError
from dsd_jax.llm.books import Books
from dsd_jax.llm.ledger import Batch
from dsd_jax.llm.messages import Answer, Request, Unanswered
from dsd_jax.llm.online import PATIENCE_S, wait_before
from dsd_jax.llm.transport import BatchTransport, Elsewhere, Failed, Raw

__all__ = ["Waves"]

SETTLE_S = 20.0  # before a batch that was not heard of is looked for in the provider's list


@dataclasses.dataclass
class _Waiting:
    """A question, who waits for it, and how often it failed."""

    request: Request
    future: asyncio.Future[Answer]
    items: set[int]
    failures: int = 0


class Waves:
    """Sends waves: each is every question that the live coroutines wait for."""

    def __init__(self, books: Books, batches: BatchTransport) -> None:
        self._books, self._batches = books, batches
        self._waiting: dict[str, _Waiting] = {}
        self._wave: asyncio.Task[None] | None = None
        self._unsent, self._trouble = 0, ""
        self.sending: set[asyncio.Task[Any]] = set()

    async def ask(self, item: int, request: Request) -> Answer:
        """The answer, from the ledger or by one of the next waves.

        Raises:
            Unanswered: there will be none.
        """
        key = self._books.key(item, request)
        if (known := self._books.known(key)) is not None:
            return known
        waiting = self._waiting.get(key)
        if waiting is None:
            future = asyncio.get_running_loop().create_future()
            waiting = self._waiting[key] = _Waiting(request, future, set())
        waiting.items.add(item)
        self._books.halt.wake.set()
        return await waiting.future

    def quiet(self, live: int) -> None:
        """Told when nothing is left to do for `live` coroutines: sends a wave if all wait."""
        if self._wave is None:
            items = {item for each in self._waiting.values() for item in each.items}
            if live and len(items) >= live:
                self._wave = asyncio.ensure_future(self._send_wave())

    async def close(self) -> None:
        """Ends the wave; its batches go on at the provider, and the next run takes them up."""
        if self._wave is not None:
            self._wave.cancel()
            await asyncio.gather(self._wave, return_exceptions=True)

    async def _send_wave(self) -> None:
        try:
            for batch in self._books.ledger.open_batches():  # of a stopped run, too
                await self._finish(batch)
            self._resolve()
            batches = []
            for questions, lines in self._packed():
                if self._books.halt.error is not None:
                    break
                task = asyncio.ensure_future(self._hand_over(questions, lines))
                self.sending.add(task)
                task.add_done_callback(self.sending.discard)
                batches.append(await asyncio.shield(task))
            await asyncio.gather(*(self._finish(batch) for batch in batches))
            self._resolve()
        except Exception as error:  # noqa: BLE001 - raised again where the run is driven
            self._books.halt.trip(error)
        self._wave = None
        self._books.halt.wake.set()

    def _packed(self) -> Iterator[tuple[dict[str, Request], list[bytes]]]:
        """The waiting questions in portions that the provider takes."""
        questions: dict[str, Request] = {}
        lines: list[bytes] = []
        size = 0
        for key, waiting in sorted(self._waiting.items()):
            line = self._batches.line(key, waiting.request)
            full = len(lines) == self._batches.most
            if lines and (full or size + len(line) + 1 > self._batches.most_bytes):
                yield questions, lines
                questions, lines, size = {}, [], 0
            questions[key] = waiting.request
            lines.append(line)
            size += len(line) + 1
        if lines:
            yield questions, lines

    async def _hand_over(self, questions: dict[str, Request], lines: list[bytes]) -> Batch:
        """Writes the intents, hands the batch over, and writes down its name if it gets one."""
        books = self._books
        asked = [(key, each, *books.expected(each)) for key, each in questions.items()]
        batch = await books.ledger.begin_batch(secrets.token_hex(8), asked, books.config.model)
        try:
            remote = await self._batches.submit(batch.tag, lines)
        except Failed as error:
            self._trouble = books.scrubbed(str(error))
            if error.kind != "retry":
                await books.ledger.end_batch(batch, {}, f"not accepted: {self._trouble}")
                raise UserError(
                    f"{books.config.url} did not accept a batch: {self._trouble}"
                ) from None
            await asyncio.sleep(min(error.retry_after or 0.0, PATIENCE_S))
            return batch  # it may have arrived all the same, and is looked for
        self._unsent = 0
        return await books.ledger.handed_over(batch, remote)

    async def _finish(self, batch: Batch) -> None:
        """Waits for a batch and keeps its answers."""
        books = self._books
        if batch.remote is None:
            await asyncio.sleep(max(0.0, batch.begun_at + SETTLE_S - time.time()))
            remote = await self._patiently(lambda: self._batches.find(batch.tag))
            if remote is None:
                await books.ledger.end_batch(batch, {}, "the batch was never handed over")
                self._unsent += 1
                if self._unsent > books.config.retries:
                    raise UserError(
                        f"{books.config.url} took no batch in {self._unsent} attempts, the last "
                        f"time: {self._trouble}; start again when it works, nothing is lost"
                    )
                return
            batch = await books.ledger.handed_over(batch, remote)
        name = batch.remote
        assert name is not None
        while (state := await self._patiently(lambda: self._batches.state(name))) is None:
            await asyncio.sleep(books.config.poll_seconds)
        await self._keep(batch, await self._patiently(lambda: self._batches.results(name)), state)
        if state not in {"completed", "expired"}:
            raise UserError(f"the batch {name} is {state}; what it answered is kept")

    async def _keep(self, batch: Batch, found: Any, state: str) -> None:
        books = self._books
        results: dict[str, tuple[Raw, Answer | None] | str] = {}
        failed: dict[str, str] = {}
        for key in books.ledger.keys_of(batch):
            result = found.get(key)
            if isinstance(result, Raw):
                raw = books.clean(result)
                results[key] = raw, (answer := books.read(raw))
                if answer is None:
                    failed[key] = "the answer is not in the provider's form"
                else:
                    books.answers += 1
                    books.check_model(answer)
            else:
                why = f"the batch ended without it: {state}" if result is None else str(result)
                results[key] = failed[key] = books.scrubbed(why)
        await books.ledger.end_batch(batch, results, state)
        for key, reason in failed.items():
            await self._weigh(key, reason, found.get(key))

    async def _weigh(self, key: str, reason: str, result: Raw | Failed | None) -> None:
        """What becomes of a question without an answer: it stays for the next wave, or ends."""
        if isinstance(result, Failed) and result.kind == "fatal":
            self._books.halt.trip(UserError(reason))
        elif isinstance(result, Failed) and result.kind == "invalid":
            await self._books.refuse(key, reason)
        elif (waiting := self._waiting.get(key)) is not None:
            waiting.failures += 1
            if waiting.failures > self._books.config.retries:
                words = f"no answer in {waiting.failures} attempts: {reason}"
                await self._books.refuse(key, words)

    async def _patiently(self, call: Any) -> Any:
        """Calls until it works; so many failures one after the other end the run."""
        attempts = collections.Counter[str]()
        while True:
            try:
                return await call()
            except Elsewhere:
                raise
            except Failed as error:
                attempts["failed"] += 1
                reason = self._books.scrubbed(str(error))
                if error.kind != "retry" or attempts["failed"] > self._books.config.retries:
                    raise UserError(
                        f"cannot ask {self._books.config.url} about a batch: {reason}; it goes "
                        "on there, start again to take it up"
                    ) from None
                await asyncio.sleep(wait_before(attempts["failed"], error))

    def _resolve(self) -> None:
        """Wakes the coroutines whose questions have been answered, or never will be."""
        if self._books.halt.error is not None:
            return
        for key, waiting in list(self._waiting.items()):
            if waiting.future.done():
                del self._waiting[key]
                continue
            try:
                answer = self._books.known(key)
            except Unanswered as error:
                waiting.future.set_exception(error)
                del self._waiting[key]
                continue
            if answer is not None:
                waiting.future.set_result(answer)
                del self._waiting[key]
