"""Reads the archived ratings of DreamBench++: people, GPT-4o, DINO and CLIP on seven methods.

The archives that its authors released have this layout, and scripts of theirs add the merged files:

    data_human_rating/raw_data/GROUP/*-METHOD.json                 {"ID-PROMPT": [cp, pf]}
    data_human_rating/merged_data/GROUP/METHOD-{cp,pf}.json        {"ID-PROMPT": score}
    data_gpt_rating/{concept_preservation,prompt_following}_ROUND/METHOD/*.json   a file a rating
    data_gpt_rating/{concept_preservation,prompt_following}_ROUND/METHOD.json     merged
    data_{dino,clipi,clipt}_rating/METHOD.json                     {"ID-PROMPT": 100 x cosine}
    **/METHOD/{dino_scores_v1,dino_scores_v2,clip_scores_image,clip_scores_text}.json

Names of subjects differ between files (object 20 has two), so a rating belongs to the case with the
same category, number and prompt.
"""

import dataclasses
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeGuard

from dsd_jax.errors import UserError, and_more
from dsd_jax.infer.evaluate.benches.names import METHODS, method_word, subject_key
from dsd_jax.infer.evaluate.cases import Case
from dsd_jax.infer.evaluate.ratings import (
    Rating,
    State,
    read_ratings,
    write_ratings,
)
from dsd_jax.infer.evaluate.runs import Run, open_run, write_run
from dsd_jax.infer.evaluate.scores import Score, write_scores
from dsd_jax.structured import Limits, read_json

__all__ = [
    "GPT",
    "ROUNDS",
    "Archive",
    "Archived",
    "Layout",
    "read_archive",
    "write_archived",
]

Form = Literal["loose", "merged"]
Layout = Literal["auto", "loose", "merged"]

GPT = "gpt-4o-2024-05-13"
"""Model that rated the archive. OpenAI shut it down on 2026-10-23."""

ROUNDS = ("full", "full2", "full3")
"""Settings of the three rounds; all others are ablations."""

_HUMAN, _GPT = "data_human_rating", "data_gpt_rating"
_METRICS = {
    "data_dino_rating": "dino@archive",
    "data_clipi_rating": "clip-i@archive",
    "data_clipt_rating": "clip-t@archive",
}
_SCRIPTS = {
    "dino_scores_v1.json": "dino@archive",
    "dino_scores_v2.json": "dinov2@archive",
    "clip_scores_image.json": "clip-i@archive",
    "clip_scores_text.json": "clip-t@archive",
}
_ASPECTS = {"concept_preservation": "cp", "prompt_following": "pf"}
_PROTOCOL, _SCALE, _COSINE = "dreambench++", 4, 100

_KEY = re.compile(
    r"-?(?:live_subject_)?(animal|human|object|style)_(\d+)_.*-(\d+)(?:_(\d+))?", re.DOTALL
)
_SETTINGS = re.compile(r"_gs\d.*")  # that follow the method in a sample folder
_JSON = Limits(gaps=True)


@dataclasses.dataclass(frozen=True)
class Archived:
    """Ratings and scores of one method in the archive.

    Attributes:
        method: Word that stands for it in names of files.
        ratings: Ratings by people and by GPT-4o.
        scores: Scores by the name of their metric. Cosines, not 100 times them.
    """

    method: str
    ratings: Sequence[Rating]
    scores: Mapping[str, Sequence[Score]]

    @property
    def name(self) -> str:
        """Name of the method in tables."""
        return METHODS.get(self.method, self.method)

    def missing(self, cases: Sequence[Case]) -> Counter[str]:
        """Number of cases without a rating or score, by judge and metric, where there are any."""
        seen: dict[str, set[str]] = {}
        for rating in self.ratings:
            name = f"{rating.judge} {rating.aspect} round {rating.round + 1}"
            seen.setdefault(name, set()).add(rating.case)
        for metric, scores in self.scores.items():
            seen[metric] = {score.case for score in scores}
        return +Counter({name: len(cases) - len(rated) for name, rated in seen.items()})

    @property
    def unusable(self) -> Counter[str]:
        """Number of ratings and scores without a usable number, by state."""
        counted = Counter[str](rating.state for rating in self.ratings)
        counted.update(score.state for scores in self.scores.values() for score in scores)
        del counted["ok"]
        return counted


@dataclasses.dataclass(frozen=True)
class Archive:
    """Everything that was read.

    Attributes:
        methods: The methods, in the order of `METHODS`, then others by name.
        ignored: Folders of ablations, which no table uses.
    """

    methods: Sequence[Archived]
    ignored: Sequence[str]


@dataclasses.dataclass(frozen=True)
class _Found:
    """A number of the archive, and the file that holds it.

    Attributes:
        column: Judge, aspect and round; or the name of a metric.
        key: Subject and prompt, as the file writes them.
    """

    method: str
    column: tuple[str, str, int] | str
    key: str
    value: object
    file: Path
    text: str = ""


