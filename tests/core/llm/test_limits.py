"""The token bucket and the pace, by a clock of the test."""

import asyncio

import pytest

from dsd_jax.llm.limits import Bucket, Pace


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_bucket():
    clock = Clock()
    bucket = Bucket(rate=2.0, burst=4.0, clock=clock)
    assert bucket.take(3) == 0
    assert bucket.take(3) == 1.0  # one is there, two come in a second
    assert bucket.take(2) == 2.0  # behind the one that waits
    clock.now += 2.0
    assert bucket.take(1) == 0.5
    clock.now += 100.0
    assert bucket.take(4) == 0  # no more than a full bucket has come together
    bucket.give_back(1)
    assert bucket.take(2) == 0.5


def sent(pace: Pace, clock: Clock, count: int, tokens: int = 1) -> list[float]:
    times = []

    async def run() -> None:
        for _ in range(count):
            await pace.wait_turn(tokens)
            times.append(clock.now - 100.0)

    asyncio.run(run())
    return times


def test_requests_per_minute():
    clock = Clock()
    times = sent(Pace(120, clock=clock, sleep=clock.sleep), clock, 241)
    assert times[-1] == pytest.approx(119.5, abs=0.6)
    for start in times:  # no window of a minute has more than the limit and the burst
        assert sum(start <= time < start + 60 for time in times) <= 122


def test_tokens_per_minute_by_what_answers_took():
    clock = Clock()
    pace = Pace(None, 6000, clock=clock, sleep=clock.sleep)
    assert sent(pace, clock, 3, tokens=1000) == pytest.approx([9.0, 19.0, 29.0])
    pace.used(1000, 100)
    assert sent(pace, clock, 1, tokens=1000)[0] == pytest.approx(30.0)


def test_a_pause_holds_everybody():
    clock = Clock()
    pace = Pace(clock=clock, sleep=clock.sleep)
    assert sent(pace, clock, 2) == [0.0, 0.0]
    pace.pause(7.0)
    pace.pause(3.0)
    assert sent(pace, clock, 2) == [7.0, 7.0]


def test_a_pause_is_not_waited_out_when_the_run_has_ended():
    clock = Clock()
    pace = Pace(clock=clock, sleep=clock.sleep)
    pace.pause(900.0)
    asyncio.run(pace.resumed(lambda: clock.now > 102.0))
    assert clock.now < 104.0
