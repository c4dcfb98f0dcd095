"""The device's thread: takes images from the scheduler through the engine, step by step."""

import dataclasses
import logging
import secrets
import threading
import time
from collections.abc import Callable
from typing import Generic, Literal

from PIL import Image

from dsd_jax.errors import UserError
from dsd_jax.images import Frame
from dsd_jax.infer.serve.engine import Engine, Painted, State
from dsd_jax.infer.serve.metrics import Metrics
from dsd_jax.infer.serve.scheduler import Batch, Capacity, Job, Row, Scheduler
from dsd_jax.infer.serve.wire import ImageRequest

__all__ = ["Event", "Preview", "Progress", "Runner", "Settled", "Status", "Task"]

Work = Literal["encode", "step", "decode"]
Status = Literal["queued", "running", "completed", "failed", "cancelled"]
_KEPT = 64  # finished jobs whose result can still be asked for
_KEPT_SECONDS = 600.0
_GRACE = 10.0  # seconds in which a stopping server still hands out the result of a job
_FAILURES = 3  # failures of the same work in a row, after which the device is broken
_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Progress:
    """A step was taken: steps of all images of the job so far, and in all."""

    done: int
    steps: int


@dataclasses.dataclass(frozen=True)
class Preview:
    """A preview: number of the image, number of the preview, and the picture."""

    image: int
    number: int
    picture: Image.Image


@dataclasses.dataclass(frozen=True)
class Settled:
    """The job is over; its task says how."""


Event = Progress | Preview | Settled
Listener = Callable[[Event], None]


@dataclasses.dataclass(eq=False)
class Task:
    """A request on its way: what was asked for, how far it is, and what came of it.

    Attributes:
        job: Its images in the scheduler.
        request, frame: What was asked for.
        listener: Called from the device's thread with each event.
        created: Unix time of the request.
        status: How far it is.
        error: Why it failed: a message for the client.
        ours: Whether the server is to blame for the error.
        fetched: Whether the client knows how it ended.
        painted: Images that are done, by number.
        settled: Monotonic time of its end.
    """

    job: Job
    request: ImageRequest
    frame: Frame | None
    listener: Listener
    created: float
    status: Status = "queued"
    error: str | None = None
    ours: bool = False
    fetched: bool = False
    painted: dict[int, Painted] = dataclasses.field(default_factory=dict)
    settled: float | None = None

    @property
    def id(self) -> str:
        """The id of the job."""
        return self.job.name

    def images(self) -> list[Painted]:
        """The images of a completed job, in order."""
        return [self.painted[i] for i in range(len(self.job.rows))]


