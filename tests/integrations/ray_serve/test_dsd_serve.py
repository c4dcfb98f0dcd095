"""The deployment under Ray Serve, without Ray: stand-ins take the place of its decorators.

`python -m benchmarks.serve.replicas` runs it under Ray.
"""

import asyncio
import importlib
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from dsd_jax.errors import UserError
from dsd_jax.infer.serve.app import create_app
from dsd_jax.infer.serve.cli import ServeFlags
from dsd_jax.infer.serve.runner import Runner
from tests.infer.serve.fakes import FakeEngine

FOLDER = Path(__file__).parents[3] / "integrations" / "ray_serve"
MODULE = "integrations.ray_serve.dsd_serve"


@pytest.fixture
def dsd_serve(monkeypatch) -> Iterator[Any]:
    ray, serve = types.ModuleType("ray"), types.ModuleType("ray.serve")
    vars(ray)["serve"] = serve
    vars(serve).update(
        Application=object,
        ingress=lambda: lambda kind: kind,
        deployment=lambda **options: (
            lambda kind: types.SimpleNamespace(bind=lambda *given: (kind, *given))
        ),
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setitem(sys.modules, "ray.serve", serve)
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    yield importlib.import_module(MODULE)
    del sys.modules[MODULE]


@pytest.fixture
def replica(dsd_serve, monkeypatch) -> Iterator[Callable[[FakeEngine], Any]]:
    """Starts a replica with an engine in place of a model."""
    runners: list[Runner[Any]] = []

    def start(engine: FakeEngine) -> Any:
        class Assembly:
            model = types.SimpleNamespace(load=lambda: types.SimpleNamespace(notices=[]))

            def __init__(self, flags: ServeFlags) -> None: ...

            def around(self, pipeline: object, report: Callable[[str], None]) -> Any:
                runner = Runner(engine, report=report)
                runners.append(runner)
                return runner, create_app(runner)

        monkeypatch.setattr(dsd_serve, "Assembly", Assembly)
        return dsd_serve.Server(ServeFlags())

    yield start
    assert all(runner.close(seconds=60) for runner in runners)


def test_the_configuration_starts_what_is_there(dsd_serve):
    [given] = yaml.safe_load((FOLDER / "serve.yaml").read_text())["applications"]
    module, _, name = given["import_path"].partition(":")
    assert (FOLDER / f"{module}.py").exists()
    kind, flags = getattr(dsd_serve, name)(dsd_serve.Arguments(**given["args"]))
    assert flags.toy
    [deployment] = given["deployments"]
    assert deployment["name"] == kind.__name__


def test_wrong_flags_are_refused_before_a_replica_starts(dsd_serve):
    for flags, said in (
        ("--toy --max_queue 0", "max_queue must be from 1"),
        ("--host 0.0.0.0", "others can reach 0.0.0.0, so the server needs a key"),
        ("--tyo", "does not take the flags '--tyo'"),
        ("--base_path 'no end", "as for a shell: No closing quotation"),
    ):
        with pytest.raises(UserError, match=said):
            dsd_serve.app(dsd_serve.Arguments(flags=flags))
    with pytest.raises(ValueError, match="replicas"):
        dsd_serve.Arguments(replicas=2)


def test_a_replica_answers_once_it_is_made(replica):
    app = replica(FakeEngine()).__serve_build_asgi_app__()

    async def asked():
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app)) as http:
            return await http.get("http://127.0.0.1/ready")

    assert asyncio.run(asked()).json() == {"status": "ok"}


def test_a_replica_whose_programs_cannot_be_compiled_says_why(replica):
    class Full(FakeEngine):
        def warm_up(self, report: Callable[[str], None]) -> None:
            raise UserError("these weights do not fit")

    with pytest.raises(UserError, match="do not fit"):
        replica(Full())


def test_ray_is_told_of_a_device_that_fails(replica):
    engine = FakeEngine()
    made = replica(engine)
    made.check_health()

    async def ask(app):
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app)) as http:
            for _ in range(3):
                engine.fail_step = RuntimeError("no device")
                body = {"prompt": "a", "steps": 1}
                await http.post("http://127.0.0.1/v1/images/generations", json=body)

    asyncio.run(ask(made.__serve_build_asgi_app__()))
    with pytest.raises(RuntimeError, match="several times in a row"):
        made.check_health()
