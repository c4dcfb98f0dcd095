"""The demonstration of an evaluation: its two foils, its simulated raters, and all of its steps."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dsd_jax.cli import COMMANDS, main
from dsd_jax.errors import UserError
from dsd_jax.infer.evaluate.adopt import adopt
from dsd_jax.infer.evaluate.benches.registry import prepare
from dsd_jax.infer.evaluate.benches.source import Source
from dsd_jax.infer.evaluate.cases import Case, read_cases
from dsd_jax.infer.evaluate.runs import Run, open_run
from dsd_jax.infer.evaluate.study.answers import Answer, AnswerSet
from dsd_jax.infer.evaluate.study.build import StudySettings, build_study
from dsd_jax.quickstart.baselines import write_copies, write_scene_only
from dsd_jax.quickstart.demo import Sizes, demo
from dsd_jax.quickstart.raters import write_answers
from dsd_jax.structured import built_lines
from dsd_jax.toy.judge import SUBJECT, judge
from dsd_jax.toy.score import Score, from_tags, score

# Commands of an evaluation that need an archive, a dataset in the making, or a browser.
NOT_SHOWN = {
    "evaluate archive",
    "evaluate audit ask",
    "evaluate audit build",
    "evaluate calibrate",
    "evaluate demo",
    "evaluate study export",
    "evaluate study serve",
}


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


def test_the_smallest_demonstration_runs_every_command_of_an_evaluation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["evaluate", "demo", "--output_dir", str(tmp_path / "demo"), "--cases", "2"]) == 0
    shown = capsys.readouterr().out.replace(str(tmp_path), "outputs")
    lines = [
        line.removeprefix("$ dsd ") for line in shown.splitlines() if line.startswith("$ dsd ")
    ]
    for name in set(COMMANDS["Evaluate"]) - NOT_SHOWN:
        assert any(line.startswith(f"{name} ") for line in lines), name
    assert "report: outputs/demo/report/report.html" in shown
    report = tmp_path / "demo" / "report"
    assert "scene-only" in (report / "report.md").read_text()
    rows = list(csv.DictReader((report / "numbers.csv").read_text().splitlines()))
    assert {row["method"] for row in rows} >= {"student", "teacher", "copies", "scene-only"}
    for name in ("student", "teacher"):
        assert len(open_run(tmp_path / "demo" / "runs" / name).images) == 2


@pytest.mark.parametrize("cases", [1, 441])
def test_a_demonstration_has_cases_enough_for_a_study(cases: int):
    with pytest.raises(UserError, match=f"cases must be from 2 to 440, got {cases}"):
        Sizes.of(cases)


def test_a_step_that_fails_ends_the_demonstration_with_its_status(tmp_path: Path):
    shown: list[str] = []
    with pytest.raises(SystemExit) as stopped:
        demo(
            tmp_path / "demo", Sizes(), lambda words: 3 if "generate" in words else 0, shown.append
        )
    assert stopped.value.code == 3
    assert len(shown) == 2


def test_a_folder_of_another_demonstration_is_refused(tmp_path: Path):
    (tmp_path / "sizes.json").write_text("{}")
    with pytest.raises(UserError, match="give the same --cases, or another --output_dir"):
        demo(tmp_path, Sizes(), lambda words: 0, lambda line: None)
