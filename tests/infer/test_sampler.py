"""The sampler: one program or step by step, true guidance from the third step, seeds, donation."""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsd_jax.flow import Schedule
from dsd_jax.flux import Flux
from dsd_jax.frames import image_ids, text_ids
from dsd_jax.infer.guidance import Conditioning
from dsd_jax.infer.sampler import Inputs, Sampler, TrueGuidance, initial_noise, sample
from tests.tiny_flux import CANVAS, TINY, flux_inputs, make_flux

CONFIG = dataclasses.replace(TINY, condition_embed=True, double_depth=1, single_depth=1)
STEPS = 4
TOKENS = CANVAS[0] * CANVAS[1] // 4


@pytest.fixture(scope="module")
def model() -> Flux:
    return make_flux(CONFIG, scan_layers=True)


@pytest.fixture(scope="module")
def sampler(model) -> Sampler:
    return Sampler(model, *CANVAS)


@pytest.fixture(scope="module")
def arrays() -> dict[str, Any]:
    return flux_inputs(CONFIG)


def inputs(arrays: dict[str, Any], *, guided: bool) -> Inputs:
    names = ("txt", "vec", "guidance", "img_cond")
    conditioning = Conditioning(*(arrays[name] for name in names))
    if not guided:
        return Inputs(conditioning)
    scales = jnp.float32([1.5, 3.0]), jnp.float32([2.0, 0.5])
    null = jnp.flip(arrays["txt"], 1), -arrays["vec"]
    return Inputs(conditioning, TrueGuidance(*null, *scales))


def timesteps(steps: int = STEPS) -> np.ndarray:
    return Schedule().timesteps(steps, TOKENS)


def by_hand(model: Flux, arrays: dict[str, Any], own: Inputs, times: np.ndarray) -> np.ndarray:
    """Three separate passes from step 2 on, as in the released program; numpy combines them."""

    @jax.jit
    def velocity(img, t, txt, vec, img_cond):
        ids = image_ids(*CANVAS), text_ids(txt.shape[1])
        return model(img, ids[0], txt, ids[1], vec, t, own.conditioning.guidance, img_cond)

    img = np.asarray(arrays["img"])
    full = own.conditioning
    for i, (t_cur, t_next) in enumerate(itertools.pairwise(times)):
        t = jnp.full(len(img), t_cur)
        v = c = np.asarray(velocity(jnp.asarray(img), t, full.txt, full.vec, full.img_cond))
        if own.guidance is not None and i >= 2:
            null_txt, null_vec, image_scale, text_scale = own.guidance
            zero = jnp.zeros(img.shape)
            u = np.asarray(velocity(jnp.asarray(img), t, null_txt, null_vec, zero))
            v = np.asarray(velocity(jnp.asarray(img), t, null_txt, null_vec, full.img_cond))
            gi, gt = (np.asarray(s)[:, None, None] for s in (image_scale, text_scale))
            c = u + gi * (v - u) + gt * (c - v)
        img = img + (t_next - t_cur) * c
    return img


@pytest.mark.parametrize("guided", [False, True])
def test_loop_and_steps_equal_separate_passes(model, sampler, arrays, guided):
    own = inputs(arrays, guided=guided)
    expected = by_hand(model, arrays, own, timesteps())
    looped = sampler.run(jnp.array(arrays["img"]), own, timesteps())
    seen = []
    stepped = sampler.run(
        jnp.array(arrays["img"]), own, timesteps(), lambda i, n, img: seen.append((i, n, img.shape))
    )
    scale = np.abs(expected).max()
    np.testing.assert_allclose(looped, expected, atol=1e-5 * scale)
    np.testing.assert_allclose(stepped, expected, atol=1e-5 * scale)
    assert seen == [(i, STEPS, (2, TOKENS, 16)) for i in range(1, STEPS + 1)]


def test_the_first_two_steps_are_plain(sampler, arrays):
    runs = [
        sampler.run(jnp.array(arrays["img"]), inputs(arrays, guided=guided), timesteps(2))
        for guided in (False, True)
    ]
    np.testing.assert_array_equal(*runs)


def test_passes_are_counted(sampler, arrays, monkeypatch):
    batches = []

    def step(state, img, own, t_cur, t_next, *, true_guidance):
        batches.append(3 if true_guidance else 1)
        return img

    monkeypatch.setattr(sampler, "_step", step)
    for guided in (True, False):
        sampler.run(arrays["img"], inputs(arrays, guided=guided), timesteps(28), lambda *_: None)
        assert sum(batches) == (80 if guided else 28)
        batches.clear()


def test_early_stop(sampler, arrays):
    own = inputs(arrays, guided=False)
    kept = []

    def stop_after_two(i, n, img):
        kept.append(np.array(img))
        return i == 2

    stopped = sampler.run(jnp.array(arrays["img"]), own, timesteps(), stop_after_two)
    assert len(kept) == 2
    np.testing.assert_array_equal(stopped, kept[1])


@pytest.mark.parametrize("callback", [None, lambda i, n, img: None], ids=["loop", "steps"])
def test_latents_are_donated(sampler, arrays, callback):
    img = jnp.array(arrays["img"])
    out = sampler.run(img, inputs(arrays, guided=False), timesteps(), callback)
    assert img.is_deleted()
    assert not out.is_deleted()
    assert not any(x.is_deleted() for x in jax.tree.leaves(sampler.state))


def test_images_of_a_batch_do_not_mix(sampler, arrays):
    own = inputs(arrays, guided=True)
    both = sampler.run(jnp.array(arrays["img"]), own, timesteps())
    for i in range(2):
        one = jax.tree.map(lambda x: x[i : i + 1], own)  # noqa: B023 -- called at once
        alone = sampler.run(jnp.array(arrays["img"][i : i + 1]), one, timesteps())
        np.testing.assert_allclose(alone[0], both[i], atol=1e-5 * np.abs(both).max())


def test_sample_integrates():
    # dx/dt = 2t from x(1) = 3 ends at x(0) = 2.
    times = jnp.linspace(1, 0, 201)
    out = sample(lambda img, t: jnp.full_like(img, 2 * t), jnp.full((1, 2, 3), 3.0), times)
    np.testing.assert_allclose(out, 2.0, atol=0.01)


class TestNoise:
    def test_of_an_image_is_that_of_its_seed(self):
        seeds = np.array([7, 0, 2**32 - 1], np.uint32)
        three = np.asarray(initial_noise(seeds, 8, 16, 16))
        for i in (0, 1, 2):
            alone = initial_noise(seeds[i : i + 1], 8, 16, 16)
            np.testing.assert_array_equal(alone[0], three[i])
        np.testing.assert_array_equal(initial_noise(seeds[::-1], 8, 16, 16), three[::-1])

    def test_is_standard_normal(self):
        noise = np.asarray(initial_noise(np.arange(4, dtype=np.uint32), 32, 32, 16))
        assert noise.dtype == np.float32
        assert abs(noise.mean()) < 0.01
        assert abs(noise.std() - 1) < 0.01
        assert np.abs(np.corrcoef(noise.reshape(4, -1)) - np.eye(4)).max() < 0.03

    def test_is_the_same_on_every_run(self):
        # Written down, so that a seed keeps its image from one release to the next.
        noise = initial_noise(np.array([0, 123456789], np.uint32), 2, 2, 2)
        np.testing.assert_allclose(
            noise[:, 0, 0], [[1.6226422, 2.0252647], [-0.5606274, 0.5065178]], atol=1e-6
        )
