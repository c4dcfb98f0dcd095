"""The questions that a judge is asked about a run, and the ratings that answer them.

A question is one image, one aspect of a protocol and one round.
"""

import dataclasses
import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from dsd_jax.errors import UserError, and_more, did_you_mean
from dsd_jax.infer.evaluate.cases import Case
from dsd_jax.infer.evaluate.protocols import Protocol
from dsd_jax.infer.evaluate.ratings import Key, Rating, read_ratings
from dsd_jax.infer.evaluate.runs import Image, Run
from dsd_jax.llm.config import ProviderConfig
from dsd_jax.llm.messages import Picture, Request
from dsd_jax.structured import build, placed, read_toml

__all__ = ["JudgeConfig", "Query", "load_judge", "open_queries", "queries", "valid_ratings"]


@dataclasses.dataclass(frozen=True)
class JudgeConfig:
    """A judge: the file of `--judge`.

    Attributes:
        provider: Model that judges.
        temperature: Temperature of the model. None uses the model's default, which for most is
            DreamBench++'s, 1.
        max_tokens: Largest number of tokens of an answer, hidden reasoning included.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    provider: ProviderConfig
    temperature: float | None = None
    max_tokens: int = 2048

    def __post_init__(self) -> None:
        if self.temperature is not None and not self.temperature >= 0:
            raise UserError(f"temperature must not be negative, got {self.temperature}")
        if self.max_tokens < 1:
            raise UserError(f"max_tokens must be at least 1, got {self.max_tokens}")

    @property
    def name(self) -> str:
        """Name of the judge in ratings: the model, and the settings that its answers depend on."""
        asked = self.provider.asked
        return asked if self.temperature is None else f"{asked} temperature={self.temperature:g}"


def load_judge(path: Path) -> JudgeConfig:
    """Reads the file of a judge; relative paths in it are relative to its folder.

    Raises:
        UserError: It cannot be read, or a key is unknown, missing or wrong.
    """
    return placed(build(JudgeConfig, read_toml(path), str(path)), path.parent)


@dataclasses.dataclass(frozen=True)
class Query:
    """A question about an image.

    Attributes:
        case: Case of the image.
        image: The image.
        protocol: Protocol that asks.
        aspect: Aspect that is asked about.
        round: Number of the repetition, from 0.
    """

    case: Case
    image: Image
    protocol: Protocol
    aspect: str
    round: int

    @property
    def shows(self) -> Collection[str]:
        """Contents of the question: "reference", "output", "prompt"."""
        return self.protocol.questions[self.aspect].shows

    def key(self, judge: JudgeConfig) -> Key:
        """Key of its rating by a judge."""
        named = self.protocol.protocol, self.aspect
        return self.case.id, self.image.sample, *named, judge.name, self.round

    def request(self, judge: JudgeConfig, pictures: Mapping[str, Picture]) -> Request:
        """The question as it is sent."""
        asked = self.protocol.request(
            self.aspect, self.case, self.image.sample, pictures, self.round
        )
        return dataclasses.replace(
            asked, temperature=judge.temperature, max_tokens=judge.max_tokens
        )


def queries(
    run: Run,
    protocols: Sequence[Protocol],
    rounds: int,
    aspects: Collection[str] = (),
    cases: Collection[Case] | None = None,
) -> list[Query]:
    """All questions about a run.

    Args:
        run: The run.
        protocols: Protocols that ask.
        rounds: Number of times that each question is asked.
        aspects: Aspects to ask about. None of them: all.
        cases: Cases to ask about. None: all.

    Raises:
        UserError: No protocol has one of the aspects, or there are no rounds.
    """
    known = list(dict.fromkeys(aspect for each in protocols for aspect in each.questions))
    for aspect in aspects:
        if aspect not in known:
            raise UserError(
                f"no protocol asks about {aspect!r}; expected {and_more(known)}"
                f"{did_you_mean(aspect, known)}"
            )
    if rounds < 1:
        raise UserError(f"rounds must be at least 1, got {rounds}")
    held = {case.id: case for case in (run.cases if cases is None else cases)}
    return [
        Query(held[image.case], image, protocol, aspect, number)
        for protocol in protocols
        for aspect in protocol.questions
        if not aspects or aspect in aspects
        for number in range(rounds)
        for image in run.images
        if image.case in held
    ]


def valid_ratings(run: Run, asked: Iterable[Query], judge: JudgeConfig) -> dict[Key, Rating]:
    """The ratings that a run has for questions, by their keys.

    A rating of an image that has changed, or by other texts, does not count.

    Raises:
        UserError: The file of ratings is damaged, or holds archived ratings by this judge, which
            new ones would replace.
    """
    held = {rating.key: rating for rating in read_ratings(run.folder)}
    if any(rating.published and rating.judge == judge.name for rating in held.values()):
        raise UserError(
            f"{run.folder} has archived ratings by {judge.name}; judge a copy of the run without "
            "them, since new ratings would replace them"
        )
    found = {}
    for query in asked:
        rating = held.get(query.key(judge))
        if rating is None or rating.sha256 != query.image.sha256:
            continue
        if rating.rubric == query.protocol.rubric:
            found[rating.key] = rating
    return found


def open_queries(run: Run, asked: Sequence[Query], judge: JudgeConfig, seed: int) -> list[Query]:
    """The questions without a rating, in an order that the seed decides."""
    done = valid_ratings(run, asked, judge)
    left = [query for query in asked if query.key(judge) not in done]
    random.Random(seed).shuffle(left)  # noqa: S311
    return left
