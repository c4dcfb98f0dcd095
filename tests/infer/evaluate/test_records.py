"""Files of an evaluation: what is written is read again, and what does not fit is refused."""

import dataclasses
import json

import pytest

from dsd_jax.errors import UserError
from dsd_jax.infer.evaluate.cases import Case, Picture, read_cases, write_cases
from dsd_jax.infer.evaluate.ratings import Rating, read_ratings, write_ratings
from dsd_jax.infer.evaluate.runs import Image, open_run, open_runs, write_run
from dsd_jax.infer.evaluate.scores import Score, metrics_of, read_scores, write_scores


@pytest.fixture
def cases(tmp_path):
    picture = Picture(tmp_path / "bench" / "a.png", "0" * 64, mask=tmp_path / "masks" / "a.png")
    other = Picture(tmp_path / "bench" / "b.png", "1" * 64)
    return [
        Case("a-0", "jsonl", "a", "a cat on a chair", (picture, other), tags={"size": "small"}),
        Case(
            "a-1", "jsonl", "a", "ein Kätzchen", (picture,), (other,), "animal", 1, "style", "cat"
        ),
    ]


def image(path, case="a-0", sample=0):
    return Image(case, sample, path, "2" * 64, seed=7)


class TestCases:
    def test_cases_are_read_as_they_were_written(self, cases, tmp_path):
        write_cases(tmp_path / "bench" / "cases.jsonl", cases)
        assert read_cases(tmp_path / "bench" / "cases.jsonl") == cases

    def test_pictures_beside_the_file_move_with_it(self, cases, tmp_path):
        write_cases(tmp_path / "bench" / "cases.jsonl", cases)
        (tmp_path / "bench").rename(tmp_path / "moved")
        moved = read_cases(tmp_path / "moved" / "cases.jsonl")
        assert moved[0].reference.path == tmp_path / "moved" / "a.png"
        assert moved[0].reference.mask == tmp_path / "masks" / "a.png"

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"id": "../a"}, "the id of a case is a file name"),
            ({"references": []}, "case a-0 has no reference picture"),
            ({"prompt": None}, "`prompt`: input should be a valid string"),
            ({"extra": 1}, "unknown key `extra`"),
        ],
    )
    def test_a_case_that_cannot_be_is_named(self, cases, tmp_path, fields, message):
        write_cases(tmp_path / "cases.jsonl", cases[:1])
        line = json.loads((tmp_path / "cases.jsonl").read_text()) | fields
        (tmp_path / "cases.jsonl").write_text(json.dumps(line))
        with pytest.raises(UserError, match=f"cases.jsonl line 1: .*{message}"):
            read_cases(tmp_path / "cases.jsonl")

    def test_no_case_and_a_case_twice_are_refused(self, cases, tmp_path):
        write_cases(tmp_path / "twice.jsonl", [cases[0], cases[0]])
        with pytest.raises(UserError, match=r"twice.jsonl line 2: the id a-0 is there twice"):
            read_cases(tmp_path / "twice.jsonl")
        write_cases(tmp_path / "none.jsonl", [])
        with pytest.raises(UserError, match="has no cases; make it with `dsd evaluate prepare`"):
            read_cases(tmp_path / "none.jsonl")


class TestRun:
    def test_a_run_is_read_as_it_was_written(self, cases, tmp_path):
        made = [image(tmp_path / "run" / "i.png", "a-1"), image(tmp_path / "far.png")]
        run = write_run(tmp_path / "run", "ours", cases, made, {"steps": 28})
        assert (run.method, run.cases, run.settings) == ("ours", cases, {"steps": 28})
        assert run.images == [made[1], made[0]]
        assert run.missing == []

    def test_cases_without_an_image_are_missing(self, cases, tmp_path):
        run = write_run(tmp_path / "run", "ours", cases, [image(tmp_path / "i.png")], {})
        assert run.missing == ["a-1"]

    def test_a_folder_keeps_its_method_and_its_cases(self, cases, tmp_path):
        write_run(tmp_path / "run", "ours", cases, [], {})
        write_run(tmp_path / "run", "ours", cases, [image(tmp_path / "i.png")], {})
        with pytest.raises(UserError, match="holds a run of `ours`; choose another folder"):
            write_run(tmp_path / "run", "theirs", cases, [], {})
        with pytest.raises(UserError, match="holds a run of `ours` on other cases"):
            write_run(tmp_path / "run", "ours", cases[:1], [], {})

    def test_a_run_whose_files_do_not_fit_is_refused(self, cases, tmp_path):
        with pytest.raises(UserError, match=r"is no run: it has no run\.json"):
            open_run(tmp_path / "run")
        write_run(tmp_path / "run", "ours", cases, [image(tmp_path / "i.png")], {})
        write_cases(tmp_path / "run" / "cases.jsonl", [dataclasses.replace(cases[0], prompt="x")])
        with pytest.raises(UserError, match=r"cases.jsonl has changed since the run was made"):
            open_run(tmp_path / "run")
        write_cases(tmp_path / "run" / "cases.jsonl", cases)
        (tmp_path / "run" / "images.jsonl").write_text(
            '{"case": "zzz", "sample": 0, "path": "i.png", "sha256": ""}\n'
        )
        with pytest.raises(UserError, match=r"images.jsonl line 1: there is no case zzz"):
            open_run(tmp_path / "run")

    def test_runs_that_cannot_be_compared_are_refused(self, cases, tmp_path):
        for name, method, own in (("a", "x", cases), ("b", "x", cases), ("c", "y", cases[:1])):
            write_run(tmp_path / name, method, own, [], {})
        with pytest.raises(UserError, match="are both called `x`"):
            open_runs([tmp_path / "a", tmp_path / "b"])
        with pytest.raises(UserError, match="have other cases, so they cannot be compared"):
            open_runs([tmp_path / "a", tmp_path / "c"])


class TestScoresAndRatings:
    def test_scores_are_read_as_they_were_written(self, tmp_path):
        scores = [
            Score("a-0", 0, "2" * 64, "ok", 0.5),
            Score("a-1", 0, "3" * 64, "undefined", reason="no mask"),
        ]
        write_scores(tmp_path, "dino@dino-vits8", scores)
        assert read_scores(tmp_path, "dino@dino-vits8") == scores
        assert read_scores(tmp_path, "lpips@alex") == []
        assert metrics_of(tmp_path) == ["dino@dino-vits8"]

    def test_ratings_are_read_as_they_were_written_and_never_double(self, tmp_path):
        ratings = [
            Rating("a-0", 0, "split", "identity", "gpt", 0, "ok", 3.0, text="Größe passt\n3"),
            Rating("a-0", 0, "split", "identity", "gpt", 1, "refused"),
        ]
        assert read_ratings(tmp_path) == []
        write_ratings(tmp_path, ratings)
        assert read_ratings(tmp_path) == ratings
        write_ratings(tmp_path, [ratings[0], ratings[0]])
        with pytest.raises(UserError, match=r"ratings.jsonl line 2: .* on an earlier line too"):
            read_ratings(tmp_path)
