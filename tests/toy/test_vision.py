"""The toy's image encoder: the loss of its training, and the features of the one that ships."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from dsd_jax.convert.vision.open import open_vision
from dsd_jax.infer.evaluate.metrics import cosine
from dsd_jax.toy.making.recipes import toy_vision
from dsd_jax.toy.making.sizes import TOY_VISION
from dsd_jax.toy.making.source import VIEWS_OF, WorldSource
from dsd_jax.toy.making.vision import TEMPERATURE, Contrastive, contrastive_loss, views
from dsd_jax.toy.score import make_cases
from dsd_jax.toy.world import render
from dsd_jax.types import Array


def test_views_are_pictures_of_their_own_and_the_key_decides_them():
    (drawn,) = (WorldSource(VIEWS_OF["toy_vision"], batch=8, seed=0).batch_of(0).target,)
    assert drawn is not None
    pixels = jnp.asarray(drawn, jnp.float32) / 255
    draw = jax.jit(views)
    first, again, other = (np.asarray(draw(pixels, jax.random.key(seed))) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert first.shape == pixels.shape
    assert 0 <= first.min() <= first.max() <= 1
    assert all(abs(a - b).max() > 0.05 for a, b in zip(first, other, strict=True))


class Fixed(Contrastive):
    """A stand-in for the encoder, whose output is what a test gives it."""

    def __init__(self, out: np.ndarray) -> None:
        self.out = nnx.data(jnp.asarray(out, jnp.float32))

    def __call__(self, pixels: Array) -> Array:
        return self.out


@pytest.mark.parametrize("partners", ["alike", "opposite"])
def test_the_loss_is_the_surprise_at_the_partner_among_all_other_views(partners: str):
    side = np.eye(3)
    out = np.concatenate([side, side if partners == "alike" else -side])
    loss, numbers = jax.jit(contrastive_loss)(
        Fixed(out), jnp.zeros((3, 4, 4, 3), jnp.uint8), jax.random.key(0)
    )
    own = np.exp((1 if partners == "alike" else -1) / TEMPERATURE)
    np.testing.assert_allclose(loss, -np.log(own / (own + 4)), rtol=1e-5)
    assert float(numbers["found"]) == (partners == "alike")


def test_the_head_is_trained_beside_the_encoder_and_the_recipe_draws_single_pictures():
    model = nnx.eval_shape(lambda: Contrastive(TOY_VISION, rngs=nnx.Rngs(0)))
    assert {path[0] for path in nnx.to_flat_state(nnx.state(model)).paths} == {"vit", "head"}
    assert VIEWS_OF["toy_vision"] == ("single",)
    assert toy_vision().batch_size == 64


def test_the_encoder_that_ships_sees_pictures_and_knows_no_identity():
    """A changed light is nearer than another subject, and so is another subject in its scene."""
    tower = open_vision("toy")
    assert (tower.name, tower.config) == ("toy", TOY_VISION)
    cases = make_cases(16, seed=3)
    others = [*cases[1:], cases[0]]
    pictures = [
        *(case.reference() for case in cases),
        *((0.85 * case.reference()).astype(np.uint8) for case in cases),
        *(case.ideal() for case in cases),
        *(render(other.subject, case.before) for case, other in zip(cases, others, strict=True)),
        *(render(other.subject, case.after) for case, other in zip(cases, others, strict=True)),
    ]
    features = tower.features([Image.fromarray(picture) for picture in pictures])
    reference, darker, moved, replaced, neither = np.split(features, 5)
    means = [float(cosine(reference, each).mean()) for each in (darker, moved, replaced, neither)]
    assert means[0] > 0.9
    assert means[0] > max(means[1:3])
    assert min(means[1:3]) > means[3]
