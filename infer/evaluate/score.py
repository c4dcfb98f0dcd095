"""Scores of runs: which metrics can run, what is missing, and the numbers."""

import collections
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from dsd_jax.errors import UserError, and_more, did_you_mean
from dsd_jax.infer.evaluate.depths import depth_metrics
from dsd_jax.infer.evaluate.features import (
    Backbone,
    Failure,
    Family,
    FeatureStore,
    File,
    Files,
    Input,
    UndefinedError,
    digest_of,
)
from dsd_jax.infer.evaluate.measures import (
    ImageMetric,
    Set,
    SetMetric,
    Shot,
    Task,
    image_metrics,
    set_metrics,
)
from dsd_jax.infer.evaluate.metrics import mean_per_case
from dsd_jax.infer.evaluate.moved import drift_metrics
from dsd_jax.infer.evaluate.runs import Run
from dsd_jax.infer.evaluate.scores import Score, read_scores, write_scores
from dsd_jax.infer.evaluate.truth import drawn_masks, truth_metrics
from dsd_jax.progress import progress

__all__ = ["Plan", "Summary", "choose", "score_runs"]

FORMULAS = 1
"""Version of the formulas. Scores of another version are computed again."""
_CHUNK = 32  # rows whose large arrays are in memory at a time
_MASKS = "masks"
_WANTED: Mapping[Family, str] = {
    "dino": "a vision transformer such as facebook/dino-vits8: give --backbone "
    "dino-vits8=FOLDER with its config.json, preprocessor_config.json and model.safetensors",
    "clip": "a CLIP model such as openai/clip-vit-base-patch32: give --backbone clip-b32=FOLDER "
    "with its config.json, preprocessor_config.json, model.safetensors and tokenizer.json",
    "pixels": "",
    "truth": "",
    "drift": "",
    "depth": "a depth model such as depth-anything/Depth-Anything-V2-Small-hf: give --backbone "
    "depth=FOLDER with its config.json, preprocessor_config.json and model.safetensors",
    "sscd": "the weights of SSCD: give --backbone sscd=FILE, the state_dict of "
    "sscd_disc_mixup.torchvision.pt in a file that ends in .safetensors",
    "lpips": "the weights of LPIPS: give --backbone lpips-alex=FILE, the file that "
    'safetensors.torch.save_model(lpips.LPIPS(net="alex"), FILE) writes; it ends in .safetensors',
}
Metric: TypeAlias = ImageMetric | SetMetric


@dataclasses.dataclass(frozen=True)
class Plan:
    """A metric with a backbone."""

    metric: Metric
    backbone: Backbone

    @property
    def name(self) -> str:
        """Full name, such as `dino@dino-vits8`."""
        return f"{self.metric.name}@{self.backbone.name}"


@dataclasses.dataclass(frozen=True)
class Summary:
    """Scores of a run by one metric.

    Attributes:
        method: Method of the run.
        metric: Full name of the metric.
        scores: A score for each image, or for each subject.
        missing: Number of cases without an image.
    """

    method: str
    metric: str
    scores: Sequence[Score]
    missing: int

    @property
    def mean(self) -> float:
        """Mean over cases, of the means over the images of each; NaN if no score is defined."""
        valued = [(own.case, own.value) for own in self.scores if own.value is not None]
        means = mean_per_case([case for case, _ in valued], [value for _, value in valued])
        return math.fsum(means.values()) / len(means) if means else math.nan

    def count(self, state: str) -> int:
        """Number of scores in a state."""
        return sum(own.state == state for own in self.scores)


def choose(names: Sequence[str], backbones: Sequence[Backbone], count: int) -> list[Plan]:
    """The metrics of the given names, each with every backbone that it is made for.

    Args:
        names: Names of metrics, with a backbone (`dino@dino-vits8`) or without; "all" takes every
            metric that a backbone is there for.
        backbones: Backbones.
        count: Number of images in a set, for metrics of sets.

    Raises:
        UserError: An unknown name, or one without a backbone.
    """
    metrics: list[Metric] = [
        *image_metrics(),
        *truth_metrics(),
        *drift_metrics(),
        *depth_metrics(),
        *set_metrics(count),
    ]
    plans = [
        Plan(metric, backbone)
        for metric, backbone in itertools.product(metrics, backbones)
        if backbone.family in metric.families and (backbone.texts or not _texts(metric))
    ]
    chosen: dict[str, Plan] = {}
    for name in names:
        wanted = [own for own in plans if name in ("all", own.name, own.metric.name)]
        if not wanted:
            raise UserError(_unavailable(name, metrics, plans))
        chosen |= {own.name: own for own in wanted}
    return list(chosen.values())


