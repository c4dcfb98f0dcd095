"""Captions from hostile sources: a sample that depends on nothing but the seed."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsd_jax.data.make import near as near_module
from dsd_jax.data.make.captions import (
    CaptionFilter,
    CaptionsConfig,
    clean_caption,
    sampled,
)
from dsd_jax.data.make.ids import CaptionId
from dsd_jax.data.make.near import NearTexts
from dsd_jax.data.make.parts import Parts, part_of
from dsd_jax.data.make.stages import Caption, Source
from dsd_jax.data.make.wording import load_wording
from dsd_jax.errors import UserError
from tests.data.make.scripted import Scripted, blocked, do, in_turn

ANIMALS = "fox otter heron badger lynx gecko raven walrus ibex toad".split()
PLACES = "snow desert harbour attic orchard tunnel glacier market bridge cellar".split()


def captions(count: int) -> list[str]:
    return [
        f"{i * 7919} {ANIMALS[i % 10]} in {PLACES[i // 10 % 10]} {(i + 3) ** 5} at {(i + 9) ** 6}"
        for i in range(count)
    ]


def config(*sources: Path, **settings: object) -> CaptionsConfig:
    return CaptionsConfig(sources, **{"count": 10_000} | settings)  # type: ignore[arg-type]


def rows_of(
    folder: Path, config: CaptionsConfig, parts: int = 3
) -> tuple[list[Caption], dict[str, int]]:
    by_part, counts = sampled(Parts(folder / "root", parts), config)
    assert all(part_of(row.id, parts) == n for n, rows in enumerate(by_part) for row in rows)
    return [row for rows in by_part for row in rows], dict(counts)


def text_file(path: Path, lines: list[str]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def test_a_sample_has_no_repeats_and_depends_on_the_seed_alone(tmp_path: Path):
    lines = captions(200)
    straight = text_file(tmp_path / "a.txt", lines + lines[:50])
    mixed = text_file(tmp_path / "b.txt", [line.upper() for line in reversed(lines)])
    first, counts = rows_of(tmp_path / "1", config(straight, count=40))
    second, _ = rows_of(tmp_path / "2", config(mixed, count=40))
    other, _ = rows_of(tmp_path / "3", config(straight, count=40, seed=1))
    ids = {row.id for row in first if row.kept}
    assert len(ids) == 40
    assert ids == {row.id for row in second if row.kept}
    assert len(ids & {row.id for row in other}) < 40
    assert counts["read"] == 250


def test_a_split_of_the_source(tmp_path: Path):
    for split in ("train", "test"):
        text_file(tmp_path / "source" / f"{split}.csv", ["caption", f"a fox in the {split}"])
    rows, _ = rows_of(tmp_path, config(tmp_path / "source", split="test"))
    assert [row.caption for row in rows] == ["a fox in the test"]


def test_whoever_comes_first_reads_the_source_for_all(tmp_path: Path):
    source = text_file(tmp_path / "a.txt", captions(20))
    first, _ = rows_of(tmp_path, config(source))
    source.unlink()
    assert rows_of(tmp_path, config(source))[0] == first


def test_near_duplicates_stay_as_rejected_rows_that_name_the_other(tmp_path: Path):
    lines = [
        "a small red fox sits in the deep snow at night",
        "A small red fox sits in the deep snow, at night!",
        "a small  RED fox sits in the deep snow at night",
        "an old blue tractor stands under a walnut tree",
    ]
    rows, counts = rows_of(tmp_path, config(text_file(tmp_path / "a.txt", lines)))
    kept = {str(row.id) for row in rows if row.kept}
    (near,) = (row for row in rows if row.status == "rejected")
    assert len(kept) == 2
    assert near.reason == "near_duplicate"
    assert near.detail in kept
    assert counts["repeated"] == 1  # differs in case and spaces alone


def test_many_near_duplicates_do_not_make_the_sample_smaller(tmp_path: Path):
    lines = [f"the very same old red fox sleeps under the big oak tree {i}" for i in range(400)]
    source = text_file(tmp_path / "a.txt", lines + captions(20))
    rows, _ = rows_of(tmp_path, config(source, count=20))
    assert sum(row.kept for row in rows) == 20


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  a red\tfox \n in snow ", ("a red fox in snow", "")),
        ("salt &amp; pepper mills", ("salt & pepper mills", "")),
        ("café crème für Zoë", ("café crème für Zoë", "")),
        ("a \u202egnp.exe fox", ("", "control_characters")),
        ("a red\x00 fox", ("", "control_characters")),
        ("a \ufffd\ufffd fox here", ("", "not_utf8")),
        ("a \ud800 fox here", ("", "not_utf8")),
        ("x " * 600, ("", "too_long")),
        ("x" * 10**6, ("", "too_long")),
        ("IMG_2041.jpg", ("", "too_short")),
        ("fox", ("", "too_short")),
        ("雪の中の赤い狐", ("雪の中の赤い狐", "")),
        ("   ", ("", "empty")),
    ],
)
def test_hostile_lines_are_named(text: str, expected: tuple[str, str]):
    assert clean_caption(text, CaptionsConfig((), 1)) == expected


def test_ids_do_not_see_case_and_spaces():
    assert CaptionId.of("A  Red Fox") == CaptionId.of("a red fox")
    assert CaptionId.of("a red fox") != CaptionId.of("a red box")


def test_damaged_lines_of_every_format_are_counted_and_the_others_kept(tmp_path: Path):
    (tmp_path / "a.csv").write_bytes(
        b"URL,TEXT\nhttps://x.org/1,a red fox in the snow\nhttps://x.org/2\n"
        b"https://x.org/3,une for\xeat enchant\xe9e verte\nhttps://x.org/4,an old blue tractor\n"
        b'https://x.org/5,"' + b"x" * 2**21 + b'"\nhttps://x.org/6,a green glass bottle\n'
    )
    (tmp_path / "b.jsonl").write_bytes(
        b'{"caption": "a wooden toy horse"}\n{"caption": 7}\n{"caption": null}\n[1]\n{"capt\n'
        b'{"caption": "\xff\xfe broken"}\n{"url": "x"}\n'
    )
    (tmp_path / "c.txt").write_bytes(b"a paper lantern\n\xff\xfe\xfa broken line\n\n")
    sources = [tmp_path / name for name in ("a.csv", "b.jsonl", "c.txt")]
    rows, counts = rows_of(tmp_path, config(*sources))
    assert {row.caption for row in rows} == {
        "a red fox in the snow",
        "an old blue tractor",
        "a green glass bottle",
        "a wooden toy horse",
        "a paper lantern",
    }
    assert counts == {
        "read": 16,
        "damaged": 6,
        "not_utf8": 1,
        "not_text": 1,
        "empty": 3,
    }
    (fox,) = (row for row in rows if "fox" in row.caption)
    assert fox.source == Source(file="a.csv", row=1, url="https://x.org/1")


def test_parquet_with_laions_columns_is_read(tmp_path: Path):
    from arro3.core import Array, DataType, Table
    from arro3.io import write_parquet

    texts = {
        "URL": ["https://x.org/1", "no"],
        "TEXT": ["a red fox in the snow", "an old blue tractor"],
    }
    table = Table.from_pydict({k: Array(v, DataType.utf8()) for k, v in texts.items()})
    write_parquet(table, str(tmp_path / "part.parquet"))
    rows, _ = rows_of(tmp_path, config(tmp_path / "part.parquet"))
    assert {row.caption for row in rows} == {"a red fox in the snow", "an old blue tractor"}


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"caption_column": "TXT"}, r"no column 'TXT'; did you mean 'TEXT'\? .*caption_column"),
        ({"url_column": "link"}, r"no column 'link'.*url_column under \[captions\]"),
    ],
)
def test_a_wrong_column_is_named(tmp_path: Path, settings: dict[str, str], complaint: str):
    source = text_file(tmp_path / "a.csv", ["URL,TEXT", "x,a red fox"])
    with pytest.raises(UserError, match=complaint):
        rows_of(tmp_path, config(source, **settings))


def test_sources_without_captions_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"none of the columns TEXT, caption, text \(it has a, b\)"):
        rows_of(tmp_path, config(text_file(tmp_path / "a.csv", ["a,b", "1,2"])))
    with pytest.raises(UserError, match=r"no usable caption in .*b.txt \(2 read, 2 too_short\)"):
        rows_of(tmp_path, config(text_file(tmp_path / "b.txt", ["x", "y"])))
    with pytest.raises(UserError, match=r"cannot read .*none.txt: No such file"):
        rows_of(tmp_path, config(tmp_path / "none.txt"))


def test_near_texts_are_found_among_many():
    near = NearTexts(0.7)
    for number, line in enumerate(captions(500)):
        assert near.add(str(number), line) is None
    for number in range(0, 500, 25):
        line = captions(500)[number].upper() + "!"
        assert near.add("new", line) == str(number)


def test_captions_of_few_words_take_no_longer_the_more_there_are():
    lines = [f"a red circle with white dots on snow at northwest number {n}" for n in range(4000)]
    seconds = []
    for count in (1000, 4000):
        near = NearTexts(1.0)
        start = time.process_time()
        assert [near.add(line, line) for line in lines[:count]] == [None] * count
        seconds.append(time.process_time() - start)
    assert near.add("again", lines[7].upper()) == lines[7]
    assert seconds[1] < 8 * seconds[0]  # quadratic would be 16 times as much


def one_word_apart(count: int) -> list[str]:
    """Captions that are all a little less similar than 0.9."""
    words = "a photo of a small red fox with a blue scarf on the old bridge in the snow".split()
    rows = []
    for number in range(count):
        own = list(words)
        own[number % len(own)] = f"{number:x}"
        rows.append(" ".join(own))
    return rows


def test_in_a_crowd_few_are_compared_and_repeats_are_found(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(near_module, "_CROWD", 20)
    monkeypatch.setattr(near_module, "_COMPARED", 4)
    near, compared = NearTexts(0.9), 0
    intersect = np.intersect1d

    def counting(*given: Any, **named: Any) -> Any:
        nonlocal compared
        compared += 1
        return intersect(*given, **named)

    monkeypatch.setattr(np, "intersect1d", counting)
    lines = one_word_apart(400)
    kept = [line for line in lines if near.add(line, line) is None]
    assert len(kept) > 100
    assert compared < 5 * len(lines)
    assert all(near.add("again", line.upper()) is not None for line in kept)


@pytest.mark.parametrize("similarity", [0.5, 0.7, 0.9, 1.0])
def test_a_text_above_the_similarity_is_found(similarity: float):
    near = NearTexts(similarity)
    words = " ".join(captions(30))
    assert near.add("whole", words) is None
    assert near.add("same", words.upper()) == "whole"
    assert near.add("other", " ".join(captions(90)[60:])) is None


def answer(**content: object) -> str:
    return "```json\n" + json.dumps(content) + "\n```"


def filtered(ask: Scripted) -> Caption:
    row = Caption(
        id=CaptionId("ab" * 8),
        caption="a red fox",
        source=Source(file="a.csv", row=1),
        status="kept",
    )
    return do(CaptionFilter(load_wording(None, "captions"))(row, ask))


def test_the_filter_keeps_the_subject_and_the_reason():
    row = filtered(in_turn(answer(clear=True, subject="a red fox", reason="One animal.")))
    assert (row.status, row.subject, row.detail) == ("kept", "a red fox", "One animal.")
    row = filtered(in_turn(answer(clear=False, subject="", reason="A mere place.")))
    assert (row.status, row.reason) == ("rejected", "no_clear_subject")
    assert row.detail == "A mere place."


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("yes, the fox", "not_as_asked"),
        (answer(clear="yes", subject="fox", reason=""), "not_as_asked"),
        (answer(clear=True, subject=["fox"], reason=""), "not_as_asked"),
        (blocked(), "blocked"),
        ("", "empty"),
    ],
)
def test_an_answer_that_is_not_as_asked_is_put_once_more_and_then_undecided(said, reason: str):
    ask = Scripted(lambda request: said)
    row = filtered(ask)
    assert (row.status, row.reason) == ("undecided", reason)
    assert [request.sample for request in ask.asked] == [0, 1]


@pytest.mark.parametrize("damage", ["[" * 100_000, "[1]", '{"id": "x"}', "\udcff", ""])
def test_a_damaged_sample_is_named(tmp_path: Path, damage: str):
    source = text_file(tmp_path / "a.txt", captions(3))
    rows_of(tmp_path, config(source))
    (path,) = tmp_path.rglob("sample.jsonl")
    counts, _, *rest = path.read_text().split("\n")
    lines = [damage, *rest] if damage in ("[1]", "") else [counts, damage, *rest]
    path.write_text("\n".join(lines), encoding="utf-8", errors="surrogateescape")
    with pytest.raises(UserError, match=r"sample.jsonl is damaged; remove it and run `dsd data ca"):
        rows_of(tmp_path, config(source))
