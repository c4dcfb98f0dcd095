"""Manifests: rows of any table, each with its settings or the reason why it cannot be used."""

import csv
import json
import re

import pytest

from dsd_jax.errors import UserError
from dsd_jax.infer.batch import Row, read_manifest
from dsd_jax.infer.settings import Settings
from tests.infer.manifests import DEFAULTS, manifest


class TestManifest:
    def test_jsonl(self, here):
        rows = read_manifest(
            manifest(
                here,
                [
                    {"text": "line\u2028separator", "image": "sub/cat.png", "seed": 7},
                    {"id": 12, "text": "a", "guidance": 2, "steps": 9, "vae_sample": False},
                    {"id": "x.y-z_1", "text": "b", "negative_prompt": "c", "height": None},
                ],
            ),
            DEFAULTS,
        )
        assert [row.id for row in rows] == ["000000", "12", "x.y-z_1"]
        assert [row.error for row in rows] == [None] * 3
        assert rows[0].text == "line\u2028separator"
        assert rows[0].folder / str(rows[0].image) == here / "sub" / "cat.png"
        assert rows[0].seed == 7
        assert rows[1].settings == Settings(2.0, steps=9, height=64, width=128, vae_sample=False)
        assert rows[2].settings == Settings(negative_prompt="c", steps=2, height=64, width=128)

    def test_csv_as_spreadsheets_write_it(self, here):
        path = here / "rows.csv"
        with path.open("w", encoding="utf-8-sig", newline="") as file:
            writer = csv.writer(file, lineterminator="\r\n")
            writer.writerow(["text", "image", "seed", "height", "guidance", "vae_sample"])
            writer.writerow(['a cat, a "dog"\nand more', "cat.png", "3.0", "512.0", "2.5", "FALSE"])
            writer.writerow(["short", "", "", "", "", ""])
        first, second = read_manifest(path, DEFAULTS)
        assert first.text == 'a cat, a "dog"\nand more'
        assert (first.image, first.seed) == ("cat.png", 3)
        assert first.settings == Settings(2.5, height=512, width=128, steps=2, vae_sample=False)
        assert second == Row("000001", "short", settings=DEFAULTS, folder=here)

    @pytest.mark.parametrize(
        ("row", "complaint"),
        [
            ({"text": "a", "promt": "b"}, "unknown column 'promt'; columns are id, image, text, "),
            ({"text": "a", "steps": "many"}, "steps must be a whole number, got 'many'"),
            ({"text": "a", "height": 64.5}, "height must be a whole number, got 64.5"),
            ({"text": "a", "seed": True}, "seed must be a whole number, got True"),
            ({"text": "a", "seed": -1}, "a seed must be from 0 to 4294967295, got -1"),
            ({"text": "a", "guidance": [1]}, r"guidance must be a number, got \[1\]"),
            ({"text": "a", "vae_sample": "no"}, "vae_sample must be true or false, got 'no'"),
            ({"text": ["a", "b"]}, "text must be text, got list"),
            ({"text": "a", "image": 3}, "image must be the path of a file, got int"),
            ({"text": "a", "id": "../up"}, "id '../up' is not a file name of ASCII letters"),
            ({"text": "a", "id": "Küken"}, "id 'Küken' is not a file name of ASCII letters"),
            ("a", "not a JSON object"),
        ],
    )
    def test_a_broken_row_is_kept_with_its_error(self, here, row, complaint):
        rows = read_manifest(manifest(here, [row, {"text": "fine"}]), DEFAULTS)
        assert rows[0].error is not None
        assert re.search(complaint, rows[0].error)
        assert rows[1].error is None

    def test_a_line_that_is_not_json(self, here):
        path = here / "rows.jsonl"
        path.write_text('{"text": "a"\n\n{"text": "b"}\n')
        broken, fine = read_manifest(path, DEFAULTS)
        assert broken.error == "not JSON at column 13: expecting ',' delimiter"
        assert fine.text == "b"

    def test_more_values_than_columns(self, here):
        (here / "rows.csv").write_text("text,image\na cat, on a chair,cat.png\nfine,cat.png\n")
        broken, fine = read_manifest(here / "rows.csv", DEFAULTS)
        assert broken.error == ("3 cells in a table of 2 columns; quote text that holds commas")
        assert fine.error is None

    @pytest.mark.parametrize(
        ("name", "content", "complaint"),
        [
            ("rows.jsonl", b"", r"rows\.jsonl has no rows: expected one JSON object a line"),
            ("rows.csv", b"text,image\n", r"the manifest .*rows\.csv has no rows; give one for"),
            (
                "rows.jsonl",
                b'{"id": 1, "text": "a"}\n{"id": "1"}',
                "has the id '1' twice; ids must",
            ),
            ("rows.jsonl", b"\xff\xfe{\x00", r"rows\.jsonl is UTF-16 text; save it as UTF-8"),
            ("rows.txt", b"a cat", r"rows\.txt must end in \.jsonl, .*, which tells its format"),
        ],
    )
    def test_refusals(self, here, name, content, complaint):
        (here / name).write_bytes(content)
        with pytest.raises(UserError, match=complaint):
            read_manifest(here / name, DEFAULTS)

    def test_text_that_cannot_be_stored_costs_its_row_alone(self, here):
        (here / "rows.csv").write_bytes(
            b'text,image\ncaf\xe9,cat.png\n"' + b"x" * 200_000 + b'",a.png\nfine,cat.png\n'
        )
        latin, long, fine = read_manifest(here / "rows.csv", DEFAULTS)
        assert latin.error == "text holds the byte 0xe9, which is not UTF-8"
        assert (long.error or "").startswith("not CSV: field larger than field limit")
        assert fine.error is None
        (here / "rows.jsonl").write_text('{"text": "a cat \\ud83d"}\n{"text": "fine"}\n')
        half, fine = read_manifest(here / "rows.jsonl", DEFAULTS)
        assert "half of a surrogate pair" in (half.error or "")
        assert fine.text == "fine"

    def test_the_formats_of_other_programs(self, here):
        (here / "old-mac.csv").write_bytes(b"id;text;seed\r1.0;a cat, black;3\r2.0;NaN;4\r")
        first, second = read_manifest(here / "old-mac.csv", DEFAULTS)
        assert (first.id, first.text, first.seed) == ("1.0", "a cat, black", 3)
        assert (second.text, second.seed, second.error) == ("", 4, None)
        (here / "pandas.json").write_text('[\n{"id": 7.0, "text": "a", "height": NaN}\n]')
        (only,) = read_manifest(here / "pandas.json", DEFAULTS)
        assert (only.id, only.settings) == ("7", DEFAULTS)

    def test_no_manifest(self, here):
        with pytest.raises(UserError, match=r"there is no file or folder .*gone\.jsonl"):
            read_manifest(here / "gone.jsonl", DEFAULTS)
        with pytest.raises(UserError, match=r"holds no file that ends in \.jsonl, "):
            read_manifest(here, DEFAULTS)

    def test_a_split_of_a_folder_and_paths_of_windows(self, here):
        for split in ("train", "test"):
            (here / split).mkdir()
            row = {"id": split, "text": "a", "image": "im\\cat.png"}
            (here / split / "rows.jsonl").write_text(json.dumps(row))
        (only,) = read_manifest(here, DEFAULTS, "test")
        assert (only.id, only.folder, only.image) == ("test", here / "test", "im/cat.png")
        (here / "rows.jsonl").write_text('{"text": "a", "image": {"bytes": "x"}}')
        (bad,) = read_manifest(here / "rows.jsonl", DEFAULTS)
        assert bad.error == "image must be the path of a file, got dict"
