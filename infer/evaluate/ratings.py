"""Ratings: what judges, human or not, say about the images of a run."""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from dsd_jax.errors import UserError
from dsd_jax.files import write_file
from dsd_jax.structured import built_lines

__all__ = ["Key", "Rating", "State", "add_ratings", "read_ratings", "write_ratings"]

State = Literal["ok", "refused", "unparsable", "out_of_range"]
Key = tuple[str, int, str, str, str, int]
"""Case, sample, protocol, aspect, judge and round."""
_FILE = "ratings.jsonl"


@dataclasses.dataclass(frozen=True)
class Rating:
    """One answer about one image.

    Attributes:
        case: Id of the case.
        sample: Number of the image among those of its case.
        protocol: Questions that were asked, such as "dreambench++", "dsd-debiased", "split"
            or, for a study of people, "study".
        aspect: What was rated: "cp" (concept preservation), "pf" (prompt following), "identity",
            "novelty", "prompt", "sc" (subject consistency), "creativity", "same" (subject).
        judge: Name of the judge that was asked; "human/group1" for people.
        round: Number of the repetition, from 0.
        state: "ok", or the reason why there is no score. Nothing is guessed or left out.
        score: The score, from 0 to `scale`, where the state is "ok".
        scale: Highest score of the protocol.
        sha256: Digest of the image; empty for an archive without images.
        answered_by: Name of the model that answered, as it gave it.
        rubric: Name, version and digest of the texts that asked; empty for people.
        text: The answer.
        input_tokens, output_tokens: Tokens that it took, if known.
        cost: Its price in US dollars, if known.
        published: It comes from an archive, not from a judge of ours.
    """

    case: str
    sample: int
    protocol: str
    aspect: str
    judge: str
    round: int
    state: State
    score: float | None = None
    scale: float = 4
    sha256: str = ""
    answered_by: str = ""
    rubric: str = ""
    text: str = ""
    input_tokens: int | None = None
    output_tokens: int | None = None
    cost: float | None = None
    published: bool = False

    @property
    def key(self) -> Key:
        """Case, image, question, judge and round; a run has one rating of each."""
        return self.case, self.sample, self.protocol, self.aspect, self.judge, self.round


def write_ratings(run: Path, ratings: Iterable[Rating]) -> None:
    """Writes all ratings of a run, complete or not at all.

    Raises:
        UserError: The file cannot be written.
    """
    lines = (json.dumps(dataclasses.asdict(each), ensure_ascii=False) + "\n" for each in ratings)
    write_file(run / _FILE, "".join(lines))


def add_ratings(run: Path, ratings: Iterable[Rating]) -> None:
    """Adds ratings to those of a run, sorted; an older one of the same image and judge goes away.

    Raises:
        UserError: The file is damaged, or cannot be written.
    """
    merged = {each.key: each for each in (*read_ratings(run), *ratings)}
    write_ratings(run, (merged[key] for key in sorted(merged)))


def read_ratings(run: Path) -> list[Rating]:
    """Reads the ratings of a run; none if nobody rated it.

    Raises:
        UserError: The file is damaged, or has two ratings where there can be one.
    """
    path = run / _FILE
    if not path.exists():
        return []
    ratings: dict[Key, Rating] = {}
    for where, rating in built_lines(Rating, path):
        if rating.key in ratings:
            raise UserError(f"{where}: {rating.key} was rated on an earlier line too")
        ratings[rating.key] = rating
    return list(ratings.values())
