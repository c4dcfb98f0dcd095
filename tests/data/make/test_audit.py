"""The curation question before people and judges: samples, studies, questions and messages."""

import dataclasses
import json

import pytest

from dsd_jax.cli import main
from dsd_jax.data.make.audit import Asking, ask_runs, sample_run
from dsd_jax.data.make.ids import PairId
from dsd_jax.errors import UserError
from dsd_jax.infer.evaluate.audit import against_swaps, channels
from dsd_jax.infer.evaluate.audit_labels import against_labels
from dsd_jax.infer.evaluate.cases import TASK
from dsd_jax.infer.evaluate.labels import places_of, read_labels
from dsd_jax.infer.evaluate.queries import JudgeConfig
from dsd_jax.infer.evaluate.ratings import read_ratings
from dsd_jax.infer.evaluate.runs import Run, open_run
from dsd_jax.infer.evaluate.study.answers import Answer, AnswerFile
from dsd_jax.infer.evaluate.study.build import StudySettings, build_study
from dsd_jax.infer.evaluate.study.record import read_key
from dsd_jax.llm.config import ProviderConfig
from dsd_jax.llm.messages import Picture
from dsd_jax.tasks import task_named
from tests.data.make.made import write_folder

TOY = JudgeConfig(ProviderConfig("toy", "toy"))


@pytest.fixture(scope="module")
def making(tmp_path_factory):
    """Six grids with four judged pairs each: two kept, one rejected, one undecided."""
    folder = tmp_path_factory.mktemp("audit") / "making"
    write_folder(folder)
    return folder


@pytest.fixture
def asked(monkeypatch):
    """Questions that reach the toy model, whose answer depends on the order of pictures alone."""
    questions = []

    def answer(request):
        questions.append(request)
        pictures = [p for turn in request.messages for p in turn.parts if isinstance(p, Picture)]
        return "No" if pictures[0].sha256 < pictures[1].sha256 else "Yes"

    monkeypatch.setattr("dsd_jax.toy.provider.answer", answer)
    return questions


def states(run: Run) -> dict[str, int]:
    found: dict[str, int] = {}
    for rating in read_ratings(run.folder):
        word = rating.state if rating.score is None else ("no", "yes")[int(rating.score)]
        found[word] = found.get(word, 0) + 1
    return found


class TestSample:
    def test_half_of_it_was_accepted_and_the_rest_stands_for_all_others(self, making, tmp_path):
        run = sample_run(making, tmp_path / "sample", 12, seed=0)
        assert run.method == "curation"
        found = states(run)
        assert found["yes"] == 6
        assert sum(found.values()) == 12
        assert set(found) == {"yes", "no", "unparsable"}
        assert run.settings["population"] == {
            f"{task}, {verdict}": 6
            for task in ("identity", "relight")
            for verdict in ("accepted", "not accepted")
        }
        assert {case.category for case in run.cases} == {"identity", "relight"}
        for case in run.cases:
            assert PairId.parse(case.id).grid.prompt.task == case.category
            assert case.reference.path.exists()

    def test_a_seed_draws_the_same_pairs(self, making, tmp_path):
        one, other, third = (
            [case.id for case in sample_run(making, tmp_path / name, 8, seed).cases]
            for name, seed in (("a", 1), ("b", 1), ("c", 2))
        )
        assert one == other != third

    def test_all_pairs_can_be_drawn_but_no_more(self, making, tmp_path):
        assert len(sample_run(making, tmp_path / "all", 24, 0).cases) == 24
        with pytest.raises(UserError, match="--count is 25, but"):
            sample_run(making, tmp_path / "more", 25, 0)
        with pytest.raises(UserError, match="is not a work folder of `dsd data make`"):
            sample_run(tmp_path, tmp_path / "none", 2, 0)

    def test_people_label_it_in_a_study(self, making, tmp_path):
        run = sample_run(making, tmp_path / "sample", 12, seed=0)
        settings = StudySettings("same", cases=12, strata=("category",), raters=2)
        build_study([run], tmp_path / "study", settings)
        key = read_key(tmp_path / "study")
        accepted = {rating.case for rating in read_ratings(run.folder) if rating.score == 1}
        with AnswerFile(tmp_path / "study") as file:
            for name, item in key.items.items():
                label = "yes" if item.case in accepted else "no"
                if item.expected:  # the second rater fails a check
                    (wanted,) = item.expected["same"]
                    label = wanted if item.list == 0 else "unsure"
                file.append([Answer(key.study, f"rater{item.list}", "s", name, "same", label)])
        labels = read_labels(tmp_path / "study", places_of([run]))
        assert {label.rater for label in labels} == {"rater0"}
        assert len(labels) == sum(
            item.list == 0 and not item.expected and not item.repeats for item in key.items.values()
        )
        found = {
            each.name: each.interval.value
            for each in against_labels(channels([run], 0.75), labels, [run])
            if not each.group
        }
        assert found["precision"] == found["recall"] == found["kappa judge-human"] == 1

    def test_a_study_of_another_mode_is_refused(self, making, tmp_path):
        run = sample_run(making, tmp_path / "sample", 12, seed=0)
        build_study([run], tmp_path / "study", StudySettings(cases=12, strata=("category",)))
        with pytest.raises(UserError, match="is a study of mode likert; an audit needs"):
            read_labels(tmp_path / "study", places_of([run]))


