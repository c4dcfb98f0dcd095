"""Builds a study from runs: draws cases, lays out the lists, and writes pictures and key."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from dsd_jax.errors import UserError, and_more
from dsd_jax.files import write_file
from dsd_jax.images import open_image
from dsd_jax.infer.evaluate.cases import Case
from dsd_jax.infer.evaluate.runs import Run
from dsd_jax.infer.evaluate.sampling import draw
from dsd_jax.infer.evaluate.study.design import CHECKS, Budget, Unit, lists_of
from dsd_jax.infer.evaluate.study.record import (
    PICTURES,
    SCHEMA,
    Item,
    Key,
    KeyItem,
    Mode,
    Shown,
    Study,
    load_questions,
    write_study,
)
from dsd_jax.page import encoded, kind_of

__all__ = ["StudySettings", "build_study"]

_QUALITY = 95


@dataclasses.dataclass(frozen=True)
class StudySettings:
    """Size and form of a study.

    Attributes:
        mode: Questions that are asked. likert rates each image from 1 to 5 for concept
            preservation, prompt following and creativity. pair compares the images of two methods.
            same asks whether image and reference show the same subject.
        cases: Number of cases, drawn from each stratum in proportion to its size.
        strata: Properties that define the strata: category, prompt_class, or names of tags.
        minutes: Longest time of a rater.
        seconds_per_item: Time for all questions about an item. Default: 24, or 8 for same.
        raters: Number of lists, one per rater. Default: as many as give every item three raters.
        side: Longer side of all pictures in pixels. Smaller pictures are enlarged to the largest.
        seed: Seed of every choice. The same seed gives the same study, byte by byte.
    """

    mode: Mode = "likert"
    cases: int = 20
    strata: tuple[str, ...] = ("category", "prompt_class")
    minutes: float = 25
    seconds_per_item: float | None = None
    raters: int | None = None
    side: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"minutes": 0.1, "seconds_per_item": 0.1, "raters": 1, "side": 16}
        for name, smallest in least.items():
            value = getattr(self, name)
            if value is not None and not smallest <= value < math.inf:
                raise UserError(f"--{name} is at least {smallest}, got {value}")


class _Presented(NamedTuple):
    """An item before it has an id: the case it asks about, its pictures, and its role."""

    case: str
    shown: tuple[Shown, ...]
    repeats: int | None = None  # its place in the list
    expected: Mapping[str, tuple[str, ...]] = {}


def build_study(runs: Sequence[Run], folder: Path, settings: StudySettings) -> tuple[Study, Key]:
    """Builds a study in a new folder.

    Args:
        runs: Runs on the same cases, with different methods.
        folder: Folder of the study.
        settings: Size and form.

    Raises:
        UserError: The folder is not empty, runs have too few cases in common, an image or a
            reference is missing or has changed, or the time is too short.
    """
    if not runs:
        raise UserError("give the folder of one run or more")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not empty; choose a new folder for the study")
    rng = np.random.default_rng(settings.seed)
    questions = load_questions(settings.mode)
    if settings.seconds_per_item is not None:
        questions = dataclasses.replace(questions, seconds=settings.seconds_per_item)
    budget = Budget(settings.minutes, questions.seconds)
    images = _images(runs)
    cases = {case.id: case for case in runs[0].cases}
    strata: dict[tuple[str, ...], list[str]] = {}
    for name in images:
        strata.setdefault(_stratum(cases[name], settings.strata), []).append(name)
    if not 0 < settings.cases <= len(images):
        raise UserError(
            f"--cases is {settings.cases}, but {len(images)} cases have an image of every run"
        )
    drawn = draw(strata, settings.cases, rng)
    chosen = [name for names in drawn.values() for name in names]
    methods = [run.method for run in runs]
    planned = lists_of(settings.mode, chosen, methods, budget, settings.raters, rng)
    presented = [
        _presented(units, settings.mode, budget, images, [cases[name] for name in chosen], rng)
        for units in planned
    ]
    pictures = _Pictures(folder / PICTURES, runs, presented, settings.side, rng)
    lists, items = [], {}
    for number, entries in enumerate(presented):
        ids = [rng.bytes(8).hex() for _ in entries]
        shown = []
        for name, entry in zip(ids, entries, strict=True):
            prompt = "" if settings.mode == "same" else cases[entry.case].prompt
            reference = pictures.name(_reference(cases[entry.case]), rated=False)
            names = tuple(pictures.name(each, rated=True) for each in entry.shown)
            shown.append(Item(name, prompt, reference, names))
            repeats = "" if entry.repeats is None else ids[entry.repeats]
            items[name] = KeyItem(number, entry.case, entry.shown, repeats, dict(entry.expected))
        lists.append(tuple(shown))
    content = [dataclasses.asdict(each) for entries in lists for each in entries]
    digest = hashlib.sha256(json.dumps([content, dataclasses.asdict(questions)]).encode())
    study = Study(SCHEMA, digest.hexdigest()[:12], settings.mode, questions, tuple(lists))
    counts = {"/".join(name): (len(strata[name]), len(names)) for name, names in drawn.items()}
    key = Key(
        SCHEMA,
        study.id,
        settings.mode,
        settings.seed,
        runs[0].cases_sha256,
        tuple(methods),
        counts,
        questions.questions,
        items,
    )
    pictures.write()
    write_study(folder, study, key)
    return study, key


def _images(runs: Sequence[Run]) -> dict[str, dict[str, Shown]]:
    """The first image of each method, by case and method, for cases of which all have one."""
    found: dict[str, dict[str, Shown]] = {case.id: {} for case in runs[0].cases}
    for run in runs:
        for image in run.images:
            shown = Shown(run.method, image.case, image.sample, image.sha256)
            found[image.case].setdefault(run.method, shown)
    return {case: by for case, by in found.items() if len(by) == len(runs)}


def _stratum(case: Case, names: Sequence[str]) -> tuple[str, ...]:
    known = {"category": case.category, "prompt_class": case.prompt_class, **case.tags}
    if unknown := [name for name in names if name not in known]:
        raise UserError(
            f"--strata: case {case.id} has no {unknown[0]}; known are {and_more(sorted(known))}"
        )
    return tuple(known[name] for name in names)


def _reference(case: Case) -> Shown:
    return Shown("", case.id, 0, case.reference.sha256)


def _presented(
    units: Sequence[Unit],
    mode: Mode,
    budget: Budget,
    images: Mapping[str, Mapping[str, Shown]],
    cases: Sequence[Case],
    rng: np.random.Generator,
) -> list[_Presented]:
    """The items of a list: its units on random sides, then repeats and attention checks."""
    entries = []
    sides = rng.permutation(np.arange(len(units)) % 2)
    for unit, side in zip(units, sides, strict=True):
        methods = unit.methods if side else unit.methods[::-1]
        entries.append(_Presented(unit.case, tuple(images[unit.case][name] for name in methods)))
    count = budget.repeats(len(units))
    half = max(1, len(entries) // 2)
    for place in sorted(rng.permutation(half)[:count].tolist()):
        again = entries[place]
        entries.append(again._replace(shown=again.shown[::-1], repeats=place))
    for check in _checks(mode, cases, rng):
        place = int(rng.integers(1, len(entries) + 1))
        moved = [
            entry._replace(repeats=entry.repeats + (entry.repeats >= place))
            if entry.repeats is not None
            else entry
            for entry in entries
        ]
        entries = [*moved[:place], check, *moved[place:]]
    return entries


def _checks(mode: Mode, cases: Sequence[Case], rng: np.random.Generator) -> list[_Presented]:
    """Items with a known answer: a copy of the reference, and a picture of another subject."""
    first, second = (cases[place] for place in rng.integers(0, len(cases), CHECKS))
    copies = [_reference(case) for case in (first, second)]
    others = [_reference(_unrelated(case, cases, rng)) for case in (first, second)]
    if mode == "likert":
        return [
            _Presented(first.id, (copies[0],), expected={"creativity": ("1", "2")}),
            _Presented(second.id, (others[1],), expected={"cp": ("1", "2")}),
        ]
    if mode == "pair":  # with the copy on either side, so one key for all answers fails
        return [
            _Presented(first.id, (copies[0], others[0]), expected={"cp": ("a",)}),
            _Presented(second.id, (others[1], copies[1]), expected={"cp": ("b",)}),
        ]
    return [
        _Presented(first.id, (copies[0],), expected={"same": ("yes",)}),
        _Presented(second.id, (others[1],), expected={"same": ("no",)}),
    ]


def _unrelated(case: Case, cases: Sequence[Case], rng: np.random.Generator) -> Case:
    """Another subject, of another category if there is one."""
    others = [
        each
        for each in cases
        if each.subject != case.subject and each.reference.sha256 != case.reference.sha256
    ]
    far = [each for each in others if each.category != case.category]
    if not others:
        raise UserError(
            f"all cases drawn show {case.subject}; attention checks need a second subject, so give "
            "more --cases"
        )
    return (far or others)[int(rng.integers(len(far or others)))]


class _Pictures:
    """Pictures of a study under random names, all of one size, without any metadata."""

    def __init__(
        self,
        folder: Path,
        runs: Sequence[Run],
        lists: Sequence[Sequence[_Presented]],
        side: int,
        rng: np.random.Generator,
    ) -> None:
        self._folder = folder
        self._paths = {
            Shown(run.method, image.case, image.sample, image.sha256): image.path
            for run in runs
            for image in run.images
        } | {_reference(case): case.reference.path for case in runs[0].cases}
        cases = {case.id: case for case in runs[0].cases}
        # A picture that is rated has another name than the same picture as a reference.
        self._used = {
            (each, rated): rng.bytes(8).hex()
            for entries in lists
            for entry in entries
            for each, rated in (
                (_reference(cases[entry.case]), False),
                *((shown, True) for shown in entry.shown),
            )
        }
        largest = max(max(self._open(each).size) for each, _ in self._used)
        self._side = min(side, largest)

    def name(self, shown: Shown, *, rated: bool) -> str:
        """Name of a picture in the study."""
        return f"{self._used[shown, rated]}.{kind_of(self._side)}"

    def write(self) -> None:
        """Writes all pictures, in the order of their random names."""
        for shown, rated in self._used:
            image = self._open(shown)
            scale = self._side / max(image.size)
            size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
            if size != image.size:
                image = image.resize(size, Image.Resampling.LANCZOS)
            bare = Image.fromarray(np.asarray(image))  # without a colour profile
            content = encoded(bare, self._side, _QUALITY)
            write_file(self._folder / self.name(shown, rated=rated), content)

    def _open(self, shown: Shown) -> Image.Image:
        path = self._paths[shown]
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from None
        if hashlib.sha256(content).hexdigest() != shown.sha256:
            raise UserError(f"{path} has changed since it was listed; make its run again")
        return open_image(content)
