"""The sampler: one program or step by step, true guidance from the third step, seeds, donation."""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dsd_jax.flow import Schedule
from dsd_jax.flux import Flux, Modulations, parted
from dsd_jax.frames import Canvas, FluxInputs
from dsd_jax.infer.guidance import TrueGuidance
from dsd_jax.infer.sampler import (
    Carry,
    Method,
    Sampler,
    SamplerInputs,
    initial_noise,
    sample,
)
from dsd_jax.infer.solvers import EULER, Solver
from dsd_jax.infer.structure import SharedStructure
from tests.tiny_flux import CANVAS, TINY, flux_inputs, make_flux

CONFIG = dataclasses.replace(TINY, condition_embed=True, double_depth=1, single_depth=1)
STEPS = 4
Velocity = Callable[[jax.Array, jax.Array, FluxInputs], jax.Array]


@pytest.fixture(scope="module")
def model() -> Flux:
    return make_flux(CONFIG, scan_layers=True)


@pytest.fixture(scope="module")
def sampler(model) -> Sampler:
    return Sampler(model, CANVAS)


@pytest.fixture(scope="module")
def arrays() -> dict[str, Any]:
    return flux_inputs(CONFIG)


def inputs(arrays: dict[str, Any], *, guided: bool) -> SamplerInputs:
    own: FluxInputs = arrays["inputs"]
    if not guided:
        return SamplerInputs(own)
    scales = jnp.float32([1.5, 3.0]), jnp.float32([2.0, 0.5])
    return SamplerInputs(own, TrueGuidance(jnp.flip(own.txt, 1), -own.vec, *scales))


def timesteps(steps: int = STEPS) -> np.ndarray:
    return Schedule().timesteps(steps, CANVAS.tokens)


@pytest.fixture(scope="module")
def velocity(model) -> Velocity:
    """One pass of the model, compiled once for all tests."""
    return jax.jit(lambda img, t, own: model(img, t, own, CANVAS))


def by_hand(
    velocity: Velocity, img: np.ndarray, own: SamplerInputs, times: np.ndarray, every: int = 1
) -> np.ndarray:
    """Three separate passes from step 2 on, as in the released program; numpy combines them.

    With `every`, two of the passes are taken in every so many-th of these steps alone.
    """
    full, added = own.flux, np.zeros(())
    for i, (t_cur, t_next) in enumerate(itertools.pairwise(times)):
        t = jnp.full(len(img), t_cur)
        c = np.asarray(velocity(jnp.asarray(img), t, full))
        if own.true_guidance is not None and i >= 2 and (i - 2) % every == 0:
            null_txt, null_vec, image_scale, text_scale = own.true_guidance
            empty = full._replace(txt=null_txt, vec=null_vec)
            zero = empty._replace(img_cond=jnp.zeros(img.shape))
            u = np.asarray(velocity(jnp.asarray(img), t, zero))
            v = np.asarray(velocity(jnp.asarray(img), t, empty))
            gi, gt = (np.asarray(s)[:, None, None] for s in (image_scale, text_scale))
            added = (gi - 1) * (v - u) + (gt - 1) * (c - v)
        img = img + (t_next - t_cur) * (c + added)
    return img


@pytest.mark.parametrize("guided", [False, True])
def test_loop_and_steps_equal_separate_passes(velocity, sampler, arrays, guided):
    own = inputs(arrays, guided=guided)
    expected = by_hand(velocity, np.asarray(arrays["img"]), own, timesteps())
    looped = sampler.run(jnp.array(arrays["img"]), own, timesteps())
    seen = []
    stepped = sampler.run(
        jnp.array(arrays["img"]), own, timesteps(), lambda i, n, img: seen.append((i, n, img.shape))
    )
    scale = np.abs(expected).max()
    np.testing.assert_allclose(looped, expected, atol=1e-5 * scale)
    np.testing.assert_allclose(stepped, expected, atol=1e-5 * scale)
    assert seen == [(i, STEPS, (2, CANVAS.tokens, 16)) for i in range(1, STEPS + 1)]


