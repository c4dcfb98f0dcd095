"""`dsd data view`: a page of whatever holds pictures, with foreign words as words."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dsd_jax.cli import main as dsd
from dsd_jax.images import save_image
from tests.data.make.made import write_folder
from tests.tiny_pairs import write_pairs

EVIL = "<script>alert(1)</script>"


def picture(path: Path, seed: int = 0) -> None:
    pixels = np.random.default_rng(seed).integers(0, 255, (16, 24, 3)).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def viewed(source: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[str, str]:
    """Runs the command; returns its output and the page."""
    page = source.parent / "page.html"
    assert dsd(["data", "view", str(source), "--output_path", str(page), *flags]) == 0
    said = capsys.readouterr().out
    text = page.read_text(encoding="utf-8")
    assert "prefers-color-scheme: dark" in text
    assert "width=device-width" in text
    return said.removeprefix(f"{page} shows ").strip(), text


def refused(source: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert dsd(["data", "view", str(source)]) == 2
    return capsys.readouterr().err


def test_a_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_pairs(tmp_path / "pairs", 12, tasks=("identity", "relight"))
    said, text = viewed(tmp_path / "pairs", capsys, "--limit", "6")
    assert said == "6 of 12 pairs"
    assert text.count('class="card"') == 6
    assert text.count("<img ") == 12
    assert "relight: 3 of 6 pairs" in text
    assert "<figcaption>reference</figcaption>" in text


def test_the_work_folder_of_a_making(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_folder(tmp_path / "made", 6)
    said, text = viewed(tmp_path / "made", capsys)
    assert said == "6 of 6 grids"
    assert text.count("<article") == 6


def test_a_table_of_pairs_with_a_bad_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    picture(tmp_path / "in" / "a.png")
    rows = [{"reference": "a.png", "target": name, "caption": EVIL} for name in ("a.png", "no.png")]
    table = tmp_path / "in" / "pairs.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    said, text = viewed(table, capsys)
    assert said == "the first 2 rows"
    assert "there is no image no.png" in text
    assert EVIL not in text
    assert "&lt;script&gt;alert(1)" in text


def test_a_folder_of_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = tmp_path / "images"
    for number in range(5):
        picture(folder / "deep" / f"{number}.png", number)
    (folder / "deep" / "0.txt").write_text(EVIL)
    save_image(Image.new("RGB", (20, 20)), folder / "made.png", {"text": "a red star"})
    (folder / "broken.jpg").write_bytes(b"no picture")
    said, text = viewed(folder, capsys)
    assert said == "7 of 7 images"
    assert "a red star" in text
    assert "&lt;script&gt;alert(1)" in text
    assert EVIL not in text
    assert "broken.jpg" in text
    said, text = viewed(folder, capsys, "--limit", "2")
    assert said == "2 of 7 images"


def test_the_page_lies_beside_its_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_pairs(tmp_path / "pairs.v2", 2)
    assert dsd(["data", "view", str(tmp_path / "pairs.v2")]) == 0
    assert (tmp_path / "pairs.v2.html").exists()


def test_what_cannot_be_shown_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert f"there is no file or folder {tmp_path / 'no'}" in refused(tmp_path / "no", capsys)
    (tmp_path / "empty").mkdir()
    assert "expected the configuration or work folder of" in refused(tmp_path / "empty", capsys)
    (tmp_path / "empty" / "encoded.json").write_text("{}")
    assert "view the dataset that was encoded" in refused(tmp_path / "empty", capsys)