class Runner(Generic[State]):
    """Runs an engine in a thread of its own, and keeps the tasks.

    All methods may be called from any thread.

    Args:
        engine: The engine.
        capacity: Limits of queue and batches.
        report: Called with a line about the progress of compiling.

    Attributes:
        metrics: Counters.
        ready: Whether all programs are compiled.
        draining: Whether new requests are refused.
        failure: What ended the thread, if anything did.
    """

    def __init__(
        self,
        engine: Engine[State],
        capacity: Capacity = Capacity(),
        report: Callable[[str], None] = _LOG.info,
    ) -> None:
        self.engine, self.offer = engine, engine.offer
        self.metrics = Metrics()
        self.ready = self.draining = False
        self.failure: BaseException | None = None
        self._report = report
        self._scheduler = Scheduler(capacity)
        self._tasks: dict[str, Task] = {}
        self._under_way: dict[Row, tuple[Task, State]] = {}
        self._failures: dict[Work, int] = {}  # in a row, without success of the same work between
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._main, name="device", daemon=True)

    # Any thread

    def start(self) -> None:
        """Starts the thread, which compiles first."""
        self._thread.start()

    def submit(self, request: ImageRequest, frame: Frame | None, listener: Listener) -> Task:
        """Queues a request.

        Args:
            request: The request, checked against the offer.
            frame: Its reference, cropped and resized.
            listener: Called from the device's thread with each event.

        Raises:
            FullError: The queue has no room.
            UserError: The pipeline cannot make these images.
        """
        job = Job(
            secrets.token_hex(16),
            self.engine.lane(request, edit=frame is not None),
            len(request.seeds),
            request.settings.steps,
            guided=request.settings.true_guidance,
        )
        task = Task(job, request, frame, listener, time.time())
        with self._changed:
            self._scheduler.submit(job, time.monotonic())
            self._tasks[task.id] = task
            self._forget()
            self._changed.notify_all()
        return task

    @property
    def tasks(self) -> list[Task]:
        """All tasks whose result is kept, the oldest first."""
        with self._changed:
            return [*self._tasks.values()]

    def task(self, name: str) -> Task | None:
        """The task of an id, unless it is unknown or was forgotten."""
        with self._changed:
            self._forget()
            return self._tasks.get(name)

    def cancel(self, task: Task) -> None:
        """Stops a task. Its place is free from the next step on; a finished one stays as it is."""
        with self._changed:
            self._settle(task, "cancelled")

    def place(self, task: Task) -> tuple[int, float | None]:
        """Images of others that wait before a task, and its estimated seconds."""
        with self._changed:
            scheduler = self._scheduler
            return scheduler.position(task.job), scheduler.seconds_left(task.job)

    @property
    def room(self) -> bool:
        """Whether the queue has room for another image."""
        return self._scheduler.waiting < self._scheduler.capacity.queue

    @property
    def busy(self) -> bool:
        """Whether any task is queued or running, or has just ended and is not fetched yet."""
        recent = time.monotonic() - _GRACE
        with self._changed:
            return any(
                task.settled is None
                or not (task.request.wait or task.fetched or task.settled < recent)
                for task in self._tasks.values()
            )

    @property
    def healthy(self) -> bool:
        """Whether the thread lives and no work of the device has failed several times in a row."""
        return self.failure is None and max(self._failures.values(), default=0) < _FAILURES

    @property
    def unavailable(self) -> str | None:
        """The reason why no requests are taken; None if they are."""
        if not self.healthy:
            return "out of order"
        if self.draining:
            return "stopping"
        return None if self.ready else "compiling its programs"

    def close(self, seconds: float = 5.0) -> bool:
        """Ends the thread after its current step; returns whether it has ended in time."""
        with self._changed:
            self._closed = True
            for task in [*self._tasks.values()]:
                self._settle(task, "cancelled")
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join(seconds)
        return not self._thread.is_alive()

    # The device's thread

    def _main(self) -> None:
        try:
            self.engine.warm_up(self._report)
            self.ready = True
            while self._turn():
                pass
        except BaseException as error:  # noqa: BLE001 - `failure` is raised by who started us
            self.failure = error
            with self._changed:
                for task in [*self._tasks.values()]:
                    self._settle(task, "failed", "the server's device thread has ended", ours=True)

    def _turn(self) -> bool:
        """Takes one step with one batch; returns False at the end."""
        with self._changed:
            while not self._closed:
                now = time.monotonic()
                admitted = self._scheduler.admit(now)
                batch = self._scheduler.next_batch()
                self._measure()
                if admitted or batch is not None:
                    break
                self._changed.wait(self._scheduler.waits(now) or None)
            else:
                return False
        self._open(admitted)
        with self._changed:  # those that could not be opened, or were cancelled, are gone
            batch = self._scheduler.next_batch()
            under_way = [self._under_way[row] for row in batch.rows] if batch is not None else []
        if batch is not None:
            self._step(batch, under_way)
        return True

    def _open(self, rows: list[Row]) -> None:
        """Encodes images that have just got a place."""
        for job in dict.fromkeys(row.job for row in rows):
            task = self._tasks.get(job.name)
            if task is None or task.settled is not None:
                continue
            task.status = "running"
            own = [row for row in rows if row.job is job]
            try:
                states = self.engine.open(task.request, task.frame, [row.index for row in own])
            except Exception as error:  # noqa: BLE001 - one request's failure ends that request
                self._fail([task], error, "encode")
                continue
            self._failures.pop("encode", None)
            with self._changed:
                if task.settled is None:
                    self._under_way |= {
                        row: (task, state) for row, state in zip(own, states, strict=True)
                    }

    def _step(self, batch: Batch, under_way: list[tuple[Task, State]]) -> None:
        states = [state for _, state in under_way]
        began = time.monotonic()
        try:
            self.engine.step(states, guided=batch.guided)
        except Exception as error:  # noqa: BLE001 - a device's error ends these requests, no others
            self._fail([task for task, _ in under_way], error, "step")
            return
        self._failures.pop("step", None)
        seconds = time.monotonic() - began
        self.metrics.stepped(len(states), seconds)
        with self._changed:
            stepped = self._scheduler.advance(batch, seconds)
        for row, (task, state) in zip(batch.rows, under_way, strict=True):
            if row in stepped and task.settled is None:
                self._after(row, task, state)

    def _after(self, row: Row, task: Task, state: State) -> None:
        """Tells the listener of a step, and finishes the image if it was the last."""
        job = row.job
        try:
            task.listener(Progress(job.done, job.steps * len(job.rows)))
            if row.step == job.steps:
                self._under_way.pop(row, None)
                task.painted[row.index] = self.engine.finish(state)
                self._failures.pop("decode", None)
                self.metrics.images.inc()
                if len(task.painted) == len(job.rows):
                    with self._changed:
                        self._settle(task, "completed")
            elif row.step in (steps := task.request.preview_steps()):
                number = steps.index(row.step)
                task.listener(Preview(row.index, number, self.engine.preview(state)))
        except Exception as error:  # noqa: BLE001 - as above
            self._fail([task], error, "decode")

    def _fail(self, tasks: list[Task], error: Exception, work: Work) -> None:
        ours = not isinstance(error, UserError)
        message = "the device failed while it made this image; try again" if ours else str(error)
        if ours:
            self._failures[work] = self._failures.get(work, 0) + 1
            _LOG.error("a request failed", exc_info=error)
        with self._changed:
            for task in tasks:
                self._settle(task, "failed", message, ours=ours)

    def _settle(
        self, task: Task, status: Status, error: str | None = None, *, ours: bool = False
    ) -> None:
        """Ends a task, once; the caller holds the lock."""
        if task.settled is not None:
            return
        task.status, task.error, task.ours = status, error, ours
        task.settled = time.monotonic()
        task.frame = None
        self._scheduler.cancel(task.job)
        for row in task.job.rows:
            self._under_way.pop(row, None)
        self.metrics.ended(status, time.time() - task.created)
        task.listener(Settled())

    def _forget(self) -> None:
        """Drops the oldest results."""
        over = [name for name, task in self._tasks.items() if task.settled is not None]
        limit = time.monotonic() - _KEPT_SECONDS
        for place, name in enumerate(over):
            if len(over) - place > _KEPT or (self._tasks[name].settled or limit) < limit:
                del self._tasks[name]

    def _measure(self) -> None:
        self.metrics.waiting.set(self._scheduler.waiting)
        self.metrics.running.set(self._scheduler.running)
