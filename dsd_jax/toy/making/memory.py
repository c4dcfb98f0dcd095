"""Memory of small training on CPU."""

import ctypes
import sys

__all__ = ["keep_memory"]

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8  # of glibc's malloc.h


def keep_memory() -> None:
    """Keeps freed memory in the process; to be called before JAX starts its threads.

    XLA takes the buffers of every step from malloc and frees them behind it. From the system they
    come as empty pages each time, a third of the time of a toy step. Does nothing without glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for option, value in (
            (_MMAP_MAX, 0),
            (_TRIM_THRESHOLD, 2**31 - 1),
            (_TOP_PAD, 2**28),
            (_ARENA_MAX, 1),
        ):
            mallopt(option, value)
