"""The drift meter: which way content moved, whatever the light, and when it says that it cannot."""

import dataclasses
import io
import itertools
import json
import math

import numpy as np
import pytest
from PIL import Image, ImageDraw

from dsd_jax import cli
from dsd_jax.drift import Drift, measure_drift
from dsd_jax.errors import UserError

SIDE = 128


def scene(seed: int = 0, side: int = 2 * SIDE) -> Image.Image:
    """Ellipses and boxes of many colours, larger than what a test looks at."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (side, side), (120, 130, 110))
    pen = ImageDraw.Draw(image)
    for number in range(70):
        x, y = rng.uniform(0, side, 2)
        w, h = rng.uniform(5, 20, 2)
        shape = (pen.ellipse, pen.rectangle)[number % 2]
        shape((x - w, y - h, x + w, y + h), fill=tuple(int(v) for v in rng.integers(20, 235, 3)))
    return image


def middle(image: Image.Image, right: int = 0, down: int = 0, side: int = SIDE) -> Image.Image:
    """The middle of a picture, its content moved by whole pixels."""
    left, top = (image.width - side) // 2 - right, (image.height - side) // 2 - down
    return image.crop((left, top, left + side, top + side))


def relit(image: Image.Image, seed: int = 0) -> Image.Image:
    """Lit from a side through a blind: a gradient, a tint, a shadow with a sharp edge, noise."""
    rng = np.random.default_rng(seed)
    pixels = np.asarray(image, float) / 255
    y, x = np.mgrid[-1 : 1 : image.height * 1j, -1 : 1 : image.width * 1j]
    pixels = pixels * np.exp(0.6 * x - 0.3 * y)[..., None] * [1.2, 1.0, 0.7]
    pixels = (pixels * np.where(x + 0.5 * y > 0.4, 0.5, 1)[..., None]).clip(0, 1) ** 0.8
    pixels += rng.normal(0, 0.02, pixels.shape)
    file = io.BytesIO()
    Image.fromarray((pixels.clip(0, 1) * 255).astype(np.uint8)).save(file, "JPEG", quality=80)
    return Image.open(file).convert("RGB")


def assert_found(
    found: Drift, shift: tuple[float, float], zoom: float = 1, rotation: float = 0
) -> None:
    assert found.shift_px == pytest.approx(shift, abs=0.5)
    assert found.zoom == pytest.approx(zoom, abs=0.005)
    assert found.rotation_degrees == pytest.approx(rotation, abs=0.3)


def test_a_picture_stands_still_against_itself():
    picture = middle(scene())
    found = measure_drift(picture, picture)
    assert found.verdict == "still"
    assert (found.shift_px, found.zoom, found.rotation_degrees) == ((0, 0), 1, 0)
    assert found.residual == pytest.approx(0, abs=1e-3)
    assert found.largest_px == 0
    assert found.tiles == (((0, 0),) * 4,) * 4


@pytest.mark.parametrize("shift", [(8, 0), (0, 8), (-7, 5), (16, -16)])
def test_content_that_moves_right_and_down_has_a_positive_shift(shift: tuple[int, int]):
    whole = scene()
    found = measure_drift(middle(whole), relit(middle(whole, *shift)))
    assert found.verdict == "moved"
    assert_found(found, shift)
    assert found.tiles is not None
    for tile in itertools.chain(*found.tiles):
        if tile:
            assert tile == pytest.approx(shift, abs=1)


@pytest.mark.parametrize("side", [240, 280])
def test_content_that_is_shown_larger_has_a_zoom_above_one(side: int):
    whole = scene()
    enlarged = whole.resize((side, side), Image.Resampling.BICUBIC)
    found = measure_drift(middle(whole), relit(middle(enlarged)))
    assert_found(found, (0, 0), zoom=side / whole.width)
    assert found.tiles is not None
    corner = found.tiles[0][0]
    assert corner is not None
    outwards = corner[0] < 0 and corner[1] < 0
    assert outwards == (side > whole.width)


@pytest.mark.parametrize("degrees", [-5, 3])
def test_rotation_is_counter_clockwise_as_pillow_rotates(degrees: int):
    whole = scene()
    turned = whole.rotate(degrees, Image.Resampling.BICUBIC)
    assert_found(measure_drift(middle(whole), relit(middle(turned))), (0, 0), rotation=degrees)


def test_shift_zoom_and_rotation_at_once_in_a_large_picture():
    """The centre's content moves by the shift; the rest turns and grows about it."""
    whole = scene(1, 1000).resize((2000, 2000))
    turn = 0.94 * np.exp(1j * math.radians(4))  # y points down: clockwise
    there = 1000 * (1 + 1j)
    start = there - (there + 20 - 12j) / turn
    back = 1 / turn
    moved = whole.transform(
        whole.size,
        Image.Transform.AFFINE,
        (back.real, -back.imag, start.real, back.imag, back.real, start.imag),
        Image.Resampling.BICUBIC,
    )
    found = measure_drift(middle(whole, side=900), middle(moved, side=900))
    assert found.shift_px == pytest.approx((20, -12), abs=0.5)
    assert found.zoom == pytest.approx(0.94, abs=0.002)
    assert found.rotation_degrees == pytest.approx(-4, abs=0.1)


@pytest.mark.parametrize("seed", range(4))
def test_light_alone_is_no_drift(seed: int):
    picture = middle(scene(seed))
    found = measure_drift(picture, relit(picture, seed))
    assert found.verdict == "still"
    assert found.residual is not None
    assert 0 < found.residual < 0.6
    backwards = measure_drift(relit(picture, seed), picture)
    assert backwards.verdict == "still"


