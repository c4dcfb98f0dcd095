"""Answers that come as files count once and only if they belong; all others are listed."""

import csv
import dataclasses
import json
from pathlib import Path

import pytest

from dsd_jax import cli
from dsd_jax.errors import UserError
from dsd_jax.infer.evaluate.study.answers import Answer, read_answers
from dsd_jax.infer.evaluate.study.importer import import_answers
from dsd_jax.infer.evaluate.study.page import PAGE
from dsd_jax.infer.evaluate.study.platforms import completion_address, write_addresses
from dsd_jax.infer.evaluate.study.record import read_key, read_study


@pytest.fixture
def folder(studies: dict[str, Path], tmp_path: Path) -> Path:
    """A study without answers that a test may fill."""
    root = tmp_path / "study"
    root.mkdir()
    for name in ("study.json", "key.json", "pictures"):
        (root / name).symlink_to(studies["same"] / name)
    return root


def answers(folder: Path, rater: str, number: int = 0, *, attentive: bool = True, session="s1"):
    """All answers of a rater, as the page stores them."""
    key = read_key(folder)
    made = []
    for item in read_study(folder).lists[number]:
        expected = key.items[item.id].expected.get("same")
        given = expected[0] if expected and attentive else "yes"
        made.append(Answer(key.study, rater, session, item.id, "same", given))
    return [dataclasses.asdict(row) for row in made]


def lines(path: Path, *parts: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for rows in parts for row in rows))
    return path


def table(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def turk(rows: list[dict[str, object]], worker: str, assignment: str) -> dict[str, str]:
    """A row of Mechanical Turk's results."""
    return {
        "HITId": "h",
        "AssignmentId": assignment,
        "WorkerId": worker,
        "Answer.answers": json.dumps(rows),
    }


class TestImport:
    def test_files_of_the_page_are_imported_once(self, folder, tmp_path):
        path = lines(tmp_path / "a.jsonl", answers(folder, "anna"), answers(folder, "ben", 1))
        found = import_answers(folder, [path], partial=False)
        size = len(answers(folder, "anna"))
        assert (found.new, found.repeated, found.failed) == (2 * size, 0, [])
        assert list(found.raters) == ["anna", "ben"]
        again = import_answers(folder, [path], partial=False)
        assert (again.new, again.repeated) == (0, 2 * size)
        assert len(read_answers(folder).rows) == 2 * size

    def test_a_rater_who_fails_a_check_is_listed_and_kept(self, folder, tmp_path):
        rows = answers(folder, "hasty", attentive=False)
        found = import_answers(folder, [lines(tmp_path / "a.jsonl", rows)], partial=False)
        assert list(found.failed) == ["hasty"]
        assert read_answers(folder).failed == {"hasty"}

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"study": "other"}, "1 x .*a.jsonl: an answer to study other; this is "),
            ({"item": "x"}, "1 x .*a.jsonl: there is no item x"),
            (
                {"answer": "maybe"},
                "1 x .*a.jsonl: same is answered by no, unsure, yes, got 'maybe'",
            ),
            ({"rater": "a b"}, "1 x .*a.jsonl line 1: rater has 1 to 100 letters"),
            ({"extra": 1}, "1 x .*a.jsonl line 1: unknown key `extra`"),
        ],
    )
    def test_what_does_not_belong_is_listed_and_stops_the_import(
        self, folder, tmp_path, change, message
    ):
        first, *rest = answers(folder, "anna")
        path = lines(tmp_path / "a.jsonl", [first | change], rest)
        with pytest.raises(
            UserError, match=rf"1 answers are refused, so none was (.|\n)*{message}"
        ):
            import_answers(folder, [path], partial=False)
        assert read_answers(folder).rows == []
        found = import_answers(folder, [path], partial=True)
        assert found.new == len(rest)
        assert sum(found.refused.values()) == 1

    def test_a_study_answered_twice_counts_once(self, folder, tmp_path):
        rows = answers(folder, "anna")
        again = answers(folder, "anna", session="s2")
        path = lines(tmp_path / "a.jsonl", rows, again)
        with pytest.raises(
            UserError, match=r"rater anna answered list 0 a second time, or another"
        ):
            import_answers(folder, [path], partial=False)
        found = import_answers(folder, [path], partial=True)
        assert (found.new, sum(found.refused.values())) == (len(rows), len(again))

    def test_two_raters_with_one_id_are_told_apart(self, folder, tmp_path):
        path = lines(
            tmp_path / "a.jsonl",
            answers(folder, "anna"),
            answers(folder, "anna", 1, session="s2"),
        )
        with pytest.raises(UserError, match="two raters are called anna: one has list 0, one has"):
            import_answers(folder, [path], partial=False)

    def test_damaged_lines_are_listed(self, folder, tmp_path):
        path = tmp_path / "a.jsonl"
        path.write_text('{"study": \n[1]\n')
        with pytest.raises(UserError, match=r"line 1: not JSON(.|\n)*line 2: expected an object"):
            import_answers(folder, [path], partial=False)

    def test_no_file_and_other_files_are_messages(self, folder, tmp_path):
        with pytest.raises(UserError, match="give the files with the answers"):
            import_answers(folder, [], partial=False)
        path = table(tmp_path / "x.csv", [{"a": "1"}])
        with pytest.raises(UserError, match=r"x.csv has no column 'Answer.answers'; answers are"):
            import_answers(folder, [path], partial=False)


