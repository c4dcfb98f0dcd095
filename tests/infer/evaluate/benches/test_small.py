"""Benchmarks without files of their own: the toy world, and any table of cases."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from dsd_jax import cli
from dsd_jax.errors import UserError
from dsd_jax.images import open_image
from dsd_jax.infer.evaluate.benches.registry import counts, prepare
from dsd_jax.infer.evaluate.benches.source import Source
from dsd_jax.infer.evaluate.cases import read_cases
from dsd_jax.toy.score import from_tags


@pytest.fixture
def table(tmp_path):
    """Writes a table of cases beside three pictures and returns its path."""
    for number, name in enumerate(("cat", "dog", "mask")):
        Image.new("RGB", (16, 16), (number, 0, 0)).save(tmp_path / f"{name}.png")

    def write(*rows: dict[str, object], name: str = "mine.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


def open_pixels(path):
    return np.asarray(open_image(path))


def made(path, **options):
    output = path.parent / "cases.jsonl"
    source = Source((path,), path.parent / "pictures")
    assert prepare("jsonl", source, output, **options) == read_cases(output)
    return read_cases(output)


class TestToy:
    def test_references_targets_and_masks_hold_the_truth(self, tmp_path):
        output = tmp_path / "toy.jsonl"
        cases = prepare("toy", Source((), tmp_path / "toy", count=3, seed=1), output)
        assert cases == read_cases(output)
        for case in cases:
            drawn = from_tags(case.id, case.tags)
            assert case.prompt == drawn.text
            assert (open_pixels(case.reference.path) == drawn.reference()).all()
            assert (open_pixels(case.targets[0].path) == drawn.ideal()).all()
            assert case.reference.mask is not None
            mask = open_pixels(case.reference.mask)
            assert 0.1 < (mask == 255).mean() < 0.5
            (centre_y, centre_x) = np.argwhere(mask[..., 0] == 255).mean(0) - 15.5
            assert ("north" in drawn.before.place) == (centre_y < 0)
            assert ("west" in drawn.before.place) == (centre_x < 0)
        assert counts(cases)[1] == [["all", "3", "3", "3", "3", "3", "6"]]

    def test_what_it_does_not_take_is_refused(self, tmp_path):
        with pytest.raises(UserError, match="count must be at least 1, got 0"):
            prepare("toy", Source((), tmp_path, count=0), tmp_path / "cases.jsonl")
        with pytest.raises(UserError, match="toy reads no files; leave --root out"):
            prepare("toy", Source((tmp_path,), tmp_path), tmp_path / "cases.jsonl")


class TestTable:
    def test_columns_become_fields_and_the_rest_has_defaults(self, table):
        full = {
            "id": "a", "subject": "tom", "prompt": "a cat on snow", "references": ["cat.png"],
            "targets": ["dog.png"], "mask": "mask.png", "category": "animal", "prompt_index": 4,
            "prompt_class": "style", "subject_text": "cat", "samples": 2, "tags": {"size": "big"},
        }  # fmt: skip
        first, second, third = made(
            table(
                full,
                {"prompt": "a dog", "reference": "dog.png"},
                {"prompt": "a dog on snow", "reference": "dog.png"},
            )
        )
        assert (first.id, first.bench, first.subject, first.prompt) == (
            "a", "mine", "tom", "a cat on snow"
        )  # fmt: skip
        assert first.reference.path.name == "cat.png"
        assert first.reference.mask is not None
        assert first.reference.mask.name == "mask.png"
        assert [target.path.name for target in first.targets] == ["dog.png"]
        assert (first.category, first.prompt_index, first.prompt_class) == ("animal", 4, "style")
        assert (first.subject_text, first.samples, first.tags) == ("cat", 2, {"size": "big"})
        assert (second.id, second.subject, second.prompt_index) == ("dog-0", "dog", 0)
        assert (third.id, third.subject, third.prompt_index) == ("dog-1", "dog", 1)
        assert third.reference.sha256 != first.reference.sha256

    def test_a_spreadsheet_will_do(self, table):
        path = table(name="mine.csv")
        path.write_text("prompt,reference,samples\na cat,cat.png,4\n")
        (case,) = made(path)
        assert (case.prompt, case.samples) == ("a cat", 4)

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            ({"reference": "cat.png"}, "row 2: it has no prompt"),
            ({"prompt": "a"}, "row 2: it has no reference"),
            ({"prompt": "a", "reference": "no.png"}, "row 2: there is no image at .*no.png"),
            ({"prompt": "a", "reference": "mine.jsonl"}, "row 2: .* is not a picture that can be"),
            ({"prompt": "a", "reference": 3}, "row 2: its reference must be a path or a list"),
            (
                {"prompt": "a", "reference": "cat.png", "samples": -1},
                "row 2: its samples must be a",
            ),
            ({"prompt": "a", "reference": "cat.png", "samples": 0}, "row 2: .*asks for 0 images"),
            ({"prompt": "a", "reference": "cat.png", "tags": {"a": 1}}, "row 2: its tags must be"),
            ({"prompt": "a", "reference": "cat.png", "id": "a/b"}, "row 2: the id of a case is a"),
            ({"prompt": "a", "reference": "cat.png", "text": "b"}, "the unknown column 'text'"),
        ],
    )
    def test_a_row_that_cannot_be_used_is_named(self, table, row, message):
        path = table({"prompt": "a cat", "reference": "cat.png"}, row)
        with pytest.raises(UserError, match=message):
            made(path)
        assert not (path.parent / "cases.jsonl").exists()

    def test_every_row_that_cannot_be_used_is_counted(self, table):
        path = table(*[{"prompt": "a cat", "reference": f"{i}.png"} for i in range(10)])
        with pytest.raises(UserError, match="2 more rows cannot be used") as caught:
            made(path)
        assert len(str(caught.value).splitlines()) == 9

    def test_a_prompt_of_a_subject_stands_once(self, table):
        row = {"prompt": "a cat", "reference": "cat.png", "prompt_index": 0}
        with pytest.raises(UserError, match="cases a and b both have prompt 0 of the subject cat"):
            made(table({**row, "id": "a"}, {**row, "id": "b"}))

    def test_masks_lie_as_the_pictures_do(self, table, tmp_path):
        path = table({"prompt": "a cat", "reference": "cat.png", "target": "dog.png"})
        masks = tmp_path / "masks"
        masks.mkdir()
        with pytest.raises(UserError, match=f"{re.escape(str(masks))} has a mask for no picture"):
            made(path, mask_dir=masks)
        (tmp_path / "mask.png").rename(masks / "dog.png")
        (case,) = made(path, mask_dir=masks)
        assert (case.reference.mask, case.targets[0].mask) == (None, masks / "dog.png")

    def test_a_table_is_needed(self, tmp_path):
        output = tmp_path / "cases.jsonl"
        with pytest.raises(
            UserError, match="jsonl reads a table, or a folder with one; give --roo"
        ):
            prepare("jsonl", Source((), tmp_path), output)
        with pytest.raises(UserError, match=r"there is no file or folder .*none.csv; jsonl reads"):
            prepare("jsonl", Source((tmp_path / "none.csv",), tmp_path), output)


def test_the_command_prints_what_was_counted(table, tmp_path, capsys):
    path = table({"prompt": "a cat", "reference": "cat.png"})
    output = tmp_path / "out" / "cases.jsonl"
    words = ["evaluate", "prepare", "jsonl", "--output", str(output)]
    assert cli.main([*words, "--root", str(path)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("table of cases\ncategory  subjects  cases")
    assert "the number of cases is not checked, since none is fixed for this benchmark" in out
    assert out.endswith(f"wrote {output}\n")
    assert cli.main(words) == 2
    expected = "jsonl reads a table, or a folder with one; give --root DIR, got 0 folders"
    assert expected in capsys.readouterr().err
