"""Questions one by one: limits, attempts, waits between them, and what each failure means."""

import asyncio
import collections
import itertools
import math
import random
import weakref
from typing import Any

from dsd_jax.errors import UserError
from dsd_jax.llm.books import Books
from dsd_jax.llm.limits import Pace
from dsd_jax.llm.messages import Answer, Request, Unanswered
from dsd_jax.llm.transport import Failed, Raw, Transport

__all__ = ["Online", "wait_before"]

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 60.0
PATIENCE_S = 900.0  # a server that asks for a longer wait ends the run instead
_READY = 1 / 8  # of those in flight: questions whose intent is written before there is room
_UNSENT = "the run ended before it was sent"
_WINDOW = 100  # latest attempts that tell a server in trouble from a question in trouble


class Online:
    """Asks each question when it comes."""

    def __init__(self, books: Books, transport: Transport, pace: Pace) -> None:
        self._books, self._transport, self._pace = books, transport, pace
        config = books.config
        self._slots = asyncio.Semaphore(config.max_in_flight)
        # A few intents are written ahead, so that the next question goes out in the moment an
        # answer makes room. Not under a cap: what is written counts as spent.
        capped = any(
            cap is not None for cap in (config.max_calls, config.max_tokens, config.max_cost)
        )
        ahead = 0 if capped else math.ceil(_READY * config.max_in_flight)
        self._places = asyncio.Semaphore(config.max_in_flight + ahead)
        self._unsent: set[int] = set()  # attempts that are written ahead
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._fine: collections.deque[bool] = collections.deque(maxlen=_WINDOW)
        self.sending: set[asyncio.Task[Any]] = set()

    async def ask(self, item: int, request: Request) -> Answer:
        """The answer, from the ledger or by as many attempts as it takes.

        Raises:
            Unanswered: there will be none.
        """
        key = self._books.key(item, request)
        lock = self._locks.setdefault(key, asyncio.Lock())
        try:
            async with lock:  # the same question twice at once is asked once
                known = self._books.known(key)
                answer = await self._ask(key, request) if known is None else known
        except UserError as error:  # the ledger cannot be written
            self._books.halt.trip(error)
        if self._books.halt.error is not None:
            await self._books.halt.forever()
        return answer

    def quiet(self, live: int) -> None:
        """As `Waves.quiet`: questions go out by themselves here."""

    async def close(self) -> None:
        """As `Waves.close`."""
        for attempt in self._unsent:
            await self._books.ledger.ended(attempt, "failed", _UNSENT)

    async def _ask(self, key: str, request: Request) -> Answer:
        before, limited = self._books.answers, 0
        for attempt in itertools.count(1):
            result = await self._attempt(key, request)
            if isinstance(result, Answer):
                return result
            limited += result.limited
            tries = limited if result.limited else attempt - limited
            reason = await self._weigh(result, tries, before)
            if reason is not None:
                await self._books.refuse(key, reason)
                if self._books.halt.error is not None:
                    await self._books.halt.forever()
                raise Unanswered(reason)
            if result.limited:  # it may wait for ever, as long as others get through
                before = self._books.answers
            await asyncio.sleep(wait_before(attempt, result))
        raise AssertionError

    async def _attempt(self, key: str, request: Request) -> Answer | Failed:
        tokens, cost = self._books.expected(request)
        await self._places.acquire()
        try:
            await self._pace.turn(tokens)
            if self._books.halt.error is not None:
                await self._books.halt.forever()
        except BaseException:
            self._places.release()
            raise
        # A task of its own: an answer that is on its way is kept even when the run ends.
        task = asyncio.ensure_future(self._send(key, request, tokens, cost))
        self.sending.add(task)
        task.add_done_callback(self.sending.discard)
        return await asyncio.shield(task)

    async def _send(self, key: str, request: Request, tokens: int, cost: float) -> Answer | Failed:
        books = self._books
        try:
            (attempt,) = await books.ledger.intend(
                [(key, request, tokens, cost)], books.config.model
            )
            self._unsent.add(attempt)
            async with self._slots:
                await self._pace.resumed(lambda: books.halt.error is not None)
                if books.halt.error is not None:
                    return Failed("fatal", _UNSENT)
                self._unsent.discard(attempt)
                async with asyncio.timeout(books.config.timeout):
                    raw = await self._transport.send(request)
        except UserError as error:  # a cap
            return Failed("fatal", str(error))
        except TimeoutError:
            words = f"no answer in {books.config.timeout:g} s"
            return await self._miss(attempt, Failed("retry", words, maybe_charged=True), tokens)
        except Failed as error:
            return await self._miss(attempt, error, tokens)
        finally:
            self._places.release()  # another gets ready while this answer is written
        return await self._keep(attempt, books.clean(raw), tokens)

    async def _miss(self, attempt: int, failed: Failed, tokens: int) -> Failed:
        self._fine.append(False)
        self._pace.used(tokens, 0)
        if failed.retry_after is not None:  # it holds for all questions
            self._pace.pause(min(failed.retry_after, PATIENCE_S))
        detail = self._books.scrubbed(str(failed))
        await self._books.ledger.ended(
            attempt, "lost" if failed.maybe_charged else "failed", detail
        )
        return failed

    async def _keep(self, attempt: int, raw: Raw, tokens: int) -> Answer | Failed:
        books = self._books
        answer = books.read(raw)
        await books.ledger.answered(attempt, raw, answer)
        self._fine.append(answer is not None)
        if answer is None:
            return Failed("retry", f"the answer is not in the provider's form: {raw.body[:80]!r}")
        books.answers += 1
        if answer.usage is not None:
            self._pace.used(tokens, answer.usage.input + answer.usage.output)
        books.check_model(answer)
        return answer

    async def _weigh(self, failed: Failed, tries: int, before: int) -> str | None:
        """Why a failed question will never be answered; None: try again."""
        books = self._books
        reason = books.scrubbed(str(failed))
        if failed.kind == "invalid":
            return reason
        if failed.kind == "retry":
            asked = failed.retry_after or 0.0
            if tries <= books.config.retries and asked <= PATIENCE_S:
                return None
            if failed.limited and books.answers > before and asked <= PATIENCE_S:
                return None
            if books.answers > before and sum(self._fine) * 2 > len(self._fine):
                # The server works for others, so it is this question that it cannot answer.
                return f"no answer in {tries} attempts: {reason}"
            when = f" in {asked:.0f} s" if asked else " when it works"
            reason = (
                f"{books.config.url} gave no answer in {tries} attempts, the last time: "
                f"{reason}; start again{when}, nothing is lost"
            )
        books.halt.trip(UserError(reason))
        return await books.halt.forever()


def wait_before(attempt: int, failed: Failed) -> float:
    """Seconds before the next attempt: doubling, with jitter; never less than the server asked."""
    backoff = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** (attempt - 1)) * random.uniform(0.5, 1.0)  # noqa: S311
    return max(backoff, failed.retry_after or 0.0)
