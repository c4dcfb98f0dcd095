"""Features of pictures: batches of one size, any source, one device or a mesh."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dsd_jax.config import FLOAT32, VisionConfig
from dsd_jax.errors import UserError
from dsd_jax.images import Source
from dsd_jax.sharding import MeshConfig, make_mesh
from dsd_jax.vision.preprocess import IMAGENET_CROP, Preprocess
from dsd_jax.vision.tower import VisionTower
from dsd_jax.vision.vit import Vit
from tests.tiny_modules import random_module

CONFIG = VisionConfig(patch=8, grid=2, width=16, depth=1, num_heads=2, mlp_width=32)
SMALL = Preprocess(resize=24, crop=(16, 24))
COLOURS = np.random.default_rng(0).integers(0, 256, (11, 3))


def pictures(count: int) -> list[Image.Image]:
    return [Image.new("RGB", (40, 30), tuple(colour)) for colour in COLOURS[:count]]


@pytest.fixture(scope="module")
def model() -> Vit:
    return random_module(lambda rngs: Vit(CONFIG, precision=FLOAT32, rngs=rngs))


@pytest.fixture(scope="module")
def tower(model: Vit) -> VisionTower:
    return VisionTower("tiny", model, SMALL)


def test_a_feature_does_not_depend_on_the_other_pictures(tower: VisionTower):
    images = pictures(11)
    features = tower.features(images)
    assert features.shape == (11, CONFIG.feature_width)
    assert features.dtype == np.float32
    np.testing.assert_array_equal(tower.features(images[9:10]), features[9:10])


def test_patches_lie_as_in_the_picture(tower: VisionTower):
    image = pictures(1)[0]
    image.paste(Image.new("RGB", (40, 15), "white"))  # the upper half
    halves = tower.patches([image, image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)])
    assert halves.shape == (2, 2, 3, CONFIG.width)
    assert tower.patches([]).shape[0] == 0
    assert np.abs(halves[0] - halves[1]).max() > 1e-2


def test_paths_and_bytes_are_sources_too(tower: VisionTower, tmp_path: Path):
    (image,) = pictures(1)
    image.save(tmp_path / "a.png")
    sources: list[Source] = [tmp_path / "a.png", (tmp_path / "a.png").read_bytes(), image]
    a, b, c = tower.features(sources)
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(a, c)
    with pytest.raises(UserError, match="there is no image at"):
        tower.features([tmp_path / "b.png"])
    assert tower.features([]).shape == (0, CONFIG.feature_width)


def test_a_mesh_gives_the_same_features(model: Vit, tower: VisionTower):
    mesh = make_mesh(MeshConfig(data=2), jax.devices()[:2])
    split = VisionTower("tiny", model, SMALL, mesh=mesh)
    np.testing.assert_allclose(
        split.features(pictures(11)), tower.features(pictures(11)), rtol=2e-5, atol=1e-6
    )


def test_layers_outside_the_model_are_refused(model: Vit):
    with pytest.raises(ValueError, match=r"layers must lie in 0 \.\.\. 1, got \[2\]"):
        model.hidden(jnp.zeros((1, 16, 16, 3)), [2])


@pytest.mark.parametrize(("width", "height"), [(40, 30), (30, 40), (60, 300)])
def test_the_evaluation_of_dino_takes_the_middle(width: int, height: int):
    image = Image.new("RGB", (width, height), "black")
    image.paste("white", (width // 2 - 1, 0, width // 2 + 1, height))
    pixels = IMAGENET_CROP(image)
    assert pixels.shape == (224, 224, 3)
    assert pixels[0, 0].max() < 0
    bright = np.flatnonzero(pixels.max((0, 2)) > 2)
    assert abs(bright.mean() - 112) < 12