def read_archive(folder: Path, cases: Sequence[Case], layout: Layout = "auto") -> Archive:
    """Reads an archive.

    Args:
        folder: Folder that holds `data_human_rating`, `data_gpt_rating` and so on, or some of them.
        cases: The cases of DreamBench++.
        layout: "loose" reads the files of the authors, "merged" those that their scripts make of
            them. "auto" reads both and demands that they agree.

    Raises:
        UserError: The folder has another layout, a file is damaged, a rating belongs to no case, or
            a case has two ratings.
    """
    places = _places(cases)
    forms: tuple[Form, ...] = ("loose", "merged") if layout == "auto" else (layout,)
    readings = [_collected(_files(folder, form), places) for form in forms]
    found = dict(readings[0])
    for reading in readings[1:]:
        for place, each in reading.items():
            other = found.setdefault(place, each)
            if other.value != each.value:
                raise UserError(
                    f"{other.file} and {each.file} differ about {each.key}: {_shown(other.value)} "
                    f"and {_shown(each.value)}; choose one with --layout loose or --layout merged"
                )
    if not found:
        raise UserError(_other_layout(folder, layout))
    order = [*METHODS, *sorted({method for method, *_ in found} - METHODS.keys())]
    methods = [_archived(method, found) for method in order]
    ignored = sorted(path.name for path in _settings(folder) if _round(path) is None)
    return Archive([each for each in methods if each.ratings or each.scores], ignored)


# Where ratings belong

_Place = tuple[str, int, int]
_Index = tuple[str, tuple[str, str, int] | str, str, int]


def _places(cases: Sequence[Case]) -> dict[_Place, str]:
    """Ids of cases by category, number and prompt.

    Raises:
        UserError: A case is not one of DreamBench++.
    """
    places = {}
    for case in cases:
        key = subject_key(case.subject)
        if key is None:
            raise UserError(
                f"the archive rates DreamBench++, but case {case.id} is of {case.bench}; make the "
                "cases with `dsd evaluate prepare dreambench++`"
            )
        places[(*key, case.prompt_index)] = case.id
    return places


def _collected(found: Iterator[_Found], places: Mapping[_Place, str]) -> dict[_Index, _Found]:
    """Numbers by method, column, case and image.

    Raises:
        UserError: A number belongs to no case, or two belong to one.
    """
    collected: dict[_Index, _Found] = {}
    for each in found:
        match = _KEY.fullmatch(each.key)
        case = match and places.get((match[1], int(match[2]), int(match[3])))
        if match is None or case is None:
            raise UserError(
                f"{each.file}: {each.key!r} is no case of the benchmark; expected a name such as "
                "live_subject_animal_00_kitten-0"
            )
        index = each.method, each.column, case, int(match[4] or 0)
        other = collected.setdefault(index, each)
        if other is not each:
            where = "twice" if other.file == each.file else f"and {other.file} does so too"
            raise UserError(
                f"{each.file} rates {each.key} {where}; remove one, since nothing says which counts"
            )
    return collected


# Files


def _method(name: str) -> str:
    """Word for a method, which may be none of the archive."""
    return method_word(name) or _SETTINGS.sub("", name)


def _files(folder: Path, form: Form) -> Iterator[_Found]:
    loose = form == "loose"
    yield from (_human_loose if loose else _human_merged)(folder / _HUMAN)
    for setting in _settings(folder):
        number = _round(setting)
        aspect = next(short for long, short in _ASPECTS.items() if setting.name.startswith(long))
        if number is not None:
            yield from (_gpt_loose if loose else _gpt_merged)(setting, (GPT, aspect, number))
    if form == "merged":
        return  # metrics have one form alone
    for name, metric in _METRICS.items():
        for path in _json_in(folder / name):
            yield from _flat(path, _method(path.stem), metric)
    for name, metric in _SCRIPTS.items():
        for path in sorted(folder.rglob(name)):
            if path.parent == folder:
                raise UserError(
                    f"{path} does not say whose images it scores; put it in a folder that has the "
                    "name of the method"
                )
            yield from _flat(path, _method(path.parent.name), metric)


def _human_loose(folder: Path) -> Iterator[_Found]:
    for group in _folders(folder / "raw_data"):
        for path in _json_in(group):
            method = _method(path.stem.rpartition("-")[2])
            for key, pair in read_json(path, dict, _JSON).items():
                if not isinstance(pair, list) or len(pair) != 2:
                    raise UserError(
                        f"{path}: {key} has {_shown(pair)}, expected [concept preservation, "
                        "prompt following]"
                    )
                for aspect, value in zip(("cp", "pf"), pair, strict=True):
                    yield _Found(method, (f"human/{group.name}", aspect, 0), key, value, path)


