"""Images of one structure: batches of whole groups, and values that make no groups."""

from typing import Any

import numpy as np
import pytest

from dsd_jax.errors import UserError
from dsd_jax.infer import denoiser
from dsd_jax.infer.pipeline import Pipeline
from dsd_jax.infer.prepared import Prepared, prepare
from dsd_jax.infer.sampler import Method
from dsd_jax.infer.settings import Settings
from dsd_jax.infer.structure import SharedStructure


def prepared_for(pipe: Pipeline, texts: list[str], **settings: Any) -> Prepared:
    chosen = Settings(height=32, width=80, steps=2, **settings)
    return prepare(pipe.tokenizers, texts, None, np.full(len(texts), 3, np.uint32), chosen)


def test_batches_hold_whole_groups(plain, monkeypatch):
    calls: list[int] = []
    methods: list[Method] = []

    class Noise:
        def run(self, img, inputs, timesteps, callback, modulations, mask):
            calls.append(len(img))
            return img

    def sampler(_, canvas, method):
        methods.append(method)
        return Noise()

    monkeypatch.setattr(denoiser.Denoiser, "sampler", sampler)
    shared = SharedStructure(panels=2, share=0.5)
    prepared = prepared_for(plain, ["a", "b", "c", "d"])
    made = plain.run(prepared, batch_size=3, shared=shared)
    assert calls == [4]
    assert methods == [Method(shared=shared)]
    assert [(p["text"], p["panels"], p["share"]) for p in made.parameters] == [
        (text, 2, 0.5) for text in "abcd"
    ]
    noise = np.asarray(made[0])
    assert all(np.abs(noise - np.asarray(image, int)).max() <= 1 for image in made)


@pytest.mark.parametrize(
    ("texts", "settings", "complaint"),
    [
        (["a", "b", "c"], {}, "3 images do not divide into groups of 2 panels"),
        (["a", "b"], {"i_guidance": 2.0}, "have no true guidance, got i_guidance=2.0"),
    ],
)
def test_images_that_make_no_groups(plain, texts, settings, complaint):
    with pytest.raises(UserError, match=complaint):
        plain.run(prepared_for(plain, texts, **settings), shared=SharedStructure(2))


def test_values_that_make_no_sense():
    with pytest.raises(UserError, match="panels must be at least 1, got 0"):
        SharedStructure(panels=0)
    with pytest.raises(UserError, match=r"share must be from 0 to 1, got 1\.5"):
        SharedStructure(share=1.5)
