"""Routes to pairs of one scene in two lights: `[relight]`.

`grid` asks the teacher for one picture of four panels, as for every other task. `shared` paints
four pictures from one noise, which share keys and values in the early steps. `backward` paints one
good picture and re-lights its pixels for the others. The last two join their pictures to a picture
of four panels, so that all later stages see grids.
"""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from dsd_jax.data.make.ids import PANELS, CaptionId, GridId, PromptId
from dsd_jax.data.make.stages import Box, Named
from dsd_jax.data.make.weights import check_weights, chosen
from dsd_jax.errors import UserError, did_you_mean
from dsd_jax.lights import ASPECTS, Light, Lights, load_lights
from dsd_jax.relighting import relit

__all__ = [
    "GRID",
    "ROUTES",
    "RelightConfig",
    "Route",
    "joined",
    "lights_in",
    "lit_prompt",
    "panel_prompts",
    "quarters",
    "route_named",
]


@dataclasses.dataclass(frozen=True)
class Route:
    """A way to four panels.

    Attributes:
        name: Name in the configuration and in rows.
        of_scene: The prompt is that of a scene, and a panel's is the prompt and its light.
            Otherwise one prompt describes the whole grid.
        painted: Number of pictures that the teacher paints for a grid.
        exact: The first panel is the painted picture, and the others are its pixels in other
            lights. So pairs lead to the first panel, and nobody asks whether anything moved.
    """

    name: str
    of_scene: bool = False
    painted: int = 1
    exact: bool = False


GRID = Route("grid")
ROUTES = {
    route.name: route
    for route in (
        GRID,
        Route("backward", of_scene=True, exact=True),
        Route("shared", of_scene=True, painted=len(PANELS)),
    )
}


def route_named(name: str | None) -> Route:
    """The route of a row. Rows of tasks with a single route name none, which is `grid`."""
    return GRID if name is None else ROUTES[name]


@dataclasses.dataclass(frozen=True)
class RelightConfig:
    """`[relight]`, for tasks whose frames differ in light alone.

    Attributes:
        routes: Weight of each route; every prompt gets one of them.
        lights: TOML file with a vocabulary of light that replaces or extends ours.
        aspects: Largest number of aspects, such as direction and source, that are said of a light.
        usual: Words of a light of the vocabulary, which one panel of every grid gets, because most
            pictures that people bring are in it. By an exact route it is not put into the first
            panel, because pairs lead to that one. None prefers no light.
        shared_steps: Part of the sampling steps that the panels of `shared` take together.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    routes: Mapping[str, float] = dataclasses.field(default_factory=lambda: {GRID.name: 1.0})
    lights: Path | None = None
    aspects: int = 2
    usual: str | None = None
    shared_steps: float = 0.4

    def __post_init__(self) -> None:
        for name in self.routes:
            if name not in ROUTES:
                raise UserError(
                    f"routes: there is no route {name!r}; expected {', '.join(ROUTES)}"
                    f"{did_you_mean(name, ROUTES)}"
                )
        check_weights("routes", self.routes, "grid = 1, backward = 1")
        if not 1 <= self.aspects <= len(ASPECTS):
            raise UserError(f"aspects must be from 1 to {len(ASPECTS)}, got {self.aspects}")
        if not 0 < self.shared_steps <= 1:
            raise UserError(f"shared_steps must be above 0 and at most 1, got {self.shared_steps}")

    @property
    def used(self) -> tuple[Route, ...]:
        """Routes with a weight."""
        return tuple(ROUTES[name] for name, weight in self.routes.items() if weight)

    def vocabulary(self) -> Lights:
        """The vocabulary of light.

        Raises:
            UserError: The file cannot be used.
        """
        return load_lights(self.lights)

    def usual_light(self) -> Light | None:
        """The light of `usual`.

        Raises:
            UserError: The vocabulary has no such words, or cannot be used.
        """
        if self.usual is None:
            return None
        vocabulary = self.vocabulary()
        try:
            return vocabulary.read(self.usual)
        except UserError as error:
            raise UserError(f"relight.usual: {error}") from None

    def route_of(self, caption: CaptionId) -> Route:
        """The route of a caption, chosen by the hash of its id and the weights."""
        return ROUTES[chosen("route", caption, self.routes, ROUTES)]

    def lights_of(self, prompt: PromptId) -> list[Light]:
        """The lights of the panels of a prompt, drawn by its id. One of them is the usual one."""
        rng, usual = _rng("lights", prompt), self.usual_light()
        lights = self.vocabulary().draw_different(rng, len(PANELS), self.aspects)
        if usual is not None and usual not in lights:
            first = int(self.route_of(prompt.caption).exact)
            lights[int(rng.integers(first, len(PANELS)))] = usual
        return lights


def quarters(width: int, height: int) -> tuple[Box, ...]:
    """The boxes of the panels of a picture that `joined` made."""
    across, down = width // 2, height // 2
    return tuple(
        (x, y, x + across, y + down) for y in (0, height - down) for x in (0, width - across)
    )


def joined(
    route: Route, pictures: Sequence[Image.Image], lights: Sequence[Light], grid: GridId
) -> Image.Image:
    """The picture of four panels from the pictures that were painted for a grid."""
    if not route.of_scene:
        return pictures[0]
    if route.exact:
        pixels, rng = np.asarray(pictures[0]), _rng("relit", grid)
        others = [relit(pixels, light.look, rng) for light in lights[1:]]
        pictures = [pictures[0], *map(Image.fromarray, others)]
    width, height = pictures[0].size
    whole = Image.new("RGB", (2 * width, 2 * height))
    for picture, box in zip(pictures, quarters(*whole.size), strict=True):
        whole.paste(picture, box)
    return whole


def panel_prompts(route: Route, prompt: str, lights: Sequence[Light]) -> list[str]:
    """The prompts of the pictures that are painted for a grid."""
    if not route.of_scene:
        return [prompt]
    return [lit_prompt(prompt, light) for light in lights[: route.painted]]


def lit_prompt(scene: str, light: Light) -> str:
    """The prompt of a scene in a light."""
    return f"{scene.rstrip(' .')}, {light.description}"


def lights_in(vocabulary: Lights, named: Sequence[Named] | None) -> list[Light]:
    """The lights of a row."""
    return [vocabulary.light(names) for names in named or ()]


def _rng(what: str, item: PromptId | GridId) -> np.random.Generator:
    return np.random.default_rng(list(hashlib.sha256(f"{what} {item}".encode()).digest()[:16]))
