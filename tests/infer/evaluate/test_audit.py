"""The audit of a judge: figures by hand, corrected yields, probes, and the messages."""

import dataclasses
import json
from typing import Any, Literal

import numpy as np
import pytest
from PIL import Image as PilImage

from dsd_jax.cli import main
from dsd_jax.errors import UserError
from dsd_jax.infer.evaluate.audit import (
    against_others,
    against_probes,
    against_swaps,
    channels,
    open_audited,
    with_itself,
)
from dsd_jax.infer.evaluate.audit_labels import against_labels, shortfalls
from dsd_jax.infer.evaluate.benches import toy
from dsd_jax.infer.evaluate.benches.registry import prepare
from dsd_jax.infer.evaluate.benches.source import Source
from dsd_jax.infer.evaluate.cases import Case, Picture, read_cases, write_cases
from dsd_jax.infer.evaluate.labels import Label, Place, read_labels
from dsd_jax.infer.evaluate.probes import write_probes
from dsd_jax.infer.evaluate.ratings import Rating, State, write_ratings
from dsd_jax.infer.evaluate.runs import Image, Run, open_run, write_run
from dsd_jax.toy.score import from_tags
from dsd_jax.toy.world import Scene, Subject

DIGEST = "0" * 64


def written(folder, verdicts, *, tags=None, categories=None, settings=None, method="ours") -> Run:
    """A run whose judges gave `verdicts`: (judge, aspect) -> answers by case and round.

    An answer is y, n or another letter for an answer without a score.
    """
    names = sorted({name for own in verdicts.values() for name in own})
    cases = [
        Case(
            name, "jsonl", name, "a prompt", (Picture(folder / "r.png", DIGEST),),
            category=(categories or {}).get(name, ""), tags=(tags or {}).get(name, {}),
        )
        for name in names
    ]  # fmt: skip
    images = [Image(name, 0, folder / f"{name}.png", DIGEST) for name in names]
    run = write_run(folder, method, cases, images, settings or {})
    ratings = []
    for (judge, aspect), own in verdicts.items():
        for name, answers in own.items():
            for number, answer in enumerate(answers):
                score = {"y": 3.0, "n": 2.0}.get(answer)
                state: State = "unparsable" if score is None else "ok"
                ratings.append(
                    Rating(name, 0, "split", aspect, judge, number, state, score, sha256=DIGEST)
                )
    write_ratings(folder, ratings)
    return run


def labelled(labels: dict[str, str], method: str = "ours") -> list[Label]:
    """A letter for each rater, by case: y, n or u."""
    words: dict[str, Literal["yes", "no", "unsure"]] = {"y": "yes", "n": "no", "u": "unsure"}
    return [
        Label(Place(method, case, 0), f"rater{number}", words[letter])
        for case, letters in labels.items()
        for number, letter in enumerate(letters)
    ]


def figures(findings, group="") -> dict[str, Any]:
    """Value and count by name."""
    return {
        each.name: (each.interval.value, each.count) for each in findings if each.group == group
    }


SAMPLE: dict[str, Any] = {
    "settings": {"population": {"accepted": 100, "others": 900}},
    "tags": {f"a{n}": {"stratum": "accepted"} for n in range(10)}
    | {f"b{n}": {"stratum": "others"} for n in range(10)},
}


