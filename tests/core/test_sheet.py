"""Contact sheets."""

import numpy as np
from PIL import Image

from dsd_jax.sheet import contact_sheet


def test_every_picture_has_a_cell_and_a_caption():
    colours = ["red", "lime", "blue", "black", "yellow"]
    pictures = (Image.new("RGB", (400, 300), colour) for colour in colours)
    sheet = contact_sheet(pictures, ["a caption that is far too long for its cell"] * 5, side=100)
    pixels = np.asarray(sheet)
    assert sheet.size == (3 * 106 + 6, 2 * 124 + 6)
    for i, colour in enumerate(colours):
        left, top = 6 + i % 3 * 106, 6 + i // 3 * 124
        centre = pixels[top + 50, left + 50]
        assert tuple(centre) == tuple(np.asarray(Image.new("RGB", (1, 1), colour))[0, 0])
        caption = pixels[top + 102 : top + 118, left : left + 100]
        assert caption.min() < 100
        assert pixels[top : top + 118, left + 100 : left + 106].min() == 255


def test_captions_of_other_scripts():
    sheet = contact_sheet([Image.new("RGB", (8, 8))], ["猫 на стуле \n zwei"])
    assert min(sheet.size) > 8
