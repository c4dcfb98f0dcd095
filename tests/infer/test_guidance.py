"""True guidance: the formula, and the batch of three that it is made from."""

import jax.numpy as jnp
import numpy as np
import pytest

from dsd_jax.frames import FluxInputs
from dsd_jax.infer.guidance import TrueGuidance, guided, with_null

BATCH, TOKENS, CHANNELS = 2, 5, 4


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def inputs(**changes) -> FluxInputs:
    own = {
        "txt": jnp.asarray(normal(0, BATCH, 3, 6)),
        "vec": jnp.asarray(normal(1, BATCH, 7)),
        "guidance": jnp.asarray([3.5, 1.0]),
        "img_cond": jnp.asarray(normal(2, BATCH, TOKENS, CHANNELS)),
    }
    return FluxInputs(**{**own, **changes})


def guidance(image=1.0, text=1.0) -> TrueGuidance:
    """The empty text, and a scale for all images or one each."""
    null_txt, null_vec = jnp.asarray(normal(3, BATCH, 3, 6)), jnp.asarray(normal(4, BATCH, 7))
    scales = (jnp.atleast_1d(jnp.float32(scale)) for scale in (image, text))
    return TrueGuidance(null_txt, null_vec, *scales)


def test_the_three_passes_of_an_image_are_neighbours():
    own, empty = inputs(), guidance()
    three = with_null(own, empty)
    assert own.img_cond is not None
    assert three.img_cond is not None
    assert own.guidance is not None
    assert three.guidance is not None
    for i in range(BATCH):
        u, v, c = 3 * i, 3 * i + 1, 3 * i + 2
        for row in (u, v):
            np.testing.assert_array_equal(three.txt[row], empty.null_txt[i])
            np.testing.assert_array_equal(three.vec[row], empty.null_vec[i])
        np.testing.assert_array_equal(three.txt[c], own.txt[i])
        np.testing.assert_array_equal(three.vec[c], own.vec[i])
        np.testing.assert_array_equal(three.img_cond[u], np.zeros((TOKENS, CHANNELS)))
        for conditioned in (v, c):
            np.testing.assert_array_equal(three.img_cond[conditioned], own.img_cond[i])
        # The distilled scale is the same in all three.
        np.testing.assert_array_equal(three.guidance[u : c + 1], [own.guidance[i]] * 3)


def test_formula_with_scales_per_image():
    img = normal(0, BATCH, TOKENS, CHANNELS)
    u, v, c = (normal(seed, BATCH, TOKENS, CHANNELS) for seed in (1, 2, 3))
    image, text = np.array([[1.7, 4.0], [2.5, 0.5]], np.float32)
    seen = []

    def velocity(x, t):
        seen.append((np.asarray(x), float(t)))
        return jnp.asarray(np.stack([u, v, c], 1).reshape(-1, TOKENS, CHANNELS))

    out, added = guided(velocity, guidance(image, text))(jnp.asarray(img), jnp.float32(0.25))
    gi, gt = image[:, None, None], text[:, None, None]
    np.testing.assert_allclose(out, u + gi * (v - u) + gt * (c - v), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(added, (gi - 1) * (v - u) + (gt - 1) * (c - v), rtol=1e-5, atol=1e-5)
    ((passed, time),) = seen
    np.testing.assert_array_equal(passed, img.repeat(3, 0))
    assert time == 0.25


@pytest.mark.parametrize(
    ("image", "text", "expected"), [(0, 0, "u"), (1, 0, "v"), (1, 1, "c"), (3, 3, "far")]
)
def test_special_scales(image, text, expected):
    u, v, c = (normal(seed, 1, TOKENS, CHANNELS) for seed in (1, 2, 3))
    out, _ = guided(
        lambda x, t: jnp.asarray(np.concatenate([u, v, c])),
        guidance(image, text),
    )(jnp.asarray(normal(0, 1, TOKENS, CHANNELS)), jnp.float32(0.5))
    # Equal scales are classifier-free guidance from u to c.
    wanted = {"u": u, "v": v, "c": c, "far": u + 3 * (c - u)}[expected]
    np.testing.assert_allclose(out, wanted, rtol=1e-5, atol=1e-5)


def test_the_combination_is_float32():
    three = np.stack([normal(seed, TOKENS, CHANNELS) for seed in (1, 2, 3)])
    low = jnp.asarray(three, jnp.bfloat16)
    out, _ = guided(lambda x, t: low, guidance(5.0, 7.0))(
        jnp.zeros((1, TOKENS, CHANNELS)), jnp.float32(0.5)
    )
    assert out.dtype == jnp.float32
    u, v, c = np.asarray(low, np.float32)
    np.testing.assert_allclose(out[0], u + 5 * (v - u) + 7 * (c - v), rtol=1e-6, atol=1e-6)


def test_needs_a_condition():
    own = inputs(img_cond=None)
    with pytest.raises(ValueError, match="true guidance needs a condition image"):
        with_null(own, guidance())
