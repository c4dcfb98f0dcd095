"""Ratings of several runs that may stand in one table: one protocol, asked of one judge."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from dsd_jax.errors import UserError, and_more
from dsd_jax.infer.evaluate.aggregate import Design, Grid
from dsd_jax.infer.evaluate.ratings import Rating, read_ratings
from dsd_jax.infer.evaluate.runs import Run

__all__ = ["HUMAN", "Panel", "Rated", "judge_of", "panels_of", "read_rated"]

HUMAN = "human"
"""Judge of all groups of people together; each group is a round."""


@dataclasses.dataclass(frozen=True)
class Rated:
    """A run with its ratings.

    Attributes:
        run: The run.
        ratings: Ratings of the images that the run has now.
        stale: Number of ratings of images that have changed since. They do not count.
    """

    run: Run
    ratings: Sequence[Rating]
    stale: int


@dataclasses.dataclass(frozen=True)
class Panel:
    """Ratings under one protocol by one judge.

    Attributes:
        protocol: Name of the protocol.
        judge: Name of the judge, or names of several judges that were mixed on purpose.
        design: The cases, which all methods share.
        methods: Grid of every aspect, by method.
        ratings: The ratings behind the grids, by method.
    """

    protocol: str
    judge: str
    design: Design
    methods: Mapping[str, Mapping[str, Grid]]
    ratings: Mapping[str, Sequence[Rating]]

    @property
    def aspects(self) -> list[str]:
        """Aspects that were rated, in the order of the ratings."""
        return list(dict.fromkeys(aspect for grids in self.methods.values() for aspect in grids))


def judge_of(rating: Rating) -> str:
    """Judge of a rating; groups of people are one judge."""
    return HUMAN if rating.judge.startswith(f"{HUMAN}/") else rating.judge


def read_rated(run: Run) -> Rated:
    """Reads the ratings of a run and leaves out those of other images.

    Raises:
        UserError: The ratings are damaged, or one is of a case that the run does not have.
    """
    cases = {case.id for case in run.cases}
    images = {(image.case, image.sample): image.sha256 for image in run.images}
    kept = []
    ratings = read_ratings(run.folder)
    for rating in ratings:
        if rating.case not in cases:
            raise UserError(
                f"{run.folder} has a rating of {rating.case}, which is no case of the run"
            )
        now = images.get((rating.case, rating.sample), rating.sha256)
        if not rating.sha256 or rating.sha256 == now:
            kept.append(rating)
    return Rated(run, kept, len(ratings) - len(kept))


def panels_of(runs: Sequence[Rated], design: Design, *, allow_mixed: bool = False) -> list[Panel]:
    """Makes a panel of every protocol and judge.

    Args:
        runs: Runs on the same cases.
        design: These cases.
        allow_mixed: Let judges stand in one column that are not the same.

    Raises:
        UserError: No judge rated all the runs that were judged, or the answers under one judge's
            name come from several models or rubrics, and `allow_mixed` is false.
    """
    panels = []
    protocols = dict.fromkeys(rating.protocol for each in runs for rating in each.ratings)
    for protocol in protocols:
        judges: dict[str, dict[str, list[Rating]]] = {}
        for each in runs:
            for rating in each.ratings:
                if rating.protocol == protocol:
                    methods = judges.setdefault(judge_of(rating), {})
                    methods.setdefault(each.run.method, []).append(rating)
        people = judges.pop(HUMAN, None)
        judged = {method for methods in judges.values() for method in methods}
        if judges and not any(judged == methods.keys() for methods in judges.values()):
            if not allow_mixed:
                raise UserError(_no_common_judge(protocol, judges))
            mixed: dict[str, list[Rating]] = {}
            for methods in judges.values():
                for method, ratings in methods.items():
                    mixed.setdefault(method, []).extend(ratings)
            judges = {" and ".join(sorted(judges)): mixed}
        for judge, methods in judges.items():
            if not allow_mixed:
                _check_one(protocol, judge, methods)
            panels.append(_panel(protocol, judge, design, runs, methods))
        if people:
            panels.append(_panel(protocol, HUMAN, design, runs, people))
    return panels


def _panel(
    protocol: str,
    judge: str,
    design: Design,
    runs: Sequence[Rated],
    methods: Mapping[str, Sequence[Rating]],
) -> Panel:
    grids = {}
    for each in runs:
        ratings = methods.get(each.run.method, [])
        aspects = dict.fromkeys(rating.aspect for rating in ratings)
        if aspects:
            grids[each.run.method] = {
                aspect: Grid.of(design, [x for x in ratings if x.aspect == aspect])
                for aspect in aspects
            }
    return Panel(protocol, judge, design, grids, methods)


def _check_one(protocol: str, judge: str, methods: Mapping[str, Iterable[Rating]]) -> None:
    """Checks that one model answered one rubric under the name of a judge.

    Raises:
        UserError: It was several.
    """
    seen: dict[tuple[str, str], str] = {}
    for method, ratings in methods.items():
        for rating in ratings:
            if rating.state == "ok":
                seen.setdefault((rating.answered_by, rating.rubric), method)
    for position, what in enumerate(("answered by", "given the rubric")):
        names = {pair[position]: method for pair, method in reversed(seen.items())}
        if len(names) > 1:
            parts = [f"{name or 'no name'} (`{method}`)" for name, method in names.items()]
            raise UserError(
                f"{protocol}: the judge {judge} was {what} {' and '.join(sorted(parts))}; such "
                "scores cannot stand in one column; judge again, or pass --allow_mixed"
            )


def _no_common_judge(protocol: str, judges: Mapping[str, Mapping[str, object]]) -> str:
    parts = [f"{judge} rated {and_more(sorted(methods), 4)}" for judge, methods in judges.items()]
    return (
        f"{protocol}: no judge rated all the runs ({'; '.join(sorted(parts))}); such scores cannot "
        "stand in one column; judge all runs with one judge, or pass --allow_mixed"
    )
