"""Decides which images take the next step; knows no model, no thread and no clock.

Images of one lane (equal size, with or without reference, equal LoRAs) take their steps together,
each at a step of its own: a new image joins at the next step, and a finished or cancelled one
leaves its place at once. Lanes take turns, step by step.
"""

import dataclasses
import math
from collections import deque
from collections.abc import Hashable, Iterable, Sequence

from dsd_jax.infer.guidance import FIRST_STEP

__all__ = ["Batch", "Capacity", "FullError", "Job", "Lane", "Row", "Scheduler"]

_SMOOTH = 0.2  # weight of the newest measurement of a step's time


@dataclasses.dataclass(frozen=True)
class Capacity:
    """Limits of the queue and of the batches.

    Attributes:
        queue: Images that may wait.
        batch: Images of one lane that take a step together.
        delay: Seconds that an idle device waits for more images to fill its first batch.
        lanes: Lanes under way at a time.
    """

    queue: int = 64
    batch: int = 4
    delay: float = 0.0
    lanes: int = 4


@dataclasses.dataclass(frozen=True)
class Lane:
    """Images that can take a step together.

    Attributes:
        shape: Sizes that programs are compiled for.
        variant: Weights in use, such as the scales of LoRAs.
    """

    shape: Hashable
    variant: Hashable = None


class FullError(Exception):
    """The queue has no room for a job.

    Attributes:
        seconds: Estimated time until it has.
    """

    def __init__(self, waiting: int, room: int, seconds: float) -> None:
        super().__init__(
            f"{waiting} images are waiting, and the queue holds {room}; try again later"
        )
        self.seconds = seconds


@dataclasses.dataclass(eq=False)
class Row:
    """One image: its job, its number within the job, and the steps it has taken."""

    job: "Job"
    index: int
    step: int = 0


class Job:
    """The images of one request.

    Args:
        name: Its id.
        lane: The lane of its images.
        images: Number of images.
        steps: Steps that each takes.
        guided: Whether steps from `FIRST_STEP` on take true guidance.
    """

    def __init__(
        self, name: str, lane: Lane, images: int, steps: int, *, guided: bool = False
    ) -> None:
        self.name, self.lane, self.steps, self.guided = name, lane, steps, guided
        self.rows = [Row(self, index) for index in range(images)]

    @property
    def done(self) -> int:
        """Steps that its images have taken, all together."""
        return sum(row.step for row in self.rows)


@dataclasses.dataclass(frozen=True)
class Batch:
    """Images that take the next step, all with true guidance or all without."""

    lane: Lane
    guided: bool
    rows: tuple[Row, ...]


