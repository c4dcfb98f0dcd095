"""Tasks: what the two frames of a pair share, and what each stage needs to know about that.

Data making, training and evaluation read these objects; nothing branches on a task's name. To add
a task, add an object to `TASKS`, and the texts that it names to `data/make/wordings/v1.toml`.
"""

import dataclasses
import re

from dsd_jax.errors import UserError, did_you_mean

__all__ = [
    "DEPTH",
    "RELIGHT",
    "TASKS",
    "FrameWeights",
    "Lit",
    "Question",
    "Similarity",
    "Task",
    "task_named",
]

_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")  # no hyphen: ids are joined by hyphens


@dataclasses.dataclass(frozen=True)
class Question:
    """The judge's questions about a pair; texts are named as in `[judge]` of the wordings.

    Attributes:
        steps: texts of the turns of one conversation; the last answer ends in yes or no.
        scores: text that asks for a mark per aspect.
        grid: text that asks which panels of a grid belong together.
        aspects: names of the marks that `scores` asks for.
    """

    steps: tuple[str, ...] = ("step_1", "step_2", "step_3")
    scores: str = "scores"
    grid: str = "grid"
    aspects: tuple[str, ...] = ("form", "colour", "material", "details", "identity")


@dataclasses.dataclass(frozen=True)
class Lit:
    """Texts in `[prompts]` of a task whose frames differ in light alone.

    Attributes:
        panels: Text that asks for given lights in the panels of a grid, after the task's `grid`.
        scene: Text that asks for the prompt of one picture, without its light.
        scene_system: Text before it that says how such prompts are written.
    """

    panels: str
    scene: str
    scene_system: str


@dataclasses.dataclass(frozen=True)
class Similarity:
    """Bounds of the similarity of a pair's two frames: 0 for opposite pixels, 1 for equal ones.

    Attributes:
        least: Frames below it have too little in common.
        most: Frames above it are copies, which teach a model to copy.
    """

    least: float = 0.0
    most: float = 0.94

    def __post_init__(self) -> None:
        if not 0 <= self.least < self.most <= 1:
            raise UserError(
                "0 <= min_similarity < max_similarity <= 1 must hold, got "
                f"{self.least} and {self.most}"
            )


@dataclasses.dataclass(frozen=True)
class FrameWeights:
    """Weights of the reference and the target frame in the training loss."""

    reference: float = 1.0
    target: float = 1.0


@dataclasses.dataclass(frozen=True)
class Task:
    """One kind of edit.

    Attributes:
        name: A lower-case word; it stands in ids and records.
        grid: Text in `[prompts]` that asks for the prompt of a grid. None if pairs of this task do
            not come from grids.
        lit: Texts that ask for lights, if the frames differ in light alone. Pairs of such a task
            come by the routes of `[relight]`.
        question: Questions of the judge about a pair. None if no judge is asked about this task.
        similarity: Bounds of the similarity of a pair's frames, unless `[pairs]` sets others.
        max_drift: Longest shift in pixels of any part from one frame to the other, unless `[pairs]`
            sets another. None where content may move.
        description: Text in `[caption]` that asks for a description of the target.
        instruction: Text in `[caption]` that asks for the edit from reference to target.
        frame_weights: Weights of the two frames in the loss of a model trained on this task alone.
        metric: Name of the score, without a backbone, that compares models on this task. None where
            no score tells a good image from a bad one.
        about: The task in a few words, for people who choose one.
    """

    name: str
    grid: str | None = None
    lit: Lit | None = None
    question: Question | None = Question()
    similarity: Similarity = Similarity()
    max_drift: float | None = None
    description: str = "target"
    instruction: str = "instruction"
    frame_weights: FrameWeights = FrameWeights()
    metric: str | None = None
    about: str = ""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise UserError(
                f"the name of a task must be a lower-case word without hyphens, got {self.name!r}"
            )

    def asked(self) -> Question:
        """The questions of the judge.

        Raises:
            UserError: No judge is asked about this task.
        """
        if self.question is None:
            raise UserError(
                f"the task {self.name!r} has no judge: its pairs are true by construction"
                + (f", and the metric {self.metric!r} scores its images" if self.metric else "")
                + "; leave it out"
            )
        return self.question


IDENTITY = Task(  # the paper's
    "identity",
    grid="identity",
    metric="dino-others",
    about="the same subject in another scene",
)
RELIGHT = Task(
    "relight",
    grid="relight",
    lit=Lit("relight.panels", "relight.scene", "relight.scene_system"),
    question=Question(
        steps=("relight.step_1", "relight.step_2", "relight.step_3"),
        scores="relight.scores",
        grid="relight.grid",
        aspects=("viewpoint", "layout", "pose", "things"),
    ),
    max_drift=2.0,
    instruction="relight.instruction",
    metric="drift",
    about="the same scene under another light",
)
EXPRESSION = Task(
    "expression",
    grid="expression",
    metric="dino-others",
    about="the same character in another mood",
)
FREE = Task(  # the language model chooses in which way the four panels belong together
    "free", grid="free", about="another picture of the same series"
)
DEPTH = Task(
    "depth",
    question=None,
    frame_weights=FrameWeights(reference=0.0),  # the map is given, so only the target counts
    metric="depth-order",
    about="a photograph that follows a depth map",
)
INSTRUCTION = Task("instruction", about="the picture that an instruction makes of the reference")

TASKS = {task.name: task for task in (IDENTITY, RELIGHT, EXPRESSION, FREE, DEPTH, INSTRUCTION)}


def task_named(name: str) -> Task:
    """The task of a name.

    Raises:
        UserError: There is no such task.
    """
    if name not in TASKS:
        raise UserError(
            f"there is no task {name!r}; expected {', '.join(TASKS)}{did_you_mean(name, TASKS)}"
        )
    return TASKS[name]
