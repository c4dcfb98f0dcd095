"""Distillation: what the student learns, what its files say, and what is refused."""

import dataclasses
import itertools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dsd_jax.convert.export import _distilled
from dsd_jax.convert.lora.read import read_lora
from dsd_jax.convert.lora.write import write_lora
from dsd_jax.distilled import HEADER, Distilled
from dsd_jax.errors import UserError
from dsd_jax.flow import Schedule
from dsd_jax.frames import FluxInputs
from dsd_jax.infer.guidance import TrueGuidance
from dsd_jax.infer.sampler import Method, Sampler, SamplerInputs
from dsd_jax.train.config import DistillConfig, DropoutConfig, FlowConfig, TrainConfig
from dsd_jax.train.model import first_state
from dsd_jax.train.objective import Distill, Imitate, method_of
from dsd_jax.train.optimizer import make_optimizer
from dsd_jax.train.presets import preset
from dsd_jax.train.record import Origin, check_recipe, check_teacher, record
from dsd_jax.train.step import make_step
from tests.tiny_flux import CANVAS, TINY, make_flux, random_adapter
from tests.tiny_training import RECIPE, make_batch, one_device, trainee

SMALL = dataclasses.replace(TINY, condition_embed=True, double_depth=1, single_depth=1)
TEACHER = DistillConfig(i_guidance=2.5, t_guidance=1.5, steps=4)
FLOW = FlowConfig(guidance=3.5)
NEED = Distilled(guidance=3.5, i_guidance=2.5, t_guidance=1.5, steps=4)


def test_the_target_is_the_velocity_of_the_sampler():
    """Of every step: the first two are plain, the others have true guidance."""
    model, schedule = make_flux(SMALL, scan_layers=True), Schedule()
    batch = make_batch(2, SMALL)._replace(drop_image=jnp.zeros(2, bool))
    loss = Distill(FLOW, schedule, CANVAS, TEACHER)
    times = schedule.timesteps(TEACHER.steps, CANVAS.tokens)
    guidance = TrueGuidance(
        jnp.broadcast_to(batch.null_txt, batch.txt.shape),
        jnp.broadcast_to(batch.null_vec, batch.vec.shape),
        *(jnp.full(2, scale) for scale in (TEACHER.i_guidance, TEACHER.t_guidance)),
    )
    inputs = FluxInputs(batch.txt, batch.vec, jnp.full(2, FLOW.guidance), batch.img_cond)
    path = [np.asarray(batch.x_0)]
    Sampler(model, CANVAS).run(
        jnp.array(batch.x_0),
        SamplerInputs(inputs, guidance),
        times,
        lambda _i, _n, img: path.append(np.asarray(img)),
    )
    graphdef, state = nnx.split(model)
    target = jax.jit(
        lambda state, x, t: loss.taught(nnx.merge(graphdef, state)).target(batch, x, t),
    )
    for (here, there), (now, following) in zip(
        itertools.pairwise(path), itertools.pairwise(times), strict=True
    ):
        found = target(state, jnp.asarray(here), jnp.full(2, now))
        np.testing.assert_allclose(found, (there - here) / (following - now), atol=2e-4)


def test_a_step_of_the_mask_is_that_of_the_sampler():
    """From noise, which is where a pair is at the first step, and from a noised pair."""
    model, schedule = make_flux(SMALL, scan_layers=True), Schedule()
    batch = make_batch(2, SMALL)._replace(
        drop_image=jnp.zeros(2, bool), drop_text=jnp.zeros(2, bool)
    )
    loss = Imitate(FLOW, schedule, CANVAS, dataclasses.replace(TEACHER, mask="1001"))
    times = schedule.timesteps(4, CANVAS.tokens)
    inputs = FluxInputs(batch.txt, batch.vec, jnp.full(2, FLOW.guidance), batch.img_cond)
    noise = jnp.flip(batch.x_0, 1)
    path = [np.asarray(noise)]
    Sampler(model, CANVAS, Method(masked=True)).run(
        jnp.array(noise),
        SamplerInputs(inputs),
        times,
        lambda _i, _n, img: path.append(np.asarray(img)),
        mask=(True, False, False, True),
    )
    graphdef, state = nnx.split(model)
    step = jax.jit(
        lambda state, number: loss.step(nnx.merge(graphdef, state), batch, noise, number),
    )
    for numbers in ([0, 2], [1, 3]):
        velocity, x_t, t = step(state, jnp.int32(numbers))
        np.testing.assert_array_equal(t, times[numbers])
        for row, i in enumerate(numbers):
            if i < 3:
                np.testing.assert_allclose(x_t[row], path[i][row], atol=1e-4)
                found = (path[i + 1] - path[i])[row] / (times[i + 1] - times[i])
                np.testing.assert_allclose(velocity[row], found, atol=3e-4)
    noised = (1 - times[3]) * batch.x_0 + times[3] * noise
    np.testing.assert_allclose(x_t[1], noised[1], atol=1e-5)


