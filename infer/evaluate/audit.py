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

from dsd_jax.errors import UserError, and_more
from dsd_jax.infer.evaluate.agreement import (
    Count,
    cohen_kappa,
    entropy,
    krippendorff_alpha,
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
    "ASPECTS",
    "EXPECTED",
    "POPULATION",
    "PROBE",
    "STRATUM",
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
POPULATION, STRATUM = "population", "stratum"
"""Setting of a run that is a sample: stratum -> number of images that it was drawn from. Tag of its
cases: the stratum."""
SWAPPED = "-swapped"
"""Ending of an aspect that was asked with reference and image exchanged."""

ASPECTS = ("same", "cp", "identity", "sc")
"""Aspects of our protocols that ask whether an image shows the subject of its reference."""

Table = Literal["labels", "itself", "order", "judges", "probes"]
Verdict = Literal["yes", "no", "undecided"]
_VERDICTS: tuple[Verdict, ...] = ("yes", "no", "undecided")


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
        judge: Judge, protocol and aspect; of a table of judges, protocol and aspect.
        group: Category, kind of probe, or judges; empty for all together.
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


def channels(
    runs: Sequence[Run], least: float, aspects: Sequence[str] = ASPECTS
) -> dict[Channel, dict[Place, Judged]]:
    """Reads the verdicts of every judge of runs.

    Args:
        runs: The runs.
        least: Part of a scale, above 0, from which a rating is a yes.
        aspects: Aspects that ask whether the subject is the same; ratings of others are left out.

    Raises:
        UserError: The ratings are damaged, or there are none of these aspects.
    """
    if not 0 < least <= 1:
        raise UserError(f"--least is a part of the scale, above 0 and at most 1, got {least:g}")
    answers: dict[Channel, dict[Place, dict[int, Verdict]]] = defaultdict(lambda: defaultdict(dict))
    cases: dict[Place, Case] = {}
    passed: set[str] = set()
    for run in runs:
        known = {case.id: case for case in run.cases}
        digests = {(image.case, image.sample): image.sha256 for image in run.images}
        for rating in read_ratings(run.folder):
            place = Place(run.method, rating.case, rating.sample)
            if digests.get((rating.case, rating.sample)) != rating.sha256:
                continue  # of an image that has changed since
            if rating.aspect.removesuffix(SWAPPED) not in aspects:
                passed.add(rating.aspect)
                continue
            cases[place] = known[rating.case]
            verdict: Verdict = "undecided"
            if rating.state == "ok" and rating.score is not None:
                verdict = "yes" if rating.score >= least * rating.scale - 1e-9 else "no"
            channel = Channel(rating.judge, rating.protocol, rating.aspect)
            answers[channel][place][rating.round] = verdict
    if not answers and passed:
        raise UserError(
            f"the ratings are of {and_more(sorted(passed))}, not of {', '.join(aspects)}; name the "
            "aspects that ask whether the subject is the same with --aspects"
        )
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
        lost = ratio(_complement(precision), _complement(missed))
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


def _complement(share: Interval) -> Interval:
    return Interval(1 - share.value, 1 - share.high, 1 - share.low)


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
    """Kappa of every two judges that were asked the same, and alpha of three or more."""
    asked: dict[str, list[tuple[Channel, Mapping[Place, Judged]]]] = defaultdict(list)
    for channel, judged in answers.items():
        asked[f"{channel.protocol}, {channel.aspect}"].append((channel, judged))
    found = []
    for question, group in asked.items():
        for (one, first), (other, second) in itertools.combinations(group, 2):
            shared = [place for place in first if place in second]
            if shared:
                a, b = ([own[place].verdict for place in shared] for own in (first, second))
                kappa = cohen_kappa(a, b, Resampling(draws=2000))
                names = f"{one.judge} and {other.judge}"
                found.append(Finding("judges", question, names, "kappa", kappa, len(shared)))
        if len(group) > 2:
            places = list(dict.fromkeys(place for _, own in group for place in own))
            ratings = [[_code(own.get(place)) for place in places] for _, own in group]
            alpha = krippendorff_alpha(np.array(ratings), "nominal")
            names = f"all {len(group)}"
            found.append(Finding("judges", question, names, "alpha", alpha, len(places)))
    return found


def _code(judged: Judged | None) -> float:
    return math.nan if judged is None else float(_VERDICTS.index(judged.verdict))


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
