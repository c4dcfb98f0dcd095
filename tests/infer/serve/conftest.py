"""A server over an engine without a model, and the official client that talks to it."""

import io

import httpx2
import openai
import pytest
from PIL import Image

from dsd_jax.infer.serve.app import create_app
from dsd_jax.infer.serve.runner import Runner
from dsd_jax.infer.serve.scheduler import Capacity
from tests.infer.serve.fakes import FakeEngine

BASE = "http://127.0.0.1/v1"


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def runner(engine):
    own = Runner(engine, Capacity(queue=4, batch=2))
    own.start()
    while not own.ready:
        assert own.failure is None
    yield own
    if engine.gate is not None:
        engine.gate.release(1_000)
    assert own.close(seconds=60)


@pytest.fixture
def http(runner) -> httpx2.AsyncClient:
    transport = httpx2.ASGITransport(create_app(runner))
    return httpx2.AsyncClient(transport=transport, base_url=BASE)


@pytest.fixture
def client(http) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=BASE, api_key="none", http_client=http, max_retries=0)


@pytest.fixture
def reference() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 40), "green").save(file, "PNG")
    return file.getvalue()
