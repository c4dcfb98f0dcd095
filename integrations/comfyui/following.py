"""Follows requests while ComfyUI shows their progress and may interrupt them."""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from .client import BusyError, Event, Made, Question, Server, ServerError, Step, Stream

__all__ = ["Request", "Watcher", "answered", "made_all"]

_POLL = 0.2  # seconds between two looks at the interrupt button


@dataclasses.dataclass(frozen=True)
class Request:
    """Fields and the reference of a request, as for `Stream`, and how many images it asks for."""

    fields: Mapping[str, str]
    reference: bytes
    images: int
    steps: int


@dataclasses.dataclass(frozen=True)
class Watcher:
    """What ComfyUI has to do with requests under way.

    Attributes:
        show: Called with steps taken, all steps, and an event.
        check: Raises if the user has interrupted the workflow.
    """

    show: Callable[[int, int, Event], Awaitable[None]]
    check: Callable[[], None]


async def answered(question: Question, watcher: Watcher) -> list[str]:
    """The answer to a question.

    Raises:
        ServerError: There is none.
    """
    asking = asyncio.ensure_future(asyncio.to_thread(question.answer))
    asking.add_done_callback(_seen)
    try:
        while not asking.done():
            watcher.check()
            await asyncio.wait({asking}, timeout=_POLL)
        return asking.result()
    finally:
        question.cancel()  # does nothing to one that is answered


def _seen(over: "asyncio.Future[Any]") -> None:
    """Takes note of an error, so that asyncio does not print it."""
    if not over.cancelled():
        over.exception()


async def made_all(server: Server, requests: list[Request], watcher: Watcher) -> list[Made]:
    """The images of several requests, which the server makes at the same time, in order.

    While the server is busy, a request waits and is sent again. If one fails, or the user
    interrupts, all are cancelled on the server.

    Raises:
        ServerError: The server refused a request, or failed.
    """
    done = [0] * len(requests)
    total = sum(request.images * request.steps for request in requests)

    async def one(number: int, request: Request) -> list[Made]:
        async def show(event: Event) -> None:
            if isinstance(event, Step):
                done[number] = event.done
            await watcher.show(sum(done), total, event)

        while True:
            try:
                return await _made(server, request, show, watcher.check)
            except BusyError as busy:
                for _ in range(max(1, round(busy.seconds / _POLL))):
                    watcher.check()
                    await asyncio.sleep(_POLL)

    tasks = [asyncio.ensure_future(one(i, request)) for i, request in enumerate(requests)]
    try:
        return [image for images in await asyncio.gather(*tasks) for image in images]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)  # each cancels its request


async def _made(
    server: Server,
    request: Request,
    show: Callable[[Event], Awaitable[None]],
    check: Callable[[], None],
) -> list[Made]:
    """The images of one request."""
    stream = Stream(server, request.fields, request.reference)
    loop = asyncio.get_running_loop()
    events: asyncio.Queue[Event] = asyncio.Queue()

    def read() -> None:
        for event in stream.events():
            loop.call_soon_threadsafe(events.put_nowait, event)

    reading = asyncio.ensure_future(asyncio.to_thread(read))
    reading.add_done_callback(_seen)
    made: dict[int, Made] = {}
    complete = False
    try:
        while not (reading.done() and events.empty()):
            check()
            if events.empty():
                await asyncio.wait({reading}, timeout=_POLL)
            while not events.empty():
                event = events.get_nowait()
                if isinstance(event, Made):
                    made[event.image] = event
                await show(event)
        await reading
        complete = True
    finally:
        if not complete:  # also where ComfyUI ends its loop, since another node failed
            await asyncio.to_thread(stream.cancel)
    if sorted(made) != list(range(request.images)):
        raise ServerError(
            f"the server ended after {len(made)} of {request.images} images; run this again"
        )
    return [made[i] for i in range(request.images)]