class TestAgainstLabels:
    def judged(self, tmp_path, **changes):
        """Ten accepted images, eight of them rightly, and ten others, of which three are lost."""
        verdicts = {f"a{n}": "y" for n in range(10)} | {f"b{n}": "n" for n in range(10)}
        run = written(tmp_path, {("gpt", "identity"): verdicts}, **changes)
        labels = {f"a{n}": "y" if n < 8 else "n" for n in range(10)}
        labels |= {f"b{n}": "y" if n < 3 else "n" for n in range(10)}
        return run, labels

    def test_a_complete_sample_by_hand(self, tmp_path):
        run, labels = self.judged(tmp_path)
        found = figures(against_labels(channels([run], 0.75), labelled(labels), [run]))
        assert found["precision"] == (pytest.approx(0.8), 10)
        assert found["recall"] == (pytest.approx(8 / 11), 20)
        assert found["specificity"] == (pytest.approx(7 / 9), 20)
        assert found["kappa judge-human"][0] == pytest.approx(0.5)
        assert found["yield by the judge"] == (0.5, 20)
        assert found["yield, Rogan-Gladen"][0] == pytest.approx(11 / 20)
        assert found["yield, PPI"][0] == pytest.approx(11 / 20)
        assert "kappa human-human" not in found  # one rater

    def test_a_sample_stands_for_the_population_that_it_was_drawn_from(self, tmp_path):
        run, labels = self.judged(tmp_path, **SAMPLE)
        found = figures(against_labels(channels([run], 0.75), labelled(labels), [run]))
        assert found["precision"] == (pytest.approx(0.8), 10)
        assert found["recall"][0] == pytest.approx(80 / (80 + 270))
        assert found["specificity"][0] == pytest.approx(630 / (630 + 20))
        assert found["yield by the judge"] == (pytest.approx(0.1), 1000)
        assert found["yield, Rogan-Gladen"][0] == pytest.approx(0.35)
        assert found["yield, PPI"][0] == pytest.approx(0.35)

    def test_another_judge_of_a_sample_is_weighted_by_how_it_was_drawn(self, tmp_path):
        run, labels = self.judged(tmp_path, **SAMPLE)
        # It accepts a0 to a4, all rightly, and b2 and b3, one of them rightly.
        accepted = {"a0", "a1", "a2", "a3", "a4", "b2", "b3"}
        verdicts = {case.id: "y" if case.id in accepted else "n" for case in run.cases}
        written(tmp_path, {("new", "identity"): verdicts}, **SAMPLE)
        found = figures(against_labels(channels([run], 0.75), labelled(labels), [run]))
        assert found["precision"][0] == pytest.approx((50 + 90) / (50 + 180))
        assert found["recall"][0] == pytest.approx((50 + 90) / (80 + 270))
        assert found["yield by the judge"][0] == pytest.approx(0.23)
        assert found["yield, PPI"][0] == pytest.approx(0.35, abs=0.03)  # of whole verdicts

    def test_strata_without_labels_are_told(self, tmp_path):
        categories = {f"{letter}{n}": "ab"[n == 9] for letter in "ab" for n in range(10)}
        run, labels = self.judged(tmp_path, categories=categories)
        del labels["b9"]
        found = figures(against_labels(channels([run], 0.75), labelled(labels), [run]))
        assert found["in strata without labels"] == (0.05, 20)

    def test_figures_of_every_category(self, tmp_path):
        categories = {
            f"{letter}{n}": "cat" if n < 5 else "dog" for letter in "ab" for n in range(10)
        }
        run, labels = self.judged(tmp_path, categories=categories)
        found = against_labels(channels([run], 0.75), labelled(labels), [run])
        assert figures(found, "cat")["precision"] == (1.0, 5)
        assert figures(found, "dog")["precision"] == (pytest.approx(0.6), 5)
        assert figures(found, "cat")["recall"][0] == pytest.approx(5 / 8)

    def test_most_raters_decide_and_the_others_are_counted(self, tmp_path):
        run = written(tmp_path, {("gpt", "cp"): {"a": "y", "b": "y", "c": "n", "d": "n"}})
        labels = labelled({"a": "yyn", "b": "ynu", "c": "nnu", "d": "uuu"})
        found = figures(against_labels(channels([run], 0.75), labels, [run]))
        assert found["precision"] == (1.0, 1)
        assert found["labels without a majority"] == (0.5, 4)
        # a: yes, yes, no; c: no, no. Of 8 ordered pairs 4 agree; without unsure ones.
        assert found["kappa human-human"][1] == 2

    def test_the_interval_of_a_recall_holds_it_in_95_of_100_audits(self, tmp_path):
        rng = np.random.default_rng(0)
        tags = SAMPLE["tags"]
        sizes = {"population": {"accepted": 300, "others": 700}}
        run, _ = self.judged(tmp_path, settings=sizes, tags=tags)
        answers = channels([run], 0.75)
        names = [*(f"a{n}" for n in range(10)), *(f"b{n}" for n in range(10))]
        truth = 300 * 0.8 / (300 * 0.8 + 700 * 0.2)
        held = []
        for _ in range(30):
            drawn = {
                name: "y" if rng.random() < (0.8 if name < "b" else 0.2) else "n" for name in names
            }
            (recall,) = (
                each.interval
                for each in against_labels(answers, labelled(drawn), [run])
                if each.name == "recall"
            )
            held.append(recall.low <= truth <= recall.high)
        assert np.mean(held) >= 0.9

    def test_labels_on_one_side_alone_are_refused(self, tmp_path):
        run, labels = self.judged(tmp_path)
        answers = channels([run], 0.75)
        accepted = {name: label for name, label in labels.items() if name < "b"}
        with pytest.raises(
            UserError, match="did not accept has a label of yes or no, so there is no recall"
        ):
            against_labels(answers, labelled(accepted), [run])
        others = {name: label for name, label in labels.items() if name > "b"}
        with pytest.raises(UserError, match="the judge accepted has a label"):
            against_labels(answers, labelled(others), [run])

    def test_too_few_labels_say_how_many_are_needed(self, tmp_path):
        run, labels = self.judged(tmp_path)
        found = against_labels(channels([run], 0.75), labelled(labels), [run])
        (said,) = shortfalls(found, 0.02)
        assert "10 labelled images that the judge accepted give precision ± 0.2" in said
        assert said.endswith("± 0.02 needs about 1537")
        assert shortfalls(found, 0.3) == []


