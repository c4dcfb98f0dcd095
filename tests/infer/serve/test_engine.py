"""The engine over a real pipeline: images that share steps equal those made alone."""

import dataclasses

import numpy as np
import pytest

from dsd_jax.distilled import Distilled
from dsd_jax.errors import UserError
from dsd_jax.images import beside, open_frame
from dsd_jax.infer.guidance import FIRST_STEP
from dsd_jax.infer.pipeline import Pipeline
from dsd_jax.infer.serve.engine import PipelineEngine
from dsd_jax.infer.serve.wire import ImageRequest
from dsd_jax.infer.settings import Settings
from tests.random_flux import CONDITIONAL, TEXT, picture, random_adapter

SIZE = 64, 64  # as in test_pipeline.py, whose programs of text and pictures serve here, too
STEPS = 3


def request(seed: int, text: str, guidance: float, i_guidance: float) -> ImageRequest:
    width, height = SIZE
    settings = Settings(guidance, i_guidance, 1.5, steps=STEPS, height=height, width=2 * width)
    return ImageRequest(text, (seed,), SIZE, settings, {})


def pixels(image) -> np.ndarray:
    return np.asarray(image, np.int16)


def test_images_that_share_steps_equal_those_made_alone(pipe: Pipeline):
    engine = PipelineEngine(pipe, [SIZE], batch=2)
    assert engine.batches == [1, 2]
    engine.batches = [2]  # one number of images to compile for
    wanted = [
        dataclasses.replace(request(1, TEXT, 3.5, 2.0), save_frames=True),
        request(2, "a dog", 1.0, 1.2),
    ]
    lanes = {engine.lane(each, edit=True) for each in wanted}
    assert len(lanes) == 1
    frames = [open_frame(picture(i), *SIZE) for i in range(2)]
    [first], [second] = (
        engine.open(each, frame, [0]) for each, frame in zip(wanted, frames, strict=True)
    )
    engine.step([first], guided=False)
    preview = engine.preview(first)
    engine.step([first, second], guided=False)  # the second joins, one step behind
    engine.step([first], guided=True)
    engine.step([second], guided=False)
    engine.step([second], guided=True)
    assert first.step == second.step == STEPS == FIRST_STEP + 1
    for each, frame, state in zip(wanted, frames, (first, second), strict=True):
        made = engine.finish(state)
        settings = dataclasses.asdict(each.settings)
        alone = pipe(each.prompt, frame.image, seed=each.seeds[0], **settings)
        assert np.abs(pixels(made.image) - pixels(alone[0])).max() <= 1
        assert made.parameters == alone.parameters[0]
        assert (made.frames is not None) == each.save_frames
        if made.frames is not None:
            both = beside([alone.references[0], alone.images[0]])
            assert np.abs(pixels(made.frames) - pixels(both)).max() <= 1
    assert preview.size == SIZE
    assert np.abs(pixels(preview) - pixels(made.image)).max() > 1


def test_what_cannot_be_served_is_refused_at_the_start(pipe: Pipeline, folder):
    with pytest.raises(UserError, match=r"programs are kept for 4.*Give fewer sizes"):
        PipelineEngine(pipe, [(16 * i, 16) for i in range(1, 5)], 1)
    with pytest.raises(UserError, match=r"size 30x30: .* must be positive multiples of 16"):
        PipelineEngine(pipe, [(30, 30)], 1)
    swapped = Pipeline.load(folder / "flux", offload="model")
    with pytest.raises(UserError, match="keeps its weights in memory; leave out --model_offload"):
        PipelineEngine(swapped, [SIZE], 1)


def test_a_distilled_lora_is_served_without_true_guidance(pipe: Pipeline, monkeypatch):
    """A request that turns it off may have true guidance, so the programs of both are compiled."""
    served = with_distilled(pipe)
    engine = PipelineEngine(served, [SIZE], batch=1)
    steps = []
    monkeypatch.setattr(engine, "step", lambda states, *, guided: steps.append(guided))
    monkeypatch.setattr(engine, "finish", lambda state: None)
    engine.warm_up(lambda line: None)
    assert steps == [False, False, True]
    guided = dataclasses.replace(request(1, TEXT, 3.5, 2.0), lora={"fast": 1.0})
    with pytest.raises(UserError, match=r"fast is distilled: .* got i_guidance=2 on top"):
        engine.lane(guided, edit=True)
    engine.lane(dataclasses.replace(guided, lora={}), edit=True)
    served.scale_lora("fast", 0.0)
    with pytest.raises(UserError, match=r"fast is distilled: .* got i_guidance=2 on top"):
        PipelineEngine(served, [SIZE], batch=1).lane(guided, edit=True)


def test_a_student_of_few_steps_is_refused_at_the_start(pipe: Pipeline):
    message = "but fast is distilled for the step_mask 1010; leave it out, or make its images with"
    with pytest.raises(UserError, match=message):
        PipelineEngine(with_distilled(pipe, "1010"), [SIZE], batch=1)


def with_distilled(pipe: Pipeline, mask: str | None = None) -> Pipeline:
    """The pipeline with a distilled LoRA, named fast."""
    need = Distilled(guidance=3.5, i_guidance=1.5, t_guidance=1.0, steps=4, mask=mask)
    lora = dataclasses.replace(random_adapter(CONDITIONAL), name="fast", distilled=need)
    served = pipe.scaled({})
    served._use_loras({"fast": (lora, 1.0)})
    return served


def test_a_model_without_condition_offers_no_edits(plain: Pipeline):
    offer = PipelineEngine(plain, [SIZE, SIZE], 1).offer
    assert (offer.edits, offer.true_guidance, offer.sizes) == (False, False, (SIZE,))
