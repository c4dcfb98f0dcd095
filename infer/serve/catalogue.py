"""Tasks, lights and examples that people choose from, and texts enhanced by a vision model."""

import asyncio
import base64
import dataclasses
from http import HTTPStatus

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from dsd_jax.errors import UserError
from dsd_jax.images import open_frame
from dsd_jax.infer.enhance import Enhancement, enhanced
from dsd_jax.infer.serve.examples import FLUX, PHOTOGRAPHIC, Example, LightMenu
from dsd_jax.infer.serve.uploads import FORM, Reader, Uploads, parse_form
from dsd_jax.infer.serve.wire import RefusedError, prompt_of
from dsd_jax.lights import Light
from dsd_jax.tasks import TASKS

__all__ = ["Catalogue"]

_LONGEST = 500  # characters of a light in words
_SIDE = 512  # pixels of the picture that a vision model sees
_AT_ONCE = 2  # texts that are enhanced at the same time; the others wait


class Catalogue:
    """The choices that a server offers people beside its model.

    Args:
        examples: Examples.
        enhancement: Whether a vision model enhances texts, and which.
        uploads: Limits of requests.
        lights: Lights.

    Raises:
        UserError: Enhancement was asked for, but there is no key.
    """

    def __init__(
        self,
        examples: tuple[Example, ...] = FLUX,
        enhancement: Enhancement = Enhancement(disable_gemini_prompt=True),
        uploads: Uploads = Uploads(),
        lights: LightMenu = PHOTOGRAPHIC,
    ) -> None:
        self._lights = lights
        self._examples, self._reader = examples, Reader(uploads)
        self._enhancement = dataclasses.replace(enhancement, enhance_prompt="on")
        self._enhances = enhancement.wanted
        self._asking = asyncio.Semaphore(_AT_ONCE)

    def routes(self) -> tuple[BaseRoute, ...]:
        """Routes for `create_app`."""
        return (
            Route("/v1/catalogue", self.catalogue),
            Route("/v1/light", self.light),
            Route("/v1/prompts/enhance", self.enhance, methods=["POST"]),
        )

    async def catalogue(self, request: Request) -> Response:
        """`GET /v1/catalogue`: tasks, words and presets of light, examples, the vision model."""
        del request
        lights = self._lights.vocabulary
        aspects = {
            aspect: {name: entry.words.replace("{} ", "") for name, entry in entries.items()}
            for aspect, entries in lights.entries.items()
        }
        return JSONResponse(
            {
                "tasks": [
                    {"name": task.name, "about": task.about, "lights": task.lit is not None}
                    for task in TASKS.values()
                ],
                "lights": aspects,
                "light_presets": [
                    self._light_body(lights.light(names)) for names in self._lights.presets
                ],
                "examples": [_example_body(example) for example in self._examples],
                "enhanced_by": self._enhancement.provider.model if self._enhances else None,
            }
        )

    async def light(self, request: Request) -> Response:
        """`GET /v1/light?direction=left&source=lamp`: a light in words and numbers.

        In place of names, `words=from the left with a lamp` says it.
        """
        names, lights = dict(request.query_params), self._lights.vocabulary
        words = names.pop("words", None)
        try:
            if words is None:
                return JSONResponse(self._light_body(lights.light(names)))
            if names:
                raise UserError("say a light by words or by the names of its aspects, not by both")
            if len(words) > _LONGEST:
                raise UserError(f"words of a light have at most {_LONGEST} characters")
            return JSONResponse(self._light_body(lights.read(words)))
        except UserError as error:
            raise RefusedError(str(error)) from None

    async def enhance(self, request: Request) -> Response:
        """`POST /v1/prompts/enhance`: a text with the details of a reference.

        The form has the fields `prompt` and `image`. Where the vision model fails, the answer holds
        the text as it was, and a notice that says why.
        """
        if not self._enhances:
            raise RefusedError(
                "this server enhances no texts; start it with --enhance_prompt on",
                status=HTTPStatus.NOT_FOUND,
                code="not_found",
            )
        async with self._reader.body(request, FORM) as given, self._asking:
            form = await parse_form(request.headers, given)
            prompt = prompt_of(form.fields)
            try:
                frame = await asyncio.to_thread(open_frame, form.image, _SIDE, _SIDE)
            except UserError as error:
                raise RefusedError(str(error), param="image") from None
            text, notice = await asyncio.to_thread(enhanced, prompt, frame.image, self._enhancement)
        return JSONResponse({"prompt": text, "notice": notice})

    def _light_body(self, light: Light) -> dict[str, object]:
        return {
            "names": light.named,
            "instruction": light.instruction(),
            "description": light.description,
            "addition": f"{self._lights.joint}{light.description}",
            "look": dataclasses.asdict(light.look),
        }


def _example_body(example: Example) -> dict[str, object]:
    body = dataclasses.asdict(example)
    reference = body.pop("reference")
    shown = None if reference is None else base64.b64encode(reference).decode()
    return {**body, "b64_json": shown}
