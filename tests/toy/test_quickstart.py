"""The inputs of a quickstart, its depth maps, the report, and the order of its stages."""

import csv
import dataclasses
import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer

from dsd_jax.cli import main
from dsd_jax.data.make.config import load_config
from dsd_jax.data.make.folder import begun_folder
from dsd_jax.data.make.ids import CaptionId, GridId, PromptId
from dsd_jax.data.make.stages import PANELS, CutGrid
from dsd_jax.data.pairs.store import PairStore
from dsd_jax.errors import UserError
from dsd_jax.images import open_image, save_image
from dsd_jax.infer.batch import read_manifest
from dsd_jax.infer.settings import Settings
from dsd_jax.quickstart.depths import depth_table, write_depths
from dsd_jax.quickstart.findings import Example, Findings, Scored, Shown
from dsd_jax.quickstart.inputs import IMAGE_SCALE, TASKS, TEXT_TOKENS, Budget, write_inputs
from dsd_jax.quickstart.picture import write_picture
from dsd_jax.quickstart.report import write_report
from dsd_jax.quickstart.run import quickstart, student_steps
from dsd_jax.quickstart.steps import Step, run_steps
from dsd_jax.toy.making.tokenizers import write_tiny_tokenizers
from dsd_jax.toy.score import Case, Guided, Relit, Score, make_cases, score, summarise
from dsd_jax.toy.words import describe, parse_light, parse_scene, parse_subject
from dsd_jax.toy.world import LIGHTS, Scene, Subject, grid, is_held_out, render, subjects


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


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (["relit=2"], "no task 'relit'; expected identity, relight, depth.*'relight'"),
        (["expression=1"], "no task 'expression'; expected identity, relight, depth"),
        (["depth"], "tasks take TASK=SHARE with a share above 0, got 'depth'"),
        (["depth=0"], "tasks take TASK=SHARE with a share above 0, got 'depth=0'"),
        (["depth=1", "depth=2"], "tasks has 'depth' twice"),
        ([], "tasks needs one at least, such as identity=6 relight=2 depth=2"),
    ],
)
def test_tasks_that_make_no_sense(tasks: list[str], message: str):
    with pytest.raises(UserError, match=message):
        Budget.of(10, tasks)


def few(minutes: float = 10, tasks: Sequence[str] = TASKS) -> Budget:
    """The budget of so many minutes, with two cases of each task."""
    budget = Budget.of(minutes, tasks)
    return dataclasses.replace(budget, cases=dict.fromkeys(budget.tasks, 2))


def written(folder: Path, budget: Budget) -> Path:
    write_inputs(folder, budget, budget.make_cases())
    return folder


def test_captions_name_every_subject_before_one_comes_again(tmp_path: Path):
    with (written(tmp_path, few(150)) / "captions.csv").open() as file:
        captions = [row["TEXT"] for row in csv.DictReader(file)]
    pool = subjects(held_out=False)
    assert len(captions) == len(set(captions)) == 4500 > len(pool)
    named = [parse_subject(caption) for caption in captions]
    assert set(named[: len(pool)]) == set(pool)
    assert set(named) == set(pool)


@pytest.mark.parametrize(
    ("tasks", "weights"),
    [
        (("identity=6", "relight=2", "depth=2"), {"identity": 6, "relight": 2}),
        (("relight=1",), {"relight": 1}),
        (("depth=1",), {"identity": 1}),  # maps are made of panels of any grid
    ],
)
def test_grids_are_divided_by_the_shares_of_the_tasks(
    tmp_path: Path, tasks: tuple[str, ...], weights: dict[str, float]
):
    config = load_config(written(tmp_path, few(tasks=tasks)) / "making.toml")
    assert config.prompts.tasks == weights


