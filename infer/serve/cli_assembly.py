"""A server from the flags of `dsd serve`: they are checked first, then weights are loaded."""

import dataclasses
import math
import re
from collections.abc import Callable

from starlette.types import ASGIApp

from dsd_jax.convert.hub import TOY
from dsd_jax.errors import UserError
from dsd_jax.infer.pipeline import Pipeline
from dsd_jax.infer.serve.app import create_app
from dsd_jax.infer.serve.catalogue import Catalogue
from dsd_jax.infer.serve.cli import ServeFlags
from dsd_jax.infer.serve.engine import PipelineEngine, Sampling
from dsd_jax.infer.serve.examples import FLUX, PHOTOGRAPHIC, TOY_LIGHTS, toy_examples
from dsd_jax.infer.serve.guard import Guard, read_key
from dsd_jax.infer.serve.page import page_routes
from dsd_jax.infer.serve.runner import Runner
from dsd_jax.infer.serve.scheduler import Capacity
from dsd_jax.infer.serve.wire import Size

__all__ = ["Assembly"]

_MOST = 1 << 16


class Assembly:
    """The parts of a server that need no weights.

    Args:
        flags: All flags of `dsd serve`.

    Attributes:
        guard: Who may ask.
        model: The model to load.

    Raises:
        UserError: A flag is wrong, or the server needs a key and has none.
    """

    def __init__(self, flags: ServeFlags) -> None:
        queue, server, toy = flags.queue, flags.server, flags.toy
        self._capacity = Capacity(
            queue=_count("max_queue", queue.max_queue),
            batch=_count("max_batch", queue.max_batch),
            delay=_delay(queue.max_delay_ms) / 1000,
        )
        self._sizes = [_size(text) for text in queue.sizes or ("32x32" if toy else "512x512",)]
        self._public_name = TOY if toy and flags.model.model_path is None else None
        self._true_guidance = queue.true_guidance
        self._catalogue = Catalogue(
            toy_examples() if toy else FLUX,
            flags.enhance,
            lights=TOY_LIGHTS if toy else PHOTOGRAPHIC,
        )
        self.guard = Guard.of(read_key(server.api_key_env, server.api_key_file), server.host)
        self.model = flags.model
        if toy:
            lora_path = flags.model.lora_path or (TOY,)
            self.model = dataclasses.replace(flags.model, base_path=TOY, lora_path=lora_path)

    def around(
        self, pipeline: Pipeline, report: Callable[[str], None]
    ) -> tuple[Runner[Sampling], ASGIApp]:
        """Puts the server around a pipeline.

        Args:
            pipeline: The loaded model.
            report: Called with a line for each program that the runner compiles.

        Returns:
            The device's thread, not started, and the application before it.

        Raises:
            UserError: The pipeline cannot make images of these sizes, or cannot be served.
        """
        engine = PipelineEngine(
            pipeline,
            self._sizes,
            self._capacity.batch,
            true_guidance=self._true_guidance,
            model=self._public_name,
        )
        runner = Runner(engine, self._capacity, report)
        routes = (*page_routes(), *self._catalogue.routes())
        return runner, create_app(runner, self.guard, routes=routes)


def _count(name: str, value: int) -> int:
    if not 1 <= value <= _MOST:
        raise UserError(f"{name} must be from 1 to {_MOST}, got {value}")
    return value


def _delay(ms: float) -> float:
    if not (ms >= 0 and math.isfinite(ms)):
        raise UserError(f"max_delay_ms must be 0 or more milliseconds, got {ms:g}")
    return ms


def _size(text: str) -> Size:
    found = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", text)
    if found is None:
        raise UserError(f"a size must look like 512x512 (WIDTHxHEIGHT), got {text!r}")
    return int(found[1]), int(found[2])
