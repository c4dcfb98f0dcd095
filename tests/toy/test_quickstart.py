"""The cases and scores of the toy world, the report, and the order of a quickstart's stages."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dsd_jax.cli import main
from dsd_jax.data.pairs.store import PairStore
from dsd_jax.errors import UserError
from dsd_jax.quickstart.findings import Example, Findings, Shown
from dsd_jax.quickstart.inputs import Budget
from dsd_jax.quickstart.picture import write_picture
from dsd_jax.quickstart.report import write_report
from dsd_jax.quickstart.run import quickstart, student_steps
from dsd_jax.quickstart.steps import Step, run_steps
from dsd_jax.toy.score import Score, make_cases, score, summarise
from dsd_jax.toy.words import parse_scene, parse_subject
from dsd_jax.toy.world import is_held_out, render


def test_cases_ask_for_another_scene_and_do_not_name_the_subject():
    cases = make_cases(40)
    assert cases[:10] == make_cases(10)
    assert len({case.subject for case in cases}) == 40
    for case in cases:
        assert is_held_out(case.subject)
        assert parse_subject(case.text) is None
        assert parse_scene(case.text) == case.after
        assert case.before.background != case.after.background
        assert case.before.place != case.after.place
    assert not any(is_held_out(case.subject) for case in make_cases(40, held_out=False))


def test_scores_of_drawn_pictures():
    case, other = make_cases(2)
    assert score(case, case.ideal()) == Score(True, True, True, False)
    assert score(case, case.reference()) == Score(True, False, False, True)
    assert score(case, render(other.subject, case.after)) == Score(False, True, False, False)
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    assert score(case, noise) == Score(False, False, False, False)


def test_intervals_hold_the_mean_and_narrow_with_more_cases():
    few = summarise([Score(i % 4 > 0, True, False, False) for i in range(20)])
    many = summarise([Score(i % 4 > 0, True, False, False) for i in range(2000)])
    assert few["identity"].value == many["identity"].value == 0.75
    assert few["identity"].low < many["identity"].low < 0.75 < many["identity"].high
    assert many["identity"].high - many["identity"].low < 0.05
    assert many["prompt"] == (1, 1, 1)


@pytest.mark.parametrize("minutes", [0, -1, 1000, float("nan")])
def test_budgets_that_make_no_sense(minutes: float):
    with pytest.raises(UserError, match="minutes must be more than 0 and at most 600, got"):
        Budget.of(minutes)


def picture(seed: int, side: int = 32) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8))


def test_a_report_is_one_page_safe_against_markup_and_one_picture(tmp_path: Path):
    evil = "<script>alert(1)</script>"
    intervals = summarise([Score(True, False, False, True)] * 3)
    findings = Findings(
        scores={"teacher": intervals, "student": intervals},
        cases=3,
        examples=[Example(evil, picture(0), picture(1), picture(2), right=True)],
        grids=[Shown([picture(3, 64)], evil)],
        kept=[Shown([picture(4), picture(5)], evil)],
        rejected=[],
        losses=[(1, 0.5), (2, 0.25), (3, float("nan"))],
        counts={"grids": 1200},
        commands=[(f"dsd {evil}", 1.0)],
        notes=[evil],
    )
    write_report(findings, tmp_path / "report.html", tmp_path / "making.html")
    write_picture(findings, tmp_path / "report.png")
    page = (tmp_path / "report.html").read_text()
    assert 'href="making.html"' in page
    assert "<script" not in page
    assert "default-src 'none'" in page
    assert "http" not in page.replace("http-equiv", "")
    assert page.count("data:image/png") == 6
    assert "1.00 (1.00 to 1.00)" in page
    with Image.open(tmp_path / "report.png") as image:
        assert image.size[0] == 1280


def test_a_folder_of_another_budget_is_refused(tmp_path: Path):
    (tmp_path / "budget.json").write_text(json.dumps({"captions": 1}))
    with pytest.raises(UserError, match="give the same --minutes, or another --output_dir"):
        quickstart(tmp_path, Budget.of(1), lambda words: 0, lambda line: None)


def test_a_training_that_was_stopped_is_not_exported(tmp_path: Path):
    shown: list[str] = []
    with pytest.raises(SystemExit, match="training was stopped; the same command goes on"):
        run_steps(student_steps(tmp_path, 7), lambda words: 0, shown.append)
    assert [line.split("$ dsd ")[1].split()[0] for line in shown] == ["data", "train"]


def test_a_step_that_fails_ends_the_quickstart_with_its_status():
    steps = [Step("First", ["a"]), Step("Second", ["b", "c d"]), Step("Third", ["e"])]
    shown: list[str] = []
    with pytest.raises(SystemExit) as stopped:
        run_steps(steps, lambda words: 3 if words[0] == "b" else 0, shown.append)
    assert stopped.value.code == 3
    assert shown == ["\n[1/3] First\n$ dsd a", "\n[2/3] Second\n$ dsd b 'c d'"]


def test_a_folder_that_cannot_be_used_is_said_at_once(tmp_path: Path):
    def never(words: Sequence[str]) -> int:
        raise AssertionError(words)

    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file/x: Not a directory"):
        quickstart(tmp_path / "file" / "x", Budget.of(1), never, print)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("")
    with pytest.raises(UserError, match="photos holds other files; choose a new folder"):
        quickstart(tmp_path / "photos", Budget.of(1), never, print)


def shared(folder: Path) -> list[Path]:
    """Files that people send to others: pages, pictures, the dataset and the export."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    kinds = {".html", ".png", ".jpg", ".md", ".safetensors"}
    found = [p for p in files if p.suffix in kinds or {"dataset", "export"} & set(p.parts)]
    assert kinds - {".jpg"} <= {path.suffix for path in found}
    return found


def test_the_smallest_quickstart_goes_the_whole_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Every stage on the toy FLUX that ships, the export in PyTorch included; about two minutes."""
    folder = tmp_path / "bluebeards-chamber" / "quickstart"
    command = ["quickstart", "--output_dir", str(folder), "--minutes", "0.1"]
    assert main(command) == 0
    # The folder is the user's, and may have any length.
    shown = capsys.readouterr().out.replace(str(folder), "outputs/quickstart")
    difference = re.search(r"differ from ours by at most (\d+) of 255", shown)
    assert difference is not None
    assert int(difference[1]) <= 2
    for stage in ("captions", "prompts", "grids", "pairs", "judge", "caption", "pack"):
        assert f"$ dsd data {stage} " in shown
    assert [line for line in shown.split("$ dsd")[0].splitlines() if len(line) > 80] == []
    assert max(map(len, shown.split("Check the exported weights")[1].splitlines())) <= 80
    assert "/dsd_jax/toy" not in shown  # the commands work on any machine
    for words in ("student, text and reference", "teacher, text alone", "kept"):
        assert words in (folder / "report.html").read_text()
    assert (folder / "making.html").exists()  # which the report links to
    assert [path.name for path in shared(folder) if b"bluebeard" in path.read_bytes()] == []
    dataset = PairStore.open(folder / "making" / "dataset")
    assert len(dataset) > 0
    images = [path for path in folder.rglob("*.png") if path.name != "report.png"]
    made = {path: path.stat().st_mtime_ns for path in images}
    assert main(command) == 0  # nothing is made twice
    assert made == {path: path.stat().st_mtime_ns for path in made}
