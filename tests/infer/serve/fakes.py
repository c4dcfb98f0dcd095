"""An engine without a model: grey images, one shade per seed; it can be held, and can fail."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image

from dsd_jax.errors import UserError
from dsd_jax.images import Frame, beside
from dsd_jax.infer.serve.engine import Painted
from dsd_jax.infer.serve.scheduler import Lane
from dsd_jax.infer.serve.wire import ImageRequest, Offer

__all__ = ["OFFER", "FakeEngine"]

OFFER = Offer("dsd", ((32, 32), (64, 32)), {"light": 1.0, "style": 0.5})


class FakeEngine:
    """Counts what it is asked for. With `gate`, each step waits until the gate lets it through."""

    def __init__(self, offer: Offer = OFFER) -> None:
        self.offer = offer
        self.gate: threading.Semaphore | None = None
        self.begun = threading.Semaphore(0)
        self.batches: list[tuple[int, ...]] = []
        self.fail_step: Exception | None = None
        self.frames: list[Frame | None] = []
        self.requests: list[ImageRequest] = []

    def lane(self, request: ImageRequest, *, edit: bool) -> Lane:
        if request.settings.steps == 99:
            raise UserError("the pipeline cannot make 99 steps")
        return Lane((request.size, edit), tuple(sorted(request.lora.items())))

    def warm_up(self, report: Callable[[str], None]) -> None:
        report("compiled")

    def open(self, request: ImageRequest, frame: Frame | None, rows: Sequence[int]) -> list[Any]:
        self.frames.append(frame)
        self.requests.append(request)
        return [(request, request.seeds[row]) for row in rows]

    def step(self, states: Sequence[Any], *, guided: bool) -> None:
        self.begun.release()
        if self.gate is not None:
            self.gate.acquire()
        self.batches.append(tuple(seed for _, seed in states))
        if self.fail_step is not None:
            failure, self.fail_step = self.fail_step, None
            raise failure

    def preview(self, state: Any) -> Image.Image:
        return self.finish(state).image.convert("L").convert("RGB")

    def finish(self, state: Any) -> Painted:
        request, seed = state
        shade = (seed % 256, 0, 0)
        image = Image.new("RGB", request.size, shade)
        frames = beside([Image.new("RGB", request.size, "blue"), image])
        parameters = {"seed": seed, "text": request.prompt}
        return Painted(image, parameters, frames if request.save_frames else None)
