"""The demonstration of an evaluation: its two foils, its simulated raters, and all of its steps."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dsd_jax.infer.evaluate.adopt import adopt
from dsd_jax.infer.evaluate.benches.registry import prepare
from dsd_jax.infer.evaluate.benches.source import Source
from dsd_jax.infer.evaluate.cases import Case, read_cases
from dsd_jax.infer.evaluate.runs import Run, open_run
from dsd_jax.infer.evaluate.study.answers import Answer, AnswerSet
from dsd_jax.infer.evaluate.study.build import StudySettings, build_study
from dsd_jax.quickstart.baselines import write_copies, write_scene_only
from dsd_jax.quickstart.raters import write_answers
from dsd_jax.structured import built_lines
from dsd_jax.toy.judge import SUBJECT, judge
from dsd_jax.toy.score import Score, from_tags, score


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight cases, and the runs of both foils."""
    folder = tmp_path_factory.mktemp("demo")
    path = folder / "cases.jsonl"
    prepare("toy", Source((), folder / "pictures", 8), path)
    cases = read_cases(path)
    for name, write in (("copies", write_copies), ("scene-only", write_scene_only)):
        write(cases, folder / name)
        adopt(name, folder / name, path, folder / "runs" / name)
    return folder


def runs_in(folder: Path) -> list[Run]:
    return [open_run(folder / "runs" / name) for name in ("copies", "scene-only")]


def pictures(run: Run) -> list[tuple[Case, np.ndarray]]:
    cases = {case.id: case for case in run.cases}
    return [(cases[image.case], np.asarray(Image.open(image.path))) for image in run.images]


def test_the_foils_fail_in_opposite_ways(folder: Path):
    copies, scene_only = runs_in(folder)
    assert len(copies.images) == len(scene_only.images) == 8
    for case, shown in pictures(copies):
        asked = from_tags(case.id, case.tags)
        assert score(asked, shown) == Score(True, False, False, True)
    for case, shown in pictures(scene_only):
        asked, seen = from_tags(case.id, case.tags), judge(shown)
        assert score(asked, shown) == Score(False, True, False, False)
        assert not any(getattr(seen, name) == getattr(asked.subject, name) for name in SUBJECT)


def test_simulated_raters_finish_their_lists_and_tell_the_foils_apart(folder: Path, tmp_path: Path):
    runs = runs_in(folder)
    _, key = build_study(runs, tmp_path / "study", StudySettings(cases=8, strata=(), side=32))
    path = tmp_path / "answers.jsonl"
    write_answers(tmp_path / "study", runs, path)
    rows = [answer for _, answer in built_lines(Answer, path)]
    answers = AnswerSet(key, rows)
    assert len(answers.rows) == len(key.items) * len(key.questions)
    assert not answers.failed
    means = {
        (method, question): np.mean(
            [
                int(row.answer)
                for row in rows
                if row.item in key.rated
                and row.question == question
                and key.items[row.item].shown[0].method == method
            ]
        )
        for method in key.methods
        for question in ("cp", "pf", "creativity")
    }
    low = {("scene-only", "cp"), ("copies", "pf"), ("copies", "creativity")}
    assert all((mean < 2) if own in low else (mean > 4) for own, mean in means.items())
    write_answers(tmp_path / "study", runs, tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == path.read_bytes()
