"""Ctrl-C and SIGTERM in real processes: what the first one does, the second, and how soon."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Seconds of work in C during which Python cannot run a signal handler.
DEAF = "hashlib.pbkdf2_hmac('sha256', b'a', b'b', 60_000_000)"
STEPS = """
from dsd_jax.interrupt import Stop
import time
with Stop() as stop:
    print("ready", flush=True)
    for step in range(1000):
        time.sleep(0.05)
        if stop.asked(step):
            print("saved", flush=True)
            {then}
            break
"""
COMPILE = """
import jax, jax.numpy as jnp
from dsd_jax.interrupt import Stop
def slow(x):
    for _ in range(6000):
        x = jnp.sin(x) @ x + jnp.cumsum(x, 0)
    return x
lowered = jax.jit(slow).lower(jnp.ones((64, 64)))
with Stop():
    print("ready", flush=True)
    lowered.compile()
print("compiled", flush=True)
"""
COMMAND = """
import hashlib, sys
from dsd_jax import cli
cli._dispatch = lambda words: (print("ready", flush=True), {work})
sys.argv = ["dsd", "anything"]
sys.exit(cli.main())
"""


@contextmanager
def started(code: str) -> Iterator[subprocess.Popen[str]]:
    """A process that has printed `ready`."""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.wait()


def ends(process: subprocess.Popen[str], within: float) -> tuple[int, str, str]:
    """Status and output of a process that ends in so many seconds."""
    start = time.monotonic()
    out, err = process.communicate(timeout=within + 60)
    assert time.monotonic() - start < within
    return process.returncode, out, err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_lets_the_step_end(number: signal.Signals) -> None:
    with started(STEPS.format(then="pass")) as process:
        process.send_signal(number)
        status, out, err = ends(process, within=20)
    assert (status, out) == (0, "saved\n")
    assert err == "stopping after this step; once more stops at once\n"


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_second_signal_ends_the_process_in_the_middle_of_c_code(
    number: signal.Signals, expected: int
) -> None:
    code = "import hashlib\n" + STEPS.format(then=DEAF)
    with started(code) as process:
        assert process.stdout is not None
        process.send_signal(number)
        assert process.stdout.readline() == "saved\n"
        time.sleep(0.2)
        process.send_signal(number)
        status, _, err = ends(process, within=15)
    assert status == expected
    assert err.endswith("stopped at once\n")


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_long_compilation(number: signal.Signals, expected: int) -> None:
    with started(COMPILE) as process:
        time.sleep(0.5)
        process.send_signal(number)
        status, out, err = ends(process, within=15)
    assert (status, out) == (expected, "")
    assert err.endswith("stopped while compiling; what was saved before stays\n")


def test_what_a_job_compiles_in_order_to_save_is_let_finish() -> None:
    code = (
        COMPILE.replace("with Stop():", "with Stop() as stop:")
        .replace("    lowered.compile()", "    while not stop.asked(): pass\n    lowered.compile()")
        .replace("6000", "600")
    )
    with started(code) as process:
        process.send_signal(signal.SIGTERM)
        status, out, _ = ends(process, within=300)  # it compiles to the end
    assert (status, out) == (0, "compiled\n")


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("work", ["__import__('time').sleep(60)", DEAF], ids=["python", "c"])
def test_any_command_ends_within_seconds(number: signal.Signals, expected: int, work: str) -> None:
    with started(COMMAND.replace("{work}", work)) as process:
        process.send_signal(number)
        status, out, err = ends(process, within=15)
    assert (status, out, err) == (expected, "", "interrupted\n")