@pytest.mark.parametrize("scan_layers", [True, False])
def test_modulations_of_all_steps_are_those_of_each(arrays, scan_layers):
    graphdef, state = nnx.split(make_flux(CONFIG, scan_layers=scan_layers))
    making, using = parted(state)
    sizes = (sum(x.size for x in jax.tree.leaves(part)) for part in (state, making, using))
    assert next(sizes) == sum(sizes)

    @jax.jit
    def modulations(t: jax.Array) -> Modulations:
        return nnx.merge(graphdef, making).modulations(t, arrays["inputs"])

    t = jnp.float32([[1.0, 0.9], [0.5, 0.4], [0.1, 0.3]])
    together = modulations(t)
    for i in range(len(t)):
        for one, of_all in zip(*map(jax.tree.leaves, (modulations(t[i]), together)), strict=True):
            np.testing.assert_array_equal(one, of_all[i])


@pytest.fixture(scope="module")
def keeping(model) -> Sampler:
    return Sampler(model, CANVAS, Method(guidance_every=3))


@pytest.mark.parametrize(
    ("steps", "callbacks"),
    [(8, [None]), (10, [None, lambda *_: None])],
    ids=["two-periods", "two-periods-and-one-begun"],
)
def test_guidance_is_kept_between_the_steps_that_compute_it(
    velocity, keeping, arrays, steps, callbacks
):
    img, own, times = np.asarray(arrays["img"]), inputs(arrays, guided=True), timesteps(steps)
    expected = by_hand(velocity, img, own, times, every=3)
    scale = np.abs(expected).max()
    assert np.abs(expected - by_hand(velocity, img, own, times)).max() > 1e-4 * scale
    for callback in callbacks:
        made = keeping.run(jnp.array(arrays["img"]), own, times, callback)
        np.testing.assert_allclose(made, expected, atol=1e-5 * scale)


def test_the_first_two_steps_are_plain(sampler, arrays):
    runs = [
        sampler.run(jnp.array(arrays["img"]), inputs(arrays, guided=guided), timesteps(2))
        for guided in (False, True)
    ]
    np.testing.assert_array_equal(*runs)


@pytest.mark.parametrize(
    ("every", "guided", "passes"), [(1, True, 80), (3, True, 46), (28, True, 30), (3, False, 28)]
)
def test_passes_are_counted(every, guided, passes):
    method = Method(guidance_every=every)
    kinds = method.kinds(28, true_guidance=guided)
    assert sum(3 if kind == "guided" else 1 for kind in kinds) == passes


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
    weights = sampler.making, sampler.using
    assert not any(x.is_deleted() for x in jax.tree.leaves(weights))


def test_images_of_a_batch_do_not_mix(sampler, arrays):
    own = inputs(arrays, guided=True)
    both = sampler.run(jnp.array(arrays["img"]), own, timesteps())
    for i in range(2):
        one = jax.tree.map(lambda x: x[i : i + 1], own)  # noqa: B023 -- called at once
        alone = sampler.run(jnp.array(arrays["img"][i : i + 1]), one, timesteps())
        np.testing.assert_allclose(alone[0], both[i], atol=1e-5 * np.abs(both).max())


SHARED = SharedStructure(panels=2, share=0.5)


@pytest.fixture(scope="module")
def panels() -> tuple[jax.Array, SamplerInputs]:
    """Two groups of two panels: one noise for a group, and a text for each panel."""
    arrays = flux_inputs(CONFIG, batch=4)
    return arrays["img"][jnp.array([0, 0, 1, 1])], SamplerInputs(arrays["inputs"])


@pytest.fixture(scope="module")
def sharing(model) -> Sampler:
    return Sampler(model, CANVAS, Method(shared=SHARED))


@pytest.fixture(scope="module")
def shared(sharing, panels) -> np.ndarray:
    """Latents of the panels; they share half of four steps."""
    img, own = panels
    return np.asarray(sharing.run(jnp.array(img), own, timesteps()))


