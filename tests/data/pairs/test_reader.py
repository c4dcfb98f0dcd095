"""Rows of other people's tables: what is read from them, and why some cannot be used."""

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dsd_jax.data.pairs.importer import import_pairs
from dsd_jax.data.pairs.reader import ImportSettings
from dsd_jax.data.pairs.store import PairStore
from dsd_jax.errors import UserError
from dsd_jax.images import FORMATS, open_image
from tests.tiny_pairs import image_bytes, rejected, write_parquet, write_rows, write_table


def test_rows_that_cannot_be_used_are_listed(tmp_path: Path):
    source = tmp_path / "source"
    rows: list[Any] = [dict(row) for row in write_table(source, 13)]
    bomb = Image.new("1", (20_000, 20_000))
    bomb.save(source / "bomb.png")
    (source / "cut.jpg").write_bytes(image_bytes(1, 300, 300, "JPEG")[:9_000])
    (source / "page.html").write_text("<html>404</html>")
    rows[1]["target"] = "gone.png"
    rows[2]["target"] = "../secret.png"
    rows[3]["target"] = "/etc/secret.png"
    rows[4]["target"] = "bomb.png"
    rows[5]["target"] = "cut.jpg"
    rows[6]["target"] = "page.html"
    rows[7]["caption"] = " "
    rows[8]["id"] = "row-0"
    rows[9]["caption"] = ["a", "list"]
    rows[10]["target"] = None
    frames = [Image.new("RGB", (30, 30), colour) for colour in ("red", "blue")]
    frames[0].save(source / "moving.gif", save_all=True, append_images=frames[1:])
    rows[12]["target"] = "moving.gif"
    rows.append("no object")
    write_rows(source / "pairs.jsonl", rows)
    done = import_pairs(source, tmp_path / "pairs")
    assert (done.pairs, done.rejected) == (2, 12)
    assert [pair.id for pair in PairStore.open(tmp_path / "pairs")] == ["row-0", "row-11"]
    lines = rejected(tmp_path / "pairs")
    assert [line["row"] for line in lines] == [*range(2, 12), 13, 14]
    assert lines[0] == {
        "file": "pairs.jsonl",
        "row": 2,
        "id": "row-1",
        "reason": "there is no image gone.png",
    }
    assert [line["reason"] for line in lines[1:]] == [
        "../secret.png is outside of the folder of pairs.jsonl; import a folder that holds both",
        "secret.png is outside of the folder of pairs.jsonl; import a folder that holds both",
        "target: the image has far more than the 64,000,000 pixels accepted",
        lines[4]["reason"],
        f"target: the image is not a picture that can be read ({', '.join(FORMATS)})",
        "neither a caption nor an instruction",
        "the id 'row-0' is there already",
        "column caption must hold text, got list; name an item of the list, as caption.0",
        "column target holds no image",
        "target: the image has 2 frames; give a picture of one frame",
        "not a JSON object",
    ]
    assert "cannot decode the image" in lines[4]["reason"]


def test_paths_lead_to_regular_files_inside_the_folder_alone(tmp_path: Path):
    source = tmp_path / "source"
    rows: list[dict[str, str]] = write_table(source, 6)
    secret = tmp_path / "secret.png"
    secret.write_bytes(image_bytes(1))
    (source / "link-out.png").symlink_to(secret)
    (source / "link-in.png").symlink_to("target-1.jpg")
    os.mkfifo(source / "pipe.png")
    rows[0]["target"] = str(source / "target-0.jpg")
    rows[1]["target"] = "link-in.png"
    rows[2]["target"] = "link-out.png"
    rows[3]["target"] = "pipe.png"
    rows[4]["target"] = str(secret)
    rows[5]["target"] = "https://example.org/a.png"
    write_rows(source / "pairs.jsonl", rows)
    assert import_pairs(source, tmp_path / "pairs").pairs == 2
    assert [line["reason"] for line in rejected(tmp_path / "pairs")] == [
        "link-out.png is outside of the folder of pairs.jsonl; import a folder that holds both",
        "cannot read pipe.png: it is not a regular file",
        f"{secret.name} is outside of the folder of pairs.jsonl; import a folder that holds both",
        "https://example.org/a.png is a URL; download the images and name their paths",
    ]


def test_paths_as_other_systems_write_them(tmp_path: Path):
    source = tmp_path / "source"
    rows: list[dict[str, Any]] = write_table(source, 5)
    (source / "im ages").mkdir()
    for i in range(2):
        (source / f"target-{i}.jpg").rename(source / "im ages" / f"{i}.jpg")
    rows[0]["target"] = "im ages\\0.jpg"
    rows[1]["target"] = f"file://{source}/im%20ages/1.jpg"
    rows[2]["target"] = "data:image/png;base64,iVBORw0KGgo="
    rows[3]["target"] = "iVBORw0KGgo" * 1_000
    rows[4]["target"] = ["target-4.jpg"]
    write_rows(source / "pairs.jsonl", rows)
    assert import_pairs(source, tmp_path / "pairs").pairs == 2
    assert [line["reason"] for line in rejected(tmp_path / "pairs")] == [
        "a text of 34 characters is not a path; store pictures as files or as bytes",
        "a text of 11,000 characters is not a path; store pictures as files or as bytes",
        "column target holds no image; name an item of the list, as target.0",
    ]


def test_half_an_emoji_costs_its_row_alone(tmp_path: Path):
    rows = write_table(tmp_path / "source", 3)
    rows[1]["caption"] = "a cat \ud83d"
    write_rows(tmp_path / "source" / "pairs.jsonl", rows)
    done = import_pairs(tmp_path / "source", tmp_path / "pairs")
    assert (done.pairs, done.rejected) == (2, 1)
    assert rejected(tmp_path / "pairs")[0]["reason"] == (
        "caption: a text that holds half of a surrogate pair, which UTF-8 cannot hold"
    )


