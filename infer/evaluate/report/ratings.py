"""Sections of a report about ratings: Table 1, numbers with intervals, and what is missing."""

from collections import Counter
from collections.abc import Sequence

from dsd_jax.infer.evaluate.aggregate import AGGREGATORS, AggregatorName
from dsd_jax.infer.evaluate.gaps import Gap
from dsd_jax.infer.evaluate.numbers import (
    NAMES,
    PRODUCT,
    TREATMENTS,
    Number,
    Sampler,
    by_column,
    columns_of,
    firsts,
    overall,
    treated,
)
from dsd_jax.infer.evaluate.panels import HUMAN, Panel
from dsd_jax.infer.evaluate.published import DREAMBENCH_PF, PROTOCOLS, TABLE_1
from dsd_jax.infer.evaluate.report.cells import NONE, plain, with_interval, with_std
from dsd_jax.infer.evaluate.report.parts import ReportSettings, Row, Section, Table

__all__ = ["missing_section", "overall_section", "published_section", "table_1_sections"]

_LISTED = 50  # missing items that a page lists


def table_1_sections(
    panels: Sequence[Panel], settings: ReportSettings, rows: list[Row]
) -> list[Section]:
    """One section for each judge, one table for each rule, one block for each protocol."""
    judges: dict[str, list[Panel]] = {}
    for panel in panels:
        if {"cp", "pf"} <= set(panel.aspects):
            judges.setdefault(panel.judge, []).append(panel)
    sections = []
    for judge, own in judges.items():
        tables = [_layout(own, name, settings, rows) for name in settings.aggregator]
        sections.append(Section(f"Table 1, judged by {judge}", _words(own), tables))
    return sections


def _words(panels: Sequence[Panel]) -> str:
    words = (
        "CP is concept preservation and PF is prompt following, from 0 to 1. Columns of categories "
        "and prompt classes are means over their items."
    )
    if any(panel.protocol == "dsd-debiased" for panel in panels):
        words += (
            " Debiased CP falls for a copy of the reference as it does for a loss of identity, so "
            "it is no measure of identity; the protocol named split asks for both apart."
        )
    return words


def _layout(
    panels: Sequence[Panel], name: AggregatorName, settings: ReportSettings, rows: list[Row]
) -> Table:
    rule = AGGREGATORS[name]
    methods = list(dict.fromkeys(method for panel in panels for method in panel.methods))
    lines: dict[str, list[str]] = {method: [] for method in methods}
    columns, blocks = ["method"], [("", 1)]
    published: dict[str, list[str]] = {method: [] for method in TABLE_1}
    for panel in panels:
        groups = {aspect: columns_of(panel.design.cases, aspect, rule) for aspect in ("cp", "pf")}
        made = overall(panel, name)
        classes = [f"{x} prompts" if x in groups["cp"] else x for x in groups["pf"]]
        head = [*groups["cp"], "CP", *classes, "PF", NAMES[PRODUCT]]
        columns += head
        blocks.append((panel.protocol, len(head)))
        for method, line in lines.items():
            if not {"cp", "pf"} <= panel.methods.get(method, {}).keys():
                line.extend([NONE] * len(head))
                continue
            grids, numbers = panel.methods[method], made[method]
            for aspect, names in groups.items():
                parts = by_column(grids[aspect], aspect, names)
                line.extend([*map(plain, parts.values()), with_std(numbers[aspect])])
                rows += [
                    Row(method, panel.protocol, panel.judge, name, "present", f"{aspect} {part}", x)
                    for part, x in parts.items()
                ]
            line.append(plain(numbers[PRODUCT].value))
        for method, line in published.items():
            line.extend(_recomputed(method, panel.protocol, groups))
    shown = [[method, *line] for method, line in lines.items()]
    if settings.paper and name == "dsd-ours" and panels[0].judge != HUMAN:
        shown += [
            [f"{method} (published)", *line]
            for method, line in published.items()
            if any(cell != NONE for cell in line)
        ]
    notes = [rule.words]
    if rule.decimals is not None:
        single = not any("±" in cell for line in lines.values() for cell in line)
        notes.append(
            "There is one round, so no standard deviation."
            if single
            else "± is the standard deviation over rounds."
        )
    return Table(name, columns, shown, blocks, notes)


def _recomputed(method: str, protocol: str, groups: dict[str, list[str]]) -> list[str]:
    """Cells of a published row by the rule `dsd-ours`, which its printed columns suffice for."""
    printed = TABLE_1[method].get(protocol)
    expected = {"cp": ["animal", "human", "object"], "pf": ["photorealistic", "imaginative"]}
    if printed is None or groups != expected:
        return [NONE] * (sum(map(len, groups.values())) + 3)
    cp, pf, product = printed.consistent
    values = (printed.animal, printed.human, printed.object, cp)
    return [*map(plain, (*values, printed.photorealistic, printed.imaginative, pf, product))]


