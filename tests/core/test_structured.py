"""The door for other people's JSON and TOML: what is refused, in what words, and how fast."""

import dataclasses
import json
import os
import time
from pathlib import Path
from typing import Any, ClassVar

import pytest

from dsd_jax.errors import UserError
from dsd_jax.structured import (
    JSON,
    Limits,
    MalformedError,
    build,
    json_end,
    json_lines,
    json_value,
    parse_json,
    parse_toml,
    read_json,
    read_toml,
)

DEEP = 100_000


@pytest.fixture(autouse=True)
def _quick():
    start = time.process_time()
    yield
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (b"", "it is empty"),
        (b" \n", "it is empty"),
        (b'{"a": 1', "not JSON at column 8: expecting ',' delimiter"),
        (b'{\n "a": ]}', "not JSON at line 2, column 7: expecting value"),
        (b"[" * DEEP, "it is nested more than 64 deep"),
        (b"[" * DEEP + b"]" * DEEP, "it is nested more than 64 deep"),
        (b'{"a":' * DEEP, "it is nested more than 64 deep"),
        (b"[" * 66 + b"]" * 66, "it is nested more than 64 deep"),
        (b'{"a": {"b": [0, 1e999]}}', "a.b[1]: a number that is too large"),
        (b'{"a": NaN}', "NaN is not a number of JSON"),
        (b'{"a": -Infinity}', "-Infinity is not a number of JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "a: a number of 5000 digits, more than 64 bits hold"),
        (b'{"a": 18446744073709551616}', "a: a number that 64 bits do not hold"),
        (b'[{"a": -9223372036854775809}]', "[0].a: a number that 64 bits do not hold"),
        (b'{"a": "\\ud83d"}', "a: a text that holds half of a surrogate pair, which UTF-8 cannot"),
        (b'{"\\ude00": 1}', "a key holds half of a surrogate pair"),
        ('{"a": "\ud83d"}', "character 8 is half of a surrogate pair"),
        (b'{"a": "\xff"}', "byte 8 (0xff) is not UTF-8"),
        ('{"a": 1}'.encode("utf-16"), "byte 1 (0xff) is not UTF-8"),
        (b'{"a": 1, "b": 2, "a": 3}', "the key 'a' is given twice"),
        (b"[1]", "expected an object, got an array"),
        (b"null", "expected an object, got null"),
    ],
)
def test_json_that_is_refused(source, reason):
    with pytest.raises(MalformedError) as caught:
        parse_json(source, "x.json", dict)
    assert str(caught.value).startswith(f"x.json: {reason}")
    assert caught.value.reason.startswith(reason)


def test_json_that_is_read():
    text = '{"a": [1, 2.5, "\\ud83d\\ude00 [[[", null, true], "b": 18446744073709551615}'
    expected = {"a": [1, 2.5, "😀 [[[", None, True], "b": 2**64 - 1}
    assert parse_json(text, "x", dict) == expected
    assert parse_json(b"\xef\xbb\xbf" + text.encode(), "x", dict) == expected
    assert parse_json("[" * 64 + "]" * 64, "x", list)
    assert parse_json("3", "x", object) == 3


def test_lenient_reading_keeps_what_parsers_differ_about():
    text = '{"a": 1e999, "b": NaN, "c": 1' + "0" * 5000 + ', "d": "\\ud83d", "e": 1, "e": 2}'
    value = parse_json(text, "x", dict, Limits(lenient=True))
    assert (value["a"], value["c"], value["d"], value["e"]) == (1e999, 1e999, "\ud83d", 2)
    with pytest.raises(MalformedError, match="nested"):
        parse_json("[" * DEEP, "x", list, Limits(lenient=True))


def test_repeated_keys_are_found_in_linear_time():
    pairs = ",".join(f'"k{number}": 0' for number in range(200_000))
    with pytest.raises(MalformedError, match="'k7' is given twice"):
        parse_json("{" + pairs + ', "k7": 1}', "x", dict)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("a = ", "not TOML: invalid value (at end of document)"),
        ("a" + ".a" * 20_000 + " = 1", "line 1: a key of more than 64 parts"),
        ("\n[[" + "a . " * 20_000 + "a]]", "line 2: a key of more than 64 parts"),
        ("x = { " + '"b".' * 20_000 + "c = 1 }", "line 1: a key of more than 64 parts"),
        ("a = " + "[" * DEEP, "it is nested more than 64 deep"),
        ("a = " + "{a=" * DEEP, "it is nested more than 64 deep"),
        ("a = " + "[" * 70 + "]" * 70, "it is nested more than 64 deep"),
        ("a = " + "9" * 5000, "a number has too many digits"),
        ("a = " + "9" * 4000, "a: a number that 64 bits do not hold"),
        (b'a = "\xff"', "byte 6 (0xff) is not UTF-8"),
        ("a = 'x'\n" * 200_000, "it has more than 1 MiB"),
    ],
)
def test_toml_that_is_refused(source, reason):
    with pytest.raises(MalformedError) as caught:
        parse_toml(source, "x.toml")
    assert str(caught.value).startswith(f"x.toml: {reason}")


