"""Re-lighting by operators: no pixel moves, and the light is the one that was asked for."""

import numpy as np
import pytest
from PIL import Image

from benchmarks.grids.scenes import STYLES, scene
from dsd_jax.drift import measure_drift
from dsd_jax.errors import UserError
from dsd_jax.lights import Light, Look, load_lights
from dsd_jax.relighting import developed, linear, relief_gains, relit

SIDE = 128
LIGHTS = load_lights()


def look(words: str) -> Look:
    return LIGHTS.read(words).look


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def grey(height: int = 48, width: int = 64) -> np.ndarray:
    return np.full((height, width, 3), 90, np.uint8)


@pytest.fixture(scope="module")
def drawn() -> list[np.ndarray]:
    """A textured picture of each style."""
    textured = [style for style in STYLES if style not in ("flat", "studio", "night")]
    return [np.asarray(scene(style, SIDE, rng(n))) for n, style in enumerate(textured)]


@pytest.fixture(scope="module")
def lights() -> list[Light]:
    return LIGHTS.draw_different(rng(), 12)


def test_nothing_moves(drawn, lights):
    y, x = np.mgrid[-1:1:40j, -1:1:40j]
    ball = np.sqrt(np.maximum(0.6 - x * x - y * y, 0)).astype(np.float32)
    for number, light in enumerate(lights):
        picture = drawn[number % len(drawn)]
        found = relit(picture, light.look, rng(number), ball if number % 2 else None)
        drift = measure_drift(Image.fromarray(picture), Image.fromarray(found))
        assert drift.verdict == "still", light.description


@pytest.mark.parametrize(
    ("words", "axis", "first"),
    [
        ("from the left", 1, True),
        ("from the right", 1, False),
        ("from above", 0, True),
        ("from below", 0, False),
    ],
)
def test_the_side_of_the_light_is_brighter(words, axis, first):
    for seed in range(5):
        one, other = np.array_split(relit(grey(), look(words), rng(seed)).mean(2), 2, axis)
        assert (one.mean() > other.mean() + 10) == first


def test_light_from_behind_darkens_the_middle_and_light_from_the_front_the_border():
    for words, sign in (("from behind", 1), ("from the front", -1)):
        found = relit(grey(60, 60), look(words), rng()).mean(2)
        border = np.concatenate([found[0], found[-1], found[:, 0], found[:, -1]])
        assert sign * (border.mean() - found[25:35, 25:35].mean()) > 5


def test_warm_is_warmer_and_cold_is_colder():
    def warmth(words: str) -> float:
        red, _, blue = relit(grey(), look(words), rng()).mean((0, 1))
        return red - blue

    assert warmth("warm light") > 10
    assert warmth("a candle") > warmth("a lamp") > 10
    assert warmth("cold light") < -10
    assert abs(warmth("neutral light")) < 6


def test_night_is_darker_and_contrast_is_stronger(drawn):
    photo = drawn[0]
    night, low, high = (
        relit(photo, look(words), rng()).astype(float)
        for words in ("at night", "with low contrast", "with high contrast")
    )
    assert night.mean() < 0.8 * photo.mean()
    assert low.std() < photo.std() < high.std()


def test_surfaces_that_face_the_light_are_brighter():
    """A ridge from top to bottom."""
    x = np.linspace(-1, 1, 64)
    ridge = np.tile(np.exp(-8 * x * x).astype(np.float32), (48, 1))
    for hardness in (0.0, 1.0):
        gains = relief_gains(ridge, 48, 64, (-0.96, 0.0, 0.29), hardness=hardness)[:, :, 0]
        assert gains[:, 20:28].min() > 1.1
        assert gains[:, 36:44].max() < 0.9
        assert gains[:, 0] == pytest.approx(1, abs=0.05)


def test_the_same_seed_gives_the_same_picture_and_another_seed_another(drawn, lights):
    one, again, other = (relit(drawn[0], lights[0].look, rng(seed)) for seed in (7, 7, 8))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()


def test_a_gain_of_one_changes_nothing_and_others_keep_the_order_of_levels():
    levels = np.arange(256, dtype=np.uint8)
    ramp = np.stack([levels, levels, levels], -1)[None]
    np.testing.assert_array_equal(developed(linear(ramp), np.ones(1, np.float32)), ramp)
    for gain in (0.2, 3.0, 16.0):
        found = developed(linear(ramp), np.full(1, gain, np.float32))[0, :, 0].astype(int)
        assert (np.diff(found) >= 0).all()
        assert found[0] == 0
        assert (found == 255).sum() <= 30, "highlights roll off"
    assert developed(linear(ramp), np.full(1, 3, np.float32))[0, -1, 0] == 255


def test_little_clips(drawn, lights):
    for number, light in enumerate(lights):
        picture = drawn[number % len(drawn)]
        found = relit(picture, light.look, rng(number))
        for level in (0, 255):
            assert (found == level).mean() <= (picture == level).mean() + 0.02


@pytest.mark.parametrize("level", [0, 128, 255])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 1), (33, 16)])
def test_blank_pictures_of_any_size(level, size):
    flat = np.zeros((3, 5), np.float32)
    for disparity in (None, flat):
        picture = np.full((*size, 3), level, np.uint8)
        found = relit(picture, look("from behind by a cold moon"), rng(), disparity)
        assert found.dtype == np.uint8
        assert found.shape == (*size, 3)
        assert level or not found.any()


@pytest.mark.parametrize(
    ("disparity", "complaint"),
    [
        (np.full((4, 4), np.nan, np.float32), r"finite numbers .* got float32 \[4, 4\]"),
        (np.zeros((0, 4), np.float32), r"got float32 \[0, 4\]; make it with `dsd data depth`"),
    ],
)
def test_a_disparity_that_cannot_be_used(disparity, complaint):
    with pytest.raises(UserError, match=complaint):
        relit(grey(), look("from the left"), rng(), disparity)
