"""Progress: plain lines where there is no terminal, a bar where there is one."""

import io
import sys
import time

import pytest

from dsd_jax import progress as module
from dsd_jax.progress import phase, progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_lines_at_the_start_every_ten_seconds_and_the_end(capsys, clock):
    with progress("batch", 40, "images") as advance:
        for _ in range(40):
            clock[0] += 0.75
            advance()
    assert capsys.readouterr().err.splitlines() == [
        "batch: 0/40 images",
        "batch: 14/40 images, less than a minute left",
        "batch: 28/40 images, less than a minute left",
        "batch: 40/40 images in 30.0 s",
    ]


def test_numbers_are_readable(capsys, clock):
    with progress("to JAX: transformer", 11_901.4, "M parameters") as advance:
        clock[0] += 20
        advance(2_975.35)
    assert capsys.readouterr().err.splitlines() == [
        "to JAX: transformer: 0/11,901 M parameters",
        "to JAX: transformer: 2,975/11,901 M parameters",
        "to JAX: transformer: 2,975/11,901 M parameters in 20.0 s",
    ]
    with progress("small", 0.3333333):
        pass
    assert capsys.readouterr().err.splitlines()[0] == "small: 0/0.3333"


def test_the_time_left_does_not_count_the_first_unit(capsys, clock):
    """The first unit waits for the compiler: 10 minutes here, 30 s for each of the others."""
    with progress("train", 400, "steps") as advance:
        clock[0] += 600
        advance()
        for _ in range(2):
            clock[0] += 30
            advance()
    assert capsys.readouterr().err.splitlines() == [
        "train: 0/400 steps",
        "train: 1/400 steps",
        "train: 2/400 steps, about 3:19 h left",
        "train: 3/400 steps, about 3:18 h left",
        "train: 3/400 steps in 660.0 s",
    ]


def test_parts_of_a_unit_are_not_shown(capsys, clock):
    with progress("judge", 2, "parts") as advance:
        for _ in range(3):
            clock[0] += 11
            advance(1 / 3)
    assert capsys.readouterr().err.splitlines() == [
        "judge: 0/2 parts",
        "judge: 0/2 parts",
        "judge: 0/2 parts, less than a minute left",
        "judge: 1/2 parts, less than a minute left",
        "judge: 1/2 parts in 33.0 s",
    ]


def test_a_phase_says_what_it_is_and_how_long_it_took(capsys, clock):
    with phase("compiling the step"):
        clock[0] += 12.34
    with phase("opening"):
        pass
    assert capsys.readouterr().err.splitlines() == [
        "compiling the step ...",
        "compiling the step: done in 12.3 s",
        "opening ...",
    ]


def test_a_long_phase_gives_signs_of_life(capsys, monkeypatch):
    monkeypatch.setattr(module, "SECONDS_BETWEEN_SIGNS", 0.05)
    shown, deadline = "", time.monotonic() + 60
    with phase("compiling"):
        while "so far" not in shown and time.monotonic() < deadline:
            time.sleep(0.01)
            shown += capsys.readouterr().err
    assert "compiling: 0:00 h so far" in shown


def test_the_first_phase_ends_with_the_first_units(capsys, clock):
    with progress("sampling", 2, "steps", first="compiling") as advance:
        clock[0] += 5
        advance()
        clock[0] += 5
        advance()
    assert capsys.readouterr().err.splitlines() == [
        "sampling: 0/2 steps",
        "compiling ...",
        "compiling: done in 5.0 s",
        "sampling: 2/2 steps in 10.0 s",
    ]


def test_the_log_of_a_long_job_has_a_line_a_minute(capsys, clock):
    with progress("train", 10_000, "steps") as advance:
        for _ in range(10_000):
            clock[0] += 3.6
            advance()
    assert 600 < len(capsys.readouterr().err.splitlines()) < 900


def test_nothing_to_do(capsys, clock):
    with progress("batch", 0, "images") as advance:
        clock[0] += 60
        advance(0)
    assert capsys.readouterr().err.splitlines()[-1] == "batch: 0/0 images in 60.0 s"


def test_an_error_is_not_reported_as_an_end(capsys, clock):
    with pytest.raises(ZeroDivisionError), progress("batch", 2) as advance:
        advance(1 / 0)
    assert capsys.readouterr().err == "batch: 0/2\n"


def terminal(monkeypatch, columns=80):
    """A terminal that keeps what is drawn on it; no fixture, as pytest sets stderr after those."""
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    return screen


def test_bar_on_a_terminal(monkeypatch):
    screen = terminal(monkeypatch)
    with progress("sampling", 1200, "steps") as advance:
        advance(300)
        advance()
        with phase("compiling"):
            pass
    assert "sampling" in screen.getvalue()
    assert "compiling" in screen.getvalue()
    assert "301/1,200 steps" in screen.getvalue()


def test_a_narrow_terminal_loses_neither_title_nor_count(monkeypatch):
    screen = terminal(monkeypatch, columns=45)
    with progress("to JAX: transformer", 1200, "steps") as advance:
        advance(300)
    assert "to JAX: transformer" in screen.getvalue()
    assert "300/1,200 steps" in screen.getvalue()


def test_no_color_means_none(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    screen = terminal(monkeypatch)
    with progress("sampling", 2, "steps") as advance:
        advance()
    assert "sampling" in screen.getvalue()
    assert "\x1b[3" not in screen.getvalue()
