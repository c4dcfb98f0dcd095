"""The nodes' half of HTTP, against the real application over an engine without a model."""

import contextlib
import hashlib
import http.server
import io
import json
import threading
from collections.abc import Iterator

import pytest
from PIL import Image

from dsd_jax.infer.serve.guard import Guard
from integrations.comfyui.client import (
    BusyError,
    Made,
    Preview,
    Question,
    Server,
    ServerError,
    Step,
    Stream,
)


@pytest.fixture
def reference() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 40), "green").save(file, "PNG")
    return file.getvalue()


@contextlib.contextmanager
def answering(status: int, body: bytes, **headers: str) -> Iterator[tuple[str, list[str]]]:
    """A server that gives one answer to everything; also lists what was asked."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            asked.append(f"{self.command} {self.path}\n{self.headers}\n")
            asked.append(self.rfile.read(length).decode(errors="replace"))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            self.do_POST()

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()
        thread.join()


def test_a_stream_has_steps_previews_and_images(serve, engine, reference):
    fields = {"prompt": 'a "cat"\r\n--', "seed": "7", "n": "2", "num_inference_steps": "4"}
    with serve() as address:
        events = [*Stream(Server(address), fields, reference).events()]
    assert [event for event in events if isinstance(event, Step)][-1] == Step(8, 8)
    assert {event.image for event in events if isinstance(event, Preview)} == {0, 1}
    made = [event for event in events if isinstance(event, Made)]
    assert [(event.image, event.seed) for event in made] == [(0, 7), (1, 8)]
    assert Image.open(io.BytesIO(made[1].png)).getpixel((0, 0)) == (8, 0, 0)
    assert {request.prompt for request in engine.requests} == {fields["prompt"]}


def test_a_cancelled_request_frees_its_place(serve, engine, reference):
    engine.gate = threading.Semaphore(0)
    with serve() as address:
        stream = Stream(Server(address), {"prompt": "a", "num_inference_steps": "50"}, reference)
        events = stream.events()
        engine.gate.release(1)
        assert next(events) == Step(1, 50)
        stream.cancel()
        engine.gate.release(1)
        with pytest.raises(ServerError):
            list(events)
        later = Stream(Server(address), {"prompt": "a", "num_inference_steps": "1"}, reference)
        engine.gate.release(10)
        assert isinstance([*later.events()][-1], Made)
    assert len(engine.batches) < 10


def test_a_request_that_was_cancelled_before_it_began_makes_nothing(serve, engine, reference):
    with serve() as address:
        stream = Stream(Server(address), {"prompt": "a"}, reference)
        stream.cancel()
        with pytest.raises(ServerError, match="was cancelled"):
            [*stream.events()]
    assert engine.requests == []


def test_the_words_of_a_refusal_arrive(serve, reference):
    with serve() as address, pytest.raises(ServerError, match="400: size must be one of"):
        [*Stream(Server(address), {"prompt": "a", "size": "7x7"}, reference).events()]


def test_a_key_comes_from_the_environment_alone(serve, reference, monkeypatch):
    guard = Guard(hashlib.sha256(b"secret-key").digest())
    fields = {"prompt": "a", "num_inference_steps": "1"}
    monkeypatch.delenv("DSD_STUDIO", raising=False)
    with serve(guard=guard) as address:
        server = Server(address, "DSD_STUDIO")
        with pytest.raises(ServerError, match="set the environment variable DSD_STUDIO before"):
            [*Stream(server, fields, reference).events()]
        monkeypatch.setenv("DSD_STUDIO", " secret-key\n")
        assert isinstance([*Stream(server, fields, reference).events()][-1], Made)
    assert "secret" not in repr(server)


def test_a_full_queue_says_how_long_to_wait(reference):
    body = json.dumps({"error": {"message": "the queue is full"}}).encode()
    with answering(429, body, Retry_After="3") as (address, _), pytest.raises(BusyError) as caught:
        [*Stream(Server(address), {"prompt": "a"}, reference).events()]
    assert caught.value.seconds == 3
    assert "the queue is full" in str(caught.value)


@pytest.mark.parametrize(
    "address",
    [
        "file:///etc/passwd", "ftp://127.0.0.1", "127.0.0.1:8000", "http://127.0.0.1:8000/v1",
        "http://name:word@127.0.0.1:8000", "http://127.0.0.1:99999", "http://127.0.0.1\r\nX: y", "",
    ],
)  # fmt: skip
def test_an_address_is_a_host_and_a_port(address):
    with pytest.raises(ServerError, match="looks like http://127"):
        Server(address)


@pytest.mark.parametrize(
    "address",
    ["http://127.0.0.1:8000", "http://localhost", "https://[::1]:8000/", "http://127.9.9.9:1"],
)
def test_this_machine_is_always_allowed(address, monkeypatch):
    monkeypatch.delenv("DSD_SERVERS", raising=False)
    assert Server(address).address == address


def test_other_machines_are_those_that_the_owner_of_comfyui_lists(monkeypatch):
    monkeypatch.setenv("DSD_SERVERS", "https://gpu.lab.example, http://10.0.0.7:8000/")
    Server("https://gpu.lab.example/")
    assert Server().address == "https://gpu.lab.example"
    for address in ("http://gpu.lab.example", "https://10.0.0.7:8001", "http://127.0.0.1.evil.org"):
        with pytest.raises(ServerError, match=r"is not on this machine; to allow it.*DSD_SERVERS"):
            Server(address)
    with pytest.raises(ServerError, match="unencrypted; use https"):
        Server("http://10.0.0.7:8000")


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "sk-1234567890", "", "DSD_", "DSD_key"])
def test_only_variables_for_this_purpose_are_sent_and_a_key_is_never_repeated(name):
    with pytest.raises(ServerError, match="begins with DSD_") as caught:
        Server(key_env=name)
    assert not name or len(name) < 5 or name not in str(caught.value)


@pytest.mark.parametrize("key", ["two words", "clé-secrète", "line\nline"])
def test_what_is_no_key_is_not_repeated(key, monkeypatch):
    monkeypatch.setenv("DSD_API_KEY", key)
    with pytest.raises(ServerError, match="DSD_API_KEY must have no spaces") as caught:
        Question.light(Server(), "with a lamp").answer()
    assert key not in str(caught.value)


def test_a_password_in_an_address_is_not_repeated():
    with pytest.raises(ServerError, match="got one with a password") as caught:
        Server("http://name:hidden@127.0.0.1:8000")
    assert "hidden" not in str(caught.value)


def test_a_redirect_is_not_followed(reference):
    with (
        answering(200, b"") as (other, asked),
        answering(302, b"", Location=other) as (address, _),
        pytest.raises(ServerError, match="answered 302"),
    ):
        [*Stream(Server(address), {"prompt": "a"}, reference).events()]
    assert asked == []


@pytest.mark.parametrize(
    "body",
    [
        b"data: {\n\n", b"data: []\n\n", b'data: {"type": "x"}\n\n', b"data: 7\n\n",
        b'data: {"type": "a.completed", "image": 0, "seed": 1, "b64_json": "%%"}\n\n',
    ],
)  # fmt: skip
def test_a_damaged_stream_is_told(body, reference):
    with (
        answering(200, body) as (address, _),
        pytest.raises(ServerError, match="sent a damaged event"),
    ):
        [*Stream(Server(address), {"prompt": "a"}, reference).events()]


def test_a_server_that_is_not_there_is_told(reference):
    with pytest.raises(ServerError, match=r"no answer from .* is `dsd serve` running there"):
        [*Stream(Server("http://127.0.0.1:9"), {"prompt": "a"}, reference).events()]


def test_a_text_is_enhanced_by_the_server(reference):
    with answering(200, b'{"prompt": "a green cat", "notice": null}') as (address, asked):
        question = Question.enhancement(Server(address), "a cat", reference)
        assert question.answer() == ["a green cat"]
    assert asked[0].startswith("POST /v1/prompts/enhance")
    assert 'name="prompt"\r\n\r\na cat\r\n' in asked[1]


def test_the_server_words_a_light():
    body = b'{"instruction": "light it from the left", "addition": ", lit from the left"}'
    with answering(200, body) as (address, asked):
        words = Question.light(Server(address), "lamp & left").answer()
    assert words == ["light it from the left", ", lit from the left"]
    assert asked[0].startswith("GET /v1/light?words=lamp+%26+left\n")


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"7", b"<html>"])
def test_an_answer_of_something_else_is_told(body):
    with answering(200, body) as (address, _), pytest.raises(ServerError, match="something else"):
        Question.light(Server(address), "left").answer()
