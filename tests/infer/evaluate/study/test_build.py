"""Studies are balanced, blind, and the same for the same seed."""

import dataclasses
import itertools
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from dsd_jax.errors import UserError
from dsd_jax.infer.evaluate.runs import Run
from dsd_jax.infer.evaluate.sampling import draw
from dsd_jax.infer.evaluate.study.build import StudySettings, build_study
from dsd_jax.infer.evaluate.study.design import CHECKS, Budget, lists_of
from dsd_jax.infer.evaluate.study.page import Delivery, page_text, write_page
from dsd_jax.infer.evaluate.study.record import read_key, read_study

CASES = [f"case-{number}" for number in range(20)]
METHODS = [f"method-{number}" for number in range(8)]


def planned(mode, raters=15, methods=METHODS, minutes=25.0, seed=0):
    budget = Budget(minutes, 24)
    return lists_of(mode, CASES, methods, budget, raters, np.random.default_rng(seed))


class TestDesign:
    @pytest.mark.parametrize("count", [3, 5, 8, 13])  # 3, 10, 28 and 78 pairs in 54 items
    def test_every_rater_sees_every_two_methods_equally_often(self, count):
        methods = [f"method-{number}" for number in range(count)]
        possible = [frozenset(pair) for pair in itertools.combinations(methods, 2)]
        lists = planned("pair", 13, methods)
        for units in [*lists, list(itertools.chain(*lists))]:
            counts = Counter(frozenset(unit.methods) for unit in units)
            often = [counts[pair] for pair in possible]
            assert max(often) - min(often) <= 1
            assert len({(unit.case, unit.methods) for unit in units}) >= min(len(units), 54)

    @pytest.mark.parametrize("mode", ["likert", "same"])
    def test_a_rater_sees_all_methods_of_a_case_or_none(self, mode):
        for units in planned(mode):
            cases = {unit.case for unit in units}
            both = itertools.product(cases, METHODS)
            assert Counter((unit.case, *unit.methods) for unit in units) == Counter(both)

    @pytest.mark.parametrize("mode", ["likert", "pair", "same"])
    def test_everything_is_rated_equally_often_give_or_take_one(self, mode):
        units = [unit for units in planned(mode, 31) for unit in units]
        counts = Counter((unit.case, frozenset(unit.methods)) for unit in units)
        assert len(counts) == len(CASES) * (28 if mode == "pair" else 8)
        assert max(counts.values()) - min(counts.values()) <= 1

    def test_without_a_number_of_raters_everything_has_three(self):
        units = [unit for units in planned("likert", None) for unit in units]
        counts = Counter((unit.case, unit.methods) for unit in units)
        assert set(counts.values()) <= {3, 4}

    def test_pictures_of_one_case_are_far_from_each_other(self):
        for units in planned("likert"):
            assert all(a.case != b.case for a, b in itertools.pairwise(units))

    def test_a_list_fits_its_time(self):
        for seconds in (3, 7.5, 24, 100):
            budget = Budget(25, seconds)
            units = budget.units
            assert (units + budget.repeats(units) + CHECKS) * seconds <= 25 * 60
            assert budget.repeats(units) / units == pytest.approx(0.1, abs=0.08)

    def test_strata_are_drawn_in_proportion_and_without_order(self):
        strata: dict[tuple[str, ...], list[int]]
        strata = {("a",): list(range(45)), ("b",): list(range(20)), ("c",): list(range(65))}
        drawn = draw(strata, 26, np.random.default_rng(0))
        assert {name: len(members) for name, members in drawn.items()} == {
            ("a",): 9,
            ("b",): 4,
            ("c",): 13,
        }
        assert drawn[("a",)] != list(range(9))

    @pytest.mark.parametrize(
        ("mode", "methods", "minutes", "message"),
        [
            ("pair", METHODS[:1], 25, "--mode pair compares two methods; give two runs at least"),
            ("likert", METHODS, 3, r"3 minutes hold 4 items of 24 s, fewer than the 8 pictures"),
            ("pair", METHODS, 0.5, r"0.5 minutes hold 0 items"),
        ],
    )
    def test_what_cannot_be_planned_is_refused(self, mode, methods, minutes, message):
        with pytest.raises(UserError, match=message):
            planned(mode, 1, methods, minutes)


