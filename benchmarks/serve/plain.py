"""The peer of `benchmarks.serve.load`: diffusers behind a plain web application.

    python -m benchmarks.serve.plain FOLDER

One lock, one image after another, as the usual example of a server has it.
"""

import base64
import io
import socket
import sys
import threading

import torch
import uvicorn
from diffusers import FluxPipeline
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route


def create_app(folder: str) -> Starlette:
    """An application with one route, which takes the same requests as `dsd serve`."""
    pipeline = FluxPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    tokens, lock = pipeline.tokenizer_2.model_max_length, threading.Lock()

    def paint(body: dict[str, object]) -> str:
        width, height = map(int, str(body["size"]).split("x"))
        with lock:
            made = pipeline(
                prompt=body["prompt"],
                width=width,
                height=height,
                num_inference_steps=body["steps"],
                max_sequence_length=tokens,
                generator=torch.Generator().manual_seed(int(str(body["seed"]))),
            )
        file = io.BytesIO()
        made.images[0].save(file, "PNG")
        return base64.b64encode(file.getvalue()).decode()

    async def generations(request: Request) -> JSONResponse:
        image = await run_in_threadpool(paint, await request.json())
        return JSONResponse({"data": [{"b64_json": image}]})

    return Starlette(routes=[Route("/v1/images/generations", generations, methods=["POST"])])


def main() -> None:
    """Serves until it is killed."""
    app = create_app(sys.argv[1])
    sock = socket.create_server(("127.0.0.1", 0), backlog=512)
    print(f"ready: http://127.0.0.1:{sock.getsockname()[1]}", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run([sock])


if __name__ == "__main__":
    main()