def test_relighting_asks_for_lights_of_the_toy_world_in_one_of_them_the_usual(tmp_path: Path):
    relight = load_config(written(tmp_path, few()) / "making.toml").relight
    for number in range(20):
        asked = relight.lights_of(PromptId(CaptionId.of(f"caption {number}"), "relight"))
        lights = [parse_light(light.description) for light in asked]
        assert len(set(lights)) == 4
        assert Scene.light in lights
        assert set(lights) <= {*LIGHTS}


def test_the_student_is_asked_by_every_task_and_the_teacher_by_texts_alone(tmp_path: Path):
    folder = written(tmp_path, few())
    rows = read_manifest(folder / "student.jsonl", Settings())
    assert [row.error for row in rows] == [None] * 6
    assert [row.settings.i_guidance for row in rows] == [IMAGE_SCALE] * 4 + [1.0] * 2
    shown = [open_image(folder / str(row.image)) for row in rows]
    cases = few().make_cases()
    for image, case in zip(shown, itertools.chain(*cases.values()), strict=True):
        np.testing.assert_array_equal(np.asarray(image), case.reference())
    teacher = read_manifest(folder / "teacher.jsonl", Settings())
    assert [(row.text, row.image) for row in teacher] == [(c.text, None) for c in cases["identity"]]
    alone = written(tmp_path / "alone", few(tasks=["depth=1"]))
    assert not (alone / "teacher.jsonl").exists()


def test_the_longest_texts_fit_into_the_tokens_of_the_student(tmp_path: Path):
    write_tiny_tokenizers(tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer_2" / "tokenizer.json"))
    subject = Subject("star", "red", "blue", "dots")
    longest = Scene("snow", "northwest", "small", "tilted", "warm left hard")
    tokens = tokenizer.encode(describe(subject, longest)).ids
    assert len(tokens) == TEXT_TOKENS  # its end included; more would only take time
    assert 2 not in tokens  # no unknown word


def painted(folder: Path, pictures: Sequence[np.ndarray]) -> list[CutGrid]:
    """Writes grids and where their panels lie, as `dsd data grids` and `pairs` do."""
    folder.mkdir()
    (folder / "making.json").write_text('{"parts": 1}')
    parts = begun_folder(folder)
    boxes = ((0, 0, 32, 32), (32, 0, 64, 32), (0, 32, 32, 64), (32, 32, 64, 64))
    rows = []
    for number, pixels in enumerate(pictures):
        prompt = PromptId(CaptionId.of(f"caption {number}"), "identity")
        name = GridId(prompt, 0)
        save_image(Image.fromarray(pixels), parts.picture(name))
        rows.append(CutGrid(id=name, prompt_id=prompt, task="identity", status="kept", boxes=boxes))
    uneven = GridId(PromptId(CaptionId.of("uneven"), "identity"), 0)
    rows.append(
        CutGrid(
            id=uneven, prompt_id=uneven.prompt, task="identity", status="rejected", reason="uneven"
        )
    )
    parts.write(PANELS, 0, rows)
    return rows


def test_depth_pairs_show_the_map_of_a_panel_and_words_about_all_of_it(tmp_path: Path):
    subject, hidden = subjects(held_out=False)[700], subjects(held_out=True)[0]
    places = ("northwest", "northeast", "southwest", "southeast")
    scenes = [Scene("beach", p, light=x) for p, x in zip(places, [*LIGHTS][::8], strict=True)]
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    painted(tmp_path / "making", [grid(subject, scenes), noise, grid(hidden, scenes)])
    write_depths(tmp_path, 100)
    table, dataset = depth_table(tmp_path), tmp_path / "depths" / "dataset"
    before = table.stat().st_mtime_ns
    write_depths(tmp_path, 100)  # nothing is done twice
    assert table.stat().st_mtime_ns == before
    assert main(["data", "import", str(table), str(dataset)]) == 0
    records = [*PairStore.open(dataset)]
    assert {record.caption for record in records} == {describe(subject, each) for each in scenes}
    for record in records:
        scene = parse_scene(record.caption)
        assert scene is not None
        case = Case("x", subject, scene, scene, 0, "depth")
        assert record.task == "depth"
        np.testing.assert_array_equal(np.asarray(open_image(record.reference)), case.reference())
        np.testing.assert_array_equal(np.asarray(open_image(record.target)), case.ideal())


def test_depth_pairs_need_a_clear_panel(tmp_path: Path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    painted(tmp_path / "making", [noise])
    with pytest.raises(UserError, match=r"no panel .* is clear enough .* leave depth out of"):
        write_depths(tmp_path, 100)


def picture(seed: int, side: int = 32) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8))


