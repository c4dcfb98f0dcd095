"""Questions one by one: limits, attempts, waits between them, and the meaning of each failure."""

import asyncio
import collections
import itertools
import math
import random
import weakref

from dsd_jax.errors import UserError
from dsd_jax.llm.asking import NOT_IN_FORM, Asker, Setting
from dsd_jax.llm.ledger import Outcome
from dsd_jax.llm.limits import Pace
from dsd_jax.llm.messages import Answer, Request, Unanswered
from dsd_jax.llm.transport import Failed, Raw, Transport

__all__ = ["PATIENCE_S", "Online", "wait_before"]

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 60.0
PATIENCE_S = 900.0  # a server that asks for a longer wait ends the run instead
_READY = 1 / 8  # share of `max_in_flight` whose intents are written ahead
_UNSENT = "the run ended before it was sent"
_WINDOW = 100  # latest attempts, which tell whether the server or the question is at fault


class Online(Asker):
    """Asks each question when it comes."""

    def __init__(self, setting: Setting, transport: Transport) -> None:
        super().__init__(setting, transport)
        provider = setting.provider
        self._transport = transport
        self._pace = Pace(provider.requests_per_minute, provider.tokens_per_minute)
        self._slots = asyncio.Semaphore(provider.max_in_flight)
        # A few intents are written ahead, so that the next question goes out in the moment an
        # answer makes room. Not under a cap: an intent counts as spent.
        self._capped = setting.ledger.caps.any
        ahead = 0 if self._capped else math.ceil(_READY * provider.max_in_flight)
        self._places = asyncio.Semaphore(provider.max_in_flight + ahead)
        self._unsent: set[int] = set()  # attempts that are written ahead
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._fine: collections.deque[bool] = collections.deque(maxlen=_WINDOW)

    async def ask(self, item: int, request: Request) -> Answer:
        """As `Asker.ask`, by as many attempts as it takes."""
        key = self._key(item, request)
        lock = self._locks.setdefault(key, asyncio.Lock())
        try:
            async with lock:  # the same question twice at once is asked once
                known = self._known(key)
                answer = await self._ask(key, request) if known is None else known
        except UserError as error:  # the ledger cannot be written
            self.stop.set(error)
        if self.stop.error is not None:
            await self.stop.wait_to_be_cancelled()
        return answer

    def on_idle(self, live: int) -> None:
        """As `Asker.on_idle`: questions go out by themselves here."""

    async def close(self) -> None:
        """As `Asker.close`; attempts that were written ahead cost nothing."""
        for attempt in self._unsent:
            await self._ledger.ended(attempt, "failed", _UNSENT)
        await self._transport.close()

    async def _ask(self, key: str, request: Request) -> Answer:
        before, limited = self.answers, 0
        for attempt in itertools.count(1):
            result = await self._attempt(key, request)
            if isinstance(result, Answer):
                return result
            limited += result.limited
            tries = limited if result.limited else attempt - limited
            reason = self._unreadable(key) if result.unreadable else None
            reason = reason or await self._final(result, tries, before)
            if reason is not None:
                await self._refuse(key, reason)
                if self.stop.error is not None:
                    await self.stop.wait_to_be_cancelled()
                raise Unanswered(reason)
            if result.limited:  # it may wait without end while other questions are answered
                before = self.answers
            await asyncio.sleep(wait_before(attempt, result))
        raise AssertionError

    async def _attempt(self, key: str, request: Request) -> Answer | Failed:
        tokens, cost = self._expected(request)
        await self._places.acquire()
        try:
            await self._pace.wait_turn(tokens)
            if self.stop.error is not None:
                await self.stop.wait_to_be_cancelled()
        except BaseException:
            self._places.release()
            raise
        # In a task of its own, an answer that is on its way is kept even when the run ends.
        task = asyncio.ensure_future(self._send(key, request, tokens, cost))
        self.sending.add(task)
        task.add_done_callback(self.sending.discard)
        return await asyncio.shield(task)

    async def _send(self, key: str, request: Request, tokens: int, cost: float) -> Answer | Failed:
        try:
            return await self._exchange(key, request, tokens, cost)
        finally:
            if self._capped:  # the next one may go out only when this one's real cost is known
                self._places.release()

    async def _exchange(
        self, key: str, request: Request, tokens: int, cost: float
    ) -> Answer | Failed:
        timeout = self._provider.timeout
        try:
            (attempt,) = await self._ledger.intend(
                [(key, request, tokens, cost)], self._provider.model
            )
            self._unsent.add(attempt)
            async with self._slots:
                await self._pace.resumed(lambda: self.stop.error is not None)
                if self.stop.error is not None:
                    return Failed("fatal", _UNSENT)
                self._unsent.discard(attempt)
                async with asyncio.timeout(timeout):
                    raw = await self._transport.send(request)
        except UserError as error:  # a cap
            return Failed("fatal", str(error))
        except TimeoutError:
            words = f"no answer in {timeout:g} s"
            return await self._miss(attempt, Failed("retry", words, maybe_charged=True), tokens)
        except Failed as error:
            return await self._miss(attempt, error, tokens)
        finally:
            if not self._capped:  # another one gets ready while this answer is written
                self._places.release()
        return await self._keep(attempt, self._clean(raw), tokens)

    async def _miss(self, attempt: int, failed: Failed, tokens: int) -> Failed:
        self._fine.append(False)
        self._pace.used(tokens, 0)
        if failed.retry_after is not None:  # the wait holds for all questions
            self._pace.pause(min(failed.retry_after, PATIENCE_S))
        outcome: Outcome = "lost" if failed.maybe_charged else "failed"
        await self._ledger.ended(attempt, outcome, self._scrub.text(str(failed)))
        return failed

    async def _keep(self, attempt: int, raw: Raw, tokens: int) -> Answer | Failed:
        await self._ledger.received(attempt, raw)
        answer = self._taken(attempt, raw)
        self._fine.append(answer is not None)
        if answer is None:
            begins = repr(raw.body[:80].decode(errors="replace"))
            return Failed("retry", f"{NOT_IN_FORM}: {begins}", unreadable=True)
        if answer.usage is not None:
            self._pace.used(tokens, answer.usage.input + answer.usage.output)
        return answer

    async def _final(self, failed: Failed, tries: int, before: int) -> str | None:
        """The reason why a question will never be answered, or None to try again.

        A failure that concerns all questions ends the run instead.
        """
        reason = self._scrub.text(str(failed))
        if failed.kind == "invalid":
            return reason
        if failed.kind == "retry":
            asked = failed.retry_after or 0.0
            if tries <= self._provider.retries and asked <= PATIENCE_S:
                return None
            if failed.limited and self.answers > before and asked <= PATIENCE_S:
                return None
            if self.answers > before and sum(self._fine) * 2 > len(self._fine):
                # The server works for others, so it is this question that it cannot answer.
                return f"no answer in {tries} attempts: {reason}"
            when = f" in {asked:.0f} s" if asked else " when it works"
            reason = (
                f"{self._provider.url} gave no answer in {tries} attempts, the last time: "
                f"{reason}; start again{when}, nothing is lost"
            )
        self.stop.set(UserError(reason))
        return await self.stop.wait_to_be_cancelled()


def wait_before(attempt: int, failed: Failed) -> float:
    """Seconds before the next attempt: doubling, with jitter; never less than the server asked."""
    backoff = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** min(attempt - 1, 30))
    return max(backoff * random.uniform(0.5, 1.0), failed.retry_after or 0.0)  # noqa: S311
