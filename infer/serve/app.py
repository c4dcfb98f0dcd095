"""The routes of the server, as an ASGI application that others can mount pages in."""

import asyncio
import base64
import contextlib
import functools
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from http import HTTPStatus
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from dsd_jax.errors import UserError
from dsd_jax.images import Frame, encode_image, open_frame
from dsd_jax.infer.serve.engine import Painted
from dsd_jax.infer.serve.guard import Guard
from dsd_jax.infer.serve.metrics import CONTENT_TYPE_LATEST
from dsd_jax.infer.serve.runner import Event, Preview, Progress, Runner, Settled, Task
from dsd_jax.infer.serve.scheduler import FullError
from dsd_jax.infer.serve.uploads import (
    FORM,
    JSON,
    Reader,
    Uploads,
    parse_fields,
    parse_form,
)
from dsd_jax.infer.serve.wire import (
    FORMATS,
    ImageRequest,
    RefusedError,
    error_body,
    images_body,
    parse_request,
    shown_size,
)
from dsd_jax.marks import GENERATED

__all__ = ["Service", "create_app"]

_DECODERS = 2  # uploaded images that are decoded at the same time


class Service:
    """The server between HTTP and the device's thread.

    Args:
        runner: Makes the images.
        uploads: Limits of requests.
    """

    def __init__(self, runner: Runner[Any], uploads: Uploads = Uploads()) -> None:
        self.runner, self._reader = runner, Reader(uploads)
        self._decoding = asyncio.Semaphore(_DECODERS)

    async def edits(self, request: Request) -> Response:
        """`POST /v1/images/edits`: a reference and a text."""
        return await self._images(request, edit=True)

    async def generations(self, request: Request) -> Response:
        """`POST /v1/images/generations`: a text alone."""
        return await self._images(request, edit=False)

    async def models(self, request: Request) -> Response:
        """`GET /v1/models`: the model, its sizes and its LoRAs."""
        del request
        offer = self.runner.offer
        model = {
            "id": offer.model,
            "object": "model",
            "created": 0,
            "owned_by": "dsd-jax",
            "sizes": [shown_size(size) for size in offer.sizes],
            "loras": dict(offer.loras),
            "edits": offer.edits,
            "true_guidance": offer.true_guidance,
            "max_images": offer.images,
            "max_steps": offer.steps,
        }
        return JSONResponse({"object": "list", "data": [model]})

    async def job(self, request: Request) -> Response:
        """`GET /v1/jobs/{id}`: how far a job is, and its images once they are done."""
        task = self._task(request)
        body = await self._job_body(task, images=True)
        task.fetched = task.settled is not None
        return JSONResponse(body)

    async def cancel(self, request: Request) -> Response:
        """`DELETE /v1/jobs/{id}`: stops a job."""
        task = self._task(request)
        self.runner.cancel(task)
        return JSONResponse(await self._job_body(task, images=False))

    async def health(self, request: Request) -> Response:
        """`GET /health`: 200 while the process can work."""
        del request
        return _probe(None if self.runner.healthy else "the device fails")

    async def ready(self, request: Request) -> Response:
        """`GET /ready`: 200 while requests are taken, after all programs are compiled."""
        del request
        return _probe(self.runner.unavailable)

    async def metrics(self, request: Request) -> Response:
        """`GET /metrics`: the counters."""
        del request
        return Response(self.runner.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    async def _images(self, request: Request, *, edit: bool) -> Response:
        self._check_open(edit=edit)
        offer = self.runner.offer
        frame = None
        async with self._reader.body(request, FORM if edit else JSON) as given:
            if edit:
                form = await parse_form(request.headers, given)
                wanted = parse_request(form.fields, offer, edit=True)
                frame = await self._frame(form.image, wanted)
            else:
                wanted = parse_request(parse_fields(given), offer, edit=False)
        events = _Events()
        try:
            task = self.runner.submit(wanted, frame, events.put)
        except FullError as error:
            raise _full(str(error), error.seconds) from None
        except UserError as error:
            raise RefusedError(str(error)) from None
        name = {"x-job-id": task.id}
        if not wanted.wait:
            body = await self._job_body(task, images=False)
            headers = name | {"location": f"/v1/jobs/{task.id}"}
            return JSONResponse(body, HTTPStatus.ACCEPTED, headers)
        if wanted.stream:
            kind = "image_edit" if edit else "image_generation"
            headers = name | {"cache-control": "no-store"}
            return StreamingResponse(
                self._stream(task, events, kind), headers=headers, media_type="text/event-stream"
            )
        await self._finished(task, events, request)
        return JSONResponse(await _result(task), headers=name)

    def _check_open(self, *, edit: bool) -> None:
        """Refuses a request before its body is read."""
        runner = self.runner
        if (reason := runner.unavailable) is not None:
            raise RefusedError(
                f"the server is {reason}; try again later",
                status=HTTPStatus.SERVICE_UNAVAILABLE,
                code="unavailable",
                retry_after=10,
            )
        if edit and not runner.offer.edits:
            raise RefusedError("this model takes no reference; use /v1/images/generations")
        if not runner.room:
            raise _full("the queue is full; try again later", 1.0)

    async def _frame(self, upload: bytes, wanted: ImageRequest) -> Frame:
        """The reference, cropped and resized."""
        width, height = wanted.size
        async with self._decoding:
            try:
                return await asyncio.to_thread(open_frame, upload, height, width)
            except UserError as error:
                raise RefusedError(str(error), param="image") from None

    async def _finished(self, task: Task, events: "_Events", request: Request) -> None:
        """Waits until a task is over; a client that leaves cancels it."""
        leaving = asyncio.ensure_future(_gone(request.receive))
        over = asyncio.ensure_future(events.settled())
        try:
            await asyncio.wait((leaving, over), return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            over.cancel()
            self.runner.cancel(task)

    async def _stream(self, task: Task, events: "_Events", kind: str) -> AsyncGenerator[str, None]:
        """Server-sent events of a task; a client that leaves cancels it."""
        common = {
            "created_at": int(task.created),
            "size": shown_size(task.request.size),
            "quality": "auto",
            "background": "opaque",
            "output_format": task.request.output_format,
        }
        try:
            yield f": job {task.id}\n\n"
            async for event in events:
                match event:
                    case Progress(done, steps):
                        yield f": step {done} of {steps}\n\n"
                    case Preview(image, number, picture):
                        data = await _encoded(task.request, Painted(picture, {}))
                        own = {**data, "partial_image_index": number, "image": image}
                        yield _event(f"{kind}.partial_image", common | own)
            try:
                result: Any = await _result(task)
            except RefusedError as error:
                yield f"event: error\ndata: {json.dumps(error_body(error))}\n\n"
                return
            for image, data in enumerate(result["data"]):
                yield _event(f"{kind}.completed", common | data | {"image": image})
        finally:
            self.runner.cancel(task)

    def _task(self, request: Request) -> Task:
        task = self.runner.task(request.path_params["job"])
        if task is None:
            raise RefusedError(
                "there is no such job, or its result is no longer kept",
                status=HTTPStatus.NOT_FOUND,
                code="not_found",
            )
        return task

    async def _job_body(self, task: Task, *, images: bool) -> dict[str, object]:
        position, seconds = self.runner.place(task)
        over = task.settled is not None
        return {
            "id": task.id,
            "object": "image.job",
            "created_at": int(task.created),
            "status": task.status,
            "position": position,
            "seconds_left": None if over or seconds is None else round(seconds, 1),
            "step": task.job.done,
            "steps": task.job.steps * len(task.job.rows),
            "error": task.error,
            "result": await _result(task) if images and task.status == "completed" else None,
        }


class _Events:
    """Events of a task, from the device's thread to the loop that serves HTTP."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Event] = asyncio.Queue()

    def put(self, event: Event) -> None:
        """Adds an event; may be called from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody listens
            self._loop.call_soon_threadsafe(self._queue.put_nowait, event)

    async def __aiter__(self) -> AsyncGenerator[Event, None]:
        """The events until the task is over."""
        while not isinstance(event := await self._queue.get(), Settled):
            yield event

    async def settled(self) -> None:
        """Waits until the task is over."""
        async for _ in self:
            pass


class _Guarded:
    """An application behind a guard; `refused` makes the answer to a request that it refuses."""

    def __init__(
        self, app: ASGIApp, guard: Guard, refused: Callable[[Request, Exception], Response]
    ) -> None:
        self._app, self._guard, self._refused = app, guard, refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            request = Request(scope)
            try:
                self._guard.check(request.url.path, request.headers)
            except RefusedError as error:
                await self._refused(request, error)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def create_app(
    runner: Runner[Any],
    guard: Guard = Guard(),
    uploads: Uploads = Uploads(),
    routes: tuple[BaseRoute, ...] = (),
) -> ASGIApp:
    """The application.

    Args:
        runner: Makes the images; started by the caller.
        guard: Who may ask.
        uploads: Limits of requests.
        routes: More routes, such as a mounted page; the guard stands before them, too.
    """
    service = Service(runner, uploads)

    def refused(request: Request, error: Exception) -> Response:
        shown = _as_refused(request, error)
        runner.metrics.refused.labels(str(int(shown.status))).inc()
        return _error_response(shown)

    handled: tuple[type[Exception], ...] = (
        RefusedError,
        HTTPException,
        ClientDisconnect,
        Exception,
    )
    post = functools.partial(Route, methods=["POST"])
    app = Starlette(
        routes=[
            post("/v1/images/edits", service.edits),
            post("/v1/images/generations", service.generations),
            Route("/v1/models", service.models),
            Route("/v1/jobs/{job}", service.job, methods=["GET"]),
            Route("/v1/jobs/{job}", service.cancel, methods=["DELETE"]),
            Route("/health", service.health),
            Route("/ready", service.ready),
            Route("/metrics", service.metrics),
            *routes,
        ],
        exception_handlers=dict.fromkeys(handled, refused),
    )
    return _Guarded(app, guard, refused)


def _as_refused(request: Request, error: Exception) -> RefusedError:
    match error:
        case RefusedError():
            return error
        case HTTPException():
            asked = f"{request.method} {request.url.path}"
            return RefusedError(
                f"this server has no {asked:.80}; docs/serving.md lists what it has",
                status=HTTPStatus(error.status_code),
            )
        case ClientDisconnect():
            return RefusedError("the client left", status=HTTPStatus.BAD_REQUEST)
        case _:
            return RefusedError(
                "the server made a mistake; its log says which",
                status=HTTPStatus.INTERNAL_SERVER_ERROR,
            )


def _error_response(error: RefusedError) -> Response:
    headers = {}
    if error.retry_after is not None:
        headers["retry-after"] = str(max(1, round(error.retry_after)))
    if error.status == HTTPStatus.UNAUTHORIZED:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse(error_body(error), error.status, headers)


def _full(message: str, seconds: float) -> RefusedError:
    return RefusedError(
        message, status=HTTPStatus.TOO_MANY_REQUESTS, code="queue_full", retry_after=seconds
    )


def _probe(trouble: str | None) -> Response:
    status = HTTPStatus.OK if trouble is None else HTTPStatus.SERVICE_UNAVAILABLE
    return JSONResponse({"status": trouble or "ok"}, status)


async def _gone(receive: Callable[[], Awaitable[Any]]) -> None:
    """Waits until the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _encoded(request: ImageRequest, painted: Painted) -> dict[str, str]:
    """An image in the format of its request, in base64, and both frames if they are kept."""
    kind = FORMATS[request.output_format]
    encoded = {}
    for name, image in (("b64_json", painted.image), ("frames_b64_json", painted.frames)):
        if image is not None:
            data = await asyncio.to_thread(
                encode_image, image, kind, painted.parameters, GENERATED, request.quality
            )
            encoded[name] = base64.b64encode(data).decode()
    return encoded


async def _result(task: Task) -> dict[str, object]:
    """The answer with the images of a task that is over.

    Raises:
        RefusedError: It failed, or was cancelled.
    """
    if task.status == "cancelled":
        raise RefusedError("the job was cancelled", status=HTTPStatus.CONFLICT, code="cancelled")
    if task.status != "completed":
        ours = HTTPStatus.INTERNAL_SERVER_ERROR
        raise RefusedError(
            task.error or "the job failed", status=ours if task.ours else HTTPStatus.BAD_REQUEST
        )
    images = [await _encoded(task.request, painted) for painted in task.images()]
    return images_body(task.request, images, task.id, int(task.created))


def _event(kind: str, data: dict[str, Any]) -> str:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **data})}\n\n"