def published_section(settings: ReportSettings, rows: list[Row]) -> list[Section]:
    """Table 1 as the paper prints it."""
    if not settings.paper:
        return []
    columns = ("animal", "human", "object", "cp", "photorealistic", "imaginative", "pf", "product")
    head = ["animal", "human", "object", "CP", "photorealistic", "imaginative", "PF", "CP·PF"]
    lines = []
    for method, protocols in TABLE_1.items():
        cells = [getattr(protocols[each], column) for each in PROTOCOLS for column in columns]
        official = DREAMBENCH_PF.get(method)
        lines.append([f"{method} (published)", *map(plain, cells), plain(official)])
        for protocol in PROTOCOLS:
            for column in ("cp", "pf", "product"):
                value = getattr(protocols[protocol], column)
                number = PRODUCT if column == "product" else column
                rule = "dsd-ours" if method == "DSD" else "dsd-baseline"
                rows.append(
                    Row(method, protocol, "published", rule, "", number, value, published=True)
                )
    blocks = [("", 1), *((f"{each}, published", 8) for each in PROTOCOLS), ("published", 1)]
    notes = [
        (
            "The paper mixes two rules: its baselines follow dsd-baseline, its own row follows "
            "dsd-ours. By one rule, DreamBooth-LoRA has the highest vanilla product, 0.492."
        ),
        "The last column is PF as DreamBench++ prints it, by the rule official.",
    ]
    table = Table("As printed", ["method", *head, *head, "PF"], lines, blocks, notes)
    words = (
        "Numbers of arXiv 2411.18616 and 2406.16855. Their judge, gpt-4o-2024-05-13, was shut down "
        "on 2026-10-23, so no run of today was judged by it."
    )
    return [Section("Table 1, published", words, [table])]


def overall_section(
    panels: Sequence[Panel], settings: ReportSettings, sampler: Sampler, rows: list[Row]
) -> list[Section]:
    """A table for each protocol and judge, a line for each method and rule."""
    tables = []
    for panel in panels:
        lines = []
        names: dict[str, None] = {}
        for rule in settings.aggregator:
            made = overall(panel, rule, sampler)
            names |= dict.fromkeys(number for own in made.values() for number in own)
            best = firsts(panel, rule, PRODUCT, sampler)
            for method, numbers in made.items():
                lines.append((method, rule, numbers, best.get(method)))
                rows += [
                    _row(method, panel, rule, "present", number, each)
                    for number, each in numbers.items()
                ]
        lines.sort(key=lambda line: list(panel.methods).index(line[0]))
        ranked = any(share is not None for *_, share in lines)
        cells = [
            [
                *(method, rule),
                *(with_interval(numbers.get(name)) for name in names),
                *([NONE if share is None else f"{share:.0%}"] if ranked else []),
            ]
            for method, rule, numbers, share in lines
        ]
        columns = ["method", "rule", *(NAMES.get(name, name) for name in names)]
        notes = ["The last column is the share of draws in which the method has the highest CP·PF."]
        tables.append(
            Table(
                f"{panel.protocol}, judged by {panel.judge}",
                [*columns, *(["first"] if ranked else [])],
                cells,
                notes=notes if ranked else (),
            )
        )
    words = (
        f"Intervals hold 95 % of {settings.draws:,} draws of subjects within their category. All "
        "numbers are from 0 to 1: ratings are divided by the highest score of their protocol."
    )
    return [Section("Numbers with intervals", words, tables)] if tables else []


def missing_section(
    panels: Sequence[Panel], gaps: Sequence[Gap], settings: ReportSettings, rows: list[Row]
) -> list[Section]:
    """Counts and lists the gaps, and shows the numbers without them and in the worst case."""
    if not gaps:
        return [Section("Missing items", "Nothing is missing.")]
    counts = Counter((gap.method, gap.what, gap.judge, gap.reason) for gap in gaps)
    tables = [
        Table(
            "Counts",
            ["method", "missing", "judge", "reason", "number"],
            [[*key, f"{count:,}"] for key, count in counts.items()],
        )
    ]
    for panel in panels:
        gone = not all(grid.complete for grids in panel.methods.values() for grid in grids.values())
        if gone:
            tables += [_treatments(panel, name, rows) for name in settings.aggregator]
    listed = gaps[:_LISTED]
    tables.append(
        Table(
            "Items" if len(listed) == len(gaps) else f"The first {_LISTED} of {len(gaps):,} items",
            ["method", "case", "image", "missing", "judge", "round", "reason"],
            [_item(gap) for gap in listed],
            notes=() if len(listed) == len(gaps) else ("missing.csv lists all of them.",),
        )
    )
    words = (
        "Nothing is guessed and nothing is dropped silently. Means are over the cases that have a "
        "score, and a case has the mean of its images that have one. The other tables show the "
        "cases that all methods have, and the worst case."
    )
    return [Section("Missing items", words, tables)]


def _item(gap: Gap) -> list[str]:
    sample, number = ("" if n is None else str(n + 1) for n in (gap.sample, gap.round))
    return [gap.method, gap.case, sample, gap.what, gap.judge, number, gap.reason]


def _treatments(panel: Panel, name: AggregatorName, rows: list[Row]) -> Table:
    numbers = {treatment: overall(treated(panel, treatment), name) for treatment in TREATMENTS}
    names = list(dict.fromkeys(x for own in numbers["present"].values() for x in own))
    lines = []
    for method in panel.methods:
        line = [method]
        for treatment, made in numbers.items():
            line += [plain(made[method][x].value) if x in made[method] else NONE for x in names]
            if treatment != "present":
                rows += [
                    _row(method, panel, name, treatment, x, each)
                    for x, each in made[method].items()
                ]
        lines.append(line)
    head = [NAMES.get(x, x) for x in names]
    return Table(
        f"{panel.protocol}, judged by {panel.judge}, rule {name}",
        ["method", *(head * len(TREATMENTS))],
        lines,
        [("", 1), *((words, len(head)) for words in TREATMENTS.values())],
    )


def _row(method: str, panel: Panel, rule: str, cases: str, number: str, each: Number) -> Row:
    low, high = (None, None) if each.interval is None else each.interval[1:]
    return Row(
        *(method, panel.protocol, panel.judge, rule, cases, number),
        *(each.value, low, high, each.std),
    )