class TestVerdicts:
    def test_a_rating_is_a_yes_from_a_part_of_its_scale(self, tmp_path):
        run = written(tmp_path, {("gpt", "cp"): {"a": "y", "b": "n"}})
        for least, expected in ((0.75, ["yes", "no"]), (0.5, ["yes", "yes"]), (1, ["no", "no"])):
            (own,) = channels([run], least).values()
            assert [each.verdict for each in own.values()] == expected
        with pytest.raises(UserError, match="--least is a part of the scale"):
            channels([run], 0)

    def test_most_rounds_decide(self, tmp_path):
        run = written(tmp_path, {("gpt", "cp"): {"a": "yyn", "b": "yn", "c": "x", "d": "nnx"}})
        (own,) = channels([run], 0.75).values()
        assert [each.verdict for each in own.values()] == ["yes", "undecided", "undecided", "no"]

    def test_a_rating_of_an_image_that_has_changed_does_not_count(self, tmp_path):
        run = written(tmp_path, {("gpt", "cp"): {"a": "y"}})
        old = Rating("a", 0, "split", "cp", "old", 0, "ok", 4, sha256="1" * 64)
        write_ratings(tmp_path, [old])
        with pytest.raises(UserError, match="no judge has rated these runs"):
            channels([run], 0.75)

    def test_aspects_that_ask_something_else_are_left_out(self, tmp_path):
        run = written(tmp_path, {("gpt", "cp"): {"a": "y"}, ("gpt", "pf"): {"a": "n"}})
        assert [channel.aspect for channel in channels([run], 0.75)] == ["cp"]
        assert [channel.aspect for channel in channels([run], 0.75, ("pf",))] == ["pf"]
        with pytest.raises(UserError, match="the ratings are of cp, pf, not of novelty; name the"):
            channels([run], 0.75, ("novelty",))


