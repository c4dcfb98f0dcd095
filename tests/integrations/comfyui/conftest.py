"""What the nodes need of ComfyUI, without ComfyUI."""

import asyncio
import contextlib
import sys
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvicorn
from starlette.routing import BaseRoute

from dsd_jax.infer.serve.app import create_app
from dsd_jax.infer.serve.guard import Guard
from dsd_jax.infer.serve.runner import Runner
from dsd_jax.infer.serve.scheduler import Capacity
from dsd_jax.infer.serve.server import listen
from tests.infer.serve.fakes import FakeEngine


class InterruptedByUserError(Exception):
    """What ComfyUI raises in a node when its user stops a workflow."""


class _Value:
    """An object that keeps what it was made with."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.id = args[0] if args else None
        self.__dict__.update(kwargs)


class _Kind:
    Input = Output = _Value


class _NodeOutput:
    def __init__(self, *args: Any) -> None:
        self.args = args


class FakeComfyUI:
    """Records progress and replacements; `interrupted` is the user's button."""

    def __init__(self) -> None:
        self.progress: list[tuple[int, int]] = []
        self.previews: list[Any] = []
        self.replacements: list[dict[str, Any]] = []
        self.interrupted = threading.Event()
        self.nodes: dict[str, Any] = {}

    def check(self) -> None:
        if self.interrupted.is_set():
            raise InterruptedByUserError

    def modules(self) -> dict[str, types.ModuleType]:
        async def set_progress(value: int, total: int, preview_image: Any = None) -> None:
            self.progress.append((value, total))
            if preview_image is not None:
                self.previews.append(preview_image)

        async def register(replacement: Any) -> None:
            self.replacements.append(vars(replacement))

        api = types.SimpleNamespace(
            execution=types.SimpleNamespace(set_progress=set_progress),
            node_replacement=types.SimpleNamespace(register=register),
        )
        io = types.SimpleNamespace(
            **dict.fromkeys(("Image", "Int", "Float", "String", "Combo"), _Kind),
            ComfyNode=object,
            Custom=lambda name: _Kind,
            Schema=_Value,
            Input=_Value,
            Output=_Value,
            NodeOutput=_NodeOutput,
            NodeReplace=_Value,
        )
        latest = types.ModuleType("comfy_api.latest")
        latest.__dict__.update(ComfyAPI=lambda: api, ComfyExtension=object, io=io)
        management = types.ModuleType("comfy.model_management")
        management.__dict__.update(throw_exception_if_processing_interrupted=self.check)
        comfy = types.ModuleType("comfy")
        comfy.__dict__.update(model_management=management)
        return {
            "comfy": comfy,
            "comfy.model_management": management,
            "comfy_api": types.ModuleType("comfy_api"),
            "comfy_api.latest": latest,
        }


@pytest.fixture
def comfy(monkeypatch) -> FakeComfyUI:
    """ComfyUI's modules, and our nodes by their ids."""
    fake = FakeComfyUI()
    for name, module in fake.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "integrations.comfyui.nodes", raising=False)
    from integrations.comfyui import comfy_entrypoint

    async def load() -> list[Any]:
        extension = await comfy_entrypoint()
        await extension.on_load()
        return await extension.get_node_list()

    fake.nodes = {node.define_schema().node_id: node for node in asyncio.run(load())}
    monkeypatch.delitem(sys.modules, "integrations.comfyui.nodes", raising=False)
    return fake


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


Serve = Callable[..., contextlib.AbstractContextManager[str]]


@pytest.fixture
def serve(engine) -> Serve:
    """Serves the engine on this machine; gives the address."""

    @contextlib.contextmanager
    def serving(*routes: BaseRoute, guard: Guard = Guard(), queue: int = 8) -> Iterator[str]:
        runner = Runner(engine, Capacity(queue=queue, batch=2))
        runner.start()
        while not runner.ready:
            assert runner.failure is None
        app = create_app(runner, guard, routes=routes)
        config = uvicorn.Config(app, lifespan="off", log_level="critical")
        server = uvicorn.Server(config)
        with listen("127.0.0.1", 0) as sock:
            thread = threading.Thread(target=server.run, args=([sock],))
            thread.start()
            try:
                yield f"http://127.0.0.1:{sock.getsockname()[1]}"
            finally:
                if engine.gate is not None:
                    engine.gate.release(10_000)
                server.should_exit = True
                thread.join()
                assert runner.close(seconds=60)

    return serving
