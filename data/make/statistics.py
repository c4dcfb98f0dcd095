"""What is in a dataset in the making: yields, reasons, doubts of the judge, costs, diversity."""

import dataclasses
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from dsd_jax.data.make.parts import STAGES, Parts, Row
from dsd_jax.errors import UserError
from dsd_jax.llm.totals import Totals, read_totals

__all__ = [
    "MAKING",
    "STATUSES",
    "Diversity",
    "Judging",
    "Tally",
    "diversity",
    "finished_rows",
    "judging",
    "ledger_totals",
    "making_folder",
    "source_counts",
    "tally",
]

MAKING = "making.json"  # there once a folder is begun
SAMPLE = 50_000  # prompts; ids are hashes, so the first ones are a sample
_NGRAM = 4  # words that two prompts share by chance only if they were written alike
_WORD = re.compile(r"[^\W_]+")
STATUSES = ("kept", "rejected", "undecided", "failed")


def making_folder(root: Path) -> Parts:
    """A folder that was begun.

    Raises:
        UserError: it is no such folder.
    """
    path = root / MAKING
    try:
        count = json.loads(path.read_text(encoding="utf-8"))["parts"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{root} is no dataset in the making: it has no readable {MAKING}"
        ) from None
    return Parts(root, count)


@dataclasses.dataclass(frozen=True)
class Tally:
    """Rows of a stage.

    Attributes:
        finished: parts.
        statuses: rows by status.
        reasons: rows that were not kept, by status and reason.
        models: rows by the model that answered.
    """

    finished: int
    statuses: Counter[str]
    reasons: Counter[tuple[str, str]]
    models: Counter[str]

    @property
    def rows(self) -> int:
        return self.statuses.total()

    @property
    def kept(self) -> int:
        return self.statuses["kept"]


def finished_rows(parts: Parts, stage: str, which: Sequence[int] | None = None) -> Iterator[Row]:
    """Rows of the parts that are finished, of all or some."""
    for part in range(parts.count) if which is None else which:
        if parts.done(stage, part):
            yield from parts.read(stage, part)


def tally(parts: Parts, stage: str, which: Sequence[int] | None = None) -> Tally:
    """Counts the rows of a stage's finished parts, of all or some.

    Raises:
        UserError: a part is damaged.
    """
    numbers = range(parts.count) if which is None else which
    finished = sum(parts.done(stage, part) for part in numbers)
    statuses: Counter[str] = Counter()
    reasons: Counter[tuple[str, str]] = Counter()
    models: Counter[str] = Counter()
    for row in finished_rows(parts, stage, which):
        statuses[row["status"]] += 1
        if row["status"] != "kept":
            reasons[row["status"], str(row.get("reason", ""))] += 1
        if "model" in row:
            models[row["model"]] += 1
    return Tally(finished, statuses, reasons, models)


@dataclasses.dataclass(frozen=True)
class Judging:
    """How the judge answered.

    Attributes:
        verdicts: rows by `yes`, `no`, `undecided`, `failed`.
        asked_again: rows with a question that was put twice.
        audited, agreed: rows judged by the grid and by the pair, and how many alike.
    """

    verdicts: Counter[str]
    asked_again: int
    audited: int
    agreed: int

    @property
    def undecided_share(self) -> float:
        return self.verdicts["undecided"] / max(1, self.verdicts.total())


def judging(rows: Iterable[Row]) -> Judging:
    """Counts rows of `judge`."""
    verdicts: Counter[str] = Counter()
    asked_again = audited = agreed = 0
    for row in rows:
        decided = row["status"] in {"kept", "rejected"}
        verdicts[row["verdict"] if decided else row["status"]] += 1
        asked_again += any(turn["sample"] for turn in row["turns"])
        if "grid_verdict" in row and decided:
            audited += 1
            agreed += row["grid_verdict"] == row["verdict"]
    return Judging(verdicts, asked_again, audited, agreed)


@dataclasses.dataclass(frozen=True)
class Diversity:
    """How different prompts are from each other.

    Attributes:
        prompts: that were looked at.
        subjects: how often each subject occurs.
        effective: number of equally frequent subjects with the same entropy.
        distinct: n -> share of the prompts' n-grams of words that are different ones.
        overlap: share of the 4-grams of words that stand in another prompt too.
    """

    prompts: int
    subjects: Counter[str]
    effective: float
    distinct: Mapping[int, float]
    overlap: float


def diversity(rows: Iterable[Row]) -> Diversity:
    """Measures kept rows of `prompts`, the first 50,000 of them."""
    subjects: Counter[str] = Counter()
    grams: dict[int, Counter[int]] = {n: Counter() for n in (1, 2, 3)}
    holders: Counter[int] = Counter()  # prompts with a 4-gram
    uses: Counter[int] = Counter()
    prompts = 0
    for row in rows:
        if row["status"] != "kept" or prompts == SAMPLE:
            continue
        prompts += 1
        if row["subject"]:
            subjects[row["subject"].lower()] += 1
        words = _WORD.findall(row["prompt"].lower())
        for n, counter in grams.items():
            counter.update(_grams(words, n))
        own = Counter(_grams(words, _NGRAM))
        uses.update(own)
        holders.update(own.keys())
    total = subjects.total()
    entropy = -sum(n / total * math.log(n / total) for n in subjects.values())
    return Diversity(
        prompts,
        subjects,
        math.exp(entropy) if total else 0.0,
        {n: len(counter) / max(1, counter.total()) for n, counter in grams.items()},
        sum(n for gram, n in uses.items() if holders[gram] > 1) / max(1, uses.total()),
    )


def _grams(words: list[str], n: int) -> Iterator[int]:
    return (hash(tuple(words[i : i + n])) for i in range(len(words) - n + 1))


def ledger_totals(root: Path) -> dict[str, Totals]:
    """What the ledgers of every stage that asked have seen."""
    found = {}
    for stage in STAGES:
        paths = sorted((root / "ledgers").glob(f"{stage}-?????.sqlite"))
        if paths:
            found[stage] = sum(map(read_totals, paths), Totals())
    return found


def source_counts(root: Path) -> dict[str, int]:
    """Lines of the captions' source by what became of them; empty before it was read."""
    path = root / STAGES[0] / "sample.jsonl"
    if not path.exists():
        return {}
    with path.open(encoding="utf-8") as file:
        return dict(json.loads(next(file)))