class TestSharedStructure:
    @pytest.mark.parametrize(("count", "together"), [(4, 2), (5, 2), (1, 0)])
    def test_first_steps_are_shared_and_the_others_are_not(self, count, together):
        kinds = Method(shared=SHARED).kinds(count, true_guidance=False)
        assert kinds == ["shared"] * together + ["plain"] * (count - together)

    def test_the_loop_is_its_steps(self, sharing, panels, shared):
        img, own = panels
        out = sharing.run(jnp.array(img), own, timesteps(), lambda *_: None)
        np.testing.assert_allclose(out, shared, atol=1e-5 * np.abs(shared).max())

    def test_a_group_depends_on_nothing_outside_it(self, sharing, panels, shared):
        img, own = panels
        other = jnp.concatenate([img[:2], img[2:] + 1])
        out = np.asarray(sharing.run(other, own, timesteps()))
        np.testing.assert_array_equal(out[:2], shared[:2])
        assert np.abs(out[2:] - shared[2:]).max() > 0.1

    def test_no_share_is_ordinary_sampling_bit_for_bit(self, model, sampler, panels, shared):
        img, own = panels
        apart = np.asarray(sampler.run(jnp.array(img), own, timesteps()))
        method = Method(shared=SharedStructure(2, 0))
        none = Sampler(model, CANVAS, method).run(jnp.array(img), own, timesteps())
        np.testing.assert_array_equal(none, apart)
        assert np.abs(shared - apart).max() > 0.01 * np.abs(apart).max()

    def test_true_guidance_is_refused(self, arrays):
        with pytest.raises(ValueError, match="have no true guidance"):
            Method(shared=SHARED).start(arrays["img"], true_guidance=True)


def test_sample_integrates():
    # dx/dt = 2t from x(1) = 3 ends at x(0) = 2.
    times = jnp.linspace(1, 0, 201)
    carry = Carry(jnp.full((1, 2, 3), 3.0), ())
    out = sample(EULER, lambda img, t: jnp.full_like(img, 2 * t), carry, times, times[:-1]).img
    np.testing.assert_allclose(out, 2.0, atol=0.01)


def test_a_solver_keeps_its_memory_through_true_guidance(model, sampler, arrays):
    """A second-order multistep solver, added without an edit; the loop and the steps agree."""

    def step(velocity, img, memory, t_cur, t_next):
        count, before = memory
        now = velocity.astype(jnp.float32)
        weight = jnp.where(count == 0, 0.0, 0.5)
        return img + (t_next - t_cur) * (now + weight * (now - before)), (count + 1, now)

    solver = Solver(lambda img: (jnp.zeros((), jnp.int32), jnp.zeros_like(img)), step)
    added, own = Sampler(model, CANVAS, Method(solver)), inputs(arrays, guided=True)
    looped = added.run(jnp.array(arrays["img"]), own, timesteps())
    stepped = added.run(jnp.array(arrays["img"]), own, timesteps(), lambda *_: None)
    euler = sampler.run(jnp.array(arrays["img"]), own, timesteps())
    np.testing.assert_allclose(looped, stepped, atol=1e-5 * np.abs(looped).max())
    assert np.abs(looped - euler).max() > 1e-3 * np.abs(euler).max()


class TestNoise:
    def test_of_an_image_is_that_of_its_seed(self):
        seeds = np.array([7, 0, 2**32 - 1], np.uint32)
        three = np.asarray(initial_noise(seeds, Canvas(8, 16), 16))
        for i in (0, 1, 2):
            alone = initial_noise(seeds[i : i + 1], Canvas(8, 16), 16)
            np.testing.assert_array_equal(alone[0], three[i])
        np.testing.assert_array_equal(initial_noise(seeds[::-1], Canvas(8, 16), 16), three[::-1])

    def test_is_standard_normal(self):
        noise = np.asarray(initial_noise(np.arange(4, dtype=np.uint32), Canvas(32, 32), 16))
        assert noise.dtype == np.float32
        assert abs(noise.mean()) < 0.01
        assert abs(noise.std() - 1) < 0.01
        assert np.abs(np.corrcoef(noise.reshape(4, -1)) - np.eye(4)).max() < 0.03

    def test_is_the_same_on_every_run(self):
        # Written down, so that a seed keeps its image from one release to the next.
        noise = initial_noise(np.array([0, 123456789], np.uint32), Canvas(2, 2), 2)
        np.testing.assert_allclose(
            noise[:, 0, 0], [[1.6226422, 2.0252647], [-0.5606274, 0.5065178]], atol=1e-6
        )