def _human_merged(folder: Path) -> Iterator[_Found]:
    for group in _folders(folder / "merged_data"):
        for path in _json_in(group):
            method, _, aspect = path.stem.rpartition("-")
            if aspect not in _ASPECTS.values():
                raise UserError(f"{path}: expected a name that ends in -cp.json or -pf.json")
            yield from _flat(path, _method(method), (f"human/{group.name}", aspect, 0))


def _gpt_loose(setting: Path, column: tuple[str, str, int]) -> Iterator[_Found]:
    for folder in _folders(setting):
        for path in _json_in(folder):
            value = read_json(path, dict, _JSON)
            if missing := {"collection_id", "prompt_index", "score"} - value.keys():
                raise UserError(f"{path} has no {and_more(sorted(missing))}; it is no rating")
            key = f"{value['collection_id']}-{value['prompt_index']}"
            text = str(value.get("content", ""))
            yield _Found(_method(folder.name), column, key, value["score"], path, text)


def _gpt_merged(setting: Path, column: tuple[str, str, int]) -> Iterator[_Found]:
    for path in _json_in(setting):
        yield from _flat(path, _method(path.stem), column)


def _flat(path: Path, method: str, column: tuple[str, str, int] | str) -> Iterator[_Found]:
    for key, value in read_json(path, dict, _JSON).items():
        yield _Found(method, column, key, value, path)


def _settings(folder: Path) -> list[Path]:
    """Folders of the GPT archive, one for each aspect and setting."""
    return [
        path
        for path in _folders(folder / _GPT)
        if path.name.startswith(tuple(f"{aspect}_" for aspect in _ASPECTS))
    ]


def _round(setting: Path) -> int | None:
    """Number of the round that a folder holds; None for an ablation."""
    name = next(setting.name.removeprefix(f"{long}_") for long in _ASPECTS if long in setting.name)
    return ROUNDS.index(name) if name in ROUNDS else None


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.is_dir())


def _json_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.json") if path.is_file())


def _other_layout(folder: Path, layout: Layout) -> str:
    wanted = (_HUMAN, _GPT, *_METRICS)
    held = sorted(path.name for path in folder.glob("*"))
    if not set(wanted) & set(held):
        found = and_more(held) if held else "nothing"
        return (
            f"{folder} is no archive of DreamBench++: expected one of {', '.join(wanted)}, found "
            f"{found}"
        )
    form = {"auto": "", "loose": " as the authors released it", "merged": " in merged files"}
    return (
        f"{folder} holds no rating{form[layout]}; expected such files as "
        f"{_HUMAN}/raw_data/GROUP/*-METHOD.json and {_GPT}/concept_preservation_full/METHOD.json"
    )


# Rows


def _archived(method: str, found: Mapping[_Index, _Found]) -> Archived:
    ratings, scores = [], dict[str, list[Score]]()
    for (whose, column, case, sample), each in found.items():
        if whose != method:
            continue
        if isinstance(column, str):
            scores.setdefault(column, []).append(_score(case, sample, each.value))
            continue
        judge, aspect, number = column
        state, score = _rated(each.value)
        ratings.append(
            Rating(
                *(case, sample, _PROTOCOL, aspect, judge, number, state),
                score=score,
                scale=_SCALE,
                text=each.text or ("" if state == "ok" else _shown(each.value)),
                published=True,
            )
        )
    return Archived(method, ratings, scores)


def _rated(value: object) -> tuple[State, float | None]:
    """State of a rating, and its score if it has one."""
    if not _is_number(value):
        return "unparsable", None
    return ("ok", float(value)) if 0 <= value <= _SCALE else ("out_of_range", None)


def _score(case: str, sample: int, value: object) -> Score:
    if not _is_number(value):
        return Score(case, sample, "", "error", None, f"the archive has {_shown(value)}")
    if abs(value) > _COSINE:
        return Score(case, sample, "", "error", None, f"the archive has {value}, not 100 x cosine")
    return Score(case, sample, "", "ok", value / _COSINE)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _shown(value: object) -> str:
    return json.dumps(value)[:80]


def write_archived(archived: Archived, cases: Sequence[Case], folder: Path) -> Run:
    """Writes what the archive knows of a method into a run, new or there already.

    Images of the run, and ratings that are not published, stay.

    Raises:
        UserError: The folder holds a run of another method or of other cases, or cannot be written.
    """
    there = open_run(folder) if (folder / "run.json").exists() else None
    settings = {**(there.settings if there else {}), "archive": "DreamBench++"}
    run = write_run(folder, archived.name, cases, there.images if there else [], settings)
    own = [rating for rating in read_ratings(folder) if not rating.published]
    write_ratings(folder, [*archived.ratings, *own])
    for metric, scores in archived.scores.items():
        write_scores(folder, metric, scores)
    return run
