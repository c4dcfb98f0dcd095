"""Step masks: what a step without all blocks computes, how masks are found, read and refused."""

import dataclasses
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsd_jax import extras
from dsd_jax.distilled import Distilled
from dsd_jax.errors import UserError
from dsd_jax.flow import Schedule
from dsd_jax.flux import Flux
from dsd_jax.frames import FluxInputs
from dsd_jax.infer import find_mask as finding
from dsd_jax.infer.batch import Row
from dsd_jax.infer.find_mask import prepare_rows
from dsd_jax.infer.guidance import TrueGuidance
from dsd_jax.infer.mask import Found, mask_text, read_mask, search_mask
from dsd_jax.infer.sampler import Method, Sampler, SamplerInputs
from dsd_jax.infer.settings import Settings
from dsd_jax.infer.structure import SharedStructure
from dsd_jax.types import Array
from tests.random_flux import CONDITIONAL, random_adapter
from tests.tiny_flux import CANVAS, TINY, flux_inputs, make_flux

CONFIG = dataclasses.replace(TINY, condition_embed=True, double_depth=2, single_depth=1)
MASK = (True, False, True, False, True)
KINDS = ["plain", "reused", "guided", "reused", "kept"]


def behind_the_first(
    model: Flux, img: Array, t: Array, inputs: FluxInputs
) -> tuple[Array, Array, tuple[Array, Array]]:
    """Image tokens after the first block and after the last, and the last layer's modulations."""
    own = model.modulations(t, inputs)
    img, txt, step = model._entered(img, inputs, CANVAS)
    img, txt = step(model.double_blocks[0], (img, txt), own.double[0])
    first = img
    img, txt = step(model.double_blocks[1], (img, txt), own.double[1])
    x = step(model.single_blocks[0], (jnp.concatenate([txt, img], 1),), own.single[0])
    return first, x[:, txt.shape[1] :], own.final


@pytest.fixture(scope="module")
def by_hand() -> tuple[Array, SamplerInputs, np.ndarray, np.ndarray]:
    """Noise, inputs, times, and the latents of `KINDS` by blocks that are called one by one."""
    arrays = flux_inputs(CONFIG)
    own: FluxInputs = arrays["inputs"]
    scales = jnp.float32([1.5, 3.0]), jnp.float32([2.0, 0.5])
    guidance = TrueGuidance(jnp.flip(own.txt, 1), -own.vec, *scales)
    times = Schedule().timesteps(len(MASK), CANVAS.tokens)

    unrolled = make_flux(CONFIG)
    hidden = jax.jit(lambda img, t, inputs: behind_the_first(unrolled, img, t, inputs))
    last = jax.jit(unrolled.final_layer.__call__)
    img, added, residual = np.asarray(arrays["img"]), np.zeros(()), np.zeros(())
    for kind, (now, following) in zip(KINDS, itertools.pairwise(times), strict=True):
        t = jnp.full(len(img), now)
        first, end, final = hidden(jnp.asarray(img), t, own)
        if kind != "reused":
            residual = end - first
        c = np.asarray(last(first + residual, final))
        if kind == "guided":
            empty = FluxInputs(guidance.null_txt, guidance.null_vec, own.guidance, own.img_cond)
            without = empty._replace(img_cond=jnp.zeros(img.shape))
            u, v = (
                np.asarray(last(*hidden(jnp.asarray(img), t, inputs)[1:]))
                for inputs in (without, empty)
            )
            gi, gt = (np.asarray(scale)[:, None, None] for scale in scales)
            added = (gi - 1) * (v - u) + (gt - 1) * (c - v)
        img = img + (following - now) * (c + added)
    return arrays["img"], SamplerInputs(own, guidance), times, img


@pytest.mark.parametrize("callback", [None, lambda *_: None], ids=["loop", "steps"])
def test_a_step_of_the_mask_runs_the_first_block_and_keeps_the_rest(by_hand, callback):
    """With true guidance, which is kept too."""
    noise, inputs, times, expected = by_hand
    sampler = Sampler(
        make_flux(CONFIG, scan_layers=callback is None),
        CANVAS,
        Method(guidance_every=2, masked=True),
    )
    made = sampler.run(jnp.array(noise), inputs, times, callback, mask=MASK)
    np.testing.assert_allclose(made, expected, atol=2e-5 * np.abs(expected).max())


def test_kinds_of_the_steps_follow_the_mask():
    method = Method(guidance_every=2, masked=True)
    assert method.kinds(5, true_guidance=True, mask=MASK) == KINDS
    assert Method(masked=True).kinds(3, true_guidance=False, mask=(True, False, True)) == [
        "plain", "reused", "plain",
    ]  # fmt: skip
    for mask in (None, (True,) * 4, (False, True, True, True, True)):
        with pytest.raises(ValueError, match="mask"):
            method.kinds(5, true_guidance=True, mask=mask)
    with pytest.raises(ValueError, match="takes none"):
        Method().kinds(5, true_guidance=True, mask=MASK)


def test_the_search_finds_the_mask_of_the_smallest_error():
    wanted, seen = "11100000010", []

    def error(mask: str) -> float:
        seen.append(mask)
        return sum(a != b for a, b in zip(mask, wanted, strict=True)) / 10

    found = search_mask(error, len(wanted), 4, 80)
    assert found.mask == wanted
    assert found.error == 0
    assert found.even == error(seen[0]) > 0
    assert len(set(seen)) == found.trials == 80
    assert {(own.count("1"), own[0]) for own in seen} == {(4, "1")}
    assert search_mask(error, len(wanted), 4, 80) == found


def test_the_search_ends_when_no_mask_is_left():
    assert search_mask(lambda mask: 1.0, 4, 2, 100).trials == 3
    assert search_mask(lambda mask: 0.0, 4, 4, 100).mask == "1111"


