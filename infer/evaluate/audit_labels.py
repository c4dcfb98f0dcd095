"""Audits a judge against people: precision, recall, specificity, kappa and corrected yields."""

import dataclasses
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from dsd_jax.errors import UserError
from dsd_jax.infer.evaluate.agreement import (
    Count,
    cohen_kappa,
    complement,
    ppi_mean,
    ratio,
    rogan_gladen,
    wilson,
)
from dsd_jax.infer.evaluate.audit import (
    POPULATION,
    PROBE,
    STRATUM,
    SWAPPED,
    Answers,
    Channel,
    Finding,
    Judged,
)
from dsd_jax.infer.evaluate.labels import Label, Place
from dsd_jax.infer.evaluate.resampling import Resampling
from dsd_jax.infer.evaluate.runs import Run
from dsd_jax.infer.evaluate.statistics import sample_size
from dsd_jax.interval import Interval

__all__ = ["against_labels", "shortfalls"]


@dataclasses.dataclass(frozen=True)
class _Sample:
    """Labelled images of one category, or all.

    Attributes:
        judged: Whether the judge accepted each.
        human: Whether people said yes.
        weights: Images of the population that each stands for.
        accepted: Images of the population that the judge accepted.
        others: All others of the population.
        size: Number of independent verdicts that those two numbers are known from.
        missing: Images of the population whose stratum has no labels.
    """

    judged: np.ndarray
    human: np.ndarray
    weights: np.ndarray
    accepted: float
    others: float
    size: float
    missing: float

    def labelled_yes(self, among: np.ndarray) -> Count:
        """Images that people said yes to, among some. Weights make their number an effective one.

        The effective number is Kish's, `(sum w)^2 / sum w^2`.
        """
        weights = self.weights[among]
        size = _effective(weights)
        return Count(float(weights @ self.human[among]) / weights.sum() * size if size else 0, size)

    @property
    def apparent(self) -> Count:
        """Images that the judge accepted, of all."""
        return Count(self.accepted / (self.accepted + self.others) * self.size, self.size)


def _effective(weights: np.ndarray) -> float:
    return float(weights.sum() ** 2 / (weights**2).sum()) if weights.any() else 0.0


def against_labels(answers: Answers, labels: Sequence[Label], runs: Sequence[Run]) -> list[Finding]:
    """Precision, recall, specificity, kappa and corrected yields of every judge.

    Labelled images are weighted to stand for the population: all rated images, or where the run is
    a sample, what it was drawn from. The label of an image is that of most raters; images without a
    majority of yes or no do not count, but their share is told.

    Raises:
        UserError: No labelled image was accepted, or none was not.
    """
    people: dict[Place, list[Label]] = defaultdict(list)
    for label in labels:
        people[label.place].append(label)
    majority = {place: _majority(own) for place, own in people.items()}
    sizes = {run.method: run.settings.get(POPULATION) for run in runs}
    found = []
    for channel, rated in answers.items():
        judged = {place: own for place, own in rated.items() if PROBE not in own.case.tags}
        labelled = [place for place in majority if place in judged]
        if channel.aspect.endswith(SWAPPED) or not labelled:
            continue
        settled = [place for place in labelled if majority[place] is not None]
        categories = sorted({judged[place].case.category for place in labelled})
        for category in ["", *(categories if len(categories) > 1 else [])]:
            shown = {p: j for p, j in judged.items() if category in {"", j.case.category}}
            own = [place for place in settled if place in shown]
            sample = _sample(shown, {place: majority[place] == "yes" for place in own}, sizes)
            if not category:
                _check(sample, channel)
            if own:
                found += _figures(sample, str(channel), category)
                found += _kappas(str(channel), category, own, judged, people)
        share = wilson((len(labelled) - len(settled), len(labelled)))
        name = "labels without a majority"
        found.append(Finding("labels", str(channel), "", name, share, len(labelled)))
    if not found:
        raise UserError("no judge rated a labelled image; give the runs that were labelled")
    return found


def _majority(labels: Sequence[Label]) -> Literal["yes", "no"] | None:
    counts = Counter(label.label for label in labels)
    if counts["yes"] == counts["no"]:
        return None
    return "yes" if counts["yes"] > counts["no"] else "no"


def _sample(
    judged: Mapping[Place, Judged],
    human: Mapping[Place, bool],
    sizes: Mapping[str, object],
) -> _Sample:
    """Weights of the labelled images, and the shares of the population.

    A stratum of a sample has the size that its run states. The strata of other images are the
    verdicts of each category, so that labels of one verdict alone do no harm.

    Args:
        judged: All rated images.
        human: Whether people said yes, of those with labels.
        sizes: Sizes of the strata by method; None for a run that is no sample.
    """
    strata: dict[tuple[str, str, str], list[Place]] = defaultdict(list)
    for place, own in judged.items():
        tag = own.case.tags.get(STRATUM, "")
        verdict = "" if sizes[place.method] else str(own.verdict == "yes")
        strata[place.method, tag or own.case.category, verdict].append(place)
    weights: dict[Place, float] = {}
    accepted = others = missing = 0.0
    sampled: list[float] = []
    for (method, tag, _), places in strata.items():
        table = sizes[method]
        total = float(table.get(tag, len(places)) if isinstance(table, dict) else len(places))
        yes = sum(judged[place].verdict == "yes" for place in places)
        accepted += total * yes / len(places)
        others += total * (len(places) - yes) / len(places)
        # If all verdicts of a stratum are alike, they are known of all of it.
        alike = yes in {0, len(places)}
        sampled += [1.0] * round(total) if alike else [total / len(places)] * len(places)
        labelled = [place for place in places if place in human]
        weights |= dict.fromkeys(labelled, total / max(len(labelled), 1))
        missing += 0 if labelled else total
    return _Sample(
        np.array([judged[place].verdict == "yes" for place in weights], bool),
        np.array([human[place] for place in weights], bool),
        np.array(list(weights.values()), float),
        accepted,
        others,
        _effective(np.array(sampled)),
        missing,
    )


