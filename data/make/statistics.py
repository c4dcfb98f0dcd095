"""Counts the contents of a work folder: yields, reasons, verdicts, costs, diversity."""

import dataclasses
import math
import re
import statistics
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

from dsd_jax.data.make.ids import PromptId, prompt_of
from dsd_jax.data.make.parts import Parts
from dsd_jax.data.make.stages import (
    CAPTIONS,
    DESCRIPTIONS,
    GRIDS,
    JUDGEMENTS,
    PAIRS,
    PROMPTS,
    STAGES,
    UNJUDGED,
    Judgement,
    Pair,
    PanelDrift,
    Prompt,
    R_co,
    Stage,
    StageRow,
)
from dsd_jax.llm.totals import Totals, by_item, read_totals
from dsd_jax.structured import parse_json

__all__ = [
    "Diversity",
    "Drifts",
    "Judging",
    "Origin",
    "Yield",
    "diversity",
    "drifts",
    "finished_rows",
    "judging",
    "ledger_totals",
    "origin_of",
    "origins",
    "source_counts",
    "yield_of",
]

SAMPLE = 50_000  # prompts; ids are hashes, so the first ones are a sample
_NGRAM = 4  # words; two prompts rarely share so many by chance
_WORD = re.compile(r"[^\W_]+")