class TestAsk:
    def test_rounds_and_orders_become_ratings(self, making, tmp_path, asked):
        run = sample_run(making, tmp_path / "sample", 6, seed=0)
        assert ask_runs([run], TOY, Asking(rounds=2, both_orders=True)) == [24]
        assert len(asked) == 24 * 3  # turns
        ratings = [each for each in read_ratings(run.folder) if each.judge == "toy"]
        assert {(each.aspect, each.round) for each in ratings} == {
            ("same", 0), ("same", 1), ("same-swapped", 0), ("same-swapped", 1),
        }  # fmt: skip
        assert {each.state for each in ratings} == {"ok"}
        answers = channels([run], 0.75)
        toy = {channel: own for channel, own in answers.items() if channel.judge == "toy"}
        (same, _) = against_swaps(toy)
        assert same.interval.value == 0  # the answer depends on the order alone

    def test_nothing_is_asked_twice(self, making, tmp_path, asked):
        run = sample_run(making, tmp_path / "sample", 4, seed=0)
        assert ask_runs([run], TOY, Asking()) == [4]
        before = len(asked)
        assert ask_runs([run], TOY, Asking()) == [0]
        assert ask_runs([run], TOY, Asking(rounds=2)) == [4]
        assert len(asked) == 2 * before

    def test_an_answer_that_is_neither_is_kept_as_such(self, making, tmp_path, monkeypatch):
        run = sample_run(making, tmp_path / "sample", 4, seed=0)
        monkeypatch.setattr("dsd_jax.toy.provider.answer", lambda request: "perhaps")
        ask_runs([run], TOY, Asking())
        own = [each for each in read_ratings(run.folder) if each.judge == "toy"]
        assert {(each.state, each.score, each.text) for each in own} == {
            ("unparsable", None, "perhaps")
        }

    def test_marks_by_aspect_count_as_yes_from_the_least(self, making, tmp_path, monkeypatch):
        run = sample_run(making, tmp_path / "sample", 4, seed=0)
        tasks = (task_named(case.tags["task"]) for case in run.cases)
        aspects = {aspect for task in tasks for aspect in task.asked().aspects}
        text = json.dumps(dict.fromkeys(aspects, 7))
        monkeypatch.setattr("dsd_jax.toy.provider.answer", lambda request: text)
        for least, expected in ((8, 0.0), (7, 1.0)):
            judge = dataclasses.replace(TOY, temperature=least / 10)
            ask_runs([run], judge, Asking(mode="scores", least=least))
            own = [each for each in read_ratings(run.folder) if each.judge == judge.name]
            assert {each.score for each in own} == {expected}

    def test_a_tag_of_a_benchmark_that_is_no_task_of_ours_is_asked_about_identity(
        self, making, tmp_path, asked
    ):
        run = sample_run(making, tmp_path / "sample", 1, seed=0)
        (case,) = run.cases
        other = dataclasses.replace(case, tags={TASK: "single_object"})
        assert ask_runs([dataclasses.replace(run, cases=(other,))], TOY, Asking()) == [1]
        assert len(asked) == 3

    def test_a_task_without_a_judge_is_refused_before_anything_is_asked(
        self, making, tmp_path, asked
    ):
        run = sample_run(making, tmp_path / "sample", 4, seed=0)
        tags = {**run.cases[0].tags, TASK: "depth"}
        cases = (dataclasses.replace(run.cases[0], tags=tags), *run.cases[1:])
        with pytest.raises(UserError, match=r"the task 'depth' has no judge: .* leave it out"):
            ask_runs([dataclasses.replace(run, cases=cases)], TOY, Asking())
        assert asked == []

    def test_an_image_that_has_changed_is_refused_before_anything_is_asked(
        self, making, tmp_path, asked
    ):
        run = sample_run(making, tmp_path / "sample", 4, seed=0)
        run.images[2].path.write_bytes(run.images[0].path.read_bytes())
        with pytest.raises(UserError, match="has changed since it was recorded"):
            ask_runs([run], TOY, Asking())
        assert asked == []

    def test_a_spent_budget_stops_and_keeps_what_was_answered(self, making, tmp_path, asked):
        run = sample_run(making, tmp_path / "sample", 4, seed=0)
        judge = tmp_path / "judge.toml"
        judge.write_text('[provider]\nkind = "toy"\nmodel = "toy"\nmax_in_flight = 1\n')
        words = ["evaluate", "audit", "ask", str(run.folder), "--judge", str(judge)]
        assert main([*words, "--max_calls", "7"]) == 2
        assert len(asked) <= 7
        assert main(words) == 0
        assert len(asked) == 4 * 3

    def test_rounds_are_counted_from_one(self):
        with pytest.raises(UserError, match="--rounds must be at least 1, got 0"):
            Asking(rounds=0)


def test_the_commands_build_ask_and_compare(making, tmp_path, asked, capsys):
    sample, judge = tmp_path / "sample", tmp_path / "judge.toml"
    judge.write_text('[provider]\nkind = "toy"\nmodel = "toy"\n')
    build = ["evaluate", "audit", "build", str(making), "--output_dir", str(sample)]
    assert main([*build, "--count", "8"]) == 0
    assert "wrote 8 judged pairs" in capsys.readouterr().out
    assert main(["evaluate", "audit", "ask", str(sample), "--judge", str(judge)]) == 0
    assert "8 new answers" in capsys.readouterr().out
    cases = open_run(sample).cases
    rows = [f"{case.id},anna,{'no' if place % 2 else 'yes'}" for place, case in enumerate(cases)]
    (tmp_path / "labels.csv").write_text("\n".join(["id,rater,label", *rows]))
    assert main(["evaluate", "audit", str(sample), "--labels", str(tmp_path / "labels.csv")]) == 0
    said = capsys.readouterr().out
    assert "Against labels of people: toy: curation by steps, wording v1, same" in said
    assert "Against other judges" in said
