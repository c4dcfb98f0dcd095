"""Panels are found where they are, and every fault of a grid has its name."""

import itertools

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from benchmarks.grids.check import drawn, fits, named_rightly
from benchmarks.grids.scenes import FAULTS, GOOD
from dsd_jax.data.make.grid_check import GridCheck
from dsd_jax.data.make.panels import find_panels
from dsd_jax.errors import UserError
from dsd_jax.toy.world import BACKGROUNDS, PLACES, Scene, subjects
from dsd_jax.toy.world import grid as toy_grid

COLOURS = ("#b03020", "#2060c0", "#30a050", "#c0a020")


def grid(
    width: int,
    height: int,
    boxes: list[tuple[int, int, int, int]],
    page: str = "white",
    *,
    marks: bool = True,
) -> Image.Image:
    """Flat panels of different colours with a mark in each."""
    image = Image.new("RGB", (width, height), page)
    pen = ImageDraw.Draw(image)
    for (left, top, right, bottom), colour in zip(boxes, COLOURS, strict=False):
        pen.rectangle((left, top, right - 1, bottom - 1), fill=colour)
        if marks:
            across, down = (right - left) // 4, (bottom - top) // 4
            pen.ellipse((left + across, top + down, right - across, bottom - down), fill="#e8e0d0")
    return image


def cells(
    columns: list[tuple[int, int]], rows: list[tuple[int, int]]
) -> list[tuple[int, int, int, int]]:
    return [(a, c, b, d) for (c, d), (a, b) in itertools.product(rows, columns)]


