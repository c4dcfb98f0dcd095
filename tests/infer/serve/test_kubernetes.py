"""The manifest for Kubernetes asks for what the server has: its flags, routes, key and counters."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import yaml

from dsd_jax.cli import main
from dsd_jax.errors import UserError
from dsd_jax.infer.serve import server
from dsd_jax.infer.serve.cli import ServerFlags
from dsd_jax.infer.serve.metrics import Metrics

FILE = Path(__file__).parents[3] / "integrations" / "kubernetes" / "serve.yaml"


@pytest.fixture(scope="module")
def manifest() -> dict[str, Any]:
    return {part["kind"]: part for part in yaml.safe_load_all(FILE.read_text())}


@pytest.fixture(scope="module")
def container(manifest) -> dict[str, Any]:
    [container] = manifest["Deployment"]["spec"]["template"]["spec"]["containers"]
    return container


def test_the_command_is_one_that_dsd_serve_takes(container, monkeypatch):
    asked = []

    def listen(*address):
        asked.append(address)
        raise UserError("that is enough")

    program, *words = container["command"]
    assert program == "dsd"
    monkeypatch.setattr(server, "listen", listen)
    monkeypatch.setenv(container["env"][0]["name"], "key-of-the-secret")
    main(words)
    assert asked == [("0.0.0.0", container["ports"][0]["containerPort"])]


def test_probes_ask_routes_that_need_no_key(container, http):
    kinds = ("startup", "readiness", "liveness")
    paths = {container[f"{kind}Probe"]["httpGet"]["path"] for kind in kinds}
    assert paths == {"/ready", "/health"}

    async def asked():
        return [await http.get(f"http://127.0.0.1{path}") for path in paths]

    assert {each.status_code for each in asyncio.run(asked())} == {200}


def test_the_key_is_in_the_variable_that_the_server_reads(container):
    [variable] = container["env"]
    assert variable["name"] == ServerFlags.api_key_env
    assert "value" not in variable


def test_the_autoscaler_follows_a_counter_of_the_server(manifest):
    [metric] = manifest["HorizontalPodAutoscaler"]["spec"]["metrics"]
    name = metric["pods"]["metric"]["name"]
    assert f"\n{name} 0.0\n".encode() in Metrics().text()