class Scheduler:
    """The queue of images and those under way."""

    def __init__(self, capacity: Capacity = Capacity()) -> None:
        self.capacity = capacity
        self._queue: deque[tuple[float, Row]] = deque()
        self._active: dict[Lane, list[Row]] = {}
        self._turns: dict[tuple[Lane, bool], int] = {}
        self._turn = 0
        self._seconds: dict[tuple[Hashable, bool], float] = {}

    @property
    def waiting(self) -> int:
        """Images that wait."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """Images under way."""
        return sum(map(len, self._active.values()))

    def submit(self, job: Job, now: float) -> None:
        """Puts the images of a job at the end of the queue.

        Raises:
            FullError: The queue has no room for all of them.
        """
        if self.waiting + len(job.rows) > self.capacity.queue:
            seconds = self._seconds_of(job) or 1.0
            raise FullError(self.waiting, self.capacity.queue, max(1.0, seconds))
        self._queue.extend((now, row) for row in job.rows)

    def cancel(self, job: Job) -> None:
        """Takes the images of a job out of the queue and out of the next step."""
        self._queue = deque(entry for entry in self._queue if entry[1].job is not job)
        self._leave(row for rows in self._active.values() for row in rows if row.job is job)

    def admit(self, now: float) -> list[Row]:
        """Takes images for which there is a place out of the queue, the oldest first."""
        if self.waits(now) > 0:
            return []
        admitted, rest = [], deque[tuple[float, Row]]()
        for since, row in self._queue:
            rows = self._active.get(row.job.lane, [])
            new = not rows and len(self._active) >= self.capacity.lanes
            if new or len(rows) >= self.capacity.batch:
                rest.append((since, row))
            else:
                self._active[row.job.lane] = [*rows, row]
                admitted.append(row)
        self._queue = rest
        return admitted

    def waits(self, now: float) -> float:
        """Seconds that an idle device still waits for company of the oldest image; else 0."""
        if self._active or not self._queue:
            return 0.0
        since, oldest = self._queue[0]
        company = sum(row.job.lane == oldest.job.lane for _, row in self._queue)
        if company >= self.capacity.batch:
            return 0.0
        return max(0.0, since + self.capacity.delay - now)

    def next_batch(self) -> Batch | None:
        """The images that take the next step; None if none is under way."""
        groups: dict[tuple[Lane, bool], list[Row]] = {}
        for lane, rows in self._active.items():
            for row in rows:
                guided = row.job.guided and row.step >= FIRST_STEP
                groups.setdefault((lane, guided), []).append(row)
        if not groups:
            return None
        self._turns = {key: self._turns.get(key, 0) for key in groups}
        key = min(groups, key=lambda key: self._turns[key])
        self._turn += 1
        self._turns[key] = self._turn
        return Batch(*key, tuple(groups[key]))

    def advance(self, batch: Batch, seconds: float) -> list[Row]:
        """Counts a step of a batch.

        Args:
            batch: Result of `next_batch`.
            seconds: Time that the step took.

        Returns:
            Images that were cancelled neither before nor during the step.
        """
        key = batch.lane.shape, batch.guided
        before = self._seconds.get(key, seconds)
        self._seconds[key] = before + _SMOOTH * (seconds - before)
        active = self._active.get(batch.lane, [])
        stepped = [row for row in batch.rows if row in active]
        for row in stepped:
            row.step += 1
        self._leave(row for row in stepped if row.step == row.job.steps)
        return stepped

    def position(self, job: Job) -> int:
        """Images of other jobs that wait before the first of this job; 0 if none of it waits."""
        jobs = [row.job for _, row in self._queue]
        return jobs.index(job) if job in jobs else 0

    def seconds_left(self, job: Job) -> float | None:
        """Estimated time until the last image of a job is done; None before any measurement."""
        one = self._seconds_of(job)
        if one is None:
            return None
        queued = [row for _, row in self._queue]
        mine = [place for place, row in enumerate(queued) if row.job is job]
        rest = max((1 - row.step / job.steps for row in job.rows), default=0.0)
        ahead = queued[: mine[-1] + 1] if mine else []
        waiting = sum(row.job.lane == job.lane for row in ahead)
        lanes = {job.lane, *self._active, *(row.job.lane for row in ahead)}
        rounds = math.ceil(waiting / self.capacity.batch) if waiting else rest
        if waiting and self._active.get(job.lane):
            rounds += 0.5  # those under way have half of their steps left, on average
        return one * rounds * len(lanes)

    def _seconds_of(self, job: Job) -> float | None:
        """Time of all steps of one image of a job."""
        plain = min(FIRST_STEP, job.steps) if job.guided else job.steps
        counts = {False: plain, True: job.steps - plain}
        known = {guided: self._seconds.get((job.lane.shape, guided)) for guided in counts}
        if any(known[guided] is None for guided, count in counts.items() if count):
            return None
        return sum(count * (known[guided] or 0.0) for guided, count in counts.items())

    def _leave(self, rows: Iterable[Row]) -> None:
        gone: Sequence[Row] = list(rows)
        kept = {
            lane: [row for row in active if row not in gone]
            for lane, active in self._active.items()
        }
        self._active = {lane: active for lane, active in kept.items() if active}