def _texts(metric: Metric) -> bool:
    return isinstance(metric, ImageMetric) and metric.text


def _unavailable(name: str, metrics: Sequence[Metric], plans: Sequence[Plan]) -> str:
    bare, _, backbone = name.partition("@")
    known = {metric.name: metric for metric in metrics}
    if bare not in known:
        names = list(known)
        hint = did_you_mean(bare, names) or f"; expected all, {and_more(names, len(names))}"
        return f"there is no metric `{bare}`{hint}"
    metric = known[bare]
    there = [own.backbone.name for own in plans if own.metric is metric]
    if there:
        return f"`{bare}` cannot use the backbone `{backbone}`; it can use {', '.join(there)}"
    family = min(metric.families)
    what = "clip" if _texts(metric) else family
    return f"`{name}` needs {_WANTED[what]}"


def score_runs(
    runs: Sequence[Run], plans: Sequence[Plan], store: FeatureStore, *, leave_out: bool = False
) -> list[Summary]:
    """Computes the scores that are missing, and writes them to the runs.

    A score stays as it is while image, references, model and formula do. What could not be read is
    tried again.

    Args:
        runs: Runs of the same cases.
        plans: Metrics with backbones.
        store: Features that are known.
        leave_out: Leave out metrics that say nothing about any image of any run.

    Raises:
        UserError: A file of scores is damaged, weights do not fit, or a file cannot be written.
    """
    store.files.learn(image.path for run in runs for image in run.images)
    shots = [_shots(run, store) for run in runs]
    tables: dict[Plan, list[list[_Row]]] = {}
    for plan in plans:
        rows = [_rows(run, own, plan, store.files) for run, own in zip(runs, shots, strict=True)]
        if not leave_out or any(isinstance(row.task, Task) for own in rows for row in own):
            tables[plan] = rows
    summaries = []
    for backbone in dict.fromkeys(plan.backbone for plan in tables):
        own = {plan: rows for plan, rows in tables.items() if plan.backbone is backbone}
        computed = _compute(
            [row for rows in own.values() for each in rows for row in each if row.kept is None],
            backbone,
            store,
        )
        for plan, rows in own.items():
            for run, each in zip(runs, rows, strict=True):
                scores = [row.kept or computed[row] for row in each]
                if scores != read_scores(run.folder, plan.name):
                    write_scores(run.folder, plan.name, scores)
                summaries.append(Summary(run.method, plan.name, scores, len(run.missing)))
    return summaries


@dataclasses.dataclass(frozen=True, eq=False)
class _Row:
    """A score that a run must have.

    Attributes:
        task: How to compute it, or the reason why it cannot be.
        kept: The score, if it is known from before and still holds.
    """

    case: str
    sample: int
    sha256: str
    key: str
    task: Task | Failure
    kept: Score | None

    @property
    def inputs(self) -> Sequence[Input]:
        return self.task.inputs if isinstance(self.task, Task) else ()

    def score(self, arrays: Mapping[Input, np.ndarray | Failure]) -> Score:
        """The score by the arrays of its inputs."""
        if isinstance(self.task, Failure):
            return self._failed(self.task)
        given = [arrays[own] for own in self.inputs]
        for failure in sorted(
            (own for own in given if isinstance(own, Failure)), key=lambda own: own.state
        ):
            return self._failed(failure)  # an error before what is undefined
        try:
            value = self.task.value(*given)
        except UndefinedError as reason:
            return self._failed(Failure("undefined", str(reason)))
        except ValueError as error:
            return self._failed(Failure("error", str(error)))
        return Score(self.case, self.sample, self.sha256, "ok", value, key=self.key)

    def _failed(self, failure: Failure) -> Score:
        return Score(
            self.case,
            self.sample,
            self.sha256,
            failure.state,
            reason=failure.reason,
            key=self.key,
        )


