"""What is in a dataset in the making: yields, reasons, undecided judgements, costs, diversity."""

import dataclasses
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dsd_jax.data.llm.ledger import Totals, read_totals
from dsd_jax.data.make.parts import STAGES, Parts, Row
from dsd_jax.types import UserError

__all__ = [
    "MAKING",
    "Diversity",
    "Judging",
    "Tally",
    "diversity",
    "judging",
    "ledger_totals",
    "making_folder",
    "plot_making",
    "source_counts",
    "tables",
    "tally",
]

MAKING = "making.json"  # there once a folder is begun
SAMPLE = 50_000  # prompts; ids are hashes, so the first ones are a sample
_NGRAM = 4  # words that two prompts share by chance only if they were written alike
_WORD = re.compile(r"[^\W_]+")
_STATUSES = ("kept", "rejected", "undecided", "failed")


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


def tables(root: Path) -> list[Any]:
    """All of it as tables of rich.

    Raises:
        UserError: no such folder, or a part is damaged.
    """
    parts = making_folder(root)
    found = [_yields(parts)]
    if counts := source_counts(root):
        found.insert(0, _source_table(counts))
    judged = judging(finished_rows(parts, "judge"))
    if judged.verdicts.total():
        found.append(_judging_table(judged))
    measured = diversity(finished_rows(parts, "prompts"))
    if measured.prompts:
        found += [_diversity_table(measured), _subjects_table(measured)]
    totals = ledger_totals(root)
    if totals:
        found.append(_costs_table(totals))
    return found


def _table(title: str, *columns: str) -> Any:
    from rich.box import SIMPLE  # noqa: PLC0415 - only where something is shown
    from rich.table import Table  # noqa: PLC0415

    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE, pad_edge=False)
    table.add_column(columns[0], overflow="fold")
    for column in columns[1:]:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _yields(parts: Parts) -> Any:
    table = _table("Yields", "stage", "parts", *_STATUSES, "share")
    for stage in STAGES:
        counts = tally(parts, stage)
        table.add_row(
            stage,
            f"{counts.finished}/{parts.count}",
            *(f"{counts.statuses[status]:,}" for status in _STATUSES),
            _share(counts.kept, counts.rows),
            style="bold",
        )
        for (status, reason), count in sorted(
            counts.reasons.items(), key=lambda item: (-item[1], item[0])
        ):
            cells = [f"{count:,}" if status == each else "" for each in _STATUSES]
            table.add_row(f"  {_safe(reason)}", "", *cells, _share(count, counts.rows))
    return table


def _source_table(counts: Mapping[str, int]) -> Any:
    table = _table("Lines of the source", "", "lines", "share")
    for what, count in sorted(counts.items(), key=lambda item: -item[1]):
        table.add_row(what, f"{count:,}", _share(count, counts["read"]))
    return table


def _judging_table(judged: Judging) -> Any:
    table = _table("Judgements", "verdict", "pairs", "share")
    total = judged.verdicts.total()
    for verdict in ("yes", "no", "undecided", "failed"):
        count = judged.verdicts[verdict]
        table.add_row(verdict, f"{count:,}", _share(count, total))
    table.add_row(
        "a question put twice", f"{judged.asked_again:,}", _share(judged.asked_again, total)
    )
    if judged.audited:
        agreed = _share(judged.agreed, judged.audited)
        table.add_row("audited; grid and pair agree", f"{judged.audited:,}", agreed)
    return table


def _diversity_table(measured: Diversity) -> Any:
    table = _table(f"Diversity of {measured.prompts:,} prompts", "measure", "value")
    table.add_row("different subjects", f"{len(measured.subjects):,}")
    table.add_row("effective number of subjects", f"{measured.effective:,.1f}")
    for n, share in measured.distinct.items():
        table.add_row(f"distinct {n}-grams", f"{share:.3f}")
    table.add_row("4-grams that stand in another prompt too", f"{measured.overlap:.3f}")
    return table