def _check(sample: _Sample, channel: Channel) -> None:
    for judged, name in ((True, "accepted"), (False, "did not accept")):
        if not (sample.judged == judged).any():
            raise UserError(
                f"{channel}: no image that the judge {name} has a label of yes or no, so there is "
                f"no {'precision' if judged else 'recall'}; label some of those too"
            )


def _figures(sample: _Sample, judge: str, group: str) -> list[Finding]:
    inside, outside = (sample.labelled_yes(own) for own in (sample.judged, ~sample.judged))
    precision, missed = wilson(inside), wilson(outside)
    total = len(sample.judged)
    figures = [("precision", precision, float(sample.judged.sum()))]
    if inside.trials and outside.trials:
        recall = _share_kept(ratio(missed, precision), sample.others, sample.accepted)
        lost = ratio(complement(precision), complement(missed))
        specificity = _share_kept(lost, sample.accepted, sample.others)
        figures += [
            ("recall", recall, total),
            ("specificity", specificity, total),
            ("yield by the judge", wilson(sample.apparent), sample.accepted + sample.others),
            ("yield, Rogan-Gladen", _rogan_gladen(sample, recall, specificity), total),
            ("yield, PPI", _ppi(sample), total),
        ]
    if sample.missing:
        everything = sample.accepted + sample.others
        share = Interval(sample.missing / everything, math.nan, math.nan)
        figures.append(("in strata without labels", share, everything))
    return [Finding("labels", judge, group, *figure) for figure in figures]


def _share_kept(lost: Interval, weight: float, by: float) -> Interval:
    """`1 / (1 + weight / by * lost)`, which falls with `lost`."""
    scale = weight / by if by else math.inf

    def kept(value: float) -> float:
        return 1 / (1 + scale * value) if value and scale else 1.0

    return Interval(kept(lost.value), kept(lost.high), kept(lost.low))


def _rogan_gladen(sample: _Sample, recall: Interval, specificity: Interval) -> Interval:
    """The corrected yield, with effective numbers of weighted labels."""

    def count(share: Interval, among: np.ndarray) -> Count:
        size = _effective(sample.weights[among])
        return Count(share.value * size, size)

    yes, no = count(recall, sample.human), count(specificity, ~sample.human)
    return rogan_gladen(sample.apparent, yes, no)


def _ppi(sample: _Sample) -> Interval:
    yes = round(sample.apparent.successes)
    judged = np.repeat([1.0, 0.0], [yes, max(round(sample.size) - yes, 0)])
    own = sample.judged.astype(float)
    return ppi_mean(judged, sample.human.astype(float), own, sample.weights)


def _kappas(
    judge: str,
    group: str,
    places: Sequence[Place],
    judged: Mapping[Place, Judged],
    people: Mapping[Place, Sequence[Label]],
) -> list[Finding]:
    """Kappa of the judge with single raters, and of raters with each other, on the same images."""
    rows: dict[str, list[tuple[str, str, int]]] = {"judge-human": [], "human-human": []}
    for number, place in enumerate(places):
        labels = [label.label for label in people[place] if label.label != "unsure"]
        verdict = "yes" if judged[place].verdict == "yes" else "no"
        rows["judge-human"] += [(verdict, label, number) for label in labels]
        rows["human-human"] += [(*pair, number) for pair in itertools.permutations(labels, 2)]
    found = []
    for name, pairs in rows.items():
        if pairs:
            first, second, items = zip(*pairs, strict=True)
            kappa = cohen_kappa(first, second, Resampling((items,), draws=2000))
            count = len(set(items))
            found.append(Finding("labels", judge, group, f"kappa {name}", kappa, count))
    return found


def shortfalls(findings: Sequence[Finding], half_width: float) -> list[str]:
    """Sentences about precisions that are known less well than `± half_width`."""
    said = []
    for each in findings:
        if each.table != "labels" or each.name != "precision" or not each.count:
            continue
        half = (each.interval.high - each.interval.low) / 2
        needed = sample_size(min(max(each.interval.value, 0.05), 0.95), half_width)
        if half > half_width and needed > each.count:
            who = f"{each.judge}, {each.group}" if each.group else each.judge
            said.append(
                f"{who}: {each.count:g} labelled images that the judge accepted give precision "
                f"± {half:.3f}; ± {half_width:g} needs about {needed}"
            )
    return said
