"""Calibration: a judge is compared with people and the archived judge on archived images."""

import dataclasses
import json
import math

import numpy as np
import pytest

from dsd_jax import cli
from dsd_jax.errors import UserError
from dsd_jax.infer.evaluate.archive import GPT
from dsd_jax.infer.evaluate.calibrate import (
    Anchor,
    Calibration,
    agreements,
    anchor_queries,
    calibration_of,
    corrected_mean,
    read_calibration,
    write_calibration,
)
from dsd_jax.infer.evaluate.judge import judge_runs
from dsd_jax.infer.evaluate.protocols import judge_picture, load_protocols
from dsd_jax.infer.evaluate.queries import open_queries
from dsd_jax.infer.evaluate.ratings import Rating, add_ratings
from dsd_jax.infer.evaluate.runs import write_run
from tests.core.llm.server import Server
from tests.infer.evaluate.judged import MODEL, judge_of, made_cases, made_run

(DREAMBENCH,) = load_protocols(["dreambench++"])
METHODS = ("DreamBooth SD", "Emu2")


def archived(case, aspect, judge, number, score):
    place = case, 0, "dreambench++", aspect, judge, number
    return Rating(*place, "unparsable" if score is None else "ok", score, published=True)


@pytest.fixture
def archive(tmp_path):
    """Runs of two methods with ratings 0 to 2 by two groups of people, and by the old judge."""
    cases = made_cases(tmp_path / "bench", 8, ("animal", "object"))
    runs, scores = [], {}
    for shift, method in enumerate(METHODS):
        run = made_run(tmp_path, method, cases)
        ratings = []
        for number, image in enumerate(run.images):
            human = (number + shift) % 3
            scores[judge_picture(image.path).data] = human
            for aspect in ("cp", "pf"):
                ratings += [
                    archived(image.case, aspect, f"human/group{group}", 0, float(human))
                    for group in (1, 2)
                ]
                ratings += [archived(image.case, aspect, GPT, n, float(human)) for n in range(3)]
        add_ratings(run.folder, ratings)
        runs.append(run)
    return runs, scores


def higher_by_one(scores):
    """A judge that gives a point more than people do."""
    return lambda question: f"Score: {scores[question.pictures[-1]] + 1}"


class TestCalibration:
    def test_a_judge_with_an_offset_is_found_out(self, archive):
        runs, scores = archive
        with Server(higher_by_one(scores)) as server:
            judge = judge_of(server)
            asked = anchor_queries(runs, DREAMBENCH, 8, rounds=2, seed=0)
            todo = [open_queries(r, each, judge, 0) for r, each in zip(runs, asked, strict=True)]
            judge_runs(list(zip(runs, todo, strict=True)), judge)
            assert server.paid == 8 * 2 * 2
        made = calibration_of(runs, asked, judge)
        assert (made.judge, made.rubric, len(made.anchors)) == (MODEL, DREAMBENCH.rubric, 16)
        found = {(each.aspect, each.sides): each for each in agreements(made)}
        for aspect in ("cp", "pf"):
            for side in ("people", GPT):
                fresh = found[aspect, (MODEL, side)]
                assert fresh.items == 8
                assert fresh.offset == pytest.approx((1, 1, 1))
                assert fresh.slope.value == fresh.correlation.value == pytest.approx(1)
                assert fresh.alpha.value < 0.8  # it disagrees, however well it correlates
                assert fresh.kappa.low <= fresh.kappa.value <= fresh.kappa.high < 1
            people = found[aspect, ("one group", "another")]
            assert people.alpha.value == people.kappa.value == 1
            assert found[aspect, (GPT, "people")].offset.value == 0
        # People would give one point less than this judge.
        half = 1.96 / math.sqrt(3)  # all its errors are alike, so only the scores vary
        corrected = corrected_mean(made, "cp", [3.0, 4.0, 2.0])
        assert corrected == pytest.approx((2, 2 - half, 2 + half), abs=1e-3)

    def test_anchors_are_spread_evenly_and_drawn_by_the_seed(self, archive):
        runs, _ = archive
        drawn = [anchor_queries(runs, DREAMBENCH, 9, rounds=1, seed=s) for s in (0, 0, 1)]
        cases = [[[q.case.id for q in own if q.aspect == "cp"] for own in each] for each in drawn]
        assert [len(own) for own in cases[0]] == [5, 4]
        assert cases[0] == cases[1] != cases[2]
        categories = [q.case.category for own in drawn[0] for q in own if q.aspect == "cp"]
        assert {categories.count("animal"), categories.count("object")} <= {4, 5}

    def test_an_image_that_somebody_did_not_rate_is_no_anchor(self, archive):
        runs, _ = archive
        first, second = (image.case for image in runs[0].images[:2])
        add_ratings(runs[0].folder, [archived(first, "pf", GPT, n, None) for n in range(3)])
        images = [image for image in runs[0].images if image.case != second]
        run = dataclasses.replace(runs[0], images=images)
        (asked,) = anchor_queries([run], DREAMBENCH, 99, rounds=1, seed=0)
        assert {q.case.id for q in asked} == {each.case for each in images} - {first}

    def test_answers_without_a_score_are_counted_and_left_out(self, archive):
        runs, scores = archive
        worst = next(iter(scores))

        def answer(question):
            return "Score: 7" if question.pictures[-1] == worst else "Score: 1"

        with Server(answer) as server:
            judge = judge_of(server)
            asked = anchor_queries(runs[:1], DREAMBENCH, 8, rounds=1, seed=0)
            judge_runs(list(zip(runs, asked, strict=False)), judge)
        made = calibration_of(runs[:1], asked, judge)
        assert made.unscored == {"out_of_range": 2}
        assert len(made.anchors) == 2 * 7

    def test_slope_and_offset_are_those_of_a_line(self):
        rng = np.random.default_rng(0)
        human = rng.integers(0, 5, 60)
        anchors = tuple(
            Anchor(
                "m", f"c{n}", f"s{n // 3}", "cp", (0.5 * h + 1,), (float(h), float(h)), (float(h),)
            )
            for n, h in enumerate(human.tolist())
        )
        first = agreements(Calibration(1, "judge", "r", 4, anchors, {}))[0]
        assert first.slope.value == pytest.approx(0.5)
        assert first.offset.value == pytest.approx(1 - human.mean() / 2)
        assert first.offset.low < first.offset.value < first.offset.high

    def test_a_calibration_is_read_as_it_was_written(self, tmp_path):
        anchors = (Anchor("m", "c", "s", "cp", (1.0,), (2.0, 3.0), (4.0,)),) * 2
        made = Calibration(1, "judge", "r@1", 4, anchors, {"refused": 3})
        write_calibration(tmp_path / "c.json", made)
        assert read_calibration(tmp_path / "c.json") == made
        content = json.loads((tmp_path / "c.json").read_text())
        (tmp_path / "c.json").write_text(json.dumps({**content, "schema": 2}))
        with pytest.raises(UserError, match="has schema 2, expected 1"):
            read_calibration(tmp_path / "c.json")


