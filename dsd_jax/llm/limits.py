"""The pace of questions: a token bucket for requests and one for tokens, and pauses."""

import asyncio
import time
from collections.abc import Awaitable, Callable

__all__ = ["Bucket", "Pace"]

Clock = Callable[[], float]
_LOOK_UP_S = 0.5  # during a pause, seconds between checks whether the run has ended


class Bucket:
    """A token bucket that lends in advance: taking says how long to wait.

    Attributes:
        rate: Tokens per second.
        burst: Tokens in a full bucket.
    """

    def __init__(self, rate: float, burst: float, clock: Clock = time.monotonic) -> None:
        self.rate, self.burst = rate, burst
        self._clock, self._level, self._then = clock, burst, clock()

    def take(self, amount: float) -> float:
        """Takes `amount`, and returns the seconds until it is there: 0 if it is there already."""
        self._fill()
        self._level -= amount
        return max(0.0, -self._level / self.rate)

    def give_back(self, amount: float) -> None:
        """Gives back what was taken and not used, even to a full bucket: it was there before."""
        self._fill()
        self._level += amount

    def _fill(self) -> None:
        now = self._clock()
        if self._level < self.burst:
            self._level = min(self.burst, self._level + (now - self._then) * self.rate)
        self._then = now


class Pace:
    """The limits of a provider's account, for everything that one process sends there."""

    def __init__(
        self,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        *,
        clock: Clock = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._clock, self._sleep, self._not_before = clock, sleep, clock()
        # A second's worth at once: the provider's own window is shorter than the minute it names.
        self._requests = _bucket(requests_per_minute, 1.0, clock)
        self._tokens = _bucket(tokens_per_minute, 0.0, clock)

    async def wait_turn(self, tokens: int) -> None:
        """Waits until a question of so many tokens may go out."""
        waits = [self._not_before - self._clock()]
        if self._requests is not None:
            waits.append(self._requests.take(1.0))
        if self._tokens is not None:
            waits.append(self._tokens.take(float(tokens)))
        if (wait := max(waits)) > 0:
            await self._sleep(wait)
        await self.resumed()

    async def resumed(self, ended: Callable[[], bool] = lambda: False) -> None:
        """Waits until no pause lasts, even one that began meanwhile, or until the run has ended."""
        while (wait := self._not_before - self._clock()) > 0 and not ended():
            await self._sleep(min(wait, _LOOK_UP_S))

    def used(self, expected: int, actual: int) -> None:
        """Corrects the tokens taken for a question by those that its answer names."""
        if self._tokens is not None:
            self._tokens.give_back(float(expected - actual))

    def pause(self, seconds: float) -> None:
        """Holds everything back for so many seconds, as the server asked."""
        self._not_before = max(self._not_before, self._clock() + seconds)


def _bucket(per_minute: float | None, least: float, clock: Clock) -> Bucket | None:
    if per_minute is None:
        return None
    rate = per_minute / 60
    return Bucket(rate, max(least, rate), clock)
