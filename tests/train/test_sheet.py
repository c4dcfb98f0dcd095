"""Sheets of samples: pictures are where their layout says, heads and captions are readable."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dsd_jax.errors import UserError
from dsd_jax.images import save_image
from dsd_jax.train.sheet import HEAD, cells, draw_sheet

HEADS = ["reference", "target", "sampled reference", "sampled target"]


def rows(count: int, height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 255, (count, height, len(HEADS) * width, 3)).astype(np.uint8)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (300, 200)])
def test_pictures_come_back(tmp_path: Path, height: int, width: int) -> None:
    drawn = rows(3, height, width)
    sheet = draw_sheet(drawn, HEADS, ["a cat", "", "word " * 200])
    save_image(sheet.image, tmp_path / "sheet.png", sheet.layout)
    found = cells(tmp_path / "sheet.png")
    assert found.shape == (3, len(HEADS), height, width, 3)
    np.testing.assert_array_equal(np.concatenate(list(found.swapaxes(0, 1)), axis=2), drawn)


def test_heads_and_captions_are_drawn() -> None:
    def ink(captions: list[str]) -> tuple[int, int]:
        pixels = np.asarray(draw_sheet(np.full_like(rows(2, 64, 64), 255), HEADS, captions).image)
        dark = np.all(pixels < 128, axis=-1)
        return int(dark[:HEAD].sum()), int(dark[HEAD:].sum())

    heads, nothing = ink(["", ""])
    assert heads > 50
    assert nothing == 0
    assert ink(["", "a cat on a boat"])[1] > 50


def test_a_long_caption_stays_inside_the_sheet() -> None:
    image = draw_sheet(rows(1, 64, 64), HEADS, ["unbreakable" * 40]).image
    assert image.width < 4 * 128 + 40
    assert image.height < HEAD + 128 + 60


def test_another_picture_is_no_sheet(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    with pytest.raises(UserError, match="is not a sheet of samples"):
        cells(tmp_path / "plain.png")


def test_a_layout_that_does_not_fit_its_picture_is_refused(tmp_path: Path) -> None:
    sheet = draw_sheet(rows(2, 64, 64), HEADS, ["a", "b"])
    path = tmp_path / "sheet.png"
    for change in ({"rows": 10**9}, {"scale": 0}, {"picture": "64"}, {"heads": 7}, {"rows": 5}):
        save_image(sheet.image, path, {**sheet.layout, **change})
        with pytest.raises(
            UserError, match="is not a sheet of samples: its layout does not fit it"
        ):
            cells(path)