def test_a_subject_that_moves_alone_is_seen_in_its_tiles():
    ground, subject = middle(scene()), scene(5).crop((0, 0, 48, 48))
    first, second = ground.copy(), ground.copy()
    first.paste(subject, (8, 8))
    second.paste(subject, (16, 20))
    found = measure_drift(first, relit(second))
    assert found.verdict == "part moved"
    assert_found(found, (0, 0))
    assert found.tiles is not None
    assert found.tiles[0][0] == pytest.approx((8, 12), abs=1)
    assert found.largest_px == pytest.approx(math.hypot(8, 12), abs=1)
    assert found.tiles[3][3] == pytest.approx((0, 0), abs=0.5)


def test_the_same_pictures_have_the_same_answer():
    first, second = middle(scene()), relit(middle(scene(), 5, 3))
    assert measure_drift(first, second) == measure_drift(first, second)


def test_another_picture_is_another_structure():
    found = measure_drift(middle(scene(0)), middle(scene(1)))
    assert found.verdict == "other structure"
    assert found.residual is not None
    assert found.residual > 0.8
    assert found.largest_px is None
    assert (found.shift_px, found.tiles) == (None, None)


def noisy(seed: int) -> Image.Image:
    noise = np.random.default_rng(seed).normal(128, 8, (SIDE, SIDE, 3))
    return Image.fromarray(noise.astype(np.uint8))


def gradient(size: int) -> Image.Image:
    row = np.linspace(40, 200, size, dtype=np.uint8)
    return Image.fromarray(np.repeat(np.broadcast_to(row, (size, size))[..., None], 3, 2))


BLANK = Image.new("RGB", (SIDE, SIDE), (90, 120, 60))
EDGE = Image.new("RGB", (SIDE, SIDE), "navy")
EDGE.paste("orange", (50, 0, SIDE, SIDE))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (BLANK, BLANK),
        (BLANK, middle(scene())),
        (middle(scene()), BLANK),
        (noisy(0), noisy(1)),
        (gradient(SIDE), gradient(SIDE)),
        (EDGE, relit(EDGE)),  # a straight edge hides what moves along it
    ],
    ids=["blank", "blank first", "blank second", "noise", "gradient", "one edge"],
)
def test_pictures_without_texture_cannot_tell(first: Image.Image, second: Image.Image):
    found = measure_drift(first, second)
    assert found.verdict == "cannot tell"
    assert (found.shift_px, found.zoom, found.rotation_degrees, found.tiles) == (None,) * 4


@pytest.mark.parametrize("size", [(16, 16), (31, 30), (128, 16), (65, 301), (512, 70)])
def test_sizes_from_the_smallest_on_are_measured(size: tuple[int, int]):
    picture = scene(2, 512).crop((0, 0, *size))
    assert measure_drift(picture, picture).verdict in ("still", "cannot tell")


def test_sizes_that_cannot_be_measured_are_refused():
    with pytest.raises(UserError, match=r"of one size, got 128x128 and 64x128 pixels; resize or"):
        measure_drift(BLANK, BLANK.resize((64, 128)))
    with pytest.raises(UserError, match=r"160x16 pixels is too narrow .* at most 8 times"):
        measure_drift(BLANK.resize((160, 16)), BLANK.resize((160, 16)))


def test_the_command_prints_and_writes_the_figures(tmp_path, capsys):
    whole = scene()
    middle(whole).save(tmp_path / "a.png")
    middle(whole, 6, -4).save(tmp_path / "b.png")
    a, b, out = (str(tmp_path / name) for name in ("a.png", "b.png", "drift.json"))
    assert cli.main(["data", "drift", a, b, "--json", out]) == 0
    shown = capsys.readouterr().out
    assert "moved (residual 0.0" in shown
    assert "shift +6.00 px right, -4.00 px down" in shown
    assert shown.count("+6.0 -4.0") == 16
    figures = json.loads((tmp_path / "drift.json").read_text())
    assert list(figures) == [field.name for field in dataclasses.fields(Drift)]
    assert figures["shift_px"] == pytest.approx([6, -4], abs=0.05)
    assert figures["verdict"] == "moved"
    assert np.shape(figures["tiles"]) == (4, 4, 2)


def test_what_the_command_refuses_or_remarks(tmp_path, capsys):
    picture, path = middle(scene()), tmp_path / "a.png"
    picture.save(path)

    def said(name: str) -> str:
        status = cli.main(["data", "drift", str(path), str(tmp_path / name)])
        out, err = capsys.readouterr()
        return f"{status} {out}{err}"

    picture.save(tmp_path / "film.gif", save_all=True, append_images=[BLANK, picture])
    assert "film.gif has 3 frames; give a picture of one frame" in said("film.gif")
    (tmp_path / "text.png").write_text("no picture")
    assert said("text.png").startswith("2 ")
    assert "there is no image at" in said("nowhere.png")
    picture.resize((128, 96)).save(tmp_path / "low.png")
    shown = " ".join(said("low.png").split())
    assert shown.startswith("2 ")
    assert "drift is measured between pictures of one size, got 128x128 and 128x96 pixels" in shown
    BLANK.save(tmp_path / "blank.png")
    assert said("blank.png").startswith("0 cannot tell: there is too little texture")
    clear = picture.convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(picture.size))
    clear.save(tmp_path / "clear.png")
    assert "clear.png is partly transparent; white is laid under it" in said("clear.png")
    clear.putalpha(255)
    clear.save(tmp_path / "opaque.png")
    assert "transparent" not in said("opaque.png")
