"""`dsd serve`."""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import tyro

from dsd_jax.extras import require
from dsd_jax.infer.cli import ModelFlags
from dsd_jax.infer.enhance import Enhancement
from dsd_jax.sharding import MeshConfig

__all__ = ["QueueFlags", "ServeFlags", "ServerFlags", "serve"]

_PLAIN = tyro.conf.arg(name="")


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


@dataclasses.dataclass(frozen=True)
class ServeFlags:
    """All flags of `dsd serve`.

    Attributes:
        toy: Serve the toy weights that ship with the package.
        server: The address.
        queue: The queue.
        model: The model.
        enhance: Whether a vision model enriches texts, for the page and `/v1/prompts/enhance`.
    """

    toy: bool = False
    server: Annotated[ServerFlags, _PLAIN] = ServerFlags()
    queue: Annotated[QueueFlags, _PLAIN] = QueueFlags()
    model: Annotated[ModelFlags, _PLAIN] = dataclasses.field(
        default_factory=lambda: ModelFlags(mesh=MeshConfig(data=1))
    )
    enhance: Annotated[Enhancement, _PLAIN] = dataclasses.field(default_factory=Enhancement)


def serve(flags: Annotated[ServeFlags, _PLAIN] = ServeFlags()) -> None:
    """Serve images over HTTP, in the form of OpenAI's Images interface, and a page to make them.

    The page opens at the address that the command prints.

    Stop it with Ctrl-C or SIGTERM: it refuses new requests, and ends once the others are answered.

    Args:
        flags: All flags.
    """
    require("serve")
    from dsd_jax.infer.serve.cli_assembly import Assembly
    from dsd_jax.infer.serve.server import listen, run

    assembly = Assembly(flags)
    with listen(flags.server.host, flags.server.port) as sock:
        pipeline = assembly.model.load()
        for notice in pipeline.notices:
            print(f"note: {notice}")
        runner, app = assembly.around(pipeline, _report)
        host, port = sock.getsockname()[:2]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        asked = "no key" if assembly.guard.digest is None else "a key"
        print(f"listening at {address}, asks for {asked}; compiling the programs", flush=True)
        ready = f"ready: {address} and {address}/v1; stop with Ctrl-C"
        run(app, runner, sock, lambda: print(ready, flush=True))
    print("stopped; every accepted request is answered")


def _report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