class TestConsistency:
    def test_rounds(self, tmp_path):
        run = written(tmp_path, {("gpt", "cp"): {"a": "yyyy", "b": "yynn", "c": "nnnn", "d": "y"}})
        found = figures(with_itself(channels([run], 0.75)))
        assert found["flips within 4 rounds"] == (pytest.approx(1 / 3), 3)
        assert found["entropy, bits"][0] == pytest.approx(1 / 3)

    def test_orders(self, tmp_path):
        asked = {"a": "y", "b": "y", "c": "n", "d": "y"}
        swapped = {"a": "y", "b": "n", "c": "n", "d": "n"}
        run = written(tmp_path, {("gpt", "same"): asked, ("gpt", "same-swapped"): swapped})
        found = figures(against_swaps(channels([run], 0.75)))
        assert found["same verdict in both orders"] == (0.5, 4)
        assert found["yes as asked, where it flips"] == (1.0, 2)

    def test_judges_of_one_question_are_compared(self, tmp_path):
        run = written(
            tmp_path,
            {
                ("gpt", "cp"): {"a": "y", "b": "n", "c": "y", "d": "n"},
                ("gemini", "cp"): {"a": "y", "b": "n", "c": "n", "d": "y"},
                ("gemini", "pf"): {"a": "y"},
            },
        )
        (found,) = against_others(channels([run], 0.75))
        assert (found.judge, found.group) == ("split, cp", "gemini and gpt")
        assert found.interval.value == pytest.approx(0)

    def test_three_judges_have_an_alpha(self, tmp_path):
        verdicts = {"a": "y", "b": "n", "c": "y", "d": "n"}
        run = written(tmp_path, {(judge, "cp"): verdicts for judge in ("gpt", "gemini", "qwen")})
        found = against_others(channels([run], 0.75))
        assert [each.name for each in found] == ["kappa", "kappa", "kappa", "alpha"]
        assert {each.interval.value for each in found} == {1}

    def test_probes(self, tmp_path):
        tags = {
            "a": {"probe": "identical", "expected": "yes"},
            "b": {"probe": "identical", "expected": "yes"},
            "c": {"probe": "other-subject", "expected": "no"},
            "d": {},
        }
        run = written(
            tmp_path, {("gpt", "cp"): {"a": "y", "b": "n", "c": "n", "d": "y"}}, tags=tags
        )
        found = against_probes(channels([run], 0.75))
        assert figures(found, "identical") == {"answers yes": (0.5, 2)}
        assert figures(found, "other-subject") == {"answers no": (1.0, 1)}


class TestLabels:
    PLACES = (Place("ours", "a", 0), Place("ours", "b", 0), Place("ours", "b", 1))

    def read(self, tmp_path, text, places=PLACES):
        path = tmp_path / "labels.csv"
        path.write_text(text)
        return read_labels(path, places)

    def test_a_table(self, tmp_path):
        found = self.read(tmp_path, "id,rater,label,sample\na,anna,Yes,\nb,anna,unsure,1\n")
        assert found == [
            Label(Place("ours", "a", 0), "anna", "yes"),
            Label(Place("ours", "b", 1), "anna", "unsure"),
        ]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("id,rater,label\na,anna,yes\na,bert,no\na,anna,no\n",
             "row 3: rater anna labelled a before, in row 1; remove one label, or give two people"),
            ("id,rater,label\na,anna,yes\nz,anna,no\n",
             r"1 labels are about images that the runs do not have \(z/0\)"),
            ("id,rater,label\na,anna,maybe\n", "row 1: label is yes, no or unsure, got 'maybe'"),
            ("id,rater,label\na,,yes\n", "row 1 has no rater"),
            ("id,rater,label,sample\na,anna,yes,-1\n", "sample is the number of an image"),
            ("id,rater,lable\na,anna,yes\n", "column 'lable'; .* did you mean 'label'[?]$"),
            ("id,rater,label\n", "no labels|no rows|empty"),
        ],
    )  # fmt: skip
    def test_what_does_not_fit_is_named(self, tmp_path, text, message):
        with pytest.raises(UserError, match=message):
            self.read(tmp_path, text)

    def test_labels_of_several_runs_name_the_method(self, tmp_path):
        places = (*self.PLACES, Place("theirs", "a", 0))
        with pytest.raises(UserError, match="has no method, which labels of several runs need"):
            self.read(tmp_path, "id,rater,label\na,anna,yes\n", places)
        (found,) = self.read(tmp_path, "id,rater,label,method\na,anna,no,theirs\n", places)
        assert found.place.method == "theirs"


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    """Toy cases with masks."""
    folder = tmp_path_factory.mktemp("toys")
    prepare("toy", Source((), folder / "pictures", 4), folder / "cases.jsonl")
    return folder / "cases.jsonl"


