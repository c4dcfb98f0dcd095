"""LoRAs that come and go: the base stays in memory, and the numbers are those of a fresh load."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from dsd_jax import models
from dsd_jax.config import FLOAT32
from dsd_jax.convert.lora.write import write_lora
from dsd_jax.distilled import Distilled
from dsd_jax.errors import UserError
from dsd_jax.infer import denoiser
from dsd_jax.infer.loras import check_distilled
from dsd_jax.infer.pipeline import Pipeline
from dsd_jax.infer.settings import Settings
from tests.random_flux import CONDITIONAL, TEXT, picture, random_adapter, write_random_lora

SIZE: dict[str, Any] = {"height": 64, "width": 128, "steps": 2}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loras")
    write_random_lora(folder / "style.safetensors", CONDITIONAL)
    write_random_lora(folder / "dsd.safetensors", CONDITIONAL, full=True)
    return folder


def latents(pipe: Pipeline) -> np.ndarray:
    return pipe(TEXT, picture(), seed=5, **SIZE).latents


def test_added_scaled_and_removed(folder, files, monkeypatch):
    """The base is read once; every state equals a pipeline that was loaded in it."""
    read: list[str] = []

    class Counted:
        def __init__(self, source):
            self.shapes, self.dtypes, self._source = source.shapes, source.dtypes, source

        def read(self, path, index):
            read.append(path)
            return self._source.read(path, index)

    def load(model, source, **options):
        return models.load(model, Counted(source), **options)

    monkeypatch.setattr(denoiser, "load", load)
    pipe = Pipeline.load(folder / "flux", model_path=folder / "dsd", precision=FLOAT32)
    plain = latents(pipe)
    read.clear()

    assert pipe.add_lora(files / "style.safetensors", 0.5) == "style"
    added = latents(pipe)
    assert not any("img_in" in path for path in read)
    assert pipe.loras == {"style": 0.5}
    pipe.scale_lora("style", 1.0)
    scaled = latents(pipe)
    assert pipe.add_lora(files / "style.safetensors", name="again") == "again"
    pipe.remove_lora("style")
    pipe.remove_lora("again")
    np.testing.assert_array_equal(latents(pipe), plain)
    assert pipe.identity["lora"] == []

    for scale, found in ((0.5, added), (1.0, scaled)):
        fresh = Pipeline.load(
            folder / "flux", model_path=folder / "dsd", precision=FLOAT32,
            lora_path=files / "style.safetensors", lora_scale=scale,
        )  # fmt: skip
        np.testing.assert_allclose(found, latents(fresh), atol=1e-5)


def test_a_lora_can_bring_the_condition_and_take_it_away(folder, files):
    pipe = Pipeline.load(folder / "flux", precision=FLOAT32)
    pipe(TEXT, **SIZE)
    with pytest.raises(UserError, match="no condition embedding"):
        pipe(TEXT, picture(), **SIZE)
    pipe.add_lora(files / "dsd.safetensors")
    fresh = Pipeline.load(folder / "flux", precision=FLOAT32, lora_path=files / "dsd.safetensors")
    np.testing.assert_allclose(latents(pipe), latents(fresh), atol=1e-5)
    pipe.remove_lora("dsd")
    with pytest.raises(UserError, match="no condition embedding"):
        pipe(TEXT, picture(), **SIZE)


def test_a_distilled_lora_takes_no_true_guidance(folder, tmp_path):
    """Unless its scale is zero; loading it says how to sample."""
    need = Distilled(guidance=3.5, i_guidance=1.5, t_guidance=1.0, steps=28)
    own = dataclasses.replace(random_adapter(CONDITIONAL), distilled=need)
    write_lora(tmp_path / "fast.safetensors", own, CONDITIONAL)
    pipe = Pipeline.load(
        folder / "flux", model_path=folder / "dsd", lora_path=tmp_path / "fast.safetensors"
    )
    assert need.notice("fast.safetensors") in pipe.notices
    pipe.check(Settings(height=64), two_frames=True)
    with pytest.raises(UserError, match=r"fast.safetensors is distilled: one pass holds"):
        pipe.check(Settings(height=64, i_guidance=2.0), two_frames=True)
    pipe.check(
        Settings(height=64, solver="dpmpp_2m", steps=9, step_mask="101010101"), two_frames=True
    )
    pipe.scale_lora("fast", 0.0)
    pipe.check(Settings(height=64, i_guidance=2.0), two_frames=True)


def test_a_student_of_few_steps_takes_its_own_alone():
    """Its steps, its step mask and the solver that it was trained with."""
    need = Distilled(guidance=3.5, i_guidance=1.5, t_guidance=1.0, steps=4, mask="1010")
    own = dataclasses.replace(random_adapter(CONDITIONAL), name="few", distilled=need)
    right = Settings(steps=4, step_mask="1010")
    check_distilled({"few": (own, 1.0)}, right)
    for changes, got in (
        ({"solver": "dpmpp_2m"}, "solver=dpmpp_2m"),
        ({"steps": 28}, "steps=28"),
        ({"step_mask": None}, "step_mask=None"),
        ({"steps": 5, "step_mask": "10101"}, "steps=5, step_mask=10101"),
    ):
        with pytest.raises(UserError) as refused:
            check_distilled({"few": (own, 1.0)}, dataclasses.replace(right, **changes))
        assert str(refused.value) == (
            f"few is distilled for few steps of its own, got {got}; "
            "give steps=4, step_mask=1010, solver=euler"
        )
        check_distilled({"few": (own, 0.0)}, dataclasses.replace(right, **changes))


def test_a_change_of_scale_compiles_nothing(folder, files):
    pipe = Pipeline.load(
        folder / "flux", model_path=folder / "dsd", precision=FLOAT32,
        lora_path=files / "style.safetensors",
    )  # fmt: skip
    latents(pipe)
    assert pipe._denoiser.value is not None
    (before,) = pipe._denoiser.value._samplers.values()
    pipe.scale_lora("style", 0.25)
    (after,) = pipe._denoiser.value._samplers.values()
    assert after._loop is before._loop
    loop: Any = after._loop
    latents(pipe)
    assert loop._cache_size() == 1


def test_names(pipe, files):
    with pytest.raises(UserError, match="no LoRA named 'style' is in use; in use: none"):
        pipe.remove_lora("style")
    assert pipe.add_lora(files / "style.safetensors") == "style"
    assert pipe.add_lora(files / "style.safetensors") == "style-2"
    with pytest.raises(UserError, match="a LoRA named 'style' is in use; give another name"):
        pipe.add_lora(files / "style.safetensors", name="style")
    with pytest.raises(UserError, match="'styl' is in use; did you mean 'style'"):
        pipe.scale_lora("styl", 0.5)
    for change in (
        pipe.scale_lora,
        lambda _, scale: pipe.add_lora(files / "dsd.safetensors", scale),
    ):
        with pytest.raises(UserError, match="the scale of a LoRA must be a finite number, got nan"):
            change("style", float("nan"))
    pipe.remove_lora("style")
    pipe.remove_lora("style-2")
