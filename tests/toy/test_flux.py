"""The toy FLUX that ships with the package."""

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dsd_jax.config import FLOAT32, ClipConfig, T5Config
from dsd_jax.errors import UserError
from dsd_jax.infer import Pipeline
from dsd_jax.models import abstract, load
from dsd_jax.quickstart.inputs import IMAGE_SCALE, TEXT_TOKENS
from dsd_jax.text.tokenize import Tokenizers
from dsd_jax.toy import folder
from dsd_jax.toy.folder import toy_flux_path, toy_lora_path, toy_vision_path
from dsd_jax.toy.judge import judge
from dsd_jax.toy.making.encoders import encoder_tensors
from dsd_jax.toy.making.sizes import TOY_CLIP, TOY_FLUX, TOY_T5
from dsd_jax.toy.score import make_cases, score_seen
from dsd_jax.toy.words import T5_LENGTH, WORDS, describe, describe_grid
from dsd_jax.toy.world import BACKGROUNDS, SHAPES, Scene, Subject
from dsd_jax.weights import TensorSource

CAT = Subject("cat", "red", "white", "dots")
LONG = Scene("snow", "northwest", "small", "tilted", "night")


def test_it_is_small():
    tops = (toy_flux_path(), toy_lora_path(), toy_vision_path())
    files = [path for top in tops for path in top.rglob("*")]
    assert sum(path.stat().st_size for path in files if path.is_file()) <= 15_000_000


def test_every_word_is_a_token_and_prompts_fit():
    tokenizers = Tokenizers.load(toy_flux_path())
    assert (tokenizers.t5_length, tokenizers.clip_length) == (T5_LENGTH, 77)
    longest = describe_grid(CAT, [LONG] * 4)
    ids = tokenizers.encode([longest, describe(None, LONG)])
    assert ids.t5_cut == ids.clip_cut == [None, None]
    assert not (ids.t5 == 2).any()  # no word is unknown
    assert (ids.t5[1] != 0).sum() == len(describe(None, LONG).split()) + 1
    for word in (word for word in WORDS if "-" not in word):
        assert tokenizers.count_clip_tokens(word) == 3, word  # between start and end


def test_a_word_in_another_place_has_another_embedding():
    """The text tokens of FLUX have no position, so T5 must say what stands where."""
    texts = (
        "a red star with blue dots on snow at northwest",
        "a blue star with red dots on snow at northwest",
        "a red star with blue dots on snow at northwest small",
        "a red star with blue dots on sea at northwest",
    )
    model = load(abstract(TOY_T5, precision=FLOAT32), TensorSource(encoder_tensors(TOY_T5, seed=2)))
    ids = Tokenizers.load(toy_flux_path()).encode(list(texts)).t5
    star, swapped, far, near = np.asarray(model(jnp.asarray(ids)))[:, 2]
    assert np.linalg.norm(star - swapped) > 0.3 * np.linalg.norm(star)
    assert np.linalg.norm(star - near) > 0.2 * np.linalg.norm(star)
    np.testing.assert_allclose(star, far, atol=1e-6)  # more than seven words away


@pytest.mark.parametrize("config", [TOY_T5, TOY_CLIP])
def test_the_encoders_are_the_same_every_time(config: T5Config | ClipConfig):
    first, again = encoder_tensors(config, seed=1), encoder_tensors(config, seed=1)
    for path, tensor in first.items():
        np.testing.assert_array_equal(tensor, again[path])


def test_the_gist_of_a_text_is_its_subject():
    """CLIP's vector tells subjects apart, and hardly scenes."""
    ids = Tokenizers.load(toy_flux_path()).encode(
        [
            describe_grid(subject, [scene] * 4)
            for subject, scene in (
                (CAT, LONG),
                (CAT, Scene("city", "southeast")),
                (dataclasses.replace(CAT, shape="fish"), LONG),
                (dataclasses.replace(CAT, marking="ring"), LONG),
            )
        ]
    )
    tensors = encoder_tensors(TOY_CLIP, seed=1)
    model = load(abstract(TOY_CLIP, precision=FLOAT32), TensorSource(tensors))
    cat, elsewhere, *others = np.asarray(model(jnp.asarray(ids.clip)).pooled)
    for other in others:
        assert np.linalg.norm(cat - other) > 3 * np.linalg.norm(cat - elsewhere)


def test_it_paints_what_the_words_say():
    """Scenes nearly always, shapes mostly; `python -m benchmarks.toy.teacher` says how often."""
    pipeline = Pipeline.load(toy_flux_path(), precision=FLOAT32)
    assert pipeline.transformer_config == TOY_FLUX
    asked = [
        (dataclasses.replace(CAT, shape=shape), Scene(background, "northwest"))
        for shape, background in zip(SHAPES, (*BACKGROUNDS, "meadow", "snow"), strict=True)
    ]
    made = pipeline(
        [describe(subject, scene) for subject, scene in asked],
        seed=list(range(len(asked))), height=32, width=32, steps=12, batch_size=len(asked),
    )  # fmt: skip
    seen = [judge(np.asarray(image)) for image in made]
    scenes = [s.shows(scene) for s, (_, scene) in zip(seen, asked, strict=True)]
    shapes = [s.shape == subject.shape for s, (subject, _) in zip(seen, asked, strict=True)]
    assert sum(scenes) >= 8
    assert sum(shapes) >= 6


def test_its_student_puts_a_subject_that_nothing_was_trained_on_into_another_scene():
    """`python -m benchmarks.toy.study` says how often."""
    pipeline = Pipeline.load(
        toy_flux_path(),
        lora_path=toy_lora_path(),
        max_sequence_length=TEXT_TOKENS,
        precision=FLOAT32,
    )
    cases = make_cases(12, seed=1)
    made = pipeline(
        [case.text for case in cases],
        [Image.fromarray(case.reference()) for case in cases],
        seed=[case.seed for case in cases], height=32, width=64, steps=8,
        i_guidance=IMAGE_SCALE, batch_size=len(cases),
    )  # fmt: skip
    scores = [
        score_seen(case, judge(np.asarray(image))) for case, image in zip(cases, made, strict=True)
    ]
    assert sum(s.both for s in scores) >= 8
    assert not any(s.copied for s in scores)


def test_an_installation_without_them_says_what_to_do(monkeypatch, tmp_path: Path):
    monkeypatch.setattr(folder, "__file__", str(tmp_path / "folder.py"))
    with pytest.raises(UserError, match=r"holds no model_index.json; .* make it: `make toy-flux`"):
        toy_flux_path()
    with pytest.raises(UserError, match=r"holds no pytorch_lora.*; .* make it: `make toy-lora`"):
        toy_lora_path()
    with pytest.raises(UserError, match=r"holds no model.safetensors; .* `make toy-vision`"):
        toy_vision_path()