def test_numbers_as_pandas_writes_them(tmp_path: Path):
    write_table(tmp_path / "source", 3)
    (tmp_path / "source" / "pairs.jsonl").write_text(
        "".join(
            f'{{"id": {i}.0, "reference": "reference-{i}.png", "target": "target-{i}.jpg", '
            f'"caption": "a cat", "instruction": NaN}}\n'
            for i in range(3)
        )
    )
    import_pairs(tmp_path / "source", tmp_path / "pairs")
    store = PairStore.open(tmp_path / "pairs")
    assert [(pair.id, pair.instruction) for pair in store] == [(str(i), "") for i in range(3)]


def test_an_id_that_nobody_gave_depends_on_the_pair_alone(tmp_path: Path):
    rows = write_table(tmp_path / "source", 4)
    for row in rows:
        del row["id"]
    write_rows(tmp_path / "source" / "pairs.jsonl", [*rows, rows[1]])
    import_pairs(tmp_path / "source", tmp_path / "pairs")
    write_rows(tmp_path / "source" / "pairs.jsonl", rows[::-1])
    import_pairs(tmp_path / "source", tmp_path / "reversed")
    ids = [pair.id for pair in PairStore.open(tmp_path / "pairs")]
    assert ids == [pair.id for pair in PairStore.open(tmp_path / "reversed")][::-1]
    assert len(set(ids)) == 4
    assert rejected(tmp_path / "pairs")[0]["reason"] == f"the id {ids[1]!r} is there already"


def composite(seed: int, side: int = 40, padding: int = 16) -> tuple[bytes, np.ndarray, np.ndarray]:
    left, right = (np.asarray(open_image(image_bytes(seed + i, side, side))) for i in range(2))
    canvas = np.full((side + 2 * padding, 2 * side + 3 * padding, 3), 255, np.uint8)
    canvas[padding:-padding, padding : padding + side] = left
    canvas[padding:-padding, 2 * padding + side : -padding] = right
    file = io.BytesIO()
    Image.fromarray(canvas).save(file, "PNG")
    return file.getvalue(), left, right


def test_two_panels_in_one_image_both_ways(tmp_path: Path):
    images = [composite(10 * i) for i in range(3)]
    odd, moving = image_bytes(99, 60, 61), io.BytesIO()
    first, second = (open_image(image) for image, _, _ in images[:2])
    first.save(moving, "WEBP", save_all=True, append_images=[second])
    write_parquet(
        tmp_path / "pairs.parquet",
        image=[*(image for image, _, _ in images), odd, moving.getvalue()],
        description=[
            {"item": "cup", "description_0": f"left {i}", "description_1": f"right {i}"}
            for i in range(5)
        ],
    )
    settings = ImportSettings(
        composite="two_panels",
        caption_column="description.description_1",
        reverse_caption_column="description.description_0",
        subject_column="description.item",
    )
    done = import_pairs(tmp_path / "pairs.parquet", tmp_path / "pairs", settings)
    assert (done.pairs, done.rejected) == (6, 2)
    unequal, moves = [line["reason"] for line in rejected(tmp_path / "pairs")]
    assert unequal == (
        "a picture of 61x60 pixels (width x height) does not hold two equal panels with a padding "
        "of 16"
    )
    assert moves == "image: the image has 2 frames; give a picture of one frame"
    there, back = PairStore.open(tmp_path / "pairs")[2], PairStore.open(tmp_path / "pairs")[3]
    assert (there.caption, back.caption, there.subject) == ("right 1", "left 1", "cup")
    assert back.id == f"{there.id}-reverse"
    _, left, right = images[1]
    np.testing.assert_array_equal(np.asarray(open_image(there.reference)), left)
    np.testing.assert_array_equal(np.asarray(open_image(there.target)), right)
    np.testing.assert_array_equal(np.asarray(open_image(back.reference)), right)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"reference_column": "referense"},
            r"no column 'referense'; did you mean 'reference'\? \(it has id, .*--reference_column",
        ),
        ({"caption_column": "text"}, r"no column 'text'.*--caption_column"),
        ({"composite": "two_panels"}, "no column 'image' .*--image_column"),
        ({"reverse_caption_column": "captoin"}, "no column 'captoin'; did you mean 'caption'"),
        ({"provenance_columns": ("score",)}, "no column 'score' .*--provenance_columns"),
        ({"where": ("score>=1",)}, "no column 'score' .*--where"),
        ({"where": ("subject",)}, "cannot read the condition 'subject'; write COLUMN>=NUMBER"),
        ({"padding": -1}, "padding must not be negative, got -1"),
    ],
)
def test_columns_that_are_not_there(tmp_path: Path, settings: dict[str, Any], message: str):
    write_table(tmp_path / "source", 1)
    with pytest.raises(UserError, match=message):
        import_pairs(tmp_path / "source", tmp_path / "pairs", ImportSettings(**settings))
    assert not (tmp_path / "pairs").exists()


def test_a_table_without_words_is_refused(tmp_path: Path):
    rows = write_table(tmp_path / "source", 1)
    write_rows(
        tmp_path / "source" / "pairs.jsonl", [{"reference": "a", "target": "b"} for _ in rows]
    )
    with pytest.raises(UserError, match="neither a column 'caption' nor 'instruction'"):
        import_pairs(tmp_path / "source", tmp_path / "pairs")
