"""A real server on this machine: a client that leaves, and a stop by SIGTERM."""

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import openai
import pytest

from dsd_jax.cli import main
from dsd_jax.errors import UserError
from dsd_jax.infer.serve.app import create_app
from dsd_jax.infer.serve.guard import read_key
from dsd_jax.infer.serve.runner import Runner
from dsd_jax.infer.serve.server import listen, run
from dsd_jax.infer.shown import Lazy


def test_a_client_that_leaves_cancels_and_sigterm_answers_what_was_accepted(engine):
    engine.gate = threading.Semaphore(0)
    runner = Runner(engine)
    ready = threading.Event()

    def use(base: str):
        ready.wait()
        client = openai.OpenAI(base_url=base, api_key="none", max_retries=0)
        stream = {"prompt": "a", "steps": 3, "stream": True}
        with httpx2.stream("POST", f"{base}/images/generations", json=stream, timeout=60) as left:
            engine.begun.acquire()
        task = runner.task(left.headers["x-job-id"])
        assert task is not None
        while task.settled is None:
            time.sleep(0.01)
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(client.images.generate, prompt="b", extra_body={"steps": 2})
            engine.gate.release(1)
            engine.begun.acquire()
            os.kill(os.getpid(), signal.SIGTERM)
            while not runner.draining:
                time.sleep(0.01)
            with pytest.raises(openai.InternalServerError, match="the server is stopping"):
                client.images.generate(prompt="c")
            engine.gate.release(100)
            return task.status, asked.result()

    with listen("127.0.0.1", 0) as sock, ThreadPoolExecutor(1) as pool:
        used = pool.submit(use, f"http://127.0.0.1:{sock.getsockname()[1]}/v1")
        run(create_app(runner), runner, sock, ready.set)
        status, answered = used.result()
    assert status == "cancelled"
    assert len(answered.data) == 1


def test_an_address_in_use_is_told(engine):
    with listen("127.0.0.1", 0) as sock:
        port = sock.getsockname()[1]
        with pytest.raises(
            UserError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use; .* --port"
        ):
            listen("127.0.0.1", port)
    with pytest.raises(UserError, match="port must be from 0 to 65535, got 65536"):
        listen("127.0.0.1", 65536)


@pytest.mark.parametrize("given", ["-1", "nan", "inf"])
def test_a_delay_that_is_no_time_is_refused(given, capsys):
    assert main(["serve", "--toy", "--max_delay_ms", given]) != 0
    assert "max_delay_ms must be 0 or more milliseconds" in capsys.readouterr().err


def test_a_size_is_refused_before_weights_are_read(capsys, monkeypatch):
    def read(*arguments: object) -> None:
        raise AssertionError

    monkeypatch.setattr(Lazy, "use", read)
    assert main(["serve", "--toy", "--port", "0", "--sizes", "33x32"]) != 0
    assert "size 33x32: height and width must be positive mult" in capsys.readouterr().err


def test_a_failure_to_compile_ends_the_server(engine):
    def warm_up(report):
        raise UserError("these weights do not fit")

    engine.warm_up = warm_up
    runner = Runner(engine)
    with listen("127.0.0.1", 0) as sock, pytest.raises(UserError, match="do not fit"):
        run(create_app(runner), runner, sock, lambda: None)


def test_the_key_comes_from_a_variable_or_a_file(tmp_path):
    file = tmp_path / "key"
    file.write_text("from-the-file\n")
    assert read_key("KEY", None, {}) is None
    assert read_key("KEY", None, {"KEY": " from-the-variable "}) == "from-the-variable"
    assert read_key("KEY", file, {"KEY": "from-the-variable"}) == "from-the-file"
    letters = "holds spaces or letters that no key has"
    for bad, said in (
        ("short", "must have 8 or more characters"), ("with a space", letters),
        ("ümlaut-key", letters),
    ):  # fmt: skip
        with pytest.raises(UserError, match=said) as caught:
            read_key("KEY", None, {"KEY": bad})
        assert bad not in str(caught.value)
    with pytest.raises(UserError, match="api_key_file must be the path of a file") as caught:
        read_key("KEY", Path("the-key-itself"), {})
    assert "the-key-itself" not in str(caught.value)
