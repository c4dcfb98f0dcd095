"""Audits a judge: against people's labels, against itself, and on pictures with known answers.

A judge's rating is a yes if it is at least a given part of its scale, otherwise not; an answer
without a score is never a yes. The verdict about an image is that of most rounds.
"""

import dataclasses
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from dsd_jax.errors import UserError
from dsd_jax.infer.evaluate.agreement import (
    Count,
    cohen_kappa,
    entropy,
    ppi_mean,
    ratio,
    rogan_gladen,
    unanimity,
    wilson,
)
from dsd_jax.infer.evaluate.cases import Case
from dsd_jax.infer.evaluate.labels import Label, Place
from dsd_jax.infer.evaluate.ratings import read_ratings
from dsd_jax.infer.evaluate.resampling import Resampling
from dsd_jax.infer.evaluate.runs import Run, open_run
from dsd_jax.infer.evaluate.statistics import sample_size
from dsd_jax.interval import Interval

__all__ = [
    "EXPECTED",
    "POPULATION",
    "PROBE",
    "SWAPPED",
    "Channel",
    "Finding",
    "Judged",
    "against_labels",
    "against_others",
    "against_probes",
    "against_swaps",
    "channels",
    "open_audited",
    "shortfalls",
    "with_itself",
]

PROBE, EXPECTED = "probe", "expected"
"""Tags of a case whose answer is known: kind of the probe, and yes or no."""
POPULATION = "population"
"""Setting of a sample: category -> numbers of images judged yes, and of all others."""
SWAPPED = "-swapped"
"""Ending of an aspect that was asked with reference and image exchanged."""

Table = Literal["labels", "itself", "order", "judges", "probes"]
Verdict = Literal["yes", "no", "undecided"]


class Channel(NamedTuple):
    """A judge and what it was asked."""

    judge: str
    protocol: str
    aspect: str

    def __str__(self) -> str:
        return f"{self.judge}: {self.protocol}, {self.aspect}"


@dataclasses.dataclass(frozen=True)
class Judged:
    """What a judge said about an image.

    Attributes:
        case: Case of the image.
        answers: Answers by round.
    """

    case: Case
    answers: tuple[Verdict, ...]

    @property
    def verdict(self) -> Verdict:
        """Verdict of most rounds; undecided where yes and no are as frequent."""
        counts = Counter(self.answers)
        if counts["yes"] == counts["no"]:
            return "undecided"
        return "yes" if counts["yes"] > counts["no"] else "no"


@dataclasses.dataclass(frozen=True)
class Finding:
    """One figure of an audit.

    Attributes:
        table: Table that it belongs to.
        judge: Judge, protocol and aspect.
        group: Category, or kind of probe; empty for all together.
        name: Name of the figure.
        interval: The figure with its interval, NaN where there is none.
        count: Number of images that it is about.
    """

    table: Table
    judge: str
    group: str
    name: str
    interval: Interval
    count: float


Answers = Mapping[Channel, Mapping[Place, Judged]]


def open_audited(folders: Sequence[Path]) -> list[Run]:
    """Opens the runs of an audit, which may be about different cases.

    Raises:
        UserError: See `open_run`; or there are none, or two have the same method.
    """
    if not folders:
        raise UserError("give the folder of one run or more")
    runs = [open_run(folder) for folder in folders]
    for one, other in itertools.combinations(runs, 2):
        if one.method == other.method:
            raise UserError(f"{one.folder} and {other.folder} are both called `{one.method}`")
    return runs


def channels(runs: Sequence[Run], least: float) -> dict[Channel, dict[Place, Judged]]:
    """Reads the verdicts of every judge of runs.

    Args:
        runs: The runs.
        least: Part of a scale, above 0, from which a rating is a yes.

    Raises:
        UserError: The ratings are damaged, or there are none.
    """
    if not 0 < least <= 1:
        raise UserError(f"--least is a part of the scale, above 0 and at most 1, got {least:g}")
    answers: dict[Channel, dict[Place, dict[int, Verdict]]] = defaultdict(lambda: defaultdict(dict))
    cases: dict[Place, Case] = {}
    for run in runs:
        known = {case.id: case for case in run.cases}
        digests = {(image.case, image.sample): image.sha256 for image in run.images}
        for rating in read_ratings(run.folder):
            place = Place(run.method, rating.case, rating.sample)
            if digests.get((rating.case, rating.sample)) != rating.sha256:
                continue  # of an image that has changed since
            cases[place] = known[rating.case]
            verdict: Verdict = "undecided"
            if rating.state == "ok" and rating.score is not None:
                verdict = "yes" if rating.score >= least * rating.scale - 1e-9 else "no"
            channel = Channel(rating.judge, rating.protocol, rating.aspect)
            answers[channel][place][rating.round] = verdict
    if not answers:
        raise UserError(
            "no judge has rated these runs; run `dsd evaluate judge` or `dsd evaluate audit ask`"
        )
    return {
        channel: {
            place: Judged(cases[place], tuple(rounds[each] for each in sorted(rounds)))
            for place, rounds in by_place.items()
        }
        for channel, by_place in sorted(answers.items())
    }