@dataclasses.dataclass(frozen=True)
class Yield:
    """Counts of a stage.

    Attributes:
        finished: Number of finished parts.
        statuses: Rows by status.
        reasons: Rows that were not kept, by status and reason.
        models: Rows by the model that answered.
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


def finished_rows(
    parts: Parts, stage: Stage[R_co], which: Iterable[int] | None = None
) -> Iterator[R_co]:
    """Rows of the parts that are finished, among all or some parts."""
    for part in range(parts.count) if which is None else which:
        if parts.done(stage, part):
            yield from parts.read(stage, part)


def yield_of(parts: Parts, stage: Stage[StageRow], which: Collection[int] | None = None) -> Yield:
    """Counts the rows of the parts that are finished, among all or some parts.

    Raises:
        UserError: A part is damaged.
    """
    finished = sum(parts.done(stage, n) for n in (range(parts.count) if which is None else which))
    statuses: Counter[str] = Counter()
    reasons: Counter[tuple[str, str]] = Counter()
    models: Counter[str] = Counter()
    for row in finished_rows(parts, stage, which):
        statuses[row.status] += 1
        if not row.kept:
            reasons[row.status, row.reason or ""] += 1
        if model := getattr(row, "model", None):
            models[model] += 1
    return Yield(finished, statuses, reasons, models)


@dataclasses.dataclass(frozen=True)
class Judging:
    """Counts of the judge's answers.

    Attributes:
        verdicts: Rows by `yes`, `no`, `undecided`, `failed`.
        asked_again: Rows with a question that was asked twice.
        audited, agreed: Rows judged by the grid and by the pair, and those with equal verdicts.
    """

    verdicts: Counter[str]
    asked_again: int
    audited: int
    agreed: int

    @property
    def undecided_share(self) -> float:
        return self.verdicts["undecided"] / max(1, self.verdicts.total())


def judging(rows: Iterable[Judgement]) -> Judging:
    """Counts the verdicts."""
    verdicts: Counter[str] = Counter()
    asked_again = audited = agreed = 0
    for row in rows:
        if row.mode == UNJUDGED:
            continue
        verdicts[row.verdict or row.status] += 1
        asked_again += any(turn.sample for turn in row.turns)
        if row.grid_verdict and row.verdict:
            audited += 1
            agreed += row.grid_verdict == row.verdict
    return Judging(verdicts, asked_again, audited, agreed)


@dataclasses.dataclass
class Origin:
    """Counts of one task, or of one route of it.

    Attributes:
        prompts, grids: Those that were kept.
        pairs: All pairs of their panels.
        filtered, judged, described: Pairs that were kept by the filters, by the judge and by the
            captioner.
        answers: Answers of models.
        cost: Dollars for the answers with a price.
    """

    prompts: int = 0
    grids: int = 0
    pairs: int = 0
    filtered: int = 0
    judged: int = 0
    described: int = 0
    answers: int = 0
    cost: float = 0.0


def origin_of(row: Prompt | Pair) -> str:
    """The task of a row and, where there are several, the route: `relight by backward`."""
    return f"{row.task} by {row.route}" if row.route else row.task


def origins(parts: Parts) -> dict[str, Origin]:
    """Yields and costs by task and route, over the parts that are finished.

    Captions have no task yet, so the questions about them are not in it.

    Raises:
        UserError: A part or a ledger is damaged.
    """
    names: dict[PromptId, str] = {}
    by_name: dict[str, Origin] = {}
    for prompt in finished_rows(parts, PROMPTS):
        names[prompt.id] = name = origin_of(prompt)
        by_name.setdefault(name, Origin()).prompts += prompt.kept

    def of(item: object) -> Origin:
        prompt = prompt_of(str(item))
        return by_name[names[prompt]] if prompt in names else Origin()

    for grid in finished_rows(parts, GRIDS):
        of(grid.id).grids += grid.kept
    for pair in finished_rows(parts, PAIRS):
        if isinstance(pair, Pair):
            of(pair.id).pairs += 1
            of(pair.id).filtered += pair.kept
    for judgement in finished_rows(parts, JUDGEMENTS):
        of(judgement.id).judged += judgement.kept
    for description in finished_rows(parts, DESCRIPTIONS):
        of(description.id).described += description.kept
    for stage in (PROMPTS, JUDGEMENTS, DESCRIPTIONS):
        for path in _ledgers(parts.root, stage):
            for item, (answers, cost) in by_item(path).items():
                of(item).answers += answers
                of(item).cost += cost
    return dict(sorted(by_name.items()))


@dataclasses.dataclass(frozen=True)
class Drifts:
    """Drift of the pairs of one origin.

    Attributes:
        verdicts: Pairs by the verdict of the meter.
        median_px: Median of the longest shifts, over the pairs of which one was found; else NaN.
        kept: Pairs that passed all filters.
    """

    verdicts: Counter[str]
    median_px: float
    kept: int


def drifts(rows: Iterable[StageRow]) -> dict[str, Drifts]:
    """Measured pairs by origin; those whose drift was not measured are left out."""
    measured: dict[str, list[tuple[Pair, PanelDrift]]] = {}
    for row in rows:
        if isinstance(row, Pair) and row.drift is not None:
            measured.setdefault(origin_of(row), []).append((row, row.drift))
    found = {}
    for origin, own in sorted(measured.items()):
        lengths = [drift.largest_px for _, drift in own if drift.largest_px is not None]
        found[origin] = Drifts(
            Counter(drift.verdict for _, drift in own),
            statistics.median(lengths) if lengths else math.nan,
            sum(pair.kept for pair, _ in own),
        )
    return found


@dataclasses.dataclass(frozen=True)
class Diversity:
    """Measures how different prompts are from each other.

    Attributes:
        prompts: Number of prompts.
        subjects: Prompts by subject.
        effective: Number of equally frequent subjects with the same entropy.
        distinct: n -> share of different n-grams among all n-grams of words.
        overlap: Share of the 4-grams of words that occur in another prompt too.
    """

    prompts: int
    subjects: Counter[str]
    effective: float
    distinct: Mapping[int, float]
    overlap: float


def diversity(rows: Iterable[Prompt]) -> Diversity:
    """Measures the first 50,000 prompts that were kept."""
    subjects: Counter[str] = Counter()
    grams: dict[int, Counter[int]] = {n: Counter() for n in (1, 2, 3)}
    holders: Counter[int] = Counter()  # number of prompts by 4-gram
    uses: Counter[int] = Counter()
    prompts = 0
    for row in rows:
        if row.prompt is None or prompts == SAMPLE:
            continue
        prompts += 1
        if row.subject:
            subjects[row.subject.lower()] += 1
        words = _WORD.findall(row.prompt.lower())
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
    """Totals over the ledgers of every stage that asked, by its name."""
    found = {}
    for stage in STAGES:
        if paths := _ledgers(root, stage):
            found[stage.name] = sum(map(read_totals, paths), Totals())
    return found


def _ledgers(root: Path, stage: Stage[StageRow]) -> list[Path]:
    return sorted((root / "ledgers").glob(f"{stage}-?????.sqlite"))


def source_counts(root: Path) -> dict[str, int]:
    """Lines of the captions' source by outcome; empty before it was read."""
    path = root / CAPTIONS.name / "sample.jsonl"
    if not path.exists():
        return {}
    with path.open(encoding="utf-8") as file:
        return parse_json(next(file, ""), f"{path} line 1", dict)