class TestBuild:
    def test_the_same_seed_gives_the_same_study_byte_by_byte(self, runs, tmp_path):
        contents = {}
        for name, seed in (("a", 1), ("b", 1), ("c", 2)):
            build_study(runs, tmp_path / name, StudySettings(cases=3, minutes=5, seed=seed))
            write_page(tmp_path / name, tmp_path / name / "page", Delivery())
            files = (path for path in (tmp_path / name).rglob("*") if path.is_file())
            contents[name] = {
                path.relative_to(tmp_path / name): path.read_bytes() for path in files
            }
        assert contents["a"] == contents["b"]
        assert (
            contents["a"]
            .keys()
            .isdisjoint(path for path in contents["c"] if path.parent.name == "pictures")
        )

    @pytest.mark.parametrize("mode", ["likert", "pair", "same"])
    def test_a_list_has_repeats_and_two_checks(self, studies, mode):
        study, key = read_study(studies[mode]), read_key(studies[mode])
        for number, items in enumerate(study.lists):
            keyed = [key.items[item.id] for item in items]
            assert {each.list for each in keyed} == {number}
            assert sum(bool(each.expected) for each in keyed) == CHECKS
            places = {item.id: place for place, item in enumerate(items)}
            repeats = [(place, each) for place, each in enumerate(keyed) if each.repeats]
            assert repeats
            for place, each in repeats:
                first = keyed[places[each.repeats]]
                assert places[each.repeats] < place - 1
                assert (first.case, first.shown) == (each.case, each.shown[::-1])

    def test_sides_are_balanced_and_a_repeat_has_the_other_one(self, studies):
        key = read_key(studies["pair"])
        lefts = Counter(item.shown[0].method < item.shown[1].method for item in key.rated.values())
        assert lefts[True] == pytest.approx(lefts[False], abs=len(key.methods) * 6)

    def test_checks_have_an_answer_that_nobody_who_looks_can_miss(self, studies, runs):
        subjects = {case.id: case.subject for case in runs[0].cases}
        for mode, question in (("likert", "creativity"), ("pair", "cp"), ("same", "same")):
            key = read_key(studies[mode])
            for item in key.items.values():
                copies = [subjects[shown.case] == subjects[item.case] for shown in item.shown]
                match item.expected:
                    case {"creativity": values}:
                        assert (copies, values) == ([True], ("1", "2"))
                    case {"cp": ("a",) | ("b",) as values}:
                        assert copies == [values == ("a",), values == ("b",)]
                    case {"cp": values}:
                        assert (copies, values) == ([False], ("1", "2"))
                    case {"same": values}:
                        assert values == (("yes",) if copies[0] else ("no",))
            assert any(question in item.expected for item in key.items.values())

    def test_cases_are_those_with_an_image_of_every_method(self, runs, tmp_path):
        short = dataclasses.replace(runs[1], images=runs[1].images[1:])
        build_study([runs[0], short], tmp_path / "five", StudySettings(cases=5, minutes=9))
        assert {item.case for item in read_key(tmp_path / "five").items.values()} == {
            f"case-{number}" for number in range(1, 6)
        }
        with pytest.raises(UserError, match="--cases is 6, but 5 cases have an image of every run"):
            build_study([runs[0], short], tmp_path / "six", StudySettings(cases=6))
        assert not (tmp_path / "six").exists()

    def test_strata_and_their_sizes_are_in_the_key(self, runs, tmp_path):
        settings = StudySettings(cases=3, strata=("category", "size"), minutes=9)
        _, key = build_study(runs, tmp_path / "study", settings)
        assert key.strata == {"animal/small": (2, 1), "object/small": (4, 2)}
        with pytest.raises(UserError, match="--strata: case case-0 has no colour; known are cat"):
            build_study(runs, tmp_path / "x", StudySettings(cases=3, strata=("colour",)))

    def test_one_subject_alone_is_refused(self, runs, tmp_path):
        few = [dataclasses.replace(run, cases=run.cases[:2], images=run.images[:2]) for run in runs]
        with pytest.raises(UserError, match="all cases drawn show subject-0; attention checks"):
            build_study(few, tmp_path / "study", StudySettings(cases=2))

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"minutes": 0.0}, "--minutes is at least 0.1, got 0.0"),
            ({"minutes": float("nan")}, "--minutes is at least 0.1, got nan"),
            ({"seconds_per_item": -1.0}, "--seconds_per_item is at least 0.1, got -1.0"),
            ({"raters": 0}, "--raters is at least 1, got 0"),
            ({"side": 8}, "--side is at least 16, got 8"),
        ],
    )
    def test_impossible_sizes_are_refused(self, fields, message):
        with pytest.raises(UserError, match=message):
            StudySettings(**fields)

    def test_a_folder_with_files_and_no_runs_are_refused(self, runs, studies):
        with pytest.raises(UserError, match="is not empty; choose a new folder for the study"):
            build_study(runs, studies["same"], StudySettings())
        with pytest.raises(UserError, match="give the folder of one run or more"):
            build_study([], studies["same"], StudySettings())

    def test_an_image_that_changed_or_vanished_is_named(self, runs, tmp_path):
        image = dataclasses.replace(runs[0].images[0], sha256="0" * 64)
        others = runs[0].images[1:]
        changed = dataclasses.replace(runs[0], images=[image, *others])
        with pytest.raises(UserError, match=r"case-0.png has changed since it was listed"):
            build_study([changed], tmp_path / "a", StudySettings("same", cases=6))
        gone = dataclasses.replace(image, path=tmp_path / "gone.png")
        with pytest.raises(UserError, match=r"cannot read .*gone.png: No such file"):
            build_study(
                [dataclasses.replace(runs[0], images=[gone, *others])],
                tmp_path / "b",
                StudySettings("same", cases=6),
            )