# Against people


@dataclasses.dataclass(frozen=True)
class _Sample:
    """Labelled images of one category, or all: counts by verdict, and what each stands for."""

    judged: Sequence[bool]
    human: Sequence[bool]
    accepted: float  # images of the population that the judge accepted
    others: float

    def count(self, judged: bool) -> Count:
        """Images labelled yes, of those with a verdict."""
        own = [human for each, human in zip(self.judged, self.human, strict=True) if each == judged]
        return Count(sum(own), len(own))

    @property
    def weights(self) -> np.ndarray:
        """Images of the population that each labelled one stands for."""
        yes, no = self.count(True).trials, self.count(False).trials
        return np.array([self.accepted / yes if own else self.others / no for own in self.judged])


def against_labels(answers: Answers, labels: Sequence[Label], runs: Sequence[Run]) -> list[Finding]:
    """Precision, recall, specificity, kappa and corrected yields of every judge.

    Labelled images are weighted so that accepted and other images have their shares of the
    population: all rated images, or where the run is a sample, what it was drawn from. The label of
    an image is that of most raters; images without a majority of yes or no do not count.

    Raises:
        UserError: No labelled image was accepted, or none was not.
    """
    people: dict[Place, list[Label]] = defaultdict(list)
    for label in labels:
        people[label.place].append(label)
    majority = {place: _majority(own) for place, own in people.items()}
    found = []
    for channel, judged in answers.items():
        if channel.aspect.endswith(SWAPPED):
            continue
        labelled = {
            place: judged[place]
            for place in majority
            if place in judged and PROBE not in judged[place].case.tags
        }
        if not labelled:
            continue
        sizes = _population(judged, runs)
        settled = {place: own for place, own in labelled.items() if majority[place] is not None}
        categories = sorted({own.case.category for own in labelled.values()})
        for category in ["", *(categories if len(categories) > 1 else [])]:
            own = [p for p, j in settled.items() if category in {"", j.case.category}]
            counted = [size for name, size in sizes.items() if category in {"", name}]
            sample = _Sample(
                [settled[place].verdict == "yes" for place in own],
                [majority[place] == "yes" for place in own],
                sum(size[0] for size in counted),
                sum(size[1] for size in counted),
            )
            if not category:
                _check(sample, channel)
            found += _figures(sample, str(channel), category)
            found += _kappas(str(channel), category, own, settled, people)
        unsettled = len(labelled) - len(settled)
        share = wilson((unsettled, len(labelled)))
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


def _population(
    judged: Mapping[Place, Judged], runs: Sequence[Run]
) -> dict[str, tuple[float, float]]:
    """Category -> numbers of images that were judged yes, and of all others."""
    sizes: dict[str, tuple[float, float]] = {}
    given = {run.method: run.settings.get(POPULATION) for run in runs}
    for table in given.values():
        for category, (yes, others) in table.items() if isinstance(table, dict) else ():
            before = sizes.get(category, (0, 0))
            sizes[category] = before[0] + yes, before[1] + others
    for place, own in judged.items():
        if given[place.method] is None and PROBE not in own.case.tags:
            before = sizes.get(own.case.category, (0, 0))
            yes = own.verdict == "yes"
            sizes[own.case.category] = before[0] + yes, before[1] + (not yes)
    return sizes


def _check(sample: _Sample, channel: Channel) -> None:
    for judged, name in ((True, "accepted"), (False, "did not accept")):
        if not sample.count(judged).trials:
            raise UserError(
                f"{channel}: no image that the judge {name} has a label of yes or no, so there is "
                f"no {'precision' if judged else 'recall'}; label some of those too"
            )


def _figures(sample: _Sample, judge: str, group: str) -> list[Finding]:
    inside, outside = sample.count(True), sample.count(False)
    precision, missed = wilson(inside), wilson(outside)
    total = len(sample.judged)
    yes = sample.accepted + sample.others
    figures = [("precision", precision, inside.trials)]
    if inside.trials and outside.trials:
        recall = _share_kept(ratio(missed, precision), sample.others, sample.accepted)
        right = _complement(missed), _complement(precision)
        specificity = _share_kept(ratio(right[1], right[0]), sample.accepted, sample.others)
        figures += [
            ("recall", recall, total),
            ("specificity", specificity, total),
            ("yield by the judge", wilson((sample.accepted, yes)), yes),
            ("yield, Rogan-Gladen", _rogan_gladen(sample, recall, specificity), total),
        ]
        if total > 1:
            figures.append(("yield, PPI", _ppi(sample), total))
    return [Finding("labels", judge, group, *figure) for figure in figures]


