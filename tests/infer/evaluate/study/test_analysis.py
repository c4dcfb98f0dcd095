"""The analysis finds in answers what was put into them."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dsd_jax import cli
from dsd_jax.errors import UserError
from dsd_jax.infer.evaluate.agreement import krippendorff_alpha
from dsd_jax.infer.evaluate.ratings import Rating, add_ratings, read_ratings
from dsd_jax.infer.evaluate.resampling import Resampling
from dsd_jax.infer.evaluate.runs import Run, open_run
from dsd_jax.infer.evaluate.scores import Score, write_scores
from dsd_jax.infer.evaluate.study.analysis import Analysis, Figure, analyse_study, mean_ratings
from dsd_jax.infer.evaluate.study.answers import Answer, AnswerFile, AnswerSet
from dsd_jax.infer.evaluate.study.joined import check_runs, read_metrics, store_ratings
from dsd_jax.infer.evaluate.study.record import KeyItem, read_key, read_study
from dsd_jax.infer.evaluate.study.report import analysis_text, write_analysis
from dsd_jax.interval import Interval

QUICK = Resampling(draws=60)
QUALITY = {"first-method": 0, "second-method": 1, "third-method": 2}
Answering = Callable[[str, KeyItem, str], str]


def simulated(folder: Path, answering: Answering, *, careless: str = "") -> list[Answer]:
    """Answers of one rater per list; attention checks are answered well, except by one rater."""
    key, rows = read_key(folder), []
    for number, items in enumerate(read_study(folder).lists):
        rater = f"rater-{number}"
        for each in items:
            item = key.items[each.id]
            for question in key.questions:
                expected = item.expected.get(question.id)
                given = expected[0] if expected else answering(rater, item, question.id)
                if expected and rater == careless:
                    given = next(
                        choice.value for choice in question.answers if choice.value not in expected
                    )
                rows.append(Answer(key.study, rater, rater, each.id, question.id, given))
    return rows


def likert(rater: str, item: KeyItem, question: str) -> str:
    """Better methods get more, and prompts are followed in the opposite order."""
    quality = QUALITY.get(item.shown[0].method, 0)
    return str({"cp": 2 + quality, "pf": 4 - quality}.get(question, 3))


def pairs(rater: str, item: KeyItem, question: str) -> str:
    """The better method wins; in creativity, whatever is on the left."""
    if question == "creativity":
        return "a"
    left, right = (QUALITY.get(shown.method, 0) for shown in item.shown)
    return "a" if left > right else "b"


def same(rater: str, item: KeyItem, question: str) -> str:
    return "yes" if QUALITY.get(item.shown[0].method, 0) == 2 else "no"


def analysed(folder: Path, answering: Answering, metrics=None, **options) -> Analysis:
    rows = simulated(folder, answering, careless=options.pop("careless", ""))
    return analyse_study(AnswerSet(read_key(folder), rows), metrics or {}, QUICK, **options)


def figure(analysis: Analysis, table: str, row: str, column: str = "cp") -> Figure:
    (found,) = (
        each
        for each in analysis.figures
        if (each.row, each.column) == (row, column) and each.table.startswith(table)
    )
    return found


class TestRatings:
    def test_means_differences_and_ranks_are_those_of_the_answers(self, studies):
        found = analysed(studies["likert"], likert)
        for method, quality in QUALITY.items():
            assert figure(found, "Means", method).interval == Interval(*[2.0 + quality] * 3)
        assert figure(found, "Probability", "third-method").interval.value == 1
        assert figure(found, "Probability", "first-method", "pf").interval.value == 1
        difference = figure(found, "Differences", "first-method − third-method")
        assert difference.interval == Interval(-2.0, -2.0, -2.0)
        least = figure(found, "Power", "detectable difference, power 0.8")
        assert least.interval.value == pytest.approx(0)
        counts = {figure(found, "Means", method).count for method in QUALITY}
        assert len(counts) == 1

    def test_raters_who_agree_are_said_to_agree(self, studies):
        found = analysed(studies["likert"], likert)
        for level in ("ordinal", "interval"):
            assert figure(found, "Agr", f"Krippendorff's alpha, {level}").interval.value == 1
        assert figure(found, "Agr", "weighted kappa, mean over pairs of raters").interval.value == 1
        assert figure(found, "Consistency", "the same answer twice").interval.value == 1
        alpha = figure(found, "Agr", "Krippendorff's alpha, ordinal", "creativity")
        assert math.isnan(alpha.interval.value)  # all answers are 3: there is nothing to agree on

    def test_agreement_is_that_of_the_table_of_raters_and_items(self, studies):
        rng = np.random.default_rng(0)
        found = simulated(studies["likert"], lambda *_: str(rng.integers(1, 6)))
        key = read_key(studies["likert"])
        answers = AnswerSet(key, found)
        table: dict[tuple[str, str], dict[str, float]] = {}
        for row in answers.rows:
            if row.item in key.rated and row.question == "cp":
                shown = key.items[row.item].shown[0]
                table.setdefault((shown.method, shown.case), {})[row.rater] = float(row.answer)
        raters = sorted(answers.lists)
        values = np.array(
            [[ratings.get(rater, np.nan) for ratings in table.values()] for rater in raters]
        )
        analysis = analyse_study(answers, {}, QUICK)
        for level in ("ordinal", "interval"):
            expected = krippendorff_alpha(values, level, QUICK).value
            alpha = figure(analysis, "Agr", f"Krippendorff's alpha, {level}").interval.value
            assert alpha == pytest.approx(expected)
        means = mean_ratings(answers)
        for (method, case), ratings in table.items():
            mean = np.mean(list(ratings.values())) - 1
            found_mean, count = means[(method, case, 0), "cp"]
            assert found_mean == pytest.approx(mean)
            assert count == len(ratings)

    def test_intervals_cover_other_raters_and_other_cases(self, studies):
        """Raters with tastes of their own make intervals wider than noise in each answer does."""

        def tasteful(rater: str, item: KeyItem, question: str) -> str:
            return "4" if int(rater[-1]) % 2 else "2"

        rng = np.random.default_rng(0)
        noisy = analysed(studies["likert"], lambda *_: str(rng.choice([2, 4])))
        personal = analysed(studies["likert"], tasteful)
        widths = [
            interval.high - interval.low
            for interval in (
                figure(found, "Means", "first-method").interval for found in (noisy, personal)
            )
        ]
        assert widths[1] > 1.2 * widths[0] > 0

    def test_a_rater_who_fails_a_check_is_named_and_left_out(self, studies):
        def spoiled(rater: str, item: KeyItem, question: str) -> str:
            return "5" if rater == "rater-2" else likert(rater, item, question)

        found = analysed(studies["likert"], spoiled, careless="rater-2")
        assert figure(found, "Means", "first-method").interval == Interval(2.0, 2.0, 2.0)
        assert found.notes[:2] == [
            "raters who count: 5, unfinished: 0",
            "raters who failed an attention check and do not count: rater-2",
        ]
        kept = analysed(studies["likert"], spoiled, careless="rater-2", include_failed=True)
        assert figure(kept, "Means", "first-method").interval.value > 2
        assert kept.notes[1].endswith("attention check and count all the same: rater-2")

    def test_one_rater_alone_is_said_to_be_one(self, studies):
        rows = [x for x in simulated(studies["likert"], likert) if x.rater == "rater-0"][:-3]
        found = analyse_study(AnswerSet(read_key(studies["likert"]), rows), {}, QUICK)
        assert found.notes == [
            "raters who count: 1, unfinished: 1",
            "intervals of differences are not adjusted for the number of comparisons",
            "there is one rater, so intervals say nothing about other people",
        ]


class TestPairs:
    def test_strengths_have_the_order_of_the_methods(self, studies):
        found = analysed(studies["pair"], pairs)
        strengths = [figure(found, "Log", method).interval.value for method in QUALITY]
        assert strengths == sorted(strengths)
        assert figure(found, "Probability", "third-method").interval.value == 1
        wins = figure(found, "Preference", "first-method over third-method")
        assert wins.interval.value == 0
        assert any("cp: a method was never beaten by the others" in note for note in found.notes)
        assert figure(found, "Agr", "Krippendorff's alpha, ordinal").interval.value == 1
        assert figure(found, "Consistency", "the same answer twice").interval.value == 1

    def test_a_habit_of_a_side_is_seen(self, studies):
        found = analysed(studies["pair"], pairs)
        habit = figure(found, "Habits", "left picture, of no ties", "creativity").interval
        assert habit.value == 1
        assert habit.low > 0.5
        fair = figure(found, "Habits", "left picture, of no ties").interval
        assert fair.low < 0.5 < fair.high
        assert figure(found, "Habits", "ties").interval.value == 0
        # The repeat has the other side, so the same key is the other answer.
        twice = figure(found, "Consistency", "the same answer twice", "creativity")
        assert twice.interval.value == 0

    def test_equal_methods_tie(self, studies):
        found = analysed(studies["pair"], lambda *x: "tie" if x[-1] == "cp" else pairs(*x))
        assert figure(found, "Habits", "ties").interval.value == 1
        for method in QUALITY:
            assert figure(found, "Log", method).interval.value == pytest.approx(0, abs=1e-6)


def test_shares_of_yes_are_those_of_the_answers(studies):
    found = analysed(studies["same"], same)
    shares = [figure(found, "Share", method, "same").interval.value for method in QUALITY]
    assert shares == [0, 0, 1]


class TestMetrics:
    @pytest.mark.parametrize(("mode", "answering"), [("likert", likert), ("pair", pairs)])
    def test_a_metric_that_says_what_people_say_has_the_correlation_1(
        self, studies, mode, answering
    ):
        metrics = {
            name: {
                (method, f"case-{case}", 0): sign * quality
                for method, quality in QUALITY.items()
                for case in range(6)
            }
            for name, sign in (("good", 1.0), ("bad", -1.0))
        }
        found = analysed(studies[mode], answering, metrics)
        for name, sign in (("good", 1), ("bad", -1)):
            over_methods = figure(found, "Rank", f"{name}, over methods").interval.value
            assert over_methods == pytest.approx(sign)
            over_items = figure(found, "Rank", f"{name}, over items").interval.value
            assert sign * over_items > 0.8

    def test_scores_and_judges_of_runs_are_read_for_the_images_of_now(self, runs, tmp_path):
        run = copied(runs[0], tmp_path)
        image, old = run.images[0], "0" * 64
        write_scores(
            run.folder,
            "dino@x",
            [
                Score(image.case, 0, image.sha256, "ok", 0.5),
                Score(run.images[1].case, 0, old, "ok", 0.6),
            ],
        )
        ratings = [
            Rating(image.case, 0, "split", "identity", judge, number, "ok", score)
            for judge, number, score in (("gpt", 0, 2.0), ("gpt", 1, 4.0), ("human/x", 0, 1.0))
        ]
        add_ratings(run.folder, ratings)
        place = run.method, image.case, 0
        assert read_metrics([run]) == {
            "dino@x": {place: 0.5},
            "gpt: split, identity": {place: 0.75},
        }

    def test_other_runs_than_those_of_the_study_are_refused(self, runs, studies, tmp_path):
        key = read_key(studies["likert"])
        check_runs(key, runs)
        other = Run(tmp_path, "other", runs[0].cases, [])
        with pytest.raises(UserError, match="`other` is not in the study, which has first-method,"):
            check_runs(key, [other])
        fewer = Run(tmp_path, "first-method", runs[0].cases[1:], [])
        with pytest.raises(UserError, match="has other cases than the study was built from"):
            check_runs(key, [fewer])


def copied(run: Run, folder: Path) -> Run:
    """A copy of a run that a test may write to."""
    shutil.copytree(run.folder, folder / run.method)
    return open_run(folder / run.method)


class TestOutput:
    def test_mean_ratings_go_to_the_runs_and_replace_themselves(self, studies, runs, tmp_path):
        folder = studies["likert"]
        answers = AnswerSet(read_key(folder), simulated(folder, likert))
        run = copied(runs[2], tmp_path)
        for _ in range(2):
            assert store_ratings(answers, [run]) == 6 * 3
        rating = next(each for each in read_ratings(run.folder) if each.aspect == "cp")
        assert (rating.judge, rating.protocol, rating.score, rating.scale) == (
            f"human/{answers.key.study}",
            "study",
            3.0,
            4.0,
        )
        assert rating.sha256 == run.images[0].sha256
        assert len(read_ratings(run.folder)) == 6 * 3
        other = AnswerSet(read_key(studies["pair"]), simulated(studies["pair"], pairs))
        with pytest.raises(UserError, match="a study of pairs has no ratings of single images"):
            store_ratings(other, [run])

    def test_every_figure_is_in_the_text_and_in_the_files(self, studies, tmp_path):
        found = analysed(studies["pair"], pairs)
        text = analysis_text(found)
        assert "Log strength (Bradley-Terry)" in text
        assert "1.00 (" in text
        write_analysis(found, tmp_path / "a.json")
        figures = json.loads((tmp_path / "a.json").read_text())["figures"]
        assert len(figures) == len(found.figures)
        write_analysis(found, tmp_path / "a.md")
        assert "| third-method |" in (tmp_path / "a.md").read_text()
        with pytest.raises(UserError, match=r"--output ends in .md or .json, got .*a.txt"):
            write_analysis(found, tmp_path / "a.txt")

    def test_the_command_prints_tables_and_writes_ratings(self, studies, runs, tmp_path, capsys):
        folder = tmp_path / "study"
        folder.mkdir()
        for name in ("study.json", "key.json"):
            (folder / name).symlink_to(studies["likert"] / name)
        words = ["evaluate", "study", "analyse", str(folder)]
        assert cli.main(words) == 2
        assert "nobody has answered" in capsys.readouterr().err
        with AnswerFile(folder) as file:
            file.append(simulated(folder, likert))
        assert cli.main([*words, "--write_ratings"]) == 2
        assert "--write_ratings needs the --runs" in capsys.readouterr().err
        run = copied(runs[0], tmp_path)
        flags = ["--runs", str(run.folder), "--write_ratings", "--draws", "100"]
        assert cli.main([*words, *flags, "--output", str(tmp_path / "a.md")]) == 0
        out = capsys.readouterr().out
        assert "Means, from 1 to 5" in out
        assert "wrote 18 ratings to 1 runs" in out
        assert (tmp_path / "a.md").exists()
