"""Shows the statistics of a work folder: lines and tables for a terminal, and a plot."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dsd_jax.data.make.folder import begun_folder
from dsd_jax.data.make.parts import Parts
from dsd_jax.data.make.stages import JUDGEMENTS, PROMPTS, STAGES, STATUSES, Stage, StageRow
from dsd_jax.data.make.statistics import (
    Diversity,
    Judging,
    Yield,
    diversity,
    finished_rows,
    judging,
    ledger_totals,
    source_counts,
    yield_of,
)
from dsd_jax.extras import require
from dsd_jax.files import replacing
from dsd_jax.llm.totals import Totals
from dsd_jax.shares import WorkerShare

__all__ = ["plot_yields", "show", "summary", "tables"]


def summary(parts: Parts, stage: Stage[StageRow], share: WorkerShare) -> str:
    """The progress of one worker in a stage, and the reasons of rows that were not kept."""
    mine = share.of(parts.count)
    counts = yield_of(parts, stage, mine)
    kept = f"{counts.kept:,} of {counts.rows:,} rows kept"
    lines = [f"{stage}: {counts.finished} of {len(mine)} parts, {kept}"]
    for (status, reason), count in counts.reasons.most_common():
        lines.append(f"  {count:,} {status}: {reason}")
    return "\n".join(lines)


def tables(root: Path) -> list[Any]:
    """All statistics of a work folder, as tables of rich.

    Raises:
        UserError: There is no such folder, or a part is damaged.
    """
    parts = begun_folder(root)
    found = [_yields(parts)]
    if counts := source_counts(root):
        found.insert(0, _source_table(counts))
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


def show(table: Any) -> None:
    """Prints a table of rich; if it does not fit, prints each cell on a line of its own."""
    from rich.console import Console  # noqa: PLC0415 - only where something is shown
    from rich.text import Text  # noqa: PLC0415

    console = Console()
    anywhere = console.options.update(width=1000)
    if console.measure(table, options=anywhere).minimum <= console.width:
        console.print(table)
        return
    if table.title:
        console.print(Text(str(table.title), style="bold"))
    for cells in zip(*(column.cells for column in table.columns), strict=True):
        first, *others = cells
        console.print(Text(str(first)))
        for column, cell in zip(table.columns[1:], others, strict=True):
            if str(cell):
                console.print(Text(f"  {column.header}: {cell}"))
    console.print()


def _table(title: str, *columns: str) -> Any:
    from rich.box import SIMPLE  # noqa: PLC0415 - only where something is shown
    from rich.table import Table  # noqa: PLC0415

    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE, pad_edge=False)
    table.add_column(columns[0], overflow="fold", min_width=12)  # a whole name of a stage
    for column in columns[1:]:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _yields(parts: Parts) -> Any:
    table = _table("Yields", "stage", "parts", *STATUSES, "share")
    for stage in STAGES:
        counts = yield_of(parts, stage)
        table.add_row(
            stage.name,
            f"{counts.finished}/{parts.count}",
            *(f"{counts.statuses[status]:,}" for status in STATUSES),
            _share(counts.kept, counts.rows),
            style="bold",
        )
        for (status, reason), count in sorted(
            counts.reasons.items(), key=lambda item: (-item[1], item[0])
        ):
            cells = [f"{count:,}" if status == each else "" for each in STATUSES]
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
