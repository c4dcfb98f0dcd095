"""Stage 2 (`dsd data prompts`): one prompt per caption, for a grid of four panels or for a scene.

A prompt fits into the tokens that CLIP reads, so that the teacher sees all of it.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from dsd_jax.data.make.ids import CaptionId, PromptId
from dsd_jax.data.make.routes import GRID, RelightConfig, Route, lit_prompt, panel_prompts
from dsd_jax.data.make.stages import PROMPTS, Caption, Prompt
from dsd_jax.data.make.weights import check_weights, chosen
from dsd_jax.errors import UserError, did_you_mean
from dsd_jax.lights import Light
from dsd_jax.llm.answers import Fault, clip_faults, one_line, user, written
from dsd_jax.llm.messages import Ask, Message, Request
from dsd_jax.llm.wording import Wording
from dsd_jax.tasks import TASKS, Task

__all__ = ["PromptWriter", "PromptsConfig", "subject_of", "task_of"]

GRID_TASKS = {name: task for name, task in TASKS.items() if task.grid is not None}

_BEGINNING = re.compile(r"a grid of\b", re.IGNORECASE)
_QUADRANTS = tuple(
    (f"{row}-{side}", re.compile(rf"\b{row}[\s-]*{side}\b", re.IGNORECASE))
    for row in ("top", "bottom")
    for side in ("left", "right")
)
# Words that may stand between "a grid of" and the subject: numbers, media, verbs of showing.
_FILLERS = frozenset(
    """a an the of four 4 2x2 evenly equally separated split divided spaced equal even panel
    panels image images picture pictures photo photos photograph photographs photographic
    illustration illustrations quadrant quadrants frame frames comic manga strip page
    shot shots scene scenes same identical one single showing shows show depicting
    depicts depict featuring features with each every in style real realistic cinematic
    digital art render renders painting paintings watercolour watercolours watercolor
    watercolors sketch sketches drawing drawings""".split()
)
_SUBJECT_WORDS = 4


@dataclasses.dataclass(frozen=True)
class PromptsConfig:
    """`[prompts]`.

    Attributes:
        provider: Model that writes.
        tasks: Weight of each task; every caption gets one of them.
        retries: Most further questions for a prompt that breaks a rule.
        temperature: Temperature of the model. None uses the model's default.
        max_tokens: Largest number of tokens of an answer, hidden reasoning included.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    provider: str
    tasks: Mapping[str, float] = dataclasses.field(default_factory=lambda: {"identity": 1.0})
    retries: int = 2
    temperature: float | None = None
    max_tokens: int = 1024

    def __post_init__(self) -> None:
        for name in sorted(set(self.tasks) - set(GRID_TASKS)):
            raise UserError(
                f"tasks: no grids are made for {name!r}; expected {', '.join(GRID_TASKS)}"
                f"{did_you_mean(name, GRID_TASKS)}"
            )
        check_weights("tasks", self.tasks, "identity = 1")
        if self.retries < 0:
            raise UserError(f"retries must not be negative, got {self.retries}")


def task_of(caption: CaptionId, weights: Mapping[str, float]) -> Task:
    """The task of a caption, chosen by the hash of its id and the weights."""
    return GRID_TASKS[chosen("task", caption, weights, GRID_TASKS)]


def subject_of(prompt: str) -> str:
    """The subject of a grid prompt, in at most four words; empty if it is not clear."""
    head = _BEGINNING.sub("", prompt, count=1)
    first = min(
        (found.start() for _, mark in _QUADRANTS if (found := mark.search(head))), default=0
    )
    head = re.split(
        r"[:;,.(]|\s(?:in|on|at|under|across|through|with|wearing|from)\s", head[:first]
    )[0]
    words = re.findall(r"[^\W_]+(?:['-][^\W_]+)*", head.lower())
    while words and words[0] in _FILLERS:
        words.pop(0)
    while words and words[-1] in _FILLERS:
        words.pop()
    return " ".join(words[:_SUBJECT_WORDS])


@dataclasses.dataclass(frozen=True)
class PromptWriter:
    """Asks for one prompt per caption.

    Attributes:
        config: Settings of the stage.
        wording: Texts of the stage.
        count_tokens: Counts the CLIP tokens of a text, start and end included.
        relight: Routes and lights of tasks whose frames differ in light alone.
    """

    config: PromptsConfig
    wording: Wording
    count_tokens: Callable[[str], int]
    relight: RelightConfig = dataclasses.field(default_factory=RelightConfig)

    async def __call__(self, caption: Caption, ask: Ask) -> Prompt:
        """Returns the row of a caption: `kept` with its prompt, or the reason for none."""
        task = task_of(caption.id, self.config.tasks)
        name = PromptId(caption.id, task.name)
        route = self.relight.route_of(caption.id) if task.lit else GRID
        lights = self.relight.lights_of(name) if task.lit else []
        request = Request(
            stage=PROMPTS.name,
            item=str(name),
            messages=self._messages(task, route, lights, caption.caption),
            wording=self.wording.id,
            max_tokens=self.config.max_tokens,
            temperature=self.config.temperature,
        )
        result = await written(
            ask,
            request,
            functools.partial(self.check_scene, lights=lights) if route.of_scene else self.check,
            lambda faults: self.wording("again", faults=faults),
            self.config.retries,
        )
        row = Prompt(
            id=name,
            task=task.name,
            wording=self.wording.id,
            model=result.model,
            asked=result.asked,
            status=result.status,
            reason=result.reason,
            detail=result.detail,
            route=route.name if task.lit else None,
            lights=tuple(light.named for light in lights) or None,
        )
        if result.value is None:
            return row
        painted = panel_prompts(route, result.value, lights)
        return dataclasses.replace(
            row,
            prompt=result.value,
            tokens=max(map(self.count_tokens, painted)),
            subject=caption.subject or ("" if route.of_scene else subject_of(result.value)),
        )

    def _messages(
        self, task: Task, route: Route, lights: Sequence[Light], caption: str
    ) -> tuple[Message, ...]:
        """The question for a prompt: of a grid, perhaps with given lights, or of a scene."""
        system = "system"
        if task.lit and route.of_scene:
            system, question = task.lit.scene_system, self.wording(task.lit.scene, caption=caption)
        else:
            assert task.grid is not None  # of all tasks that may be chosen
            question = self.wording(task.grid, caption=caption)
            if task.lit:
                told = {f"light_{n}": each.description for n, each in enumerate(lights, start=1)}
                question += "\n\n" + self.wording(task.lit.panels, **told)
        return Message("system", (self.wording(system),)), user(question)

    def check(self, answer: str) -> tuple[str, list[Fault]]:
        """The prompt in an answer, and the rules that it breaks."""
        text, faults = one_line(answer)
        if not _BEGINNING.match(text):
            faults.append(Fault("beginning", 'it does not begin with "a grid of"'))
        missing = [name for name, mark in _QUADRANTS if not mark.search(text)]
        if missing:
            told = f"it does not say what the {', '.join(missing)} quadrant shows"
            faults.append(Fault("quadrants", told))
        faults += clip_faults(self.count_tokens(text))
        return text, faults

    def check_scene(self, answer: str, lights: Sequence[Light]) -> tuple[str, list[Fault]]:
        """The prompt of a scene in an answer, and the rules that it breaks in one of the lights."""
        text, faults = one_line(answer)
        if _BEGINNING.match(text):
            faults.append(Fault("a_grid", "it asks for a grid, and a single picture is wanted"))
        lit = (lit_prompt(text, light) for light in lights)
        return text, faults + clip_faults(max(map(self.count_tokens, lit)))
