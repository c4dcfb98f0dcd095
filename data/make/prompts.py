"""Stage 2: one prompt for a grid of four per caption, short enough to be read to its end."""

import dataclasses
import hashlib
import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from dsd_jax.data.make.answers import Fault, failed, one_line, user, written
from dsd_jax.data.make.parts import Row
from dsd_jax.data.make.wording import Wording
from dsd_jax.errors import UserError
from dsd_jax.llm.messages import Ask, Message, Request, Unanswered

__all__ = ["CLIP_TOKENS", "TASKS", "PromptWriter", "PromptsConfig", "subject_of", "task_of"]

STAGE = "prompts"
TASKS = ("identity", "relight", "expression", "free")
CLIP_TOKENS = 77  # start and end included

_BEGINNING = re.compile(r"a grid of\b", re.IGNORECASE)
_QUADRANTS = tuple(
    (f"{row}-{side}", re.compile(rf"\b{row}[\s-]*{side}\b", re.IGNORECASE))
    for row in ("top", "bottom")
    for side in ("left", "right")
)
# What stands between "a grid of" and the subject: numbers, media, verbs of showing.
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
        provider: that writes.
        tasks: weight of each prompt set; a caption gets one of them.
        retries: how often a prompt that breaks a rule is asked for again.
        temperature: of the model; None: its own.
        max_tokens: of an answer, hidden reasoning included.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    provider: str
    tasks: Mapping[str, float] = dataclasses.field(default_factory=lambda: {"identity": 1.0})
    retries: int = 2
    temperature: float | None = None
    max_tokens: int = 1024

    def __post_init__(self) -> None:
        unknown = sorted(set(self.tasks) - set(TASKS))
        if unknown:
            raise UserError(
                f"tasks: there is no prompt set {unknown[0]!r}; expected {', '.join(TASKS)}"
            )
        if not self.tasks or min(self.tasks.values()) < 0 or not sum(self.tasks.values()):
            raise UserError("tasks needs weights above 0, such as { identity = 1 }")
        if self.retries < 0:
            raise UserError(f"retries must not be negative, got {self.retries}")


def task_of(caption: str, tasks: Mapping[str, float]) -> str:
    """The prompt set of a caption, by the hash of its id and the weights."""
    place = int(hashlib.sha256(f"task {caption}".encode()).hexdigest()[:12], 16) / 16**12
    place *= sum(tasks.values())
    for task in TASKS:
        place -= tasks.get(task, 0)
        if place < 0:
            return task
    return max(tasks, key=lambda task: tasks[task])  # rounding


def subject_of(prompt: str) -> str:
    """What a grid prompt is about, in at most four words; empty if that cannot be told."""
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
    """Has one prompt written for a caption.

    Attributes:
        config: of the stage.
        wording: of the stage.
        count_tokens: CLIP tokens of a text, start and end included.
    """

    config: PromptsConfig
    wording: Wording
    count_tokens: Callable[[str], int]

    async def __call__(self, caption: Row, ask: Ask) -> Row:
        """The row for a row of captions: `kept` with its prompt, or why there is none."""
        task = task_of(caption["id"], self.config.tasks)
        request = Request(
            stage=STAGE,
            item=f"{caption['id']}-{task}",
            messages=(
                Message("system", (self.wording("system"),)),
                user(self.wording(task, caption=caption["caption"])),
            ),
            wording=self.wording.id,
            max_tokens=self.config.max_tokens,
            temperature=self.config.temperature,
        )
        row: Row = {"id": request.item, "task": task, "wording": self.wording.id}
        try:
            result = await written(
                ask,
                request,
                self.check,
                lambda faults: self.wording("again", faults=faults),
                self.config.retries,
            )
        except Unanswered as error:
            return {**row, **failed(error)}
        row |= {"model": result.model, "asked": result.asked}
        if result.text is None:
            return {**row, "status": "rejected", "reason": result.reason}
        return {
            **row,
            "status": "kept",
            "prompt": result.text,
            "tokens": self.count_tokens(result.text),
            "subject": caption.get("subject") or subject_of(result.text),
        }

    def check(self, answer: str) -> tuple[str, list[Fault]]:
        """The prompt in an answer, and which rules it breaks."""
        text, faults = one_line(answer)
        if not _BEGINNING.match(text):
            faults.append(Fault("beginning", 'it does not begin with "a grid of"'))
        missing = [name for name, mark in _QUADRANTS if not mark.search(text)]
        if missing:
            told = f"it does not say what the {', '.join(missing)} quadrant shows"
            faults.append(Fault("quadrants", told))
        tokens = self.count_tokens(text)
        if tokens > CLIP_TOKENS:
            told = f"it has {tokens} CLIP tokens where {CLIP_TOKENS} are allowed"
            faults.append(Fault("too_long", told))
        return text, faults