def _compute(rows: Sequence[_Row], backbone: Backbone, store: FeatureStore) -> dict[_Row, Score]:
    """The scores of rows. Small arrays of all of them are in memory, large ones of a few."""
    small = store.fetch(backbone, (own for row in rows for own in row.inputs if own.small))
    scores, large = {}, []
    for row in rows:
        if all(own.small for own in row.inputs):
            scores[row] = row.score(small)
        else:
            large.append(row)
    if not large:
        return scores
    with progress(f"{backbone.name}: patches", len(large), "images") as advance:
        for start in range(0, len(large), _CHUNK):
            chunk = large[start : start + _CHUNK]
            arrays = store.fetch(backbone, (own for row in chunk for own in row.inputs))
            for row in chunk:
                scores[row] = row.score(arrays)
                advance()
    return scores


def _rows(run: Run, shots: Sequence[Shot], plan: Plan, files: Files) -> list[_Row]:
    before = {(own.case, own.sample): own for own in read_scores(run.folder, plan.name)}
    metric = plan.metric
    if isinstance(metric, ImageMetric):
        return [
            _row(
                (image.case, image.sample, image.sha256),
                functools.partial(metric.task, own),
                plan,
                before,
                files,
            )
            for own, image in zip(shots, run.images, strict=True)
        ]
    return [
        _row(
            (subject, 0, digest_of([own.sha256 for own in images])),
            functools.partial(metric.task, Set(images)),
            plan,
            before,
            files,
        )
        for subject, images in _sets(run, metric.count).items()
    ]


def _row(
    shown: tuple[str, int, str],
    task: Callable[[], Task],
    plan: Plan,
    before: Mapping[tuple[str, int], Score],
    files: Files,
) -> _Row:
    made: Task | Failure
    try:
        made = task()
        for file in (file for own in made.inputs for file in own.files):
            files.check(file)
    except UndefinedError as reason:
        made = Failure("undefined", str(reason))
    except UserError as error:
        made = Failure("error", str(error))
    inputs = [own.key for own in made.inputs] if isinstance(made, Task) else made.reason
    key = digest_of([FORMULAS, plan.metric.name, plan.backbone.digest, shown[2], inputs])
    old = before.get(shown[:2])
    kept = old if old is not None and old.key == key and old.state != "error" else None
    return _Row(*shown, key, made, kept)


def _shots(run: Run, store: FeatureStore) -> list[Shot]:
    """The images of a run with their cases."""
    drawn = drawn_masks(run, store.folder / _MASKS, store.files)
    cases = {case.id: case for case in run.cases}
    galleries: dict[str, dict[str, dict[File, None]]] = collections.defaultdict(dict)
    for case in run.cases:
        own = galleries[case.category].setdefault(case.subject, {})
        for picture in (*case.references, *case.targets):
            own[File(picture.path, picture.sha256)] = None
    listed = {
        category: {subject: tuple(own) for subject, own in subjects.items()}
        for category, subjects in galleries.items()
    }
    shots = []
    for image in run.images:
        case = cases[image.case]
        mask = run.folder.absolute() / _MASKS / f"{image.case}_{image.sample}.png"
        shots.append(
            Shot(
                case,
                File(image.path, image.sha256),
                mask if mask.exists() else drawn.get(image.sha256),
                listed[case.category],
                store.files,
            )
        )
    return shots


def _sets(run: Run, count: int) -> dict[str, tuple[File, ...]]:
    """Up to `count` images of each subject: first the first of every case, then the second ones."""
    subjects = {case.id: case.subject for case in run.cases}
    sets: dict[str, list[File]] = {case.subject: [] for case in run.cases}
    for image in sorted(run.images, key=lambda image: image.sample):
        own = sets[subjects[image.case]]
        if len(own) < count:
            own.append(File(image.path, image.sha256))
    return {subject: tuple(images) for subject, images in sets.items()}