def _subjects_table(measured: Diversity) -> Any:
    table = _table("Subjects", "subject", "prompts", "share")
    for subject, count in measured.subjects.most_common(20):
        table.add_row(_safe(subject), f"{count:,}", _share(count, measured.prompts))
    return table


def _costs_table(totals: Mapping[str, Totals]) -> Any:
    columns = ("questions", "answers", "maybe", "tokens in", "tokens out", "dollars")
    table = _table("Questions and costs", "stage", *columns)
    for stage, seen in totals.items():
        unpriced = seen.unpriced - seen.unreadable  # what cannot be read has no price
        table.add_row(
            stage,
            f"{seen.questions:,}",
            f"{seen.answered + seen.unreadable:,}",
            f"{seen.maybe_charged:,}",
            f"{seen.input:,}",
            f"{seen.output:,}",
            f"{seen.cost:,.2f}" + ("" if unpriced <= 0 else f" + {unpriced:,} unpriced"),
        )
    return table


def _share(count: int, total: int) -> str:
    return f"{100 * count / total:.1f} %" if total else ""


def _safe(text: str) -> Any:
    from rich.text import Text  # noqa: PLC0415

    shown = "".join(letter if letter.isprintable() else "\ufffd" for letter in text)
    return Text(shown[:60])  # brackets in foreign words are no markup


def plot_making(root: Path, path: Path) -> None:
    """Draws yields, reasons, subjects and costs.

    Args:
        root: folder of the dataset in the making.
        path: PNG to write.

    Raises:
        UserError: no such folder, or matplotlib is not installed, or the file cannot be written.
    """
    parts = making_folder(root)
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - an extra
        from matplotlib.figure import Figure  # noqa: PLC0415
    except ImportError:
        raise UserError("drawing needs matplotlib; pip install 'dsd-jax[plot]'") from None
    tallies = {stage: tally(parts, stage) for stage in STAGES}
    figure = Figure(figsize=(13, 8), layout="constrained")
    FigureCanvasAgg(figure)
    yields, reasons, subjects, costs = figure.subplots(2, 2).ravel()
    _draw_yields(yields, tallies)
    lost = Counter(
        {
            f"{stage}: {reason}": count
            for stage, counts in tallies.items()
            for (_, reason), count in counts.reasons.items()
        }
    )
    _bars(reasons, "Why rows were not kept", lost.most_common(12), "#c8553d")
    measured = diversity(finished_rows(parts, "prompts"))
    title = f"Subjects of {measured.prompts:,} prompts ({len(measured.subjects):,} different)"
    _bars(subjects, title, measured.subjects.most_common(12), "#588b8b")
    dollars = [(stage, seen.cost) for stage, seen in ledger_totals(root).items()]
    _bars(costs, f"Dollars ({sum(cost for _, cost in dollars):,.2f})", dollars, "#2d3047")
    figure.suptitle(root.resolve().name)
    partial = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(partial, format="png", dpi=110)
        partial.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None


def _draw_yields(axes: Any, tallies: Mapping[str, Tally]) -> None:
    colours = {"kept": "#588b8b", "rejected": "#c8553d", "undecided": "#f2c14e", "failed": "#555"}
    stages = list(tallies)
    left = [0] * len(stages)
    for status, colour in colours.items():
        counts = [tallies[stage].statuses[status] for stage in stages]
        axes.barh(stages, counts, left=left, color=colour, label=status)
        left = [a + b for a, b in zip(left, counts, strict=True)]
    axes.invert_yaxis()
    axes.set_title("Rows by stage")
    axes.legend(frameon=False)
    _tidy(axes)


def _bars(axes: Any, title: str, counts: list[tuple[str, Any]], colour: str) -> None:
    names = [name.replace("$", r"\$")[:40] for name, _ in counts]
    axes.barh(range(len(counts)), [count for _, count in counts], color=colour)
    axes.set_yticks(range(len(counts)), names)
    axes.invert_yaxis()
    axes.set_title(title)
    _tidy(axes)


def _tidy(axes: Any) -> None:
    axes.grid(visible=True, axis="x", alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
