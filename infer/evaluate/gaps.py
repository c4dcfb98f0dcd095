"""Everything that is missing from a run: images, and ratings without a score."""

import dataclasses
import itertools
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
        sample: Number of the image; None for all of a case.
        judge: Who should have rated it; empty for an image.
        round: Number of the round, from 0; None for an image.
        reason: Reason, as far as it is known.
    """

    method: str
    case: str
    what: str
    sample: int | None = None
    judge: str = ""
    round: int | None = None
    reason: str = ""


def gaps_of(rated: Rated, panels: Sequence[Panel]) -> Iterator[Gap]:
    """Lists what a run lacks: images, and ratings by the judges of the panels.

    A judge who rated other runs and not this one is one gap, unless its ratings were published.
    """
    method, samples = rated.run.method, _samples(rated)
    there = {(image.case, image.sample) for image in rated.run.images}
    for case in rated.run.cases if there else ():
        for sample in range(case.samples):
            if (case.id, sample) not in there:
                yield Gap(method, case.id, "image", sample)
    for panel in panels:
        ratings = panel.ratings.get(method, [])
        archived = all(each.published for given in panel.ratings.values() for each in given)
        if not ratings and not archived:
            yield Gap(method, "all", panel.protocol, None, panel.judge, None, "no case is rated")
        states = {
            (each.aspect, each.judge, each.round, each.case, each.sample): each.state
            for each in ratings
        }
        rounds = dict.fromkeys((each.aspect, each.judge, each.round) for each in ratings)
        for (aspect, judge, number), (name, own) in itertools.product(rounds, samples.items()):
            for sample in sorted(own):
                state = states.get((aspect, judge, number, name, sample), "not rated")
                if state != "ok":
                    what, reason = f"{panel.protocol} {aspect}", state.replace("_", " ")
                    yield Gap(method, name, what, sample, judge, number, reason)


def _samples(rated: Rated) -> dict[str, set[int]]:
    """Numbers of the images of every case; 0 for a case that has no image and no rating."""
    samples: dict[str, set[int]] = {case.id: set() for case in rated.run.cases}
    for image in rated.run.images:
        samples[image.case].add(image.sample)
    for rating in rated.ratings:
        samples[rating.case].add(rating.sample)
    return {case: own or {0} for case, own in samples.items()}