def public(folder: Path) -> str:
    """All that a rater's browser gets."""
    study = read_study(folder)
    return page_text(study, Delivery(post="answers"))


class TestPage:
    @pytest.mark.parametrize("mode", ["likert", "pair", "same"])
    def test_nothing_in_the_page_tells_methods_or_cases_apart(self, studies, runs, mode):
        text = public(studies[mode])
        for run in runs:
            assert run.method not in text
            for image in run.images:
                assert image.sha256 not in text
                assert image.case not in text
        assert "expected" not in text.partition('id="data"')[2]
        names = {path.name for path in (studies[mode] / "pictures").iterdir()}
        assert all(re.fullmatch(r"[0-9a-f]{16}\.png", name) for name in names)

    def test_pictures_have_one_size_and_no_metadata(self, studies):
        for path in (studies["likert"] / "pictures").iterdir():
            with Pillow.open(path) as image:
                assert image.size == (32, 32)
                assert not image.info
                assert not image.getexif()

    def test_a_reference_and_its_copy_have_different_names(self, studies):
        study, key = read_study(studies["likert"]), read_key(studies["likert"])
        references = {item.reference for items in study.lists for item in items}
        rated = {name for items in study.lists for item in items for name in item.pictures}
        assert any(not shown.method for item in key.items.values() for shown in item.shown)
        assert not references & rated

    def test_places_in_lists_do_not_tell_methods(self, studies):
        """Over the lists, each method comes early as often as late."""
        study, key = read_study(studies["likert"]), read_key(studies["likert"])
        places: dict[str, list[int]] = {}
        for items in study.lists:
            rated = [key.items[item.id] for item in items if item.id in key.rated]
            for place, item in enumerate(rated):
                places.setdefault(item.shown[0].method, []).append(place)
        size = len(places[key.methods[0]]) * len(key.methods) / len(study.lists)
        for method in key.methods:
            assert np.mean(places[method]) == pytest.approx(size / 2, rel=0.35)

    def test_words_of_cases_stay_words(self, studies):
        text = public(studies["likert"])
        assert "<b>prompt" not in text
        assert "\\u003cb>prompt 0\\u003c/b>" in text

    def test_small_studies_are_one_file_and_large_ones_have_a_folder(
        self, studies, tmp_path, monkeypatch
    ):
        write_page(studies["same"], tmp_path / "one", Delivery())
        assert [path.name for path in (tmp_path / "one").iterdir()] == ["index.html"]
        text = (tmp_path / "one" / "index.html").read_text()
        assert "img-src data:;" in text
        assert "connect-src 'none'" in text
        monkeypatch.setattr("dsd_jax.infer.evaluate.study.page._INLINE", 1000)
        write_page(studies["same"], tmp_path / "many", Delivery())
        assert {path.name for path in (tmp_path / "many").iterdir()} == {"index.html", "pictures"}
        assert "data:image" not in (tmp_path / "many" / "index.html").read_text()

    def test_answers_go_nowhere_but_where_they_should(self, studies):
        study = read_study(studies["same"])
        text = page_text(study, Delivery("https://answers.example/x", turk=True))
        assert "connect-src https://answers.example;" in text
        assert "form-action https://www.mturk.com https://workersandbox.mturk.com;" in text

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"post": "http://x.example/"}, "--post must be an https:// address, got 'http://x"),
            ({"post": "javascript:alert(1)"}, "--post must be an https:// address"),
            ({"post": "https://a b/"}, "--post: 'a b' is not the name of a host"),
            ({"completion": "thanks.html"}, "--completion must be an https:// address"),
        ],
    )
    def test_other_addresses_are_refused(self, fields, message):
        with pytest.raises(UserError, match=message):
            Delivery(**fields)

    def test_a_folder_that_is_no_study_is_named(self, tmp_path):
        with pytest.raises(UserError, match=r"is no study: it has no study.json; make one with `d"):
            read_study(tmp_path)
        (tmp_path / "key.json").write_text(json.dumps({"schema": 1}))
        with pytest.raises(UserError, match=r"key.json: `study` is missing"):
            read_key(tmp_path)


def test_runs_of_one_folder_build_from_the_command_line(runs: list[Run], tmp_path, capsys):
    from dsd_jax import cli

    words = ["evaluate", "study", "build", *(str(run.folder) for run in runs)]
    flags = ["--output_dir", str(tmp_path / "study"), "--mode", "pair", "--cases", "3"]
    assert cli.main([*words, *flags]) == 0
    out = capsys.readouterr().out
    assert "3, each shown" in out
    assert (tmp_path / "study" / "page" / "index.html").exists()
