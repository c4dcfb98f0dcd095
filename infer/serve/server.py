"""Runs the application until it is asked to stop, and then until nothing is left to answer."""

import asyncio
import contextlib
import logging
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from dsd_jax.errors import UserError
from dsd_jax.infer.serve.runner import Runner
from dsd_jax.interrupt import Stop, leave

__all__ = ["listen", "run"]

_POLL = 0.1
_LAST_PORT = 65_535
_CONNECTIONS = 512


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one.

    Raises:
        UserError: The address cannot be used.
    """
    if not 0 <= port <= _LAST_PORT:
        raise UserError(f"port must be from 0 to {_LAST_PORT}, got {port}")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=_CONNECTIONS)
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (while")[0]
        raise UserError(
            f"cannot listen on {host}:{port}: {reason}; choose another --port or --host"
        ) from None


def run(
    app: ASGIApp, runner: Runner[Any], sock: socket.socket, on_ready: Callable[[], None]
) -> None:
    """Serves until Ctrl-C or SIGTERM, and answers what was accepted before it returns.

    A second signal ends the process at once.

    Args:
        app: The application.
        runner: Its device's thread; started and closed here.
        sock: Result of `listen`.
        on_ready: Called once all programs are compiled.

    Raises:
        UserError: The programs cannot be compiled.
    """
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns of each damaged form
    config = uvicorn.Config(
        app,
        lifespan="off",
        access_log=False,
        log_level="warning",
        server_header=False,
        limit_concurrency=_CONNECTIONS,
    )
    with Stop("queue of images") as stop:
        runner.start()
        asyncio.run(_serve(_Server(config), runner, sock, stop, on_ready))
    ended = runner.close()
    if runner.failure is not None:
        raise runner.failure
    if not ended:  # it compiles; Python's own cleanup would wait, or crash
        leave(0)


class _Server(uvicorn.Server):
    """A server that leaves signals to us."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Installs no handlers."""
        yield


async def _serve(
    server: uvicorn.Server,
    runner: Runner[Any],
    sock: socket.socket,
    stop: Stop,
    on_ready: Callable[[], None],
) -> None:
    serving = asyncio.ensure_future(server.serve([sock]))
    told = False
    while not serving.done():
        await asyncio.sleep(_POLL)
        if runner.ready and not told:
            told = True
            on_ready()
        if stop.asked():
            runner.draining = True
        if runner.failure is not None or (runner.draining and not runner.busy):
            server.should_exit = True
    await serving
    sys.stdout.flush()
