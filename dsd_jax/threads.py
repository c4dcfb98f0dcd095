"""Runs a function over a stream in several threads; results stay in order and few are in memory."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["in_order"]

T = TypeVar("T")
R = TypeVar("R")


def in_order(
    function: Callable[[T], R], items: Iterable[T], *, threads: int, ahead: int | None = None
) -> Generator[tuple[T, Future[R]], None, None]:
    """Yields every item with its future, in order.

    Args:
        function: called in the threads.
        items: taken as they are needed.
        threads: number of threads.
        ahead: items that are taken before the first is asked for; default: two per thread.
    """
    limit = 2 * threads if ahead is None else ahead
    pending: deque[tuple[T, Future[R]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                pending.append((item, pool.submit(function, item)))
                if len(pending) > limit:
                    yield pending.popleft()
            while pending:
                yield pending.popleft()
        finally:
            for _, future in pending:
                future.cancel()
