"""Sections of a report: the numbers of several runs as tables of words."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import get_args

from dsd_jax.infer.evaluate.measured import Measured, compared_metrics
from dsd_jax.infer.evaluate.numbers import (
    NAMES,
    Comparison,
    Number,
    Sampler,
    compared,
    overall,
)
from dsd_jax.infer.evaluate.official import official_agreement, official_pearson
from dsd_jax.infer.evaluate.panels import HUMAN, Panel, Rated
from dsd_jax.infer.evaluate.ratings import Rating, State
from dsd_jax.infer.evaluate.report.cells import NONE, plain, signed, with_interval, with_std
from dsd_jax.infer.evaluate.report.parts import ReportSettings, Row, Section, Table
from dsd_jax.page import Dot

__all__ = [
    "agreement_section",
    "costs_section",
    "differences_section",
    "judges_section",
    "metrics_section",
    "novelty_sections",
    "runs_section",
]

_STATES = get_args(State)
_IDENTITY = ("identity", "dino-subject", "dino", "clip-i", "cosine")  # the best one first
_NOVELTY = ("structure-novelty-subject", "structure-novelty")
_ASPECT_OF = {"dino": "cp", "dinov2": "cp", "clip-i": "cp", "clip-t": "pf"}
"""Aspect that a metric stands for."""


def runs_section(runs: Sequence[Rated]) -> Section:
    rows = [
        [
            each.run.method,
            f"{len(each.run.cases):,}",
            f"{len(each.run.images):,}",
            f"{len(each.run.missing):,}",
            f"{sum(rating.state == 'ok' for rating in each.ratings):,}",
            f"{len(each.ratings) - sum(rating.state == 'ok' for rating in each.ratings):,}",
            f"{each.stale:,}",
        ]
        for each in runs
    ]
    columns = ("method", "cases", "images", "cases without image", "ratings", "without score")
    bench = runs[0].run.cases[0].bench
    return Section(
        "Runs",
        f"Benchmark: {bench}. Digest of the cases: {runs[0].run.cases_sha256[:12]}.",
        [Table("", (*columns, "of other images"), rows)],
    )


def metrics_section(
    metrics: dict[str, dict[str, Measured]], sampler: Sampler, rows: list[Row]
) -> list[Section]:
    if not metrics:
        return []
    methods = list(dict.fromkeys(method for own in metrics.values() for method in own))
    lines = {method: [method] for method in methods}
    gone = []
    for metric, own in metrics.items():
        bad: list[str] = []
        for method, line in lines.items():
            if method not in own:
                line.append(NONE)
                continue
            measured = own[method]
            interval = sampler.interval(measured.quantity)
            number = Number(interval.value, interval)
            line.append(with_interval(number))
            rows.append(Row(method, "", "", "", "present", metric, *interval))
            others = {state: n for state, n in measured.states.items() if state != "ok"}
            bad += [f"{count:,} {state} ({method})" for state, count in others.items()]
        if bad:
            gone.append(f"{metric}: {', '.join(bad)}.")
    words = (
        "The part after @ names the model of the features. Scores are means over cases, with "
        "intervals over subjects."
    )
    table = Table("", ["method", *metrics], list(lines.values()), notes=gone)
    return [Section("Metrics", words, [table])]


def differences_section(
    panels: Sequence[Panel],
    metrics: dict[str, dict[str, Measured]],
    other: str,
    settings: ReportSettings,
    sampler: Sampler,
) -> list[Section]:
    """Differences of all methods to the first one."""
    rule = settings.aggregator[0]
    tables = [
        _differing(f"{panel.protocol}, judged by {panel.judge}, rule {rule}", found)
        for panel in panels
        if other in panel.methods and (found := compared(panel, other, rule, sampler))
    ]
    found = [
        each
        for metric, own in metrics.items()
        for each in compared_metrics(own, metric, other, sampler)
    ]
    if found:
        tables.append(_differing("metrics", found))
    words = (
        f"Each line is a method minus {other}, on the cases that both have. p is that of a test "
        "that swaps the methods in whole subjects, adjusted by Holm for all methods of a number."
    )
    return [Section("Paired differences", words, tables)] if tables else []


def _differing(title: str, found: Sequence[Comparison]) -> Table:
    cells = [
        [
            each.method,
            NAMES.get(each.number, each.number),
            signed(each.interval),
            f"{each.p:.4f}",
            f"{each.cases:,}",
        ]
        for each in found
    ]
    return Table(title, ["method", "number", "difference", "p", "cases"], cells)


def novelty_sections(
    panels: Sequence[Panel],
    metrics: dict[str, dict[str, Measured]],
    settings: ReportSettings,
    sampler: Sampler,
) -> list[Section]:
    """Identity against novelty: as a judge rated them, or by metrics."""
    sections = []
    words = (
        "A method to the right changes more of the reference, a higher one keeps more of its "
        "subject. A product of both hides which of them moved."
    )
    for panel in panels:
        made = overall(panel, settings.aggregator[0], sampler)
        points = [
            Dot(method, x.interval, y.interval)
            for method, own in made.items()
            if (x := own.get("novelty")) and (y := own.get("identity"))
            if x.interval and y.interval
        ]
        if points:
            title = f"Identity and novelty, judged by {panel.judge}"
            sections.append(Section(title, words, (), points, ("novelty", "identity")))
    axes = _axes(list(metrics))
    if axes:
        across, upwards = (metrics[name] for name in axes)
        points = [
            Dot(
                method,
                sampler.interval(across[method].quantity),
                sampler.interval(upwards[method].quantity),
            )
            for method in across
            if method in upwards
        ]
        sections.append(Section("Identity and novelty, by metrics", words, (), points, axes))
    return sections


def _axes(metrics: Sequence[str]) -> tuple[str, str] | None:
    """A metric of novelty and one of identity, if there are any."""

    def first(kinds: Sequence[str]) -> str | None:
        ranked = (name for kind in kinds for name in metrics if name.partition("@")[0] == kind)
        return next(ranked, None)

    novelty, identity = first(_NOVELTY), first(_IDENTITY)
    return (novelty, identity) if novelty and identity else None


# Judges and the bill


def judges_section(panels: Sequence[Panel]) -> list[Section]:
    lines = []
    for panel in panels:
        groups: dict[tuple[str, ...], Counter[str]] = {}
        for ratings in panel.ratings.values():
            for each in ratings:
                source = "published" if each.published else "own"
                key = each.judge, each.answered_by, each.rubric, source
                groups.setdefault(key, Counter())[each.state] += 1
                groups[key][f"round {each.round}"] += 1
        for (judge, answered, rubric, source), counts in groups.items():
            rounds = sum(name.startswith("round ") for name in counts)
            states = [f"{counts[state]:,}" for state in _STATES]
            names = [panel.protocol, judge, answered or NONE, rubric or NONE, source]
            lines.append([*names, str(rounds), *states])
    columns = ["protocol", "judge", "answered by", "rubric", "source", "rounds"]
    states = [state.replace("_", " ") for state in _STATES]
    return [Section("Judges", "", [Table("", [*columns, *states], lines)])] if lines else []


def agreement_section(
    panels: Sequence[Panel], metrics: dict[str, dict[str, Measured]]
) -> list[Section]:
    """Agreement with people, where people rated the same images."""
    tables = []
    for people in panels:
        if people.judge != HUMAN:
            continue
        for aspect in people.aspects:
            lines = list(_agreeing(people, aspect, panels, metrics))
            if lines:
                columns = ["method", "judge", "people and people", "judge and people", "Pearson"]
                title = f"{people.protocol}, {NAMES.get(aspect, aspect)}"
                tables.append(Table(title, columns, lines))
    words = (
        "Krippendorff's alpha at interval level, and Pearson's correlation of the first round with "
        "both groups of people (± half their difference), rounded as DreamBench++ rounds them. "
        "Agreement among people is the ceiling for any judge."
    )
    return [Section("Agreement with people", words, tables)] if tables else []


def _agreeing(
    people: Panel,
    aspect: str,
    panels: Sequence[Panel],
    metrics: dict[str, dict[str, Measured]],
) -> Iterator[list[str]]:
    for panel in panels:
        if panel.protocol != people.protocol or panel.judge == HUMAN:
            continue
        for method, grids in panel.methods.items():
            theirs = people.methods.get(method, {}).get(aspect)
            if theirs is None or aspect not in grids:
                continue
            found = official_agreement(theirs, grids[aspect])
            mean, half = official_pearson(theirs, grids[aspect].values[0])
            alpha = with_std(Number(found.judge, std=found.std))
            pearson = f"{plain(mean)} ± {half:.3f}"
            yield [method, panel.judge, plain(found.people), alpha, pearson]
    for metric, own in metrics.items():
        if _ASPECT_OF.get(metric.partition("@")[0]) != aspect:
            continue
        for method, measured in own.items():
            theirs = people.methods.get(method, {}).get(aspect)
            if theirs is not None:
                mean, half = official_pearson(theirs, measured.grid.values[0])
                yield [method, metric, NONE, NONE, f"{plain(mean)} ± {half:.3f}"]


def costs_section(runs: Sequence[Rated]) -> list[Section]:
    lines = []
    for each in runs:
        judges: dict[tuple[str, str], list[Rating]] = {}
        for rating in each.ratings:
            if not rating.published and not rating.judge.startswith(f"{HUMAN}/"):
                judges.setdefault((rating.judge, rating.protocol), []).append(rating)
        for (judge, protocol), own in judges.items():
            unknown = sum(rating.cost is None for rating in own)
            dollars = f"{sum(rating.cost or 0 for rating in own):.4f}"
            lines.append(
                [
                    *(each.run.method, protocol, judge),
                    f"{len(own):,}",
                    f"{sum(rating.input_tokens or 0 for rating in own):,}",
                    f"{sum(rating.output_tokens or 0 for rating in own):,}",
                    dollars + (f" without {unknown:,} of unknown price" if unknown else ""),
                ]
            )
    columns = ["method", "protocol", "judge", "answers", "tokens in", "tokens out", "US dollars"]
    return [Section("Costs", "", [Table("", columns, lines)])] if lines else []
