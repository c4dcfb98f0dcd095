"""`dsd serve`."""

import dataclasses
import math
import re
import sys
from pathlib import Path
from typing import Annotated

import tyro

from dsd_jax.convert.hub import TOY
from dsd_jax.errors import UserError
from dsd_jax.extras import require
from dsd_jax.infer.cli import ModelFlags
from dsd_jax.infer.enhance import Enhancement
from dsd_jax.sharding import MeshConfig

__all__ = ["QueueFlags", "ServerFlags", "serve"]

_PLAIN = tyro.conf.arg(name="")
_MOST = 1 << 16


@dataclasses.dataclass(frozen=True)
class ServerFlags:
    """The address, and who may use it.

    Attributes:
        host: Address to listen on. Only this machine reaches the default; any other needs a key.
        port: Port; 0 takes a free one.
        api_key_env: Name of the environment variable with the key that clients must send.
        api_key_file: File with that key, in place of the variable.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key_env: str = "DSD_API_KEY"
    api_key_file: Path | None = None


@dataclasses.dataclass(frozen=True)
class QueueFlags:
    """The images that are made, and how many at a time.

    Attributes:
        sizes: Sizes of images, WIDTHxHEIGHT; programs are compiled for each before the server is
            ready. Default: 512x512, and 32x32 for --toy.
        max_batch: Images of one size that take a step together.
        max_delay_ms: Time that an idle device waits for more images to fill its first batch.
        max_queue: Images that may wait; further requests are answered with 429.
        true_guidance: Compile programs for an image guidance above 1, too.
    """

    sizes: tuple[str, ...] = ()
    max_batch: int = 4
    max_delay_ms: float = 10.0
    max_queue: int = 64
    true_guidance: bool = True


def serve(
    toy: bool = False,
    server: Annotated[ServerFlags, _PLAIN] = ServerFlags(),
    queue: Annotated[QueueFlags, _PLAIN] = QueueFlags(),
    model: Annotated[ModelFlags, _PLAIN] = ModelFlags(mesh=MeshConfig(data=1)),
    enhance: Annotated[Enhancement, _PLAIN] = Enhancement(),
) -> None:
    """Serve images over HTTP, in the form of OpenAI's Images interface, and a page to make them.

    The page opens at the address that the command prints.

    Stop it with Ctrl-C or SIGTERM: it refuses new requests, and ends once the others are answered.

    Args:
        toy: Serve the toy weights that ship with the package.
        server: The address.
        queue: The queue.
        model: The model.
        enhance: Whether a vision model enriches texts, for the page and `/v1/prompts/enhance`.
    """
    require("serve")
    from dsd_jax.infer.serve.app import create_app
    from dsd_jax.infer.serve.catalogue import Catalogue
    from dsd_jax.infer.serve.engine import PipelineEngine
    from dsd_jax.infer.serve.examples import FLUX, toy_examples
    from dsd_jax.infer.serve.guard import Guard, read_key
    from dsd_jax.infer.serve.page import page_routes
    from dsd_jax.infer.serve.runner import Runner
    from dsd_jax.infer.serve.scheduler import Capacity
    from dsd_jax.infer.serve.server import listen, run

    capacity = Capacity(
        queue=_count("max_queue", queue.max_queue),
        batch=_count("max_batch", queue.max_batch),
        delay=_delay(queue.max_delay_ms) / 1000,
    )
    sizes = [_size(text) for text in queue.sizes or ("32x32" if toy else "512x512",)]
    guard = Guard.of(read_key(server.api_key_env, server.api_key_file), server.host)
    catalogue = Catalogue(toy_examples() if toy else FLUX, enhance)
    if toy:
        model = dataclasses.replace(model, base_path=TOY, lora_path=model.lora_path or (TOY,))
    with listen(server.host, server.port) as sock:
        pipeline = model.load()
        for notice in pipeline.notices:
            print(f"note: {notice}")
        engine = PipelineEngine(pipeline, sizes, capacity.batch, true_guidance=queue.true_guidance)
        runner = Runner(engine, capacity, report=_report)
        host, port = sock.getsockname()[:2]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        asked = "no key" if guard.digest is None else "a key"
        print(f"listening at {address}, asks for {asked}; compiling the programs", flush=True)
        run(
            create_app(runner, guard, routes=(*page_routes(), *catalogue.routes())),
            runner,
            sock,
            lambda: print(f"ready: {address} and {address}/v1; stop with Ctrl-C", flush=True),
        )
    print("stopped; every accepted request is answered")


def _report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _count(name: str, value: int) -> int:
    if not 1 <= value <= _MOST:
        raise UserError(f"{name} must be from 1 to {_MOST}, got {value}")
    return value


def _delay(ms: float) -> float:
    if not (ms >= 0 and math.isfinite(ms)):
        raise UserError(f"max_delay_ms must be 0 or more milliseconds, got {ms:g}")
    return ms


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", text)
    if found is None:
        raise UserError(f"a size must look like 512x512 (WIDTHxHEIGHT), got {text!r}")
    return int(found[1]), int(found[2])