@pytest.mark.parametrize("mask", [None, "100"])
def test_a_student_comes_nearer_to_its_teacher_which_stays(mask: str | None):
    recipe = dataclasses.replace(
        RECIPE,
        distill=dataclasses.replace(TEACHER, mask=mask),
        flow=FlowConfig(t_sampling="uniform"),
        dropout=DropoutConfig(0, 0, 0),
    )
    split = trainee(recipe).split
    teacher = jax.tree.map(jnp.copy, split.trained)
    before = jax.tree.map(np.asarray, teacher)
    optimizer = make_optimizer(recipe.optimizer, recipe.steps)
    loss = method_of(recipe)(recipe.flow, Schedule(), CANVAS)
    assert isinstance(loss, Imitate if mask else Distill)
    step = jax.jit(make_step(split.graphdef, optimizer, loss, recipe))
    state = first_state(split, optimizer, one_device(), ema=True)
    losses = []
    for _ in range(8):
        state, metrics = step(
            state._replace(step=jnp.int32(0)), split.frozen, make_batch(), teacher
        )
        losses.append(float(metrics.loss))
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.8 * losses[0]
    jax.tree.map(np.testing.assert_array_equal, teacher, before)


def test_a_loss_without_its_teacher_is_refused():
    batch = make_batch(2)
    with pytest.raises(ValueError, match="needs its teacher"):
        Distill(FLOW, Schedule(), CANVAS).target(batch, batch.x_0, jnp.ones(2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"i_guidance": 1.0}, "i_guidance must be a number above 1, got 1.0: at 1 the teacher has"),
        ({"i_guidance": float("nan")}, "i_guidance must be a number above 1, got nan"),
        ({"t_guidance": -1.0}, "t_guidance must be a number from 0 up, got -1.0"),
        ({"steps": 2}, "steps must be at least 3, since true guidance begins with the third step"),
    ],
)
def test_teachers_that_teach_nothing_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        DistillConfig(**changes)


def test_recipes_that_cannot_distill_are_refused():
    recipe = preset("distill")
    with pytest.raises(UserError, match=r"set dropout.text, dropout.image and dropout.both to 0"):
        dataclasses.replace(recipe, dropout=DropoutConfig())
    for changes in ({"lora": None}, {"condition": False}):
        with pytest.raises(UserError, match="trains a LoRA of a model with a condition"):
            dataclasses.replace(recipe, **changes)


def run_of(recipe: TrainConfig, teacher: str) -> dict[str, object]:
    return record(recipe, Origin("FLUX.1-dev", {}, teacher), {}, "distill")


def test_a_run_goes_on_with_its_own_teacher_alone():
    recipe = preset("distill")
    check_teacher(run_of(recipe, "ab12"), "ab12")
    check_teacher(run_of(preset("paper"), ""), "")
    with pytest.raises(UserError, match="begun with another teacher; give the --lora_path that"):
        check_teacher(run_of(recipe, "ab12"), "cd34")
    other = dataclasses.replace(recipe, distill=DistillConfig(i_guidance=3.0))
    with pytest.raises(UserError, match=r"begun with distill.i_guidance 1.5, now it is 3.0"):
        check_recipe(run_of(recipe, ""), other)


def test_an_export_tells_what_its_run_distilled():
    recipe = dataclasses.replace(preset("distill"), distill=TEACHER)
    assert _distilled(dataclasses.asdict(recipe)) == NEED
    assert _distilled(dataclasses.asdict(preset("paper"))) is None
    assert _distilled({}) is None  # the recipe of an older run
    few = dataclasses.replace(recipe, distill=dataclasses.replace(TEACHER, mask="10010"))
    found = _distilled(dataclasses.asdict(few))
    assert found == dataclasses.replace(NEED, steps=5, mask="10010")
    assert Distilled.of_header(found.header, "a") == found
    assert found.notice("a").endswith(
        "sample with guidance 3.5, steps 5, step_mask 10010, solver euler; leave out i_guidance"
    )


@pytest.mark.parametrize(("name", "layout"), [("out", "peft"), ("out.safetensors", "kohya")])
def test_files_of_a_distilled_lora_say_so(name: str, layout: str, tmp_path: Path):
    adapter = random_adapter({"single_blocks.0.qkv": 2})
    file = write_lora(
        tmp_path / name, dataclasses.replace(adapter, distilled=NEED), TINY, layout=layout
    )
    read, report = read_lora(file, TINY)
    assert read.distilled == NEED
    assert f"{file.name} is distilled: one pass holds true guidance (i_guidance 2.5" in " ".join(
        report.notices
    )
    plain = write_lora(tmp_path / f"plain-{name}", adapter, TINY, layout=layout)
    assert read_lora(plain, TINY)[0].distilled is None


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        json.dumps({**dataclasses.asdict(NEED), "steps": "many"}),
        json.dumps({**dataclasses.asdict(NEED), "mask": "0110"}),
    ],
)
def test_a_header_that_cannot_be_read_is_refused(text: str):
    with pytest.raises(UserError, match=f"{HEADER} in the header of a.safetensors"):
        Distilled.of_header({HEADER: text}, "a.safetensors")