class TestProbes:
    def test_kinds_of_a_toy_and_their_answers(self, toys, tmp_path):
        run = write_probes(toys, tmp_path / "probes", 2, seed=1)
        assert len({case.subject for case in run.cases}) == 2
        answers = {case.tags["probe"]: case.tags["expected"] for case in run.cases}
        assert {kind for kind, expected in answers.items() if expected == "yes"} == {
            "identical", "mirrored", "recompressed", "brightened", "another-picture",
            "0-attributes-changed",
        }  # fmt: skip
        assert {kind for kind, expected in answers.items() if expected == "no"} == {
            "other-subject", "other-subject-with-text", "other-subject-framed",
            "other-subject-same-background", "1-attributes-changed", "2-attributes-changed",
            "3-attributes-changed", "4-attributes-changed",
        }  # fmt: skip
        references = [np.asarray(PilImage.open(case.reference.path)) for case in read_cases(toys)]
        pictures = {image.case: np.asarray(PilImage.open(image.path)) for image in run.images}
        for case in run.cases:
            own, shown = np.asarray(PilImage.open(case.reference.path)), pictures[case.id]
            match case.tags["probe"]:
                case "identical":
                    np.testing.assert_array_equal(shown, own)
                case "mirrored":
                    np.testing.assert_array_equal(shown, own[:, ::-1])
                case "other-subject":
                    assert (shown != own).any()
                    assert any((shown == other).all() for other in references)

    def test_toys_change_in_as_many_attributes_as_they_say(self, toys, monkeypatch):
        drawn: list[tuple[Subject, Scene]] = []

        def render(subject, scene):
            drawn.append((subject, scene))
            return np.zeros((32, 32, 3), np.uint8)

        monkeypatch.setattr(toy, "render", render)
        case = read_cases(toys)[0]
        own = from_tags(case.id, case.tags)
        numbers = [number for number, _ in toy.changed_toys(case, np.random.default_rng(0))]
        assert numbers == [0, 1, 2, 3, 4]
        for number, (subject, scene) in zip(numbers, drawn, strict=True):
            pairs = zip(dataclasses.astuple(subject), dataclasses.astuple(own.subject), strict=True)
            assert sum(one != other for one, other in pairs) == number
            assert scene == own.after
            assert subject.body != subject.mark

    def test_the_background_stays_when_another_subject_is_pasted(self, toys, tmp_path):
        run = write_probes(toys, tmp_path / "probes", 2, seed=1)
        (case, *_) = [case for case in run.cases if case.id.endswith("same-background")]
        path = {image.case: image.path for image in run.images}[case.id]
        reference, probe = (np.asarray(PilImage.open(p)) for p in (case.reference.path, path))
        assert case.reference.mask is not None
        mask = np.asarray(PilImage.open(case.reference.mask).convert("L")) > 0
        down, across = np.nonzero(mask)
        outside = np.ones(mask.shape, bool)  # of the subject's box and the pixel around it
        outside[down.min() - 1 : down.max() + 2, across.min() - 1 : across.max() + 2] = False
        assert outside.any()
        np.testing.assert_array_equal(probe[outside], reference[outside])
        assert (probe[mask] != reference[mask]).any()

    def test_photographs_without_masks_have_the_other_kinds(self, tmp_path):
        cases = []
        for number in range(2):
            path = tmp_path / f"{number}.png"
            PilImage.new("RGB", (40, 30), (number * 99, 9, 9)).save(path)
            cases.append(
                Case(f"c{number}", "mine", f"s{number}", "a cat", (Picture(path, DIGEST),))
            )
        write_cases(tmp_path / "cases.jsonl", cases)
        run = write_probes(tmp_path / "cases.jsonl", tmp_path / "probes", 1, seed=0)
        kinds = {case.tags["probe"] for case in run.cases}
        assert kinds == {
            "identical", "mirrored", "recompressed", "brightened", "other-subject",
            "other-subject-with-text", "other-subject-framed",
        }  # fmt: skip

    def test_too_many_subjects_are_refused(self, toys, tmp_path):
        subjects = len({case.subject for case in read_cases(toys)})
        with pytest.raises(UserError, match=f"--count is 99, but .* has {subjects} subjects"):
            write_probes(toys, tmp_path / "probes", 99, seed=0)


