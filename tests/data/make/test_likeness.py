"""Copies are alike, other pictures are not, and of copies across a corpus the first stays."""

import io
import itertools

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from benchmarks.grids.scenes import STYLES, draw
from dsd_jax.data.make.ids import CaptionId, GridId, PanelId, PromptId
from dsd_jax.data.make.likeness import duplicates, hashes, similarity
from dsd_jax.tasks import task_named

CEILING = task_named("identity").similarity.most
GOLDEN = "80021f3f3f3e7c38113516917d17156558958d57197598997d981d75d79d8dd7"


def scene(style: str, number: int, side: int = 256) -> Image.Image:
    drawn = draw("touching", style, 2 * side, np.random.default_rng(number))
    return drawn.image.crop(drawn.panels[0])


@pytest.fixture(scope="module", params=STYLES)
def picture(request) -> Image.Image:
    return scene(request.param, 1)


def again(image: Image.Image) -> Image.Image:
    """Saves a picture as JPEG, then resizes it."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return Image.open(file).resize((200, 200)).convert("RGB")


def other_face(image: Image.Image) -> Image.Image:
    changed = image.copy()
    side = image.width
    box = (side * 0.4, side * 0.45, side * 0.6, side * 0.58)
    ImageDraw.Draw(changed).ellipse(box, fill="white", outline="black", width=4)
    return changed


def grid(number: int) -> GridId:
    return GridId(PromptId(CaptionId(f"{number:016x}"), "identity"), 0)


def panel(number: int, which: int) -> PanelId:
    return PanelId(grid(number), which)


def alike(a: str, b: str) -> bool:
    return bool(duplicates({grid(0): [a], grid(1): [b]}))


class TestTwoPictures:
    def test_equal_and_opposite(self, picture):
        assert similarity(picture, picture) == 1
        black, white = (Image.new("RGB", (32, 32), colour) for colour in ("black", "white"))
        assert similarity(black, white) == 0

    def test_copies_are_above_the_ceiling(self, picture):
        assert similarity(picture, again(picture)) > CEILING
        assert alike(hashes(picture), hashes(again(picture)))

    @pytest.mark.parametrize(
        "change",
        [
            lambda image: ImageEnhance.Brightness(image).enhance(0.6),
            ImageOps.mirror,
            other_face,
        ],
        ids=["light", "mirrored", "face"],
    )
    def test_a_change_is_below_it(self, picture, change):
        assert similarity(picture, change(picture)) < CEILING

    def test_other_pictures_are_neither(self):
        pictures = [scene(style, number) for style in STYLES for number in (2, 3)]
        for a, b in itertools.combinations(pictures, 2):
            assert similarity(a, b) < CEILING
            assert not alike(hashes(a), hashes(b))

    def test_other_colours_are_no_copy(self):
        red, blue = (Image.new("RGB", (32, 32), colour) for colour in ("#c04040", "#4040c0"))
        for image in (red, blue):
            ImageDraw.Draw(image).rectangle((8, 8, 20, 24), fill="white")
        assert not alike(hashes(red), hashes(blue))

    def test_the_hash_never_changes(self):
        y, x = np.mgrid[0:64, 0:64]
        pixels = np.stack([x * 4, y * 4, (x * y) % 256], -1).astype(np.uint8)
        assert hashes(Image.fromarray(pixels)) == GOLDEN


class TestCorpus:
    def test_the_smallest_id_stays(self):
        one, other = hashes(scene("photo", 1)), hashes(scene("comic", 2))
        grids = {grid(2): [one, other], grid(0): [other, "f" * 64], grid(1): ["0" * 64, one]}
        assert duplicates(grids) == {panel(2, 1): panel(1, 2), panel(2, 2): panel(0, 1)}
        assert duplicates(dict(reversed(grids.items()))) == duplicates(grids)

    def test_panels_of_one_grid_are_not_compared(self):
        assert duplicates({grid(0): ["0" * 64] * 4}) == {}
        found = duplicates({grid(0): ["0" * 64] * 2, grid(1): ["0" * 64]})
        assert found == {panel(1, 1): panel(0, 1)}

    def test_a_copy_of_a_copy_that_went_stays(self):
        bits = [0, 0b111, 0b111111]  # the second is near both others, which are far apart
        grids = {grid(n): [f"{structure:016x}" + "8" * 48] for n, structure in enumerate(bits)}
        assert duplicates(grids) == {panel(1, 1): panel(0, 1)}

    def test_nothing(self):
        assert duplicates({}) == {}
        assert duplicates({grid(0): []}) == {}

    def test_agrees_with_comparing_all(self):
        rng = np.random.default_rng(0)
        grids: dict[GridId, list[str]] = {}
        seeds = [(int(rng.integers(2**63)), rng.integers(0, 16, 48)) for _ in range(60)]
        for n in range(150):
            own = []
            for _ in range(4):
                structure, shades = seeds[rng.integers(len(seeds))]
                for bit in rng.integers(0, 64, rng.integers(0, 5)):
                    structure ^= 1 << int(bit)
                moved = (shades + rng.integers(-1, 2, 48) * (rng.random() < 0.5)).clip(0, 15)
                own.append(f"{structure:016x}" + "".join(f"{v:x}" for v in moved))
            grids[grid(n)] = own
        expected: dict[PanelId, PanelId] = {}
        kept: list[tuple[GridId, PanelId, str]] = []
        for name, own in grids.items():
            for n, look in enumerate(own, start=1):
                first = next((k for k in kept if k[0] != name and near(k[2], look)), None)
                if first:
                    expected[PanelId(name, n)] = first[1]
                else:
                    kept.append((name, PanelId(name, n), look))
        assert 100 < len(expected) < 550
        assert duplicates(grids) == expected


def near(a: str, b: str) -> bool:
    bits = (int(a[:16], 16) ^ int(b[:16], 16)).bit_count()
    return bits <= 3 and all(
        abs(int(x, 16) - int(y, 16)) <= 1 for x, y in zip(a[16:], b[16:], strict=True)
    )
