"""Answers of raters: every one checked against the key, and no question answered twice."""

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Literal

from dsd_jax.errors import UserError
from dsd_jax.files import explained, locked
from dsd_jax.infer.evaluate.study.record import ANSWERS, Key, read_key
from dsd_jax.structured import built_lines

__all__ = ["Answer", "AnswerFile", "AnswerSet", "Refusal", "RefusedError", "read_answers"]

Refusal = Literal[
    "another study",
    "unknown item",
    "unknown question",
    "unknown answer",
    "answered twice",
    "two raters with one id",
]
_ID = re.compile(r"[A-Za-z0-9._@-]{1,100}")
_SCREEN = re.compile(r"[0-9x@.]{0,40}")
_LATEST_MS = 1 << 45  # more than a thousand years


@dataclasses.dataclass(frozen=True)
class Answer:
    """An answer to one question about one item.

    Attributes:
        study, item, question, answer: As in the key.
        rater: Id of the rater.
        session: Id of the browser or of the platform's session; two of them are two people, or one
            who began again.
        side: Side of the picture that was chosen, or empty.
        t_ms: Milliseconds from the showing of the item to the answer.
        shown_at: Time when the item was shown, in milliseconds since 1970.
        screen: Width, height and pixel ratio of the window, such as 390x844@3.
        check: Whether the answer passed an attention check; empty if it was none.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    study: str
    rater: str
    session: str
    item: str
    question: str
    answer: str
    side: Literal["", "left", "right"] = ""
    t_ms: int = 0
    shown_at: int = 0
    screen: str = ""
    check: Literal["", "passed", "failed"] = ""

    def __post_init__(self) -> None:
        for name in ("rater", "session"):
            if not _ID.fullmatch(getattr(self, name)):
                raise UserError(
                    f"{name} has 1 to 100 letters, digits and -_.@, got {getattr(self, name)!r}"
                )
        if not _SCREEN.fullmatch(self.screen):
            raise UserError(f"screen is like 390x844@3, got {self.screen[:40]!r}")
        for name in ("t_ms", "shown_at"):
            if not 0 <= getattr(self, name) < _LATEST_MS:
                raise UserError(f"{name} is no time: {getattr(self, name)}")


class RefusedError(UserError):
    """An answer that does not count.

    Attributes:
        refusal: Kind of reason.
    """

    def __init__(self, refusal: Refusal, message: str) -> None:
        super().__init__(message)
        self.refusal = refusal


class AnswerSet:
    """Answers to one study; each rater has one list, one session, and one answer to a question."""

    def __init__(self, key: Key, answers: Iterable[Answer] = ()) -> None:
        self.key = key
        self._rows: dict[tuple[str, str, str], Answer] = {}
        self._raters: dict[str, tuple[int, str]] = {}
        for answer in answers:
            self.add(answer)

    @property
    def rows(self) -> list[Answer]:
        """All answers, in the order in which they came."""
        return list(self._rows.values())

    @property
    def lists(self) -> Mapping[str, int]:
        """Number of the list of each rater."""
        return {rater: number for rater, (number, _) in self._raters.items()}

    @property
    def failed(self) -> set[str]:
        """Raters who failed an attention check."""
        return {row.rater for row in self._rows.values() if row.check == "failed"}

    def add(self, answer: Answer) -> Answer | None:
        """Adds an answer and marks it as passed or failed, if it is an attention check.

        Returns:
            The answer with its mark, or None if it was there before.

        Raises:
            RefusedError: It does not belong to the study or to its rater.
        """
        number = self._check(answer)
        rater, place = answer.rater, (answer.rater, answer.item, answer.question)
        known, session = self._raters.get(rater, (number, answer.session))
        if known != number:
            raise RefusedError(
                "two raters with one id",
                f"two raters are called {rater}: one has list {known}, one has list {number}",
            )
        earlier = self._rows.get(place)
        if session != answer.session or (earlier and earlier.answer != answer.answer):
            raise RefusedError(
                "answered twice",
                f"rater {rater} answered list {number} a second time, or another person with the "
                "same id did",
            )
        if earlier:
            return None
        expected = self.key.items[answer.item].expected.get(answer.question)
        check: Literal["", "passed", "failed"] = ""
        if expected:
            check = "passed" if answer.answer in expected else "failed"
        self._raters[rater] = number, session
        self._rows[place] = dataclasses.replace(answer, check=check)
        return self._rows[place]

    def take_back(self, answers: Iterable[Answer]) -> None:
        """Forgets answers that could not be stored."""
        for answer in answers:
            del self._rows[answer.rater, answer.item, answer.question]

    def _check(self, answer: Answer) -> int:
        """The list of the item that an answer is about."""
        if answer.study != self.key.study:
            raise RefusedError(
                "another study",
                f"an answer to study {answer.study[:40]}; this is {self.key.study}",
            )
        item = self.key.items.get(answer.item)
        if item is None:
            raise RefusedError("unknown item", f"there is no item {answer.item[:40]}")
        question = self.key.by_question.get(answer.question)
        if question is None:
            raise RefusedError("unknown question", f"there is no question {answer.question[:40]}")
        values = [choice.value for choice in question.answers]
        if answer.answer not in values:
            raise RefusedError(
                "unknown answer",
                f"{answer.question} is answered by {', '.join(values)}, got {answer.answer[:40]!r}",
            )
        return item.list


def read_answers(folder: Path) -> AnswerSet:
    """Reads the answers of a study; none if nobody answered.

    Raises:
        UserError: The study or the answers are damaged.
    """
    path = folder / ANSWERS
    found = AnswerSet(read_key(folder))
    for where, answer in built_lines(Answer, path) if path.exists() else ():
        try:
            found.add(answer)
        except RefusedError as error:
            raise UserError(f"{where}: {error}") from None
    return found


class AnswerFile:
    """The answers of a study, open for more. One process has them open at a time.

    Raises:
        UserError: Another process has them open, they are damaged, or cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / ANSWERS
        read_key(folder)  # before a file is made in a folder that is no study
        with explained(path):
            self._file = path.open("ab", buffering=0)
        if not locked(self._file):
            self._file.close()
            raise UserError(f"{path} is open in another process; stop it first")
        try:
            with explained(path):
                _drop_torn_line(path)
            self.answers = read_answers(folder)
        except BaseException:
            self._file.close()
            raise
        self._path = path

    def append(self, answers: Iterable[Answer]) -> int:
        """Adds answers and waits until they are on the disk.

        Returns:
            The number of those that were new.

        Raises:
            RefusedError: One does not count; those before it are stored.
            UserError: The file cannot be written.
        """
        new: list[Answer] = []
        try:
            for answer in answers:
                added = self.answers.add(answer)
                if added is not None:
                    new.append(added)
        finally:
            self._write(new)
        return len(new)

    def _write(self, answers: Sequence[Answer]) -> None:
        lines = "".join(
            json.dumps(dataclasses.asdict(answer), ensure_ascii=False) + "\n" for answer in answers
        )
        end = os.fstat(self._file.fileno()).st_size
        try:
            with explained(self._path):
                self._file.write(lines.encode())
                os.fsync(self._file.fileno())
        except UserError:
            self.answers.take_back(answers)
            with contextlib.suppress(OSError):
                os.truncate(self._path, end)
            raise

    def __enter__(self) -> "AnswerFile":  # noqa: PYI034 - beartype wants the class
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()


def _drop_torn_line(path: Path) -> None:
    """Cuts off a last line that a power cut left unfinished; its rater was not told it is saved."""
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    if end < len(content):
        os.truncate(path, end)