class TestPlatforms:
    def test_results_of_mechanical_turk_are_imported(self, folder, tmp_path):
        rows = answers(folder, "W1", session="A1")
        path = table(tmp_path / "batch.csv", [turk(rows, "W1", "A1")])
        assert import_answers(folder, [path], partial=False).new == len(rows)

    def test_answers_under_the_name_of_another_worker_are_refused(self, folder, tmp_path):
        rows = answers(folder, "W1", session="A1")
        path = table(tmp_path / "batch.csv", [turk(rows, "W2", "A2")])
        with pytest.raises(UserError, match="bear the name W1, but worker W2 sent them"):
            import_answers(folder, [path], partial=False)
        path = table(tmp_path / "batch.csv", [turk([], "W2", "A2") | {"Answer.answers": "["}])
        with pytest.raises(UserError, match=r"batch.csv row 1: not JSON"):
            import_answers(folder, [path], partial=False)

    def test_submissions_that_prolific_does_not_count_are_refused(self, folder, tmp_path):
        people = {"anna": "APPROVED", "ben": "RETURNED", "eve": "AWAITING REVIEW"}
        listed = table(
            tmp_path / "prolific_export.csv",
            [{"Participant id": name, "Status": status} for name, status in people.items()],
        )
        names = ("anna", "ben", "zoe")
        path = lines(
            tmp_path / "a.jsonl",
            *(answers(folder, name, number) for number, name in enumerate(names)),
        )
        found = import_answers(folder, [path, listed], partial=True)
        assert list(found.raters) == ["anna"]
        reasons = "\n".join(found.refused)
        assert "the submission of rater ben is RETURNED" in reasons
        assert "rater zoe is not among the participants" in reasons

    def test_every_list_has_an_address_on_either_platform(self, folder, tmp_path):
        write_addresses(read_study(folder), "https://x.example/study/", tmp_path)
        with (tmp_path / "mturk.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert rows[1] == {"list": "1", "url": "https://x.example/study/?list=1"}
        assert len(rows) == len(read_study(folder).lists)
        assert "${url}" in (tmp_path / "mturk.xml").read_text()
        prolific = (tmp_path / "prolific.csv").read_text()
        assert "?list=0&PROLIFIC_PID={{%PROLIFIC_PID%}}&STUDY_ID=" in prolific
        with pytest.raises(UserError, match=r"--page_url is an https:// address without \? and #"):
            write_addresses(read_study(folder), "http://x.example/", tmp_path)
        with pytest.raises(UserError, match="--prolific_code is a word of letters, digits"):
            completion_address("a b")


def test_a_study_is_exported_and_imported_from_the_command_line(folder, tmp_path, capsys):
    words = ["evaluate", "study", "export", str(folder), "--output_dir", str(tmp_path / "web")]
    assert cli.main([*words, "--prolific_code", "C0DE"]) == 2
    assert "--prolific_code needs --post, or the answers stay" in capsys.readouterr().err
    flags = ["--post", "https://x.example/answers", "--prolific_code", "C0DE"]
    assert cli.main([*words, *flags, "--page_url", "https://x.example/"]) == 0
    assert "prolific.csv" in capsys.readouterr().out
    page = (tmp_path / "web" / PAGE).read_text()
    assert "https://app.prolific.com/submissions/complete?cc=C0DE" in page
    assert "connect-src https://x.example;" in page
    path = lines(tmp_path / "a.jsonl", answers(folder, "hasty", attentive=False))
    assert cli.main(["evaluate", "study", "import", str(folder), str(path)]) == 0
    out = capsys.readouterr().out
    assert "of 1 raters; there before: 0" in out
    assert "rater hasty failed an attention check; the answers are kept, but do not count" in out
