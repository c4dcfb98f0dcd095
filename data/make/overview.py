"""Shows the statistics of a work folder: lines and tables for a terminal, and a plot."""

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dsd_jax.data.make.folder import begun_folder
from dsd_jax.data.make.parts import Parts
from dsd_jax.data.make.stages import JUDGEMENTS, PAIRS, PROMPTS, STAGES, STATUSES, Stage, StageRow
from dsd_jax.data.make.statistics import (
    Diversity,
    Drifts,
    Judging,
    Origin,
    Yield,
    diversity,
    drifts,
    finished_rows,
    judging,
    ledger_totals,
    origins,
    source_counts,
    yield_of,
)
from dsd_jax.extras import require
from dsd_jax.files import replacing
from dsd_jax.llm.totals import Totals
from dsd_jax.shares import WorkerShare
from dsd_jax.terminal import table_text

__all__ = ["plot_yields", "progress_table", "summary", "tables"]


def summary(parts: Parts, stage: Stage[StageRow], share: WorkerShare) -> str:
    """The progress of one worker in a stage, and the reasons of rows that were not kept."""
    mine = share.of(parts.count)
    counts = yield_of(parts, stage, mine)
    kept = f"{counts.kept:,} of {counts.rows:,} rows kept"
    lines = [f"{stage}: {counts.finished} of {len(mine)} parts, {kept}"]
    for (status, reason), count in counts.reasons.most_common():
        lines.append(f"  {count:,} {status}: {reason}")
    return "\n".join(lines)


def tables(root: Path) -> list[str]:
    """Writes all statistics of a work folder as tables.

    Raises:
        UserError: There is no such folder, or a part is damaged.
    """
    parts = begun_folder(root)
    found = [_yields(parts)]
    if counts := source_counts(root):
        found.insert(0, _source_table(counts))
    if by_origin := origins(parts):
        found.append(_origins_table(by_origin))
    if measured_drifts := drifts(finished_rows(parts, PAIRS)):
        found.append(_drift_table(measured_drifts))
    judged = judging(finished_rows(parts, JUDGEMENTS))
    if judged.verdicts.total():
        found.append(_judging_table(judged))
    measured = diversity(finished_rows(parts, PROMPTS))
    if measured.prompts:
        found += [_diversity_table(measured), _subjects_table(measured)]
    totals = ledger_totals(root)
    if totals:
        found.append(_costs_table(totals))
    return found


def progress_table(parts: Parts) -> str:
    """Writes a table of the progress, the costs and the open parts of each stage."""
    totals = ledger_totals(parts.root)
    columns = ("parts", "rows", "kept", "answers", "maybe charged", "dollars", "to do")
    rows = []
    for stage in STAGES:
        counts = yield_of(parts, stage)
        seen = totals.get(stage.name)
        todo = [str(part) for part in range(parts.count) if not parts.done(stage, part)]
        rows.append(
            (
                stage.name,
                f"{counts.finished}/{parts.count}",
                f"{counts.rows:,}",
                f"{counts.kept:,}",
                f"{seen.answered:,}" if seen else "",
                f"{seen.maybe_charged:,}" if seen else "",
                f"{seen.cost:,.2f}" if seen else "",
                " ".join(todo[:6]) + (" …" if len(todo) > 6 else ""),
            )
        )
    return table_text(("stage", *columns), rows)


def _yields(parts: Parts) -> str:
    rows = []
    for stage in STAGES:
        counts = yield_of(parts, stage)
        rows.append(
            (
                stage.name,
                f"{counts.finished}/{parts.count}",
                *(f"{counts.statuses[status]:,}" for status in STATUSES),
                _share(counts.kept, counts.rows),
            )
        )
        for (status, reason), count in sorted(
            counts.reasons.items(), key=lambda item: (-item[1], item[0])
        ):
            cells = [f"{count:,}" if status == each else "" for each in STATUSES]
            rows.append((f"  {reason}", "", *cells, _share(count, counts.rows)))
    return table_text(("stage", "parts", *STATUSES, "share"), rows, title="Yields")


def _source_table(counts: Mapping[str, int]) -> str:
    rows = [
        (what, f"{count:,}", _share(count, counts["read"]))
        for what, count in sorted(counts.items(), key=lambda item: -item[1])
    ]
    return table_text(("", "lines", "share"), rows, title="Lines of the source")


def _origins_table(by_origin: Mapping[str, Origin]) -> str:
    rows = [
        (
            name,
            *(
                f"{count:,}"
                for count in (own.prompts, own.grids, own.pairs, own.filtered, own.judged)
            ),
            f"{own.described:,}",
            _share(own.described, own.pairs),
            f"{own.answers:,}",
            f"{own.cost:,.2f}",
        )
        for name, own in by_origin.items()
    ]
    columns = (
        "task", "prompts", "grids", "pairs", "filtered", "judged", "described", "share",
        "answers", "dollars",
    )  # fmt: skip
    return table_text(columns, rows, title="Tasks and routes")