def _complement(share: Interval) -> Interval:
    return Interval(1 - share.value, 1 - share.high, 1 - share.low)


def _share_kept(lost: Interval, weight: float, by: float) -> Interval:
    """`1 / (1 + weight / by * lost)`, which falls with `lost`."""
    scale = weight / by if by else math.inf

    def kept(value: float) -> float:
        return 1 / (1 + scale * value) if value and scale else 1.0

    return Interval(kept(lost.value), kept(lost.high), kept(lost.low))


def _rogan_gladen(sample: _Sample, recall: Interval, specificity: Interval) -> Interval:
    """The corrected yield; weighted labels count as the effective number of equal ones (Kish)."""
    weights, human = sample.weights, np.asarray(sample.human)

    def count(share: Interval, own: np.ndarray) -> Count:
        effective = float(own.sum() ** 2 / (own**2).sum()) if own.any() else 0.0
        return Count(share.value * effective, effective)

    apparent = Count(sample.accepted, sample.accepted + sample.others)
    return rogan_gladen(
        apparent, count(recall, weights[human]), count(specificity, weights[~human])
    )


def _ppi(sample: _Sample) -> Interval:
    judged = np.repeat([1.0, 0.0], [int(sample.accepted), int(sample.others)])
    own = np.asarray(sample.judged, float)
    return ppi_mean(judged, np.asarray(sample.human, float), own, sample.weights)


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


# Against itself, other judges and known answers


def with_itself(answers: Answers) -> list[Finding]:
    """How often the rounds of a judge agree."""
    found = []
    for channel, judged in answers.items():
        rounds = [own.answers for own in judged.values() if len(own.answers) > 1]
        if rounds:
            most = max(map(len, rounds))
            same = unanimity(rounds)
            bits = entropy(rounds)
            none = Interval(bits, math.nan, math.nan)
            figures = [
                (f"flips within {most} rounds", _complement(same)),
                ("entropy, bits", none),
            ]
            found += [Finding("itself", str(channel), "", *row, len(rounds)) for row in figures]
    return found


def against_swaps(answers: Answers) -> list[Finding]:
    """How often the verdict stays when reference and image change places."""
    found = []
    for channel, judged in answers.items():
        swapped = answers.get(channel._replace(aspect=channel.aspect + SWAPPED), {})
        both = [(own, swapped[place]) for place, own in judged.items() if place in swapped]
        if not both:
            continue
        verdicts = [(one.verdict, other.verdict) for one, other in both]
        same = unanimity(verdicts)
        changed = [pair for pair in verdicts if set(pair) == {"yes", "no"}]
        first = wilson((sum(pair[0] == "yes" for pair in changed), len(changed)))
        found += [
            Finding("order", str(channel), "", "same verdict in both orders", same, len(both)),
            Finding("order", str(channel), "", "yes as asked, where it flips", first, len(changed)),
        ]
    return found


def against_others(answers: Answers) -> list[Finding]:
    """Kappa of every two judges that were asked the same."""
    found = []
    for (one, first), (other, second) in itertools.combinations(answers.items(), 2):
        shared = [place for place in first if place in second]
        if one[1:] == other[1:] and shared:
            a, b = ([own[place].verdict for place in shared] for own in (first, second))
            kappa = cohen_kappa(a, b, Resampling(draws=2000))
            found.append(Finding("judges", str(one), other.judge, "kappa", kappa, len(shared)))
    return found


def against_probes(answers: Answers) -> list[Finding]:
    """Share of right answers about every kind of picture whose answer is known."""
    found = []
    for channel, judged in answers.items():
        kinds: dict[tuple[str, str], list[Verdict]] = defaultdict(list)
        for own in judged.values():
            if PROBE in own.case.tags:
                kinds[own.case.tags[EXPECTED], own.case.tags[PROBE]].append(own.verdict)
        for (expected, kind), verdicts in sorted(kinds.items(), key=lambda own: own[0][0] == "no"):
            right = wilson((sum(verdict == expected for verdict in verdicts), len(verdicts)))
            name = f"answers {expected}"
            found.append(Finding("probes", str(channel), kind, name, right, len(verdicts)))
    return found