def test_toml_that_is_read():
    words = "One. Two. Three and four... " * 100  # dots in prose are no key
    text = f'[a.b]\nc = """\n{words}"""\nd = inf\n'
    assert parse_toml(text, "x") == {"a": {"b": {"c": words, "d": float("inf")}}}


@pytest.mark.parametrize("letters", ["a", '"', "a.", "'\"", "a ", '"a', ". "])
def test_long_lines_of_toml_are_searched_in_linear_time(letters):
    with pytest.raises(MalformedError):
        parse_toml(letters * (500_000 // len(letters)), "x")


class TestFiles:
    def test_a_file(self, tmp_path):
        (tmp_path / "x.json").write_text('{"a": 1}')
        (tmp_path / "x.toml").write_text("a = 1")
        assert read_json(tmp_path / "x.json", dict) == read_toml(tmp_path / "x.toml") == {"a": 1}

    def test_what_is_no_regular_file(self, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        for name in ("pipe", "."):
            with pytest.raises(UserError, match="is not a regular file"):
                read_json(tmp_path / name, dict)
        with pytest.raises(UserError, match=r"cannot read .*none: No such"):
            read_json(tmp_path / "none", dict)

    def test_a_large_file_is_not_read(self, tmp_path):
        with (tmp_path / "large").open("wb") as file:
            file.truncate(1 << 40)
        with pytest.raises(
            MalformedError, match="it has 1099511627776 bytes, expected at most 16 MiB"
        ):
            read_json(tmp_path / "large", dict)

    def test_lines_fail_one_by_one(self, tmp_path):
        long = b'"' + b"x" * 5000 + b'"'
        path = tmp_path / "rows.jsonl"
        path.write_bytes(b'{"a": 1}\n\n[[[[\n' + long + b"\n" + b"\xff\n" + b'{"a": 2}')
        rows = dict(json_lines(path, Limits(size=1000)))
        assert list(rows) == [1, 3, 4, 5, 6]
        assert (rows[1], rows[6]) == ({"a": 1}, {"a": 2})
        assert [str(rows[number]) for number in (3, 4, 5)] == [
            f"{path} line 3: not JSON at column 5: expecting value",
            f"{path} line 4: it has more than 1000 bytes",
            f"{path} line 5: byte 1 (0xff) is not UTF-8",
        ]


@dataclasses.dataclass(frozen=True)
class Inner:
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}
    count: int = 1

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UserError(f"count must be at least 1, got {self.count}")


@dataclasses.dataclass(frozen=True)
class Outer:
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}
    name: str
    inner: dict[str, Inner] = dataclasses.field(default_factory=dict)


def test_a_table_becomes_a_dataclass():
    assert build(Outer, {"name": "n", "inner": {"x": {"count": 2}}}, "x.toml") == Outer(
        "n", {"x": Inner(2)}
    )


def test_every_mistake_of_a_table_has_a_line():
    table = {"nam": "n", "inner": {"x": {"cuont": 2}, "y": {"count": []}, "z": {"count": 0}}}
    with pytest.raises(UserError) as caught:
        build(Outer, table, "x.toml")
    assert set(str(caught.value).splitlines()) == {
        "x.toml: `name` is missing",
        "x.toml: unknown key `nam`; did you mean 'name'?",
        "x.toml: unknown key `inner.x.cuont`; did you mean 'count'?",
        "x.toml: `inner.y.count`: input should be a valid integer",
        "x.toml: inner.z: count must be at least 1, got 0",
    }


def test_a_thousand_mistakes_are_not_a_thousand_lines():
    with pytest.raises(UserError) as caught:
        build(Outer, {"name": "n", **{f"key{number}": 1 for number in range(1000)}}, "x")
    assert len(str(caught.value).splitlines()) == 21
    assert str(caught.value).endswith("x: 980 more mistakes")


def test_limits_hold_for_large_but_plain_json():
    rows = json.dumps([{"id": number, "text": "a photo"} for number in range(20_000)])
    assert len(parse_json(rows, "x", list, JSON)) == 20_000


def test_the_end_of_a_value_within_a_text():
    text = 'So: {"a": [1, "}"], "n": ' + "9" * 6_000 + "} and {"
    end = json_end(text, 4)
    assert text[end:] == " and {"
    with pytest.raises(ValueError, match="property name"):
        json_end(text, end + 5)


def test_a_value_of_our_own_as_json_gives_it_back():
    assert json_value({"b": (1, 2), "a": None}) == {"b": [1, 2], "a": None}
    assert list(json_value({"b": {"d": 1, "c": 2}, "a": 0}, sort_keys=True)) == ["a", "b"]
    assert json_value([Path("x/y")], lambda path: path.name) == ["y"]
