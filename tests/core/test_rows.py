"""One reader for the tables of other programs: what is plain is read, what is not is named."""

import gzip
import io
import json
import os
import sys
import tarfile
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path

import arro3.core
import arro3.io
import pytest

from dsd_jax.errors import UserError
from dsd_jax.rows import lookup, open_table, plain_text

ROWS = [{"id": "1", "caption": "a cat, black"}, {"id": "2", "caption": "a dog"}]


def contents(path: Path, split: str | None = None) -> list[dict[str, object] | str | None]:
    """Fields of every row, or why it cannot be read."""
    return [row.error or dict(row.fields) for row in open_table(path, split).rows()]


def write_arrow(path: Path, values: Sequence[str]) -> None:
    array = arro3.core.Array(values, type=arro3.core.DataType.string())
    table = arro3.core.Table.from_pydict({"caption": array})
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        arro3.io.write_parquet(table, str(path))
    else:
        arro3.io.write_ipc_stream(table, str(path))


def write_tar(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


class TestDelimited:
    @pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
    @pytest.mark.parametrize("delimiter", [",", ";", "\t"])
    def test_line_ends_and_delimiters_of_every_program(self, tmp_path, delimiter, end):
        lines = [["id", "caption"], ["1", '"a cat, black"'], ["2", "a dog"]]
        path = tmp_path / "a.csv"
        path.write_text(end.join(delimiter.join(cells) for cells in lines) + end, newline="")
        assert open_table(path).columns == ("id", "caption")
        assert contents(path) == ROWS
        assert open_table(path).left() == 3

    def test_the_mark_and_the_hint_of_excel(self, tmp_path):
        path = tmp_path / "a.csv"
        path.write_text("sep=;\r\nid;caption\r\n1;a cat, black\r\n2;a dog\r\n", "utf-8-sig")
        assert contents(path) == ROWS

    def test_line_ends_within_quotes_belong_to_the_cell(self, tmp_path):
        path = tmp_path / "a.tsv"
        path.write_bytes(b'id\tcaption\r\n1\t"a\ncat\r\nand ""more"""\r\n')
        assert contents(path) == [{"id": "1", "caption": 'a\ncat\r\nand "more"'}]

    @pytest.mark.parametrize("missing", ["NaN", "nan", "NA", "<NA>", "NULL", "None", "#N/A"])
    def test_what_other_programs_write_for_a_missing_value_is_none(self, tmp_path, missing):
        path = tmp_path / "a.csv"
        path.write_text(f"id,caption\n1,{missing}\n{missing},a nan\n")
        assert contents(path) == [{"id": "1", "caption": None}, {"id": None, "caption": "a nan"}]

    def test_hand_made_files_with_spaces_bars_and_empty_lines(self, tmp_path):
        path = tmp_path / "a.csv"
        path.write_text('\n\nid , caption\n1, "a cat, black"\n\n2, a dog\n')
        assert contents(path) == ROWS
        path.write_text("id|caption\n1|a cat, black\n2|a dog\n")
        assert contents(path) == ROWS

    def test_a_quote_that_is_never_closed_is_told(self, tmp_path):
        path = tmp_path / "a.csv"
        path.write_text('id,caption\n1,fine\n2,"a cat\n3,a dog\n')
        assert contents(path) == [
            {"id": "1", "caption": "fine"},
            "not CSV: unexpected end of data",
        ]

    def test_a_damaged_row_ends_nothing_but_itself(self, tmp_path):
        path = tmp_path / "a.csv"
        path.write_bytes(
            b'id,caption\n1\n2,caf\xe9\n3,a,b\n\n4,"' + b"x" * 200_000 + b'"\n5,a dog\n'
        )
        short, latin, long, huge, fine = contents(path)
        assert short == "1 cells in a table of 2 columns"
        assert latin == "caption holds the byte 0xe9, which is not UTF-8"
        assert long == "3 cells in a table of 2 columns; quote text that holds commas"
        assert str(huge).startswith("not CSV: field larger")
        assert fine == {"id": "5", "caption": "a dog"}


class TestJson:
    @pytest.mark.parametrize("indent", [None, 1])
    @pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
    def test_a_list_of_rows(self, tmp_path, name, indent):
        (tmp_path / name).write_text(json.dumps(ROWS, indent=indent))
        assert open_table(tmp_path / name).columns == ("id", "caption")
        assert contents(tmp_path / name) == ROWS
        assert contents(tmp_path) == ROWS

    @pytest.mark.parametrize("indent", [None, 1])
    def test_the_one_list_of_rows_in_an_object(self, tmp_path, indent):
        around = {"info": {"fields": [{"a": 1}]}, "tags": ["x", [1]], "data": ROWS, "none": []}
        path = tmp_path / "a.json"
        path.write_text(json.dumps(around, indent=indent))
        assert open_table(path).columns == ("id", "caption")
        assert contents(path) == ROWS
        path.write_text(json.dumps({"train": ROWS, "test": ROWS}, indent=indent))
        with pytest.raises(UserError, match=r"several lists of rows \(train, test\); save one"):
            open_table(path)
        path.write_text(json.dumps(around, indent=indent)[:-60])
        with pytest.raises(UserError, match="damaged or cut off"):
            open_table(path)

    def test_one_object_on_one_line_is_one_row(self, tmp_path):
        (tmp_path / "a.json").write_text('{"id": "1", "images": ["a.png", "b.png"]}')
        assert contents(tmp_path / "a.json") == [{"id": "1", "images": ["a.png", "b.png"]}]

    def test_rows_on_lines_under_any_name(self, tmp_path):
        for name in ("a.json", "a.jsonl", "a.ndjson"):
            path = tmp_path / name
            path.write_text("\n\n".join(map(json.dumps, ROWS)), "utf-8-sig")
            assert contents(path) == ROWS

    def test_a_long_list_is_read_in_pieces(self, tmp_path):
        rows = [{"id": i, "caption": "ü" * (i * 997 % 5_000)} for i in range(2_000)]
        (tmp_path / "a.json").write_text(json.dumps(rows, ensure_ascii=False))
        assert contents(tmp_path / "a.json") == rows
        for cut in range(1, 5):  # a number that lies on the end of a piece
            begin = '[{"id": 1},'.ljust(2**20 - cut)
            (tmp_path / "a.json").write_text(f'{begin}12345, {{"id": 2}}]')
            assert contents(tmp_path / "a.json") == [{"id": 1}, "not a JSON object", {"id": 2}]

    def test_nan_is_no_value_and_infinity_is_refused(self, tmp_path):
        (tmp_path / "a.jsonl").write_text('{"id": NaN, "score": [NaN, 1]}\n{"score": 1e999}\n')
        assert contents(tmp_path / "a.jsonl") == [
            {"id": None, "score": [None, 1]},
            "score: a number that is too large",
        ]

    def test_hostile_rows_end_nothing_but_themselves(self, tmp_path):
        lines = [
            "[" * 100_000 + "]" * 100_000,
            '{"a": ' + "9" * 10_000 + "}",
            '{"a": "\\ud83d"}',
            '{"a": 1, "a": 2}',
            '{"a": "' + "x" * 2**25 + '"}',
            '{"a": 1}',
        ]
        (tmp_path / "a.jsonl").write_text("\n".join(["{}", *lines]))
        _, deep, digits, half, twice, long, fine = contents(tmp_path / "a.jsonl")
        assert "nested more than 64 deep" in str(deep)
        assert "a number of 10000 digits" in str(digits)
        assert "half of a surrogate pair" in str(half)
        assert "the key 'a' is given twice" in str(twice)
        assert "more than 16 MiB" in str(long)
        assert fine == {"a": 1}

    @pytest.mark.parametrize(
        ("text", "complaint"),
        [
            ('[{"a": 1}, {"a"', "row 2 of the list is damaged or cut off"),
            ('[{"a": 1} {"a": 2}]', "damaged or cut off after row 1"),
            ("[" * 100_000, "row 1 of the list is damaged or cut off"),
            ('{\n "a": [\n1]\n}', "neither a list of rows nor one row per line; write either"),
            ("[]", "has no rows"),
        ],
    )
    def test_files_that_hold_no_rows_are_named(self, tmp_path, text, complaint):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(UserError, match=complaint):
            contents(tmp_path / "a.json")


class TestArrow:
    def test_parquet_and_arrow(self, tmp_path):
        for name in ("a.parquet", "a.arrow"):
            write_arrow(tmp_path / name, [f"caption {i}" for i in range(20)])
            assert open_table(tmp_path / name).columns == ("caption",)
            assert contents(tmp_path / name) == [{"caption": f"caption {i}"} for i in range(20)]

    def test_lists_of_structs_have_members_by_number(self, tmp_path):
        paths = arro3.core.Array(["a.png", "b.png"], type=arro3.core.DataType.string())
        images = arro3.core.struct_array([paths], fields=[arro3.core.Field("path", paths.type)])
        ends = arro3.core.Array([0, 2, 2], type=arro3.core.DataType.int32())
        array = arro3.core.list_array(ends, images)
        path = tmp_path / "a.parquet"
        arro3.io.write_parquet(arro3.core.Table.from_pydict({"images": array}), str(path))
        table = open_table(path)
        assert table.columns == ("images", "images.0", "images.0.path")
        assert table.has("images.7.path")
        assert not table.has("images.x")
        first, second = table.rows()
        assert lookup(first.fields, "images.1.path") == "b.png"
        assert lookup(first.fields, "images.2") is None
        assert lookup(second.fields, "images.1") is None

    @pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
    def test_a_damaged_file_is_refused_by_name(self, tmp_path, name):
        write_arrow(tmp_path / name, ["x" * 1_000] * 100)
        whole = (tmp_path / name).read_bytes()
        for end in (0, 3, 40, len(whole) // 2):
            path = tmp_path / f"{end}-{name}"  # a path is checked once
            path.write_bytes(whole[:end])
            with pytest.raises(UserError, match=r"cut off or damaged|cannot be read to its end"):
                contents(path)

    def test_damage_that_aborts_the_reader_is_a_message(self, tmp_path):
        write_arrow(tmp_path / "a.arrow", ["x" * 1_000] * 100)
        whole = (tmp_path / "a.arrow").read_bytes()
        refused = 0
        for offset in range(300, 420, 8):
            path = tmp_path / f"{offset}.arrow"
            path.write_bytes(whole[:offset] + b"\xff" * 8 + whole[offset + 8 :])
            try:
                contents(path)
            except UserError:
                refused += 1
        assert refused > 0

    def test_a_parquet_file_that_aborts_the_reader_is_a_message(self, tmp_path, monkeypatch):
        write_arrow(tmp_path / "a.parquet", ["x"])
        monkeypatch.setattr(sys, "executable", "/bin/false")
        with pytest.raises(UserError, match="is not a readable Parquet file: it is cut off or dam"):
            contents(tmp_path / "a.parquet")


class TestTar:
    def test_neighbours_of_one_name_are_a_row(self, tmp_path):
        write_tar(
            tmp_path / "a.tar",
            {
                "x/0001.reference.jpg": b"ref",
                "x/0001.target.jpg": b"tgt",
                "x/0001.json": b'{"caption": "a cat", "size": {"h": 3}}',
                "x/0002.reference.jpg": b"ref2",
                "x/0002.caption.txt": "Küken".encode(),
            },
        )
        table = open_table(tmp_path / "a.tar")
        assert table.unit == "MB"
        for column in ("__key__", "reference.jpg", "reference", "target", "caption", "size.h"):
            assert table.has(column)
        first, second = table.rows()
        assert lookup(first.fields, "__key__") == "x/0001"
        assert lookup(first.fields, "target") == lookup(first.fields, "target.jpg") == b"tgt"
        assert lookup(first.fields, "json.caption") == lookup(first.fields, "caption") == "a cat"
        assert lookup(second.fields, "caption") == "Küken"

    def test_an_archive_of_macos_with_endings_in_capitals(self, tmp_path):
        files = {"._1.jpg": b"mac", "1.JPG": b"x", "._1.txt": b"mac", "1.TXT": b"a cat"}
        write_tar(tmp_path / "a.tar", {**files, ".DS_Store": b"", "__MACOSX/1.txt": b""})
        assert contents(tmp_path / "a.tar") == [{"__key__": "1", "jpg": b"x", "txt": "a cat"}]

    def test_files_of_a_row_that_lie_apart_are_told(self, tmp_path):
        write_tar(tmp_path / "a.tar", {"1.jpg": b"x", "2.jpg": b"x", "1.txt": b"a cat"})
        assert str(contents(tmp_path / "a.tar")[2]).startswith("the files of its row lie apart; so")

    def test_members_that_are_no_files_cost_their_row(self, tmp_path):
        path = tmp_path / "a.tar"
        with tarfile.open(path, "w") as archive:
            for number, kind in enumerate([tarfile.SYMTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]):
                member = tarfile.TarInfo(f"{number}.jpg")
                member.type, member.linkname = kind, "/etc/passwd"
                archive.addfile(member)
            member = tarfile.TarInfo("3.json")
            member.size = 2
            archive.addfile(member, io.BytesIO(b"{]"))
            member = tarfile.TarInfo("../../4.txt")
            member.size = 4
            archive.addfile(member, io.BytesIO(b"caf\xe9"))
            member = tarfile.TarInfo("5.txt")
            member.size = 1
            archive.addfile(member, io.BytesIO(b"x"))
        *bad, fine = contents(path)
        assert bad[:3] == [f"{i}.jpg is a link or a device, not a file" for i in range(3)]
        assert str(bad[3]).startswith("3.json: not JSON at column 2")
        assert bad[4] == "txt holds the byte 0xe9, which is not UTF-8"
        assert fine == {"__key__": "5", "txt": "x"}
        assert [entry.name for entry in tmp_path.iterdir()] == ["a.tar"]

    def test_a_damaged_archive_is_refused_by_name(self, tmp_path):
        write_tar(tmp_path / "a.tar", {f"{i}.txt": b"x" * 3_000 for i in range(20)})
        whole = (tmp_path / "a.tar").read_bytes()
        for name, data in {"cut": whole[:20_000], "none": b"no archive" * 100}.items():
            (tmp_path / f"{name}.tar").write_bytes(data)
            with pytest.raises(UserError, match=rf"{name}\.tar cannot be read to its end"):
                contents(tmp_path / f"{name}.tar")


class TestFolders:
    @pytest.fixture
    def hub(self, tmp_path: Path) -> Path:
        for split, count in {"train": 2, "test": 1}.items():
            for part in range(count):
                name = f"{split}-{part:05d}-of-{count:05d}.parquet"
                write_arrow(tmp_path / "data" / name, [f"{split} {part}"])
        return tmp_path

    def test_one_split_is_chosen_by_name(self, hub):
        assert contents(hub, "train") == [{"caption": "train 0"}, {"caption": "train 1"}]
        assert contents(hub, "test") == [{"caption": "test 0"}]
        with pytest.raises(UserError, match="holds the splits test, train; choose one, as with"):
            open_table(hub)
        with pytest.raises(UserError, match=r"no split 'tset'; did you mean 'test'\? \(it has "):
            open_table(hub, "tset")

    def test_splits_in_folders(self, tmp_path):
        for split in ("train", "val"):
            write_arrow(tmp_path / split / "data-00000-of-00001.arrow", [split])
            (tmp_path / split / "state.json").write_text("{}")
        (tmp_path / "dataset_dict.json").write_text("{}")
        assert contents(tmp_path, "validation") == [{"caption": "val"}]

    def test_a_split_has_the_name_of_its_folder_in_any_spelling(self, tmp_path):
        for split in ("Train", "dev"):
            write_arrow(tmp_path / split / "0000.parquet", [split])
        assert contents(tmp_path, "train") == contents(tmp_path, "Train") == [{"caption": "Train"}]
        assert contents(tmp_path, "dev") == contents(tmp_path, "val") == [{"caption": "dev"}]

    def test_what_datasets_keeps_beside_a_saved_table_is_not_read(self, tmp_path):
        for name in ("data-00000-of-00001", "cache-4c6309b2fb48b334", "cache-0f_00000_of_00002"):
            write_arrow(tmp_path / "train" / f"{name}.arrow", [name])
        assert contents(tmp_path) == [{"caption": "data-00000-of-00001"}]

    def test_tables_beside_each_other_are_not_mixed(self, tmp_path):
        for table in ("en", "de"):
            write_arrow(tmp_path / table / "train-00000-of-00001.parquet", [table])
        with pytest.raises(UserError, match=r"more than one table \(de, en\); give the folder of"):
            open_table(tmp_path, "train")
        assert contents(tmp_path / "de", "train") == [{"caption": "de"}]

    def test_an_image_folder_with_splits_names_paths_beside_its_table(self, tmp_path):
        for split in ("train", "test"):
            (tmp_path / split).mkdir()
            (tmp_path / split / "metadata.jsonl").write_text('{"file_name": "a.png"}\n')
        (row,) = open_table(tmp_path, "train").rows()
        assert row.folder == tmp_path / "train"
        assert open_table(tmp_path, "train").folder == tmp_path

    def test_files_without_splits_are_one_table(self, tmp_path):
        for part in range(3):
            write_arrow(tmp_path / f"part-{part}.parquet", [str(part)])
        assert contents(tmp_path) == [{"caption": str(part)} for part in range(3)]
        with pytest.raises(UserError, match=r"no split 'train' \(its files name no splits\)"):
            open_table(tmp_path, "train")

    def test_a_table_of_text_is_not_confused_by_other_json(self, tmp_path):
        (tmp_path / "pairs.csv").write_text("id,caption\n1,a dog\n")
        (tmp_path / "config.json").write_text("{}")
        (tmp_path / ".hidden.csv").write_text("no\n")
        (tmp_path / "notes").mkdir()
        (tmp_path / "notes" / "old.csv").write_text("no\n")
        assert contents(tmp_path) == [{"id": "1", "caption": "a dog"}]

    def test_several_tables_are_refused(self, tmp_path):
        for name in ("a.csv", "b.jsonl"):
            (tmp_path / name).write_text("")
        with pytest.raises(UserError, match=r"more than one table \(a\.csv, b\.jsonl\); give the"):
            open_table(tmp_path)

    def test_what_is_no_file_is_refused_at_once(self, tmp_path):
        os.mkfifo(tmp_path / "a.jsonl")
        with pytest.raises(UserError, match=r"a\.jsonl: it is not a regular file"):
            open_table(tmp_path)

    @pytest.mark.parametrize(
        ("name", "data", "complaint"),
        [
            (
                "a.csv",
                gzip.compress(b"id,caption\n", mtime=0),
                "is compressed by gzip; unpack it first",
            ),
            ("a.tar", gzip.compress(b"", mtime=0), "is compressed by gzip; unpack it first"),
            ("a.jsonl", b"PK\x03\x04rest", "is compressed by zip; unpack it first"),
            ("a.csv", "id\n1".encode("utf-32"), "is UTF-32 text; save it as UTF-8"),
        ],
    )
    def test_another_kind_of_file_is_named(self, tmp_path, name, data, complaint):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=complaint):
            open_table(tmp_path / name)

    def test_a_name_that_is_not_utf8_is_refused(self, tmp_path):
        path = tmp_path / os.fsdecode(b"caf\xe9.csv")
        path.write_text("a,b\n1,2\n")
        with pytest.raises(UserError, match="holds the byte 0xe9, which is not UTF-8"):
            open_table(path)


ODD = ("nan", "inf")


def test_whole_numbers_are_text_and_other_values_are_not():
    values = ["a", "1.0", 7, 7.0, Decimal("7.0"), 0.5, True, None, b"a", [1], *map(float, ODD)]
    texts = ["a", "1.0", "7", "7", "7", *[None] * 7]
    assert list(map(plain_text, values)) == texts


def test_rows_go_on_behind_a_position(tmp_path: Path):
    for part in range(2):
        write_arrow(tmp_path / f"{part}.parquet", [f"{part}-{i}" for i in range(3)])
    table = open_table(tmp_path)

    def rest(after: tuple[int, int]) -> Iterator[object]:
        return (row.fields["caption"] for row in table.rows(after))

    positions = [row.position for row in table.rows()]
    assert list(rest(positions[1])) == ["0-2", "1-0", "1-1", "1-2"]
    assert list(rest(positions[3])) == ["1-1", "1-2"]
    assert list(rest(positions[5])) == []