class TestCommand:
    def test_it_prints_and_writes_all_tables(self, tmp_path, capsys):
        verdicts = {("gpt", "cp"): {"a": "yy", "b": "yn", "c": "nn", "p": "yy"}}
        written(tmp_path / "run", verdicts, tags={"p": {"probe": "identical", "expected": "yes"}})
        (tmp_path / "labels.csv").write_text("id,rater,label\na,anna,yes\nb,anna,no\nc,anna,no\n")
        words = [
            "evaluate",
            "audit",
            str(tmp_path / "run"),
            "--labels",
            str(tmp_path / "labels.csv"),
        ]
        assert main([*words, "--output", str(tmp_path / "audit.md")]) == 0
        said = capsys.readouterr().out
        assert "Against labels of people: gpt: split, cp" in said
        assert "± 0.02 needs about" in said
        page = (tmp_path / "audit.md").read_text()
        assert "| all | precision | 1.000 (0.207 to 1.000) | 1 |" in page
        assert main([*words, "--output", str(tmp_path / "audit.json")]) == 0
        found = json.loads((tmp_path / "audit.json").read_text())["findings"]
        assert {each["table"] for each in found} == {"labels", "itself", "probes"}
        assert {each["name"]: each["low"] for each in found}["entropy, bits"] is None

    def test_without_labels_it_says_what_is_not_known(self, tmp_path, capsys):
        written(tmp_path / "run", {("gpt", "cp"): {"a": "y"}})
        assert main(["evaluate", "audit", str(tmp_path / "run")]) == 0
        assert "nothing is known of precision and recall" in capsys.readouterr().out

    def test_mistakes_are_told_before_the_work(self, tmp_path, capsys):
        written(tmp_path / "run", {("gpt", "cp"): {"a": "y"}})
        run = str(tmp_path / "run")
        assert main(["evaluate", "audit", run, "--output", "audit.txt"]) == 2
        assert "--output ends in .md or .json" in capsys.readouterr().err
        with pytest.raises(UserError, match="are both called `ours`"):
            open_audited([tmp_path / "run", tmp_path / "run"])
        with pytest.raises(UserError, match="give the folder of one run or more"):
            open_audited([])

    def test_probes_become_a_run(self, toys, tmp_path, capsys):
        words = ["evaluate", "audit", "probes", str(toys), "--output_dir", str(tmp_path / "p")]
        assert main([*words, "--count", "2"]) == 0
        assert "28 probes of 14 kinds" in capsys.readouterr().out
        assert open_run(tmp_path / "p").method == "probes"
