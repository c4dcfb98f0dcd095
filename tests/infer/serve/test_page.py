"""The page as a browser gets it: its files, and what it is allowed to do."""

import asyncio
import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import httpx2
import pytest

from dsd_jax.infer.serve.app import create_app
from dsd_jax.infer.serve.catalogue import Catalogue
from dsd_jax.infer.serve.guard import Guard
from dsd_jax.infer.serve.page import FOLDER, page_routes

ROOT = Path(__file__).parents[3]
FILES = sorted(path for path in FOLDER.iterdir() if path.suffix in {".html", ".css", ".js"})


def get(runner, path: str, guard: Guard = Guard(), **headers) -> httpx2.Response:
    async def ask() -> httpx2.Response:
        app = create_app(runner, guard, routes=(*page_routes(), *Catalogue().routes()))
        transport = httpx2.ASGITransport(app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.get(path, headers=headers)

    return asyncio.run(ask())


def test_the_page_and_all_that_it_names_are_there(runner):
    page = get(runner, "/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    named = {*re.findall(r'(?:href|src)="(/[^"]+)"', page.text)}
    seen: set[str] = set()
    while named - seen:
        path = (named - seen).pop()
        seen.add(path)
        found = get(runner, path)
        assert found.status_code == 200, path
        kind = "text/javascript" if path.endswith(".js") else "text/css"
        assert found.headers["content-type"] == f"{kind}; charset=utf-8"
        named |= {f"/app/{name}" for name in re.findall(r'from "\./([^"]+)"', found.text)}
    own = {f"/app/{path.name}" for path in FILES if path.name != "index.html"}
    assert seen == {*own, "/app/page.css"}


def test_the_page_runs_its_own_scripts_alone_and_talks_to_its_server_alone(runner):
    headers = get(runner, "/").headers
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert {policy[f"{kind}-src"] for kind in ("script", "style", "connect")} == {"'self'"}
    assert policy["frame-ancestors"] == "'none'"
    assert policy["require-trusted-types-for"] == "'script'"  # no text becomes HTML
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"innerHTML|insertAdjacentHTML|\beval\b|\son\w+=\"|<style", text), path
        assert "https://" not in text, path
    page = (FOLDER / "index.html").read_text(encoding="utf-8")
    assert re.findall(r"<script[^>]*>(.*?)</script>", page) == [""]


def test_the_files_come_with_the_package():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = settings["package-data"]["*"]
    assert (FOLDER / "__init__.py").exists()  # package data is taken from packages alone
    for path in FILES:
        assert any(fnmatch(path.name, pattern) for pattern in patterns), path


@pytest.mark.parametrize("path", ["/app/", "/app/missing.js", "/app/../__init__.py", "/app"])
def test_nothing_else_is_served(runner, path):
    assert get(runner, path).status_code == 404


def test_the_page_asks_for_no_key_but_what_it_shows_does(runner):
    guard = Guard.of("the-long-key", "0.0.0.0")
    assert get(runner, "/", guard).status_code == 200
    assert get(runner, "/app/app.js", guard).status_code == 200
    assert get(runner, "/v1/catalogue", guard).status_code == 401
    assert get(runner, "/app/%2e%2e/metrics", guard).status_code == 404
    key = {"authorization": "Bearer the-long-key"}
    assert get(runner, "/v1/catalogue", guard, **key).status_code == 200


def test_the_page_is_not_shown_under_the_name_of_another_host(runner):
    assert get(runner, "/", host="evil.example").status_code == 403
