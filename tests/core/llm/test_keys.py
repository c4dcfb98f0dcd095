"""A key that is looked for in everything that a run leaves behind."""

import functools
import logging
import pickle
import sqlite3
import traceback

import pytest

from dsd_jax.errors import UserError
from dsd_jax.llm import batched, online
from dsd_jax.llm.config import ProviderConfig
from dsd_jax.llm.gemini_batches import GeminiBatches
from dsd_jax.llm.openai_batches import OpenAIBatches
from tests.core.llm.asking import KINDS, ask_all, converse, once
from tests.core.llm.server import Server
from tests.core.llm.wire import BadJson, Delayed, Drop, Question, Reply, Result, Status

CANARY = "canary-7f3a9c-key"
ECHO = f'{{"error": {{"message": "Incorrect API key provided: {CANARY}"}}}}'


@pytest.fixture(params=["environment", "file"])
def key(request, monkeypatch, tmp_path_factory):
    """Settings by which the provider finds the key."""
    monkeypatch.setattr(online, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(batched, "SETTLE_S", 0.01)
    if request.param == "environment":
        monkeypatch.setenv("MY_KEY", CANARY)
        return {"api_key_env": "MY_KEY"}
    path = tmp_path_factory.mktemp("keys") / "key"
    path.write_text(CANARY)
    return {"api_key_file": path}


@pytest.mark.parametrize("kind", KINDS)
def test_no_artefact_has_the_key(kind, key, tmp_path, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    faults: list[Result] = [
        Status(400, ECHO),
        Status(401, ECHO),
        Status(429, ECHO),
        Status(500, ECHO),
        Status(302, ECHO, {"Location": f"http://evil.test/?key={CANARY}"}),
        Reply(f"you sent {CANARY}", headers={"x-request-id": CANARY}),
        Reply("yes", model="other"),
        Drop(),
        BadJson(),
        Delayed(1.0, "late"),
    ]
    said = []
    with Server() as server:
        settings = {"base_url": getattr(server, kind), "retries": 1, **key}
        for number, fault in enumerate(faults):
            server.answer = functools.partial(_always, fault)
            ledger = tmp_path / f"judge-{number:05}.sqlite"
            # Only the answer that comes late needs a short patience; a loaded machine needs a long.
            timeout = 0.3 if isinstance(fault, Delayed) else 30
            provider = ProviderConfig(kind, "m", timeout=timeout, **settings)
            try:
                said.append(str(ask_all(provider, ledger, [1], once)))
            except UserError as error:
                said += traceback.format_exception(error)
                said.append(repr(pickle.dumps(error)))
        sent = server.headers.get("authorization", "") + server.headers.get("x-goog-api-key", "")
        assert CANARY in sent  # it is really this key that is looked for
        server.answer = lambda question: Status(401, ECHO)
        provider = ProviderConfig(kind, "m", mode="batch", poll_seconds=0.01, **settings)
        with pytest.raises(UserError) as caught:
            ask_all(provider, tmp_path / "judge-10000.sqlite", range(3), converse)
        said += traceback.format_exception(caught.value)

    out, err = capfd.readouterr()
    said += [out, err, caplog.text, repr(provider)]
    for text in said:
        assert CANARY not in text
    found = [path for path in tmp_path.rglob("*") if CANARY.encode() in path.read_bytes()]
    assert found == []
    with sqlite3.connect(tmp_path / "judge-00005.sqlite") as db:
        (raw,) = db.execute("SELECT raw FROM answers").fetchone()
    db.close()
    assert "you sent [key]" in raw


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["online", "batch"])
def test_the_key_does_not_follow_a_redirect(kind, mode, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", CANARY)
    with Server() as other, Server() as server:
        away = Status(307, headers={"Location": f"{other.gemini}/v1/chat/completions"})
        server.answer = lambda question: away
        if mode == "batch":
            for transport in (OpenAIBatches, GeminiBatches):
                monkeypatch.setattr(transport, "most", 2)
            monkeypatch.setattr(server, "_openai_batches", lambda *given: _redirect(other))
            monkeypatch.setattr(server, "_gemini_batches", lambda *given: _redirect(other))
        provider = ProviderConfig(
            kind, "m", mode, getattr(server, kind), api_key_env="MY_KEY", retries=0
        )
        with pytest.raises(UserError, match=r"the server redirects to http://127\.0\.0\.1"):
            ask_all(provider, tmp_path / "judge-00000.sqlite", [1])
        assert other.received == 0
        assert other.headers == {}
        assert other.files == {}


def _always(fault: Result, question: Question) -> Result:
    return fault


def _redirect(other: Server) -> tuple[int, dict[str, str], bytes]:
    return 307, {"Location": f"{other.gemini}/v1/files"}, b""


@pytest.mark.parametrize("kind", KINDS)
def test_the_environment_cannot_divert_questions(kind, tmp_path, monkeypatch):
    """Variables that the clients would follow by themselves."""
    with Server() as evil, Server() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", evil.openai)
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", evil.gemini)
        monkeypatch.setenv("GOOGLE_GENAI_USE_VERTEXAI", "true")
        monkeypatch.setenv("GOOGLE_API_KEY", "another")
        monkeypatch.setenv("OPENAI_API_KEY", "another")
        monkeypatch.setenv("OPENAI_ADMIN_KEY", "another")
        monkeypatch.setenv("MY_KEY", CANARY)
        provider = ProviderConfig(kind, "m", base_url=getattr(server, kind), api_key_env="MY_KEY")
        assert ask_all(provider, tmp_path / "judge-00000.sqlite", [1]) == {1: "stop: yes"}
        assert evil.received == 0
        sent = server.headers.get("authorization", "") + server.headers.get("x-goog-api-key", "")
        assert CANARY in sent
        assert "another" not in str(server.headers)
