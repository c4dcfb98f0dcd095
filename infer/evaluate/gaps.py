"""Everything that is missing from a run: images, and ratings without a score."""

import dataclasses
from collections.abc import Iterator, Sequence

from dsd_jax.infer.evaluate.panels import Panel, Rated

__all__ = ["Gap", "gaps_of"]


@dataclasses.dataclass(frozen=True)
class Gap:
    """Something that is missing.

    Attributes:
        method: Method of the run.
        case: Id of the case, or "all".
        what: What is missing: "image", or an aspect of a protocol.
        judge: Who should have rated it; empty for an image.
        round: Number of the round, from 0; None for an image.
        reason: Reason, as far as it is known.
    """

    method: str
    case: str
    what: str
    judge: str = ""
    round: int | None = None
    reason: str = ""


def gaps_of(rated: Rated, panels: Sequence[Panel]) -> Iterator[Gap]:
    """Lists what a run lacks: images, and ratings by the judges of the panels.

    A judge who rated other runs and not this one is one gap, unless its ratings were published.
    """
    method = rated.run.method
    if rated.run.images:
        yield from (Gap(method, case, "image") for case in rated.run.missing)
    for panel in panels:
        ratings = panel.ratings.get(method, [])
        own = not all(each.published for given in panel.ratings.values() for each in given)
        if not ratings and own:
            yield Gap(method, "all", panel.protocol, panel.judge, None, "no case is rated")
        states = {
            (each.aspect, each.judge, each.round, each.case): each.state
            for each in sorted(ratings, key=lambda each: each.state == "ok")
        }
        rounds = dict.fromkeys((each.aspect, each.judge, each.round) for each in ratings)
        for aspect, judge, number in rounds:
            for case in rated.run.cases:
                state = states.get((aspect, judge, number, case.id), "not rated")
                if state != "ok":
                    what, reason = f"{panel.protocol} {aspect}", state.replace("_", " ")
                    yield Gap(method, case.id, what, judge, number, reason)