def _drift_table(by_origin: Mapping[str, Drifts]) -> str:
    rows = []
    for task, own in by_origin.items():
        total = own.verdicts.total()
        median = "" if math.isnan(own.median_px) else f"{own.median_px:.1f}"
        still = _share(own.verdicts["still"], total)
        rows.append((task, f"{total:,}", still, median, _share(own.kept, total)))
    columns = ("task", "pairs", "still", "median px", "kept")
    return table_text(columns, rows, title="Drift")


def _judging_table(judged: Judging) -> str:
    total = judged.verdicts.total()
    counts = {
        **{name: judged.verdicts[name] for name in ("yes", "no", "undecided", "failed")},
        "a question put twice": judged.asked_again,
    }
    rows = [(name, f"{count:,}", _share(count, total)) for name, count in counts.items()]
    if judged.audited:
        agreed = _share(judged.agreed, judged.audited)
        rows.append(("audited; grid and pair agree", f"{judged.audited:,}", agreed))
    return table_text(("verdict", "pairs", "share"), rows, title="Judgements")


def _diversity_table(measured: Diversity) -> str:
    rows = [
        ("different subjects", f"{len(measured.subjects):,}"),
        ("effective number of subjects", f"{measured.effective:,.1f}"),
        *((f"distinct {n}-grams", f"{share:.3f}") for n, share in measured.distinct.items()),
        ("4-grams that stand in another prompt too", f"{measured.overlap:.3f}"),
    ]
    title = f"Diversity of {measured.prompts:,} prompts"
    return table_text(("measure", "value"), rows, title=title)


def _subjects_table(measured: Diversity) -> str:
    rows = [
        (subject[:60], f"{count:,}", _share(count, measured.prompts))
        for subject, count in measured.subjects.most_common(20)
    ]
    return table_text(("subject", "prompts", "share"), rows, title="Subjects")


def _costs_table(totals: Mapping[str, Totals]) -> str:
    columns = ("questions", "answers", "maybe", "tokens in", "tokens out", "dollars")
    rows = []
    for stage, seen in totals.items():
        unpriced = seen.unpriced - seen.unreadable  # unreadable answers have no price
        rows.append(
            (
                stage,
                f"{seen.questions:,}",
                f"{seen.answered + seen.unreadable:,}",
                f"{seen.maybe_charged:,}",
                f"{seen.input:,}",
                f"{seen.output:,}",
                f"{seen.cost:,.2f}" + ("" if unpriced <= 0 else f" + {unpriced:,} unpriced"),
            )
        )
    return table_text(("stage", *columns), rows, title="Questions and costs")


def _share(count: int, total: int) -> str:
    return f"{100 * count / total:.1f} %" if total else ""


def plot_yields(root: Path, path: Path) -> None:
    """Draws yields, reasons, subjects and costs of a work folder.

    Args:
        root: The work folder.
        path: PNG file to write.

    Raises:
        UserError: There is no such folder, matplotlib is not installed, or the file cannot be
            written.
    """
    require("plot")
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - an extra
    from matplotlib.figure import Figure  # noqa: PLC0415

    parts = begun_folder(root)
    found = {stage.name: yield_of(parts, stage) for stage in STAGES}
    figure = Figure(figsize=(13, 8), layout="constrained")
    FigureCanvasAgg(figure)
    yields, reasons, subjects, costs = figure.subplots(2, 2).ravel()
    _draw_yields(yields, found)
    lost = Counter(
        {
            f"{stage}: {reason}": count
            for stage, counts in found.items()
            for (_, reason), count in counts.reasons.items()
        }
    )
    _bars(reasons, "Why rows were not kept", lost.most_common(12), "#c8553d")
    measured = diversity(finished_rows(parts, PROMPTS))
    title = f"Subjects of {measured.prompts:,} prompts ({len(measured.subjects):,} different)"
    _bars(subjects, title, measured.subjects.most_common(12), "#588b8b")
    dollars = [(stage, seen.cost) for stage, seen in ledger_totals(root).items()]
    _bars(costs, f"Dollars ({sum(cost for _, cost in dollars):,.2f})", dollars, "#2d3047")
    figure.suptitle(root.resolve().name)
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=110)


def _draw_yields(axes: Any, yields: Mapping[str, Yield]) -> None:
    colours = {"kept": "#588b8b", "rejected": "#c8553d", "undecided": "#f2c14e", "failed": "#555"}
    stages = list(yields)
    left = [0] * len(stages)
    for status, colour in colours.items():
        counts = [yields[stage].statuses[status] for stage in stages]
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