def test_a_report_is_one_page_safe_against_markup_and_one_picture(tmp_path: Path):
    evil = "<script>alert(1)</script>"
    scores: dict[str, Score | Relit | Guided] = {
        "identity": Score(True, False, False, True),
        "relight": Relit(True, True, True, 0.25),
        "depth": Guided(True, True),
    }
    examples = {
        task: Example(
            evil,
            picture(0),
            picture(1) if task == "identity" else None,
            picture(2),
            task == "depth",
        )
        for task in scores
    }
    findings = Findings(
        scored=[
            Scored(task, 3, {"student": summarise([own] * 3)}, [examples[task]] * 2)
            for task, own in scores.items()
        ],
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
    assert page.count("data:image/png") == 3 + 2 * (3 + 2 + 2)
    names = [page.count(f"<figcaption>{name}<") for name in ("reference", "teacher", "student")]
    assert names == [6, 2, 6]
    assert "1.00 (1.00 to 1.00)" in page
    assert "0.25 (0.25 to 0.25)" in page
    with Image.open(tmp_path / "report.png") as image:
        assert image.size[0] == 1280
        green = (np.asarray(image) == (26, 127, 55)).all(2)
    assert green.any()  # the frame of what is right


def test_a_folder_of_another_budget_is_refused(tmp_path: Path):
    (tmp_path / "budget.json").write_text(json.dumps({"captions": 1}))
    with pytest.raises(UserError, match="give the same --minutes and --tasks, or another"):
        quickstart(tmp_path, Budget.of(1), lambda words: 0, lambda line: None)


def test_a_training_that_was_stopped_is_not_exported(tmp_path: Path):
    shown: list[str] = []
    budget = Budget.of(1, ["identity=3", "relight=1"])
    with pytest.raises(SystemExit, match="training was stopped; the same command goes on"):
        run_steps(student_steps(tmp_path, budget), lambda words: 0, shown.append)
    assert [line.split("$ dsd ")[1].split()[0] for line in shown] == ["data", "train"]
    assert "--tasks identity=3 relight=1 " in shown[-1]


def test_a_student_of_three_tasks_trains_on_two_datasets(tmp_path: Path):
    words = {step.words[0]: step.words for step in student_steps(tmp_path, Budget.of(1))}["train"]
    assert [word.removeprefix(f"{tmp_path}/") for word in words[2:12]] == [
        "--data", "making/dataset", "depths/dataset", "--encoded", "encoded", "encoded-depths",
        "--tasks", "identity=6", "relight=2", "depth=2",
    ]  # fmt: skip


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
    report = (folder / "report.html").read_text()
    for words in ("student, text and reference", "teacher, text alone", "kept"):
        assert words in report
    assert "the judge&#x27;s marks, of 10: first light 10, second light 10" in report
    assert (folder / "making.html").exists()  # which the report links to
    assert [path.name for path in shared(folder) if b"bluebeard" in path.read_bytes()] == []
    dataset = PairStore.open(folder / "making" / "dataset")
    assert len(dataset) > 0
    images = [path for path in folder.rglob("*.png") if path.name != "report.png"]
    made = {path: path.stat().st_mtime_ns for path in images}
    assert main(command) == 0  # nothing is made twice
    assert made == {path: path.stat().st_mtime_ns for path in made}
