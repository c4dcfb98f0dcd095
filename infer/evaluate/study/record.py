"""Files of a study: what its page shows, and the key that says what was shown.

A study is a folder:

    study.json       questions, and lists of items under random ids; the page holds no more
    pictures/        pictures under random ids
    key.json         method, case and side behind every item; it never leaves this folder
    page/            the page, for people to open or for a host of static files
    answers.jsonl    answers, from `serve` and `import`
"""

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from dsd_jax.errors import UserError
from dsd_jax.files import write_file
from dsd_jax.structured import build, read_json, read_toml

__all__ = [
    "ANSWERS",
    "PICTURES",
    "Choice",
    "Item",
    "Key",
    "KeyItem",
    "Mode",
    "Question",
    "Questions",
    "Shown",
    "Study",
    "is_study",
    "load_questions",
    "read_key",
    "read_study",
    "write_study",
]

Mode = Literal["likert", "pair", "same"]
PICTURES, ANSWERS = "pictures", "answers.jsonl"
SCHEMA = 1
_STUDY, _KEY = "study.json", "key.json"
_QUESTIONS = Path(__file__).parent / "questions.toml"


@dataclasses.dataclass(frozen=True)
class Choice:
    """An answer that a question offers: how it is stored, its button, and what it means."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    value: str
    label: str
    meaning: str


@dataclasses.dataclass(frozen=True)
class Question:
    """A question about every item; its answers are listed from low to high."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    id: str
    text: str
    answers: tuple[Choice, ...]

    def place(self, value: str) -> int:
        """Number of an answer among the others, from 0.

        Raises:
            ValueError: The question has no such answer.
        """
        return [choice.value for choice in self.answers].index(value)


@dataclasses.dataclass(frozen=True)
class Questions:
    """Texts of a mode.

    Attributes:
        title: Heading of the page.
        instructions: Paragraphs before the first item.
        questions: Questions about every item.
        seconds: Time that an item takes a rater.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    title: str
    instructions: tuple[str, ...]
    questions: tuple[Question, ...]
    seconds: float


@dataclasses.dataclass(frozen=True)
class Item:
    """One question of a study: pictures that a rater sees together.

    Attributes:
        id: Random.
        prompt: Text that the pictures should follow; empty if it is not shown.
        reference: Name of the reference in `pictures/`.
        pictures: Names of the pictures that are rated, from left to right.
    """

    id: str
    prompt: str
    reference: str
    pictures: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Study:
    """Content of the page, which tells no rater which method made a picture.

    Attributes:
        schema: Version of the files.
        id: Digest of all else.
        mode: Kind of question.
        questions: Texts.
        lists: Items for one rater, in order; each rater gets one list.
    """

    schema: int
    id: str
    mode: Mode
    questions: Questions
    lists: tuple[tuple[Item, ...], ...]


@dataclasses.dataclass(frozen=True)
class Shown:
    """A picture behind an item: an image of a run, or a reference if the method is empty."""

    method: str
    case: str
    sample: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class KeyItem:
    """Origin of an item's pictures, which its rater must not know.

    Attributes:
        list: Number of its list.
        case: Case whose reference and prompt it shows.
        shown: The pictures that are rated, from left to right.
        repeats: Id of the item of the same list that it repeats, or empty.
        expected: Question -> answers of an attentive rater. Not empty for an attention check.
    """

    list: int
    case: str
    shown: tuple[Shown, ...]
    repeats: str = ""
    expected: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Key:
    """Key of a study: the origin of the pictures of every item.

    Attributes:
        schema: Version of the files.
        study: Id of the study.
        mode: Kind of question.
        seed: Seed that it was built with.
        cases_sha256: Digest of the cases of the runs.
        methods: Names of the methods.
        strata: Name of each stratum -> cases in it, and cases that were drawn from it.
        questions: Questions about every item.
        items: Items by id.
    """

    schema: int
    study: str
    mode: Mode
    seed: int
    cases_sha256: str
    methods: tuple[str, ...]
    strata: Mapping[str, tuple[int, int]]
    questions: tuple[Question, ...]
    items: Mapping[str, KeyItem]

    @functools.cached_property
    def by_question(self) -> Mapping[str, Question]:
        """Questions by id."""
        return {question.id: question for question in self.questions}

    @property
    def rated(self) -> Mapping[str, KeyItem]:
        """Items that are neither attention checks nor repeats."""
        return {
            name: item
            for name, item in self.items.items()
            if not item.expected and not item.repeats
        }


def is_study(folder: Path) -> bool:
    """Whether a folder is a study."""
    return (folder / _KEY).exists()


def load_questions(mode: Mode) -> Questions:
    """Reads the texts of a mode."""
    table = read_toml(_QUESTIONS)[mode]
    assert isinstance(table, dict)
    return build(Questions, table, f"{_QUESTIONS}: [{mode}]")


def write_study(folder: Path, study: Study, key: Key) -> None:
    """Writes `study.json` and `key.json`.

    Raises:
        UserError: They cannot be written.
    """
    for name, content in ((_STUDY, study), (_KEY, key)):
        text = json.dumps(dataclasses.asdict(content), ensure_ascii=False, indent=1)
        write_file(folder / name, text + "\n")


def read_study(folder: Path) -> Study:
    """Reads what the page holds.

    Raises:
        UserError: It is no study, or damaged.
    """
    return _read(folder, _STUDY, Study)


def read_key(folder: Path) -> Key:
    """Reads the key.

    Raises:
        UserError: It is no study, or damaged.
    """
    return _read(folder, _KEY, Key)


def _read(folder: Path, name: str, kind: type[Any]) -> Any:
    if not (folder / name).exists():
        raise UserError(
            f"{folder} is no study: it has no {name}; make one with `dsd evaluate study build`"
        )
    made = build(kind, read_json(folder / name, dict), str(folder / name))
    if made.schema != SCHEMA:
        raise UserError(f"{folder / name} has schema {made.schema}, expected {SCHEMA}")
    return made