@pytest.mark.parametrize(
    ("full", "trials", "message"),
    [
        (0, 9, "full must be from 1 to the number of steps, 4; got 0"),
        (5, 9, "full must be from 1 to the number of steps, 4; got 5"),
        (2, 0, "trials must be at least 1, got 0"),
    ],
)
def test_searches_out_of_reach_are_refused(full, trials, message):
    with pytest.raises(UserError, match=message):
        search_mask(lambda mask: 0.0, 4, full, trials)


def test_a_file_and_a_mask_mean_the_same(tmp_path: Path):
    file = tmp_path / "mask.toml"
    file.write_text(mask_text(Found("1101", 0.01, 0.02, 9), "8 images"))
    assert read_mask(str(file)) == read_mask("1101") == "1101"
    settings = Settings(steps=4, step_mask=str(file))
    assert settings == Settings(steps=4, step_mask="1101")
    assert settings.mask == (True, True, False, True)
    assert settings.stated()["step_mask"] == "1101"
    settings.checked(two_frames=True, downscale=8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('mask = "0110"', "the first step of a step_mask must be a 1, got 0110"),
        ('mask = "12"', "holds no step mask, such as"),
        ("mask = 11", "holds no step mask, such as"),
        ("steps = 4", "holds no step mask, such as"),
        ("text,image", r"such as 1101, or a file of `dsd mask`; .*mask.toml: not TOML: expected"),
    ],
)
def test_files_without_a_mask_are_refused(text, message, tmp_path: Path):
    (tmp_path / "mask.toml").write_text(text)
    with pytest.raises(UserError, match=message):
        Settings(step_mask=str(tmp_path / "mask.toml"))


def test_a_mask_in_a_bucket_needs_the_library_for_it(monkeypatch):
    monkeypatch.setattr(extras, "_installed", lambda module: False)
    with pytest.raises(UserError, match="gs:// paths needs gcsfs; install it with: pip install"):
        Settings(step_mask="gs://bucket/mask.toml")
    with pytest.raises(UserError, match=r"https://a.test/mask is not a path; give a folder"):
        Settings(step_mask="https://a.test/mask")


@pytest.mark.parametrize("given", ["maybe", "", "12"])
def test_what_is_neither_a_mask_nor_a_file_is_refused(given):
    message = f"such as 1101, or a file of `dsd mask`; there is no file '{given}'"
    with pytest.raises(UserError, match=message):
        Settings(step_mask=given)


def test_a_mask_for_another_number_of_steps_is_refused():
    message = "the step_mask is for 4 steps, got steps=28; give 4 steps, or a mask that `dsd mask`"
    with pytest.raises(UserError, match=message):
        Settings(step_mask="1101").checked(two_frames=True, downscale=8)
    with pytest.raises(UserError, match="share a structure take no step_mask"):
        SharedStructure().check(4, Settings(step_mask="1101", steps=4))


def test_rows_that_make_no_batch_are_refused(pipe, here):
    rows = [Row(str(i), text="a cat", image="cat.png", folder=here) for i in range(2)]
    own = prepare_rows(pipe, rows, 2)
    assert own.texts == ["a cat"] * 2
    for changed, message in (
        (dataclasses.replace(rows[1], image=None), "equal settings, all or none with a reference"),
        (dataclasses.replace(rows[1], settings=Settings(steps=4)), "images of equal settings"),
        (dataclasses.replace(rows[1], error="text is empty"), "row 1: text is empty"),
    ):
        with pytest.raises(UserError, match=message):
            prepare_rows(pipe, [rows[0], changed], 2)
    with pytest.raises(UserError, match=r"4 images are needed .* has 2; add rows, or give a smal"):
        prepare_rows(pipe, rows, 4)
    with pytest.raises(UserError, match="images must be at least 1, got 0"):
        prepare_rows(pipe, rows, 0)
    need = Distilled(guidance=3.5, i_guidance=1.5, t_guidance=1.0, steps=4, mask="1010")
    student = pipe.scaled({})
    lora = dataclasses.replace(random_adapter(CONDITIONAL), distilled=need)
    student._use_loras({"few": (lora, 1.0)})
    with pytest.raises(UserError, match="few is distilled for the step_mask 1010 and samples with"):
        prepare_rows(student, rows, 2)


def test_a_pipeline_samples_with_the_mask_that_it_found(pipe, here, monkeypatch):
    settings = Settings(height=64, width=128, steps=3)
    rows = [Row("0", text="a cat", image="cat.png", folder=here, settings=settings)]
    prepared = prepare_rows(pipe, rows, 1)
    tried = {}

    def search(error, steps, full, trials):
        tried.update({mask: error(mask) for mask in ("111", "110", "100")})
        return Found("110", tried["110"], tried["100"], trials)

    monkeypatch.setattr(finding, "search_mask", search)
    with pytest.raises(UserError, match="full must be from 1"):  # before anything is compiled
        finding.find_mask(pipe, prepared, 4, 3)
    found = finding.find_mask(pipe, prepared, 2, 3)
    assert tried["111"] == 0 < tried["110"] < tried["100"]
    every, masked = (
        dataclasses.replace(prepared.settings, step_mask=mask) for mask in ("111", found.mask)
    )
    exact, made = (
        pipe.run(dataclasses.replace(prepared, settings=own)).latents for own in (every, masked)
    )
    error = np.linalg.norm(made - exact) / np.linalg.norm(exact)
    assert error == pytest.approx(found.error, rel=1e-3)
    with pytest.raises(UserError, match="leave out step_mask"):
        finding.find_mask(pipe, dataclasses.replace(prepared, settings=masked), 2, 3)