class TestRefusals:
    def test_an_archive_without_images_cannot_be_judged(self, archive):
        run = archive[0][0]
        bare = write_run(run.folder, run.method, run.cases, [], {})
        with pytest.raises(UserError, match=r"no images to judge; run `dsd evaluate import"):
            anchor_queries([bare], DREAMBENCH, 5, rounds=1, seed=0)

    def test_a_run_without_people_is_no_archive(self, tmp_path):
        run = made_run(tmp_path, "ours", made_cases(tmp_path / "bench", 2))
        with pytest.raises(UserError, match=r"no archived ratings by people; make it with"):
            anchor_queries([run], DREAMBENCH, 5, rounds=1, seed=0)

    def test_too_few_anchors_or_another_protocol(self, archive):
        with pytest.raises(UserError, match="at least one for each of 2 runs, got 1"):
            anchor_queries(archive[0], DREAMBENCH, 1, rounds=1, seed=0)
        (split,) = load_protocols(["split"])
        with pytest.raises(UserError, match=r"rated by dreambench\+\+, got the protocol split"):
            anchor_queries(archive[0], split, 5, rounds=1, seed=0)

    def test_a_judge_without_scores_is_not_calibrated(self, archive):
        runs, _ = archive
        with Server(lambda _: "no idea") as server:
            judge = judge_of(server)
            asked = anchor_queries(runs, DREAMBENCH, 2, rounds=1, seed=0)
            judge_runs(list(zip(runs, asked, strict=True)), judge)
        with pytest.raises(UserError, match=r"fewer than two scores for cp \(4 unparsable\)"):
            calibration_of(runs, asked, judge)


def test_the_command_prints_the_agreement_and_writes_the_file(archive, tmp_path, capsys):
    runs, scores = archive
    config = tmp_path / "judge.toml"
    words = ["evaluate", "calibrate", *(str(run.folder) for run in runs), "--judge", str(config)]
    words += ["--anchors", "4", "--output", str(tmp_path / "calibration.json")]
    with Server(higher_by_one(scores)) as server:
        config.write_text(
            f'[provider]\nkind = "openai"\nmodel = "{MODEL}"\nbase_url = "{server.openai}"\n'
        )
        assert cli.main([*words, "--dry_run"]) == 0
        assert server.received == 0
        assert " 8 " in capsys.readouterr().out
        assert cli.main(words) == 0
        said = capsys.readouterr().out
        assert cli.main(words) == 0  # nothing is asked again
        assert server.paid == 8
    assert "1.00 (1.00 to 1.00)" in said
    assert f"cp: {GPT} and people" in said
    assert len(read_calibration(tmp_path / "calibration.json").anchors) == 8
    assert cli.main(["evaluate", "calibrate", "--judge", str(config)]) == 2
    assert "give the folders of runs of the archive" in capsys.readouterr().err
