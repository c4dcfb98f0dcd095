"""Handles Ctrl-C and SIGTERM: a long job stops at its next step, anything else at once.

Python runs its own signal handlers between two instructions of the main thread, so a signal that
arrives while XLA compiles for minutes would be handled minutes later. Here a second thread reads it
at once, from the file descriptor that Python writes every signal to.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from types import FrameType

__all__ = ["Stop", "StopsAtOnce", "leave"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_GRACE = 2.0  # seconds in which the main thread may clean up before the process ends
_POLL = 0.25
_COMPILER = f"jax{os.sep}_src{os.sep}compiler.py"


def leave(status: int) -> None:
    """Ends the process without Python's own cleanup, in which threads that still compile crash."""
    if sys.stderr.isatty():
        os.write(2, b"\x1b[?25h")  # a progress bar hides the cursor
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def _say(text: str) -> None:
    # Not through `print`: the main thread may hold the lock of the stream.
    with contextlib.suppress(OSError):
        os.write(2, f"{text}\n".encode())


def _is_compiling(thread: int | None) -> bool:
    """Whether a thread is inside XLA's compiler.

    JAX tells nobody when it begins to compile; the stack of the thread shows it.
    """
    frame = sys._current_frames().get(thread or 0)  # noqa: SLF001 - public, despite its name
    while frame is not None:
        if frame.f_code.co_filename.endswith(_COMPILER):
            return True
        frame = frame.f_back
    return False


class _SignalThread:
    """Reads signals in a thread while it is open; subclasses say what follows."""

    def __init__(self, signals: tuple[signal.Signals, ...]) -> None:
        self._signals = signals
        self._open = False
        self._main = threading.main_thread().ident

    def __enter__(self) -> "_SignalThread":  # noqa: PYI034 - beartype wants the class
        if threading.current_thread() is not threading.main_thread():
            return self  # only the main thread may set handlers
        self._open = True
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._fd_before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._before = {number: signal.signal(number, self._handle) for number in self._signals}
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        if not self._open:
            return
        self._open = False
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._fd_before)
        os.close(self._write)  # this ends the thread
        self._thread.join(timeout=1)
        os.close(self._read)

    def _listen(self) -> None:
        while numbers := os.read(self._read, 64):
            for number in numbers:
                if number in self._signals:
                    self._received(number)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """Runs in the main thread, as soon as Python lets it."""

    def _received(self, number: int) -> None:
        """Runs in the listening thread, at once."""


class StopsAtOnce(_SignalThread):
    """Ctrl-C and SIGTERM end what runs inside within seconds, also while XLA compiles.

    The main thread gets a KeyboardInterrupt, so that `with` blocks are left as usual. If it has not
    handled that within two seconds, the process ends.

    Attributes:
        status: exit status for the signal that came: 130 or 143.
    """

    def __init__(self) -> None:
        super().__init__(_SIGNALS)
        self.status = 128 + signal.SIGINT
        self._received_before = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.status = 128 + number
        raise KeyboardInterrupt

    def _received(self, number: int) -> None:
        if self._received_before:
            leave(128 + number)
        self._received_before = True
        threading.Thread(target=self._insist, args=(number,), daemon=True).start()

    def _insist(self, number: int) -> None:
        time.sleep(_GRACE)
        if self._open:
            _say("interrupted")
            leave(128 + number)


class Stop(_SignalThread):
    """Asks a long job to stop: at its next step, or at once the second time.

    The first Ctrl-C or SIGTERM makes `asked` true. The second ends the process, with status 130
    (or 143). While XLA compiles, the first one ends it: the next step may be minutes away.

    Args:
        unit: unit of work that the job finishes before it stops, for the message.
    """

    def __init__(self, unit: str = "step") -> None:
        import jax  # noqa: PLC0415 - the command line handles signals without JAX

        self._alone = jax.process_count() == 1
        # Among several processes JAX's own service receives SIGTERM and agrees on a step.
        super().__init__(_SIGNALS if self._alone else (signal.SIGINT,))
        self._unit = unit
        self._asked = threading.Event()
        self._answered = False  # the job has been told and is finishing

    def __enter__(self) -> "Stop":  # noqa: PYI034
        super().__enter__()
        return self

    def asked(self, step: int = 0) -> bool:
        """Whether to stop. Every process must ask once per step, and all get the same answer."""
        if self._alone:
            self._answered = self._asked.is_set()
            return self._answered
        from jax.experimental import multihost_utils  # noqa: PLC0415

        return bool(multihost_utils.reached_preemption_sync_point(step))

    def check(self, step: int = 0) -> None:
        """Ends the job if it was asked to stop.

        Raises:
            KeyboardInterrupt: it was asked to stop.
        """
        if self.asked(step):
            raise KeyboardInterrupt

    def _received(self, number: int) -> None:
        if self._asked.is_set():
            _say("stopped at once")
            leave(128 + number)
        self._asked.set()
        _say(f"stopping after this {self._unit}; once more stops at once")
        if not self._alone:
            os.kill(os.getpid(), signal.SIGTERM)
        threading.Thread(target=self._watch, args=(number,), daemon=True).start()

    def _watch(self, number: int) -> None:
        while self._open and not self._answered:
            if self._alone and _is_compiling(self._main):
                _say("stopped while compiling; what was saved before stays")
                leave(128 + number)
            time.sleep(_POLL)
