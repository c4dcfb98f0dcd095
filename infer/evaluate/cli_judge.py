"""`dsd evaluate judge` and `calibrate`."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import get_args

import tyro

from dsd_jax.errors import UserError
from dsd_jax.infer.evaluate.calibrate import (
    Calibration,
    agreements,
    anchor_queries,
    calibration_of,
    write_calibration,
)
from dsd_jax.infer.evaluate.judge import (
    Estimate,
    Tally,
    estimates,
    judge_runs,
    spent_on,
    tallies,
)
from dsd_jax.infer.evaluate.protocols import load_protocols
from dsd_jax.infer.evaluate.queries import JudgeConfig, load_judge, open_queries, queries
from dsd_jax.infer.evaluate.ratings import State
from dsd_jax.infer.evaluate.runs import open_runs
from dsd_jax.infer.evaluate.sampling import stratified
from dsd_jax.llm.prices import usd
from dsd_jax.terminal import table_text

__all__ = ["calibrate", "judge"]


@dataclasses.dataclass(frozen=True)
class Budget:
    """Caps on everything that judging these runs has cost, earlier commands included.

    Attributes:
        max_usd: Most dollars. Default: the judge's max_cost.
        max_calls: Most paid calls. Default: the judge's max_calls.
        max_tokens: Most tokens. Default: the judge's max_tokens.
    """

    max_usd: float | None = None
    max_calls: int | None = None
    max_tokens: int | None = None

    def applied(self, judge: JudgeConfig) -> JudgeConfig:
        """The judge with these caps in place of its own."""
        own = judge.provider
        provider = dataclasses.replace(
            own,
            max_cost=own.max_cost if self.max_usd is None else self.max_usd,
            max_calls=own.max_calls if self.max_calls is None else self.max_calls,
            max_tokens=own.max_tokens if self.max_tokens is None else self.max_tokens,
        )
        return dataclasses.replace(judge, provider=provider)


@dataclasses.dataclass(frozen=True)
class Scope:
    """The questions to ask.

    Attributes:
        protocol: Protocols: dreambench++, dsd-debiased, split, omnicontext, or that of --rubrics.
        rubrics: File of rubrics that replaces or adds a protocol, or a clone of dreambench_plus
            whose texts replace those of dreambench++.
        rounds: Number of times that each question is asked.
        aspects: Aspects to ask about, such as cp or identity. Default: all.
        sample: Number of cases to ask about, spread over categories and classes of prompts, the
            same for all runs. Default: all.
        seed: Seed of the sample and of the order of the questions.
    """

    protocol: tuple[str, ...]
    rubrics: Path | None = None
    rounds: int = 3
    aspects: tuple[str, ...] = ()
    sample: int | None = None
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Anchors:
    """The archived images that are judged again.

    Attributes:
        anchors: Number of images, spread over runs, categories and classes of prompts.
        rounds: Number of times that each question is asked.
        rubrics: Clone of dreambench_plus, or file of rubrics, whose texts replace those of
            dreambench++.
        seed: Seed of the draw and of the order of the questions.
    """

    anchors: int = 200
    rounds: int = 1
    rubrics: Path | None = None
    seed: int = 0


def judge(
    runs: tyro.conf.Positional[tuple[Path, ...]],
    scope: tyro.conf.OmitArgPrefixes[Scope],
    judge: Path,
    budget: tyro.conf.OmitArgPrefixes[Budget] = Budget(),
    *,
    dry_run: bool = False,
) -> None:
    """Ask a vision-language model for scores. If it was stopped, start it again to resume.

    Answers are added to ratings.jsonl of each run. What was paid for is never asked again.

    Args:
        runs: Folders of runs, which have the same cases.
        judge: TOML file of the judge: a table [provider] as in `dsd data make`, and temperature and
            max_tokens of an answer. In batch mode, start a command for each run, so that their
            batches are under way together.
        dry_run: Print the number of questions, tokens and dollars by protocol, and ask nothing.
    """
    if not runs:
        raise UserError("give the folders of runs to judge")
    chosen = budget.applied(load_judge(judge))
    protocols = load_protocols(scope.protocol, scope.rubrics)
    opened = open_runs(runs)
    cases = opened[0].cases
    if scope.sample is not None:
        cases = stratified(cases, scope.sample, scope.seed)
    asked = [queries(run, protocols, scope.rounds, scope.aspects, cases) for run in opened]
    todo = [
        open_queries(run, each, chosen, scope.seed) for run, each in zip(opened, asked, strict=True)
    ]
    for run in opened:
        if missing := set(run.missing) & {case.id for case in cases}:
            print(f"{run.method}: {len(missing):,} of {len(cases):,} cases have no image")
    if dry_run:
        print(_estimate_table(chosen, estimates(itertools.chain(*todo), chosen)))
        return
    try:
        judge_runs(list(zip(opened, todo, strict=True)), chosen)
    finally:
        counts = {
            run.method: tallies(run, each, chosen) for run, each in zip(opened, asked, strict=True)
        }
        print(_tally_table(chosen, counts))
        spent = spent_on(opened)
        print(f"all judging of these runs: {spent}")


def calibrate(
    runs: tyro.conf.Positional[tuple[Path, ...]],
    judge: Path,
    output: Path = Path("calibration.json"),
    anchors: tyro.conf.OmitArgPrefixes[Anchors] = Anchors(),
    budget: tyro.conf.OmitArgPrefixes[Budget] = Budget(),
    *,
    dry_run: bool = False,
) -> None:
    """Measure a judge on archived images that people and the paper's judge have rated.

    Shows the judge's offset, slope and agreement with both, and writes its errors, by which a
    report can correct its means.

    Args:
        runs: Folders of runs with the ratings of `dsd evaluate archive` and the archive's images.
        judge: TOML file of the judge; see `dsd evaluate judge --help`.
        output: File to write.
        dry_run: Print the number of questions, tokens and dollars, and ask nothing.
    """
    if not runs:
        raise UserError("give the folders of runs of the archive")
    chosen = budget.applied(load_judge(judge))
    protocols = load_protocols(["dreambench++"], anchors.rubrics)
    opened = open_runs(runs)
    asked = anchor_queries(opened, protocols[0], anchors.anchors, anchors.rounds, anchors.seed)
    todo = [
        open_queries(run, each, chosen, anchors.seed)
        for run, each in zip(opened, asked, strict=True)
    ]
    if dry_run:
        print(_estimate_table(chosen, estimates(itertools.chain(*todo), chosen)))
        return
    judge_runs(list(zip(opened, todo, strict=True)), chosen)
    made = calibration_of(opened, asked, chosen)
    write_calibration(output, made)
    print(_agreement_table(made))
    for state, count in made.unscored.items():
        print(f"note: {count:,} answers are {state.replace('_', ' ')}, and left out")
    print(f"wrote {output}")


def _agreement_table(made: Calibration) -> str:
    columns = ("", "images", "offset", "slope", "alpha", "kappa", "correlation")
    rows = [
        (
            f"{each.aspect}: {each.sides[0]} and {each.sides[1]}",
            f"{each.items:,}",
            *map(str, (each.offset, each.slope, each.alpha, each.kappa, each.correlation)),
        )
        for each in agreements(made)
    ]
    return table_text(columns, rows, title=f"{made.judge} on archived images of DreamBench++")


def _estimate_table(judge: JudgeConfig, found: Mapping[str, Estimate]) -> str:
    columns = ("protocol", "calls", "tokens in", "tokens out", "cost", "at most")
    rows = [
        (
            name,
            f"{each.calls:,}",
            f"{each.input:,}",
            f"{each.output:,}",
            usd(each.cost),
            usd(each.most),
        )
        for name, each in found.items()
    ]
    table = table_text(columns, rows, title=f"open questions to {judge.name}, estimated")
    return table if rows else f"{judge.name} has answered everything"


def _tally_table(judge: JudgeConfig, counts: Mapping[str, Mapping[tuple[str, str], Tally]]) -> str:
    """A line for each aspect; states that never occur have no column."""
    seen = {state for own in counts.values() for tally in own.values() for state in tally.states}
    states: list[State] = [state for state in get_args(State) if state in {"ok", *seen}]
    columns = ("", "asked", *(state.replace("_", " ") for state in states), "mean", "cost")

    def rows() -> Iterator[tuple[str, ...]]:
        for method, tallied in counts.items():
            protocol = ""
            for (own, aspect), tally in tallied.items():
                if own != protocol:
                    protocol = own
                    yield f"{method}, {protocol}", *([""] * (len(columns) - 1))
                yield (
                    f"  {aspect}",
                    f"{tally.asked:,}",
                    *(f"{tally.states.get(state, 0):,}" for state in states),
                    "" if tally.mean is None else f"{tally.mean:.3f}",
                    usd(tally.cost),
                )

    return table_text(columns, rows(), title=f"ratings by {judge.name}")
