"""The stages of making a dataset, and the row that each writes per item.

A row is one line of JSON with sorted keys; a field that is None is left out. A row that was not
kept says why in `reason`, always in the same words, and perhaps more in `detail`.
"""

import dataclasses
import functools
import json
import operator
from collections.abc import Mapping
from typing import Any, ClassVar, Generic, Literal, TypeVar, get_args

from pydantic import ConfigDict, TypeAdapter

from dsd_jax.data.make.ids import CaptionId, GridId, Id, PairId, PromptId
from dsd_jax.drift import Verdict
from dsd_jax.structured import json_value

__all__ = [
    "CAPTIONS", "DESCRIPTIONS", "GRIDS", "JUDGEMENTS", "PAIRS", "PANELS", "PROMPTS", "STAGES",
    "STATUSES", "UNJUDGED", "Box", "Caption", "CutGrid", "Description", "Grid", "Judgement",
    "Named", "Pair", "PanelDrift", "Prompt", "R_co", "Source", "Stage", "StageRow", "Status",
    "Turn", "Words", "from_json", "plain", "to_json",
]  # fmt: skip

Status = Literal["kept", "rejected", "undecided", "failed"]
STATUSES: tuple[Status, ...] = get_args(Status)
Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels."""
Named = Mapping[str, str]
"""A light: the names of its words, by aspect; see `dsd_jax.lights`."""
UNJUDGED = "none"
"""Mode of judgements that no judge was asked for."""
_EXACT = ConfigDict(extra="forbid")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageRow:
    """An item of a stage and its outcome.

    Attributes:
        id: Unique within the stage.
        status: `kept`, or another word if the next stage does not see it.
        reason: Reason why it was not kept; rows are counted by it.
        detail: Details of the reason.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _EXACT

    id: Id
    status: Status
    reason: str | None = None
    detail: str | None = None

    @property
    def kept(self) -> bool:
        return self.status == "kept"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """The place where a caption was found: file, row counted from 1, and address of its picture."""

    __pydantic_config__: ClassVar[ConfigDict] = _EXACT

    file: str
    row: int
    url: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Caption(StageRow):
    """A caption of the sample.

    Attributes:
        subject: Its subject, if a model was asked.
        model: Model that answered.
        wording: Texts by which it was asked.
    """

    id: CaptionId
    caption: str
    source: Source
    subject: str | None = None
    model: str | None = None
    wording: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt(StageRow):
    """A prompt for grids.

    Attributes:
        asked: Number of questions that it took.
        prompt: The text. None if there is no usable one.
        tokens: CLIP tokens of the text; of the longest one, if lights are added to it.
        subject: Subject of the text; may be empty.
        route: Route to its pairs, of tasks with several.
        lights: Light of each panel that was asked for, in the order of `ids.PANELS`.
    """

    id: PromptId
    task: str
    wording: str
    model: str | None = None
    asked: int | None = None
    prompt: str | None = None
    tokens: int | None = None
    subject: str | None = None
    route: str | None = None
    lights: tuple[Named, ...] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid(StageRow):
    """A painted grid.

    Attributes:
        seed: Seed of its noise.
        sha256: Digest of its file. None, as are its width and height in pixels, if there is none.
        route, lights: As those of its prompt.
    """

    id: GridId
    prompt_id: PromptId
    task: str
    prompt: str
    seed: int
    sha256: str | None = None
    width: int | None = None
    height: int | None = None
    route: str | None = None
    lights: tuple[Named, ...] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class PanelDrift:
    """Movement of the content from one panel to another.

    Attributes:
        verdict: Verdict of the drift meter.
        largest_px: Longest shift of any tile, in pixels. None if no motion was found.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _EXACT

    verdict: Verdict
    largest_px: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class CutGrid(StageRow):
    """A grid that was searched for its four panels.

    Attributes:
        boxes: The panels, in the order of `ids.PANELS`. None if it is not an even grid.
        hashes: Hashes of each panel's pixels (`likeness.hashes`).
        similarity: Similarity of every two panels, by their numbers, such as `13`.
        drift: Drift of every two panels likewise, of tasks that ask for it.
        route, lights: As those of its prompt.
    """

    id: GridId
    prompt_id: PromptId
    task: str
    boxes: tuple[Box, ...] | None = None
    hashes: tuple[str, ...] | None = None
    similarity: Mapping[str, float] | None = None
    drift: Mapping[str, PanelDrift] | None = None
    route: str | None = None
    lights: tuple[Named, ...] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair(StageRow):
    """Two panels of a grid.

    Attributes:
        reference_box, target_box: Their places in the grid.
        similarity: Their similarity, from 0 to 1.
        drift: Their drift, if the task asks for it.
        route: Route by which it came, of tasks with several.
        reference_light, target_light: Lights that were asked for.
    """

    id: PairId
    grid_id: GridId
    prompt_id: PromptId
    task: str
    reference_box: Box
    target_box: Box
    similarity: float
    drift: PanelDrift | None = None
    route: str | None = None
    reference_light: Named | None = None
    target_light: Named | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Turn:
    """One answer of the judge.

    Attributes:
        step: Name of the question's text.
        sample: 0, or 1 for a question that was asked again.
        finish: Reason for the end of the answer.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _EXACT

    step: str
    sample: int
    finish: str
    model: str
    answer: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judgement(StageRow):
    """The judge's answers about a pair.

    Attributes:
        mode: Mode of the judge, or `none` for a pair that no judge was asked about.
        verdict: `yes` or `no`. None if it is undecided or could not be asked.
        grid_verdict: Verdict about the whole grid, of a pair that was audited.
        scores: Marks by aspect.
        model: Model that answered last.
        turns: All answers, in order.
    """

    id: PairId
    mode: str
    wording: str
    turns: tuple[Turn, ...]
    verdict: Literal["yes", "no"] | None = None
    grid_verdict: Literal["yes", "no"] | None = None
    scores: Mapping[str, int] | None = None
    model: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Words:
    """Texts for one direction of a pair.

    Attributes:
        caption: Description of the target.
        instruction: The edit from reference to target.
        no_caption, no_instruction: Reasons why there is no such text.
        caption_model, instruction_model: Models that answered last.
        detail: More about a missing text.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _EXACT

    caption: str | None = None
    instruction: str | None = None
    no_caption: str | None = None
    no_instruction: str | None = None
    caption_model: str | None = None
    instruction_model: str | None = None
    detail: str | None = None

    def __bool__(self) -> bool:
        """Whether there is any text."""
        return bool(self.caption or self.instruction)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Description(StageRow):
    """The texts of a pair.

    Attributes:
        forward: Texts from reference to target.
        reverse: Texts from target to reference, if those were asked for.
        model: Models that answered, comma-separated.
    """

    id: PairId
    wording: str
    forward: Words
    reverse: Words | None = None
    model: str | None = None


R_co = TypeVar("R_co", bound=StageRow, covariant=True)


@dataclasses.dataclass(frozen=True)
class Stage(Generic[R_co]):
    """A stage that writes rows.

    Attributes:
        name: Its folder and its section of the configuration.
        kinds: Rows that it writes.
        within: Stage whose command finishes this one too.
    """

    name: str
    kinds: tuple[type[R_co], ...]
    within: str = ""

    @property
    def command(self) -> str:
        """Name of the command that finishes it."""
        return self.within or self.name

    def __str__(self) -> str:
        return self.name


CAPTIONS = Stage("captions", (Caption,))
PROMPTS = Stage("prompts", (Prompt,))
GRIDS = Stage("grids", (Grid,))
PANELS = Stage("panels", (CutGrid,), within="pairs")
"""The first half of `pairs`."""
PAIRS: Stage[Pair | CutGrid] = Stage("pairs", (Pair, CutGrid))
"""Pairs, and the grids that were rejected."""
JUDGEMENTS = Stage("judge", (Judgement,))
DESCRIPTIONS = Stage("caption", (Description,))
STAGES: tuple[Stage[StageRow], ...] = (CAPTIONS, PROMPTS, GRIDS, PAIRS, JUDGEMENTS, DESCRIPTIONS)
"""The stages in order."""


@functools.cache
def _adapter(kinds: tuple[type[StageRow], ...]) -> Any:  # a TypeAdapter
    return TypeAdapter(functools.reduce(operator.or_, kinds))


def plain(row: StageRow) -> dict[str, object]:
    """A row in JSON types, keys sorted at every depth."""
    return dict(json_value(_content(row), sort_keys=True))


def to_json(row: StageRow) -> str:
    """A row as one line."""
    return json.dumps(_content(row), ensure_ascii=False, sort_keys=True, allow_nan=False)


def _content(row: StageRow) -> dict[str, Any]:
    return dict(_adapter((type(row),)).dump_python(row, mode="json", exclude_none=True))


def from_json(stage: Stage[R_co], line: str) -> R_co:
    """A row from its line.

    Raises:
        ValueError: it is not such a row.
    """
    row: R_co = _adapter(stage.kinds).validate_json(line)
    return row