def spots(seed: int, side: int, grain: int) -> Image.Image:
    """A square of strong texture in spots of `grain` pixels."""
    cells = np.random.default_rng(seed).normal(120, 40, (side // grain, side // grain, 3))
    image = Image.fromarray(cells.clip(0, 255).astype(np.uint8))
    return image.resize((side, side), Image.Resampling.BICUBIC)


def test_drawn_grids():
    """Some of what the benchmark counts."""
    judged = [(picture, find_panels(picture.image)) for _, picture in drawn(1, 1, (64, 128))]
    good = [fits(found, picture) for picture, found in judged if picture.kind in GOOD]
    accepted = [picture.kind in GOOD for picture, found in judged if found.boxes]
    faults = [named_rightly(found, picture) for picture, found in judged if picture.kind in FAULTS]
    assert len(good) == 144
    assert np.mean(good) >= 0.95
    assert np.mean(accepted) >= 0.98
    assert np.mean(faults) >= 0.9


def test_grids_of_the_toy_world():
    """Bricks, stripes and horizons at any height, without gutters."""
    rng = np.random.default_rng(0)
    known = subjects(held_out=False)
    boxes = cells([(0, 32), (32, 64)], [(0, 32), (32, 64)])
    right = 0
    for _ in range(100):
        scenes = [
            Scene(background, list(PLACES)[rng.integers(len(PLACES))])
            for background in rng.permutation(list(BACKGROUNDS))[:4].tolist()
        ]
        picture = toy_grid(known[rng.integers(len(known))], scenes)
        found = find_panels(Image.fromarray(picture))
        right += all(
            max(np.abs(np.subtract(box, true))) <= 2
            for box, true in zip(found.boxes, boxes, strict=bool(found.boxes))
        ) and bool(found.boxes)
    assert right >= 93


class TestGood:
    def test_touching_panels_of_a_toy_grid_are_not_trimmed(self):
        boxes = cells([(0, 32), (32, 64)], [(0, 32), (32, 64)])
        assert find_panels(grid(64, 64, boxes)).boxes == tuple(boxes)

    @pytest.mark.parametrize("page", ["white", "black", "#8090a0"])
    @pytest.mark.parametrize("gutter", [1, 2, 4])
    def test_a_gutter_is_no_part_of_small_panels(self, page, gutter):
        low, high = (64 - gutter) // 2, (64 - gutter) // 2 + gutter
        sides = [(0, low), (high, 64)]
        found = find_panels(grid(64, 64, cells(sides, sides), page))
        for (left, top, right, bottom), true in zip(found.boxes, cells(sides, sides), strict=True):
            assert (left, top) >= true[:2]
            assert (right, bottom) <= true[2:]
            assert right - left == bottom - top >= 30

    @pytest.mark.parametrize(("width", "height"), [(1024, 1024), (1000, 750), (640, 1100)])
    def test_nothing_of_the_neighbours_at_full_size(self, width, height):
        x, y = width // 2, height // 2
        true = cells([(0, x - 9), (x + 11, width)], [(0, y - 8), (y + 12, height)])
        found = find_panels(grid(width, height, true))
        sizes = {(right - left, bottom - top) for left, top, right, bottom in found.boxes}
        assert len(sizes) == 1
        for box, within in zip(found.boxes, true, strict=True):
            assert box[0] >= within[0]
            assert box[1] >= within[1]
            assert box[2] <= within[2]
            assert box[3] <= within[3]
            assert box[2] - box[0] > 0.92 * (within[2] - within[0])

    def test_a_frame_is_cut_off(self):
        true = cells([(12, 250), (262, 500)], [(12, 250), (262, 500)])
        found = find_panels(grid(512, 512, true, "#202020"))
        for box, within in zip(found.boxes, true, strict=True):
            assert (box[0], box[1]) >= within[:2]
            assert (box[2], box[3]) <= within[2:]

    def test_a_border_that_cannot_be_seen(self):
        """Two panels as white as the page around them, diagonally."""
        image = grid(256, 256, cells([(0, 122), (134, 256)], [(0, 122), (134, 256)]))
        pen = ImageDraw.Draw(image)
        for corner in ((0, 0), (134, 134)):
            pen.rectangle((*corner, corner[0] + 121, corner[1] + 121), fill="white")
            pen.ellipse(
                (corner[0] + 30, corner[1] + 30, corner[0] + 90, corner[1] + 90), fill="red"
            )
        found = find_panels(image)
        assert found.boxes[1][0] >= 134
        assert found.boxes[1][3] <= 122

    @pytest.mark.parametrize("page", ["white", "black", "#e8e4dc"])
    @pytest.mark.parametrize("side", [64, 300])
    def test_panels_on_the_ground_of_the_gutter(self, page, side):
        """All four, and three of them: what crosses no middle is a grid."""
        image = Image.new("RGB", (side, side), page)
        pen = ImageDraw.Draw(image)
        for x, y in itertools.product((side // 8, side * 5 // 8), repeat=2):
            pen.ellipse((x, y, x + side // 4, y + side // 4), fill="#b03020")
        boxes = find_panels(image).boxes
        assert all(box[2] - box[0] >= 0.45 * side for box in boxes)
        assert len(boxes) == 4
        low, high = side // 2 - side // 32, side // 2 + side // 32
        pen.rectangle((high, high, side, side), fill="#2060c0")
        pen.rectangle((high + 8, high + 8, high + 16, high + 16), fill="#e8e0d0")
        first, *_, last = find_panels(image).boxes
        assert first[2] <= low
        assert last[:2] >= (high, high)

    def test_dark_panels_that_touch(self):
        """Their border is fainter than a clear step, but there all along."""
        rng = np.random.default_rng(0)
        pixels, sides = np.zeros((192, 192, 3)), [(0, 96), (96, 192)]
        for y, x in itertools.product((0, 96), repeat=2):
            level = 9 + 2.5 * ((x > 0) == (y > 0))
            pixels[y : y + 96, x : x + 96] = level + rng.normal(0, 0.8, (96, 96, 3))
            pixels[y + 30 : y + 50, x + 30 : x + 50] = 90
        found = find_panels(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)))
        for box, true in zip(found.boxes, cells(sides, sides), strict=True):
            assert max(np.abs(np.subtract(box, true))) <= 2

    @pytest.mark.parametrize("seed", range(3))
    def test_busy_panels_that_touch(self, seed):
        """Spots near the size of a reduced pixel hide the border there, but not in full size."""
        image, sides = Image.new("RGB", (1024, 1024)), [(0, 512), (512, 1024)]
        for number, (x, y) in enumerate(itertools.product((0, 512), repeat=2)):
            image.paste(spots(4 * seed + number, 512, 6), (x, y))
        found = find_panels(image.filter(ImageFilter.GaussianBlur(0.6)))
        for box, true in zip(found.boxes, cells(sides, sides), strict=True):
            assert max(np.abs(np.subtract(box, true))) <= 12

    def test_a_ground_below_both_lower_panels_is_no_rim(self):
        """The upper panels reach the edge of the picture, so the white below is the panels' own."""
        image = grid(256, 256, cells([(0, 123), (133, 256)], [(0, 123)]))
        for x in (5, 138):
            image.paste("#b03020", (x, 150, x + 113, 242))
        boxes = find_panels(image).boxes
        assert boxes[0][1] <= 2
        assert boxes[2][3] >= 254

    def test_each_half_sees_another_border_of_the_gutter(self):
        """Two panels have the ground of the gutter, diagonally; no line is tilted."""
        image = grid(128, 128, cells([(0, 62), (66, 128)], [(0, 62), (66, 128)]))
        pen = ImageDraw.Draw(image)
        for x, y in ((0, 66), (66, 0)):
            pen.rectangle((x, y, x + 61, y + 61), fill="white")
            pen.ellipse((x + 15, y + 12, x + 45, y + 50), fill="#b03020")
        found = find_panels(image)
        assert found.boxes[0][2:] <= (62, 62)
        assert found.boxes[3][:2] >= (66, 66)

    def test_a_frame_that_half_of_the_panels_hide(self):
        """The frame is as wide on all sides, though the lower panels have its colour."""
        image = grid(256, 256, cells([(10, 123), (133, 246)], [(10, 123), (133, 246)]))
        pen = ImageDraw.Draw(image)
        pen.rectangle((0, 124, 256, 256), fill="white")
        for x in (30, 150):
            pen.ellipse((x, 150, x + 60, 220), fill="#2060c0")
        found = find_panels(image)
        assert found.boxes[0][0] >= 10
        assert found.boxes[0][1] >= 10
        assert found.boxes[1][2] <= 246


class TestFaults:
    def reason(self, image: Image.Image, **changes) -> str:
        found = find_panels(image, GridCheck(**changes))
        assert bool(found.boxes) != bool(found.reason)
        return found.reason

    @pytest.mark.parametrize("side", [64, 512])
    def test_each(self, side):
        h, q = side // 2, side // 8
        even = [(0, h), (h, side)]
        assert self.reason(grid(side, side, cells(even, even))) == ""
        off = [(0, h + q), (h + q, side)]
        assert self.reason(grid(side, side, cells(off, even))) == "uneven"
        assert self.reason(grid(side, side, cells(even, off))) == "uneven"
        far = [(0, h - q // 2), (h + q // 2, side)]
        assert self.reason(grid(side, side, cells(far, far))) == "wide_gutter"
        assert self.reason(grid(side, side, cells(far, far)), max_gutter=0.2) == ""
        three = [(0, 0, side, h), *cells(even, [(h, side)])]
        assert self.reason(grid(side, side, three)) == "three_panels"
        assert self.reason(grid(side, side, cells([(0, side)], even))) == "merged"
        assert self.reason(grid(side, side, [(0, 0, side, side)])) == "no_separator"
        assert self.reason(grid(side, side, cells(even, even), marks=False)) == "blank_panel"
        assert self.reason(grid(side, side, cells(even, even)), min_panel=side) == "too_small"

    def test_neighbours_of_one_colour_without_a_gutter_are_merged(self):
        image = grid(64, 64, cells([(0, 32), (32, 64)], [(0, 32), (32, 64)]))
        plain = Image.new("RGB", (64, 64), "#406080")
        marks = Image.new("L", (64, 64))
        for x, y in itertools.product((8, 40), (8, 40)):
            ImageDraw.Draw(marks).ellipse((x, y, x + 16, y + 16), fill=255)
        plain.paste(image, mask=marks)
        assert self.reason(plain) == "no_separator"

    def test_one_subject_on_paper_is_no_grid(self):
        for middle, radius in ((0.5, 0.06), (0.4, 0.15), (0.5, 0.3), (0.25, 0.1)):
            image = Image.new("RGB", (200, 200), "white")
            low, high = 200 * (middle - radius), 200 * (middle + radius)
            ImageDraw.Draw(image).ellipse((low, low, high, high), fill="#b03020")
            assert self.reason(image) in {"no_separator", "merged", "blank_panel"}

    def test_a_wide_gutter_beside_a_faint_panel_is_too_wide(self):
        image = grid(200, 200, cells([(0, 85), (115, 200)], [(0, 85), (115, 200)]), "#707070")
        image.paste("#747474", (0, 0, 85, 85))
        image.paste("#b03020", (20, 20, 40, 40))
        assert self.reason(image) == "wide_gutter"

    def test_turned(self):
        h = 256
        image = grid(2 * h, 2 * h, cells([(0, h), (h, 2 * h)], [(0, h), (h, 2 * h)]))
        turned = image.rotate(4, Image.Resampling.BICUBIC).crop((40, 40, 472, 472))
        assert self.reason(turned) == "crooked"

    def test_nine_panels_and_sixteen(self):
        for count, reasons in ((3, {"uneven", "merged"}), (4, {"too_many"})):
            own, gap = 480 // count - 8, 8
            sides = [(i * (own + gap), i * (own + gap) + own) for i in range(count)]
            image = Image.new("RGB", (sides[-1][1], sides[-1][1]), "white")
            for number, box in enumerate(cells(sides, sides)):
                tile = grid(own, own, [(0, 0, own, own)], COLOURS[number % 4])
                image.paste(tile.point([(v + 37 * number) % 200 for v in range(256)] * 3), box[:2])
            assert self.reason(image) in reasons

    @pytest.mark.parametrize("seed", range(3))
    def test_six_panels_that_touch(self, seed):
        """A slanted line near the middle of two of them does not make four of six."""
        image, borders = Image.new("RGB", (512, 512)), [0, 170, 341, 512]
        for number, (column, row) in enumerate(itertools.product(range(3), range(2))):
            size = borders[column + 1] - borders[column], 256
            panel = spots(6 * seed + number, 256, 24).crop((0, 0, *size))
            image.paste(panel, (borders[column], 256 * row))
        ImageDraw.Draw(image).line((250, 0, 258, 512), fill="#e0e0e0", width=3)
        assert self.reason(image) == "too_many"

    @pytest.mark.parametrize("grain", [8, 12, 16])
    def test_spots_in_rows_are_no_borders(self, grain):
        """Their lines are straight and sharp, but there are many, as between blocks of a JPEG."""
        assert self.reason(spots(5, 1024, grain)) in {"no_separator", "merged", "uneven"}

    def test_one_blank_panel_is_named(self):
        boxes = cells([(0, 64), (64, 128)], [(0, 64), (64, 128)])
        image = grid(128, 128, boxes)
        image.paste("#703090", boxes[2])
        found = find_panels(image)
        assert found.reason == "blank_panel"
        assert found.detail == "panel 3: 0.000 of it is content"

    def test_noise_alone(self):
        pixels = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
        assert self.reason(Image.fromarray(pixels)) in {"no_separator", "merged"}

    @pytest.mark.parametrize("size", [(16, 16), (31, 400), (32, 32), (33, 47), (3000, 40)])
    def test_sizes_at_the_border(self, size):
        pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
        assert self.reason(Image.fromarray(pixels))


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"min_panel": 0}, "min_panel must be at least 1 pixel, got 0"),
        ({"max_gutter": 0.5}, r"max_gutter must be from 0 to 0\.4, got 0\.5"),
        ({"max_tilt": 1.5}, r"max_tilt must be from 0 to 0\.12, got 1\.5"),
        ({"min_support": -0.1}, r"min_support must be from 0 to 1, got -0\.1"),
        ({"min_step": 300.0}, r"min_step must be from 0 to 255, got 300\.0"),
    ],
)
def test_limits_that_make_no_sense(values, complaint):
    with pytest.raises(UserError, match=complaint):
        GridCheck(**values)


def test_any_limits_and_any_picture_have_an_answer():
    rng = np.random.default_rng(0)
    for number in range(60):
        height, width = rng.integers(16, 90, 2)
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        if number % 2:
            pixels[:] = pixels[0, 0]
            pixels[height // 2 :, : width // 2] = rng.integers(0, 256, 3)
        share = float(rng.choice([0, 1]))
        check = GridCheck(
            min_panel=int(rng.integers(1, 20)),
            max_gutter=0.4 * share,
            max_tilt=0.12 * share,
            min_support=float(rng.choice([0, 0.5, 1])),
            min_content=share,
            margin=0.2 * float(rng.choice([0, 1])),
        )
        found = find_panels(Image.fromarray(pixels), check)
        assert bool(found.boxes) != bool(found.reason)
        for left, top, right, bottom in found.boxes:
            assert 0 <= left < right <= width
            assert 0 <= top < bottom <= height
