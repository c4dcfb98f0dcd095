"""Audits a judge against itself, against other judges, and on pictures with known answers.

`audit_labels.py` audits it against people.

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
    cohen_kappa,
    complement,
    entropy,
    krippendorff_alpha,
    unanimity,
    wilson,
)
from dsd_jax.infer.evaluate.cases import Case
from dsd_jax.infer.evaluate.labels import Place
from dsd_jax.infer.evaluate.ratings import read_ratings
from dsd_jax.infer.evaluate.resampling import Resampling
from dsd_jax.infer.evaluate.runs import Run, open_run
from dsd_jax.interval import Interval

__all__ = [
    "ASPECTS",
    "EXPECTED",
    "POPULATION",
    "PROBE",
    "STRATUM",
    "SWAPPED",
    "Answers",
    "Channel",
    "Finding",
    "Judged",
    "against_others",
    "against_probes",
    "against_swaps",
    "channels",
    "open_audited",
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
    """Verdicts of a judge about an image.

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


def with_itself(answers: Answers) -> list[Finding]:
    """Share of images whose verdict differs between rounds, and its entropy, by judge."""
    found = []
    for channel, judged in answers.items():
        rounds = [own.answers for own in judged.values() if len(own.answers) > 1]
        if rounds:
            most = max(map(len, rounds))
            same = unanimity(rounds)
            bits = entropy(rounds)
            none = Interval(bits, math.nan, math.nan)
            figures = [
                (f"flips within {most} rounds", complement(same)),
                ("entropy, bits", none),
            ]
            found += [Finding("itself", str(channel), "", *row, len(rounds)) for row in figures]
    return found


def against_swaps(answers: Answers) -> list[Finding]:
    """Share of images whose verdict stays when reference and image change places, by judge."""
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
