"""A headless ComfyUI with our nodes, driven as its page does: over HTTP and a websocket."""

import contextlib
import dataclasses
import io
import json
import os
import re
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
from PIL import Image
from websockets.sync.client import connect

__all__ = ["PACK", "ComfyUI", "Run", "comfyui", "toy_server"]

PACK = Path(__file__).parents[3] / "integrations" / "comfyui"
_PATIENCE = 1800.0  # for a machine that does ten other things
_METADATA = 4  # a preview with the id of its node before it
Workflow = dict[str, dict[str, Any]]


@dataclasses.dataclass
class Run:
    """What ComfyUI told while it ran a workflow."""

    events: list[tuple[str, dict[str, Any]]] = dataclasses.field(default_factory=list)
    previews: list[Image.Image] = dataclasses.field(default_factory=list)

    def named(self, name: str) -> list[dict[str, Any]]:
        return [data for kind, data in self.events if kind == name]

    def steps(self, node: str) -> list[tuple[float, float]]:
        states = [data["nodes"].get(node) for data in self.named("progress_state")]
        return [(state["value"], state["max"]) for state in states if state]


class ComfyUI:
    """A running ComfyUI."""

    def __init__(self, address: str) -> None:
        self._http = httpx2.Client(base_url=f"http://{address}", timeout=_PATIENCE)
        self._socket = f"ws://{address}/ws?clientId=test"

    def close(self) -> None:
        self._http.close()

    def get(self, path: str, **query: str) -> Any:
        return self._http.get(path, params=query).raise_for_status().json()

    def upload(self, path: Path) -> str:
        """Puts an image where 'Load Image' finds it."""
        files = {"image": (path.name, path.read_bytes())}
        return str(self._http.post("/upload/image", files=files).raise_for_status().json()["name"])

    def interrupt(self) -> None:
        self._http.post("/interrupt", json={}).raise_for_status()

    def refused(self, workflow: Workflow) -> dict[str, Any]:
        answer = self._http.post("/prompt", json={"prompt": workflow})
        assert answer.status_code == 400, answer.text
        return answer.json()

    def run(self, workflow: Workflow, watch: Callable[[Run], None] = lambda run: None) -> Run:
        """Runs a workflow; `watch` sees what happened after each event."""
        run = Run()
        with connect(self._socket, max_size=None) as link:
            link.send(
                json.dumps({"type": "feature_flags", "data": {"supports_preview_metadata": True}})
            )
            body = {"prompt": workflow, "client_id": "test"}
            answer = self._http.post("/prompt", json=body)
            assert answer.status_code == 200, answer.text
            while True:
                message = link.recv(timeout=_PATIENCE)
                if isinstance(message, bytes):
                    kind, length = struct.unpack(">II", message[:8])
                    if kind == _METADATA:
                        run.previews.append(Image.open(io.BytesIO(message[8 + length :])))
                else:
                    told = json.loads(message)
                    run.events.append((told["type"], told["data"]))
                    if told["type"] in (
                        "execution_success", "execution_error", "execution_interrupted",
                    ):  # fmt: skip
                        return run
                watch(run)

    def saved(self, run: Run, node: str) -> list[Image.Image]:
        """Images that an output node of a run wrote."""
        [output] = [data["output"] for data in run.named("executed") if data["node"] == node]
        return [
            Image.open(io.BytesIO(self._http.get("/view", params=image).raise_for_status().content))
            for image in output["images"]
        ]


@contextlib.contextmanager
def _started(command: list[str], log: Path, sign: str, **how: Any) -> Iterator[str]:
    """Starts a program; gives what the sign finds in its output."""
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, **how)
    try:
        while (found := re.search(sign, log.read_text(errors="replace"))) is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.5)
                raise AssertionError(log.read_text(errors="replace")[-4000:])
        yield found[1]
    finally:
        process.terminate()
        process.wait(60)


@contextlib.contextmanager
def toy_server(folder: Path, *flags: str, **environment: str) -> Iterator[str]:
    """`dsd serve --toy`; gives its address."""
    command = [sys.executable, "-m", "dsd_jax", "serve", "--toy", "--port", "0", *flags]
    sign = r"ready: (http://[\d.]+:\d+)"
    with _started(command, folder / "serve.log", sign, env=os.environ | environment) as address:
        yield address


@contextlib.contextmanager
def comfyui(checkout: Path, python: str, folder: Path, **environment: str) -> Iterator[ComfyUI]:
    """ComfyUI on the CPU with our nodes alone, and its files in a folder."""
    (folder / "custom_nodes").mkdir()
    (folder / "custom_nodes" / "dsd").symlink_to(PACK)
    port = _free_port()
    command = [
        python, "main.py", "--cpu", "--disable-api-nodes", "--listen", "127.0.0.1",
        "--port", port, "--base-directory", str(folder),
    ]  # fmt: skip
    sign = r"To see the GUI go to: http://(\S+)"
    log, variables = folder / "comfyui.log", os.environ | environment
    with (
        _started(command, log, sign, cwd=checkout, env=variables) as address,
        contextlib.closing(ComfyUI(address)) as running,
    ):
        yield running


def _free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return str(sock.getsockname()[1])
