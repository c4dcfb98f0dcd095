"""The scheduler: who takes the next step, who waits, and for how long."""

import pytest

from dsd_jax.infer.guidance import FIRST_STEP
from dsd_jax.infer.serve.scheduler import Capacity, FullError, Job, Lane, Scheduler

WIDE, TALL = Lane("wide"), Lane("tall")


def job(name: str = "a", lane: Lane = WIDE, images: int = 1, steps: int = 3, **kw: bool) -> Job:
    return Job(name, lane, images, steps, **kw)


def scheduler(*jobs: Job, **capacity: float) -> Scheduler:
    made = Scheduler(Capacity(**{"queue": 8, "batch": 2} | capacity))  # type: ignore[arg-type]
    for one in jobs:
        made.submit(one, 0.0)
    return made


def names(rows) -> list[str]:
    return [row.job.name for row in rows]


def step(own: Scheduler, seconds: float = 1.0) -> list[str]:
    own.admit(0.0)
    batch = own.next_batch()
    return [] if batch is None else names(own.advance(batch, seconds))


def test_images_of_one_lane_share_a_step_and_a_newcomer_joins_at_the_next():
    own = scheduler(job("a"))
    assert step(own) == ["a"]
    own.submit(job("b"), 0.0)
    assert step(own) == ["a", "b"]
    assert step(own) == ["a", "b"]  # the last of a
    assert step(own) == ["b"]
    assert step(own) == []
    assert own.running == own.waiting == 0


def test_no_more_images_than_the_limit_share_a_step():
    own = scheduler(job("a", images=3))
    own.admit(0.0)
    assert (own.running, own.waiting) == (2, 1)


def test_lanes_take_turns_and_a_full_lane_does_not_hold_up_another():
    own = scheduler(job("a", images=3), job("b", lane=TALL))
    assert [step(own) for _ in range(4)] == [["a", "a"], ["b"], ["a", "a"], ["b"]]


def test_lanes_under_way_are_limited_and_none_starves():
    own = scheduler(job("a"), job("b", lane=TALL), lanes=1)
    assert [step(own) for _ in range(6)] == [["a"]] * 3 + [["b"]] * 3


def test_true_guidance_begins_at_its_step_and_plain_steps_are_shared():
    guided = job("g", steps=4, guided=True)
    own = scheduler(guided, job("p", steps=4))
    seen = []
    for _ in range(6):
        own.admit(0.0)
        batch = own.next_batch()
        assert batch is not None
        seen.append((batch.guided, sorted(names(own.advance(batch, 1.0)))))
    assert seen[:FIRST_STEP] == [(False, ["g", "p"])] * FIRST_STEP
    assert sorted(seen[FIRST_STEP:]) == [(False, ["p"])] * 2 + [(True, ["g"])] * 2


def test_cancelling_frees_the_place_for_the_next_step():
    first, second = job("a", images=2), job("b")
    own = scheduler(first, second)
    own.admit(0.0)
    batch = own.next_batch()
    assert batch is not None
    own.cancel(first)  # while the step runs
    assert own.advance(batch, 1.0) == []
    assert first.done == 0
    assert step(own) == ["b"]


def test_cancelling_takes_waiting_images_out_of_the_queue():
    waiting = job("b", images=2)
    own = scheduler(job("a", images=2), waiting)
    own.admit(0.0)
    own.cancel(waiting)
    assert own.waiting == 0


def test_a_full_queue_refuses_a_job_as_a_whole():
    own = scheduler(job("a", images=7))
    with pytest.raises(FullError, match="7 images are waiting, and the queue holds 8"):
        own.submit(job("b", images=2), 0.0)
    own.submit(job("c"), 0.0)


def test_an_idle_device_waits_for_company_but_no_longer_than_the_delay():
    own = scheduler(job("a"), delay=0.5)
    assert own.admit(0.1) == []
    assert own.waits(0.1) == pytest.approx(0.4)
    assert names(own.admit(0.5)) == ["a"]


def test_a_full_batch_and_a_busy_device_do_not_wait():
    own = scheduler(job("a"), job("b"), delay=0.5)
    assert names(own.admit(0.0)) == ["a", "b"]
    own.submit(job("c", lane=TALL), 0.0)
    assert names(own.admit(0.0)) == ["c"]


def test_position_and_time_left():
    first, second = job("a", images=2, steps=4), job("b", images=2, steps=4)
    own = scheduler(first, second)
    assert own.seconds_left(first) is None  # nothing was measured
    step(own, seconds=2.0)
    assert own.position(first) == 0
    assert own.seconds_left(first) == pytest.approx(6.0)
    assert own.position(second) == 0  # the first that waits
    third = job("c")
    own.submit(third, 0.0)
    assert own.position(third) == 2
    left = own.seconds_left(second)
    assert left is not None
    assert left > 6.0
