"""Batches of pairs to tokens: as sampling encodes them, the same on any mesh and from any cache."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh

from dsd_jax.config import FLOAT32, Execution
from dsd_jax.convert.open import open_flux
from dsd_jax.data.load.encoded import Embedding, Moments
from dsd_jax.data.load.loader import PairBatch
from dsd_jax.data.load.prefetch import to_mesh
from dsd_jax.encoders import ImageCodec, TextEncoder
from dsd_jax.errors import UserError
from dsd_jax.frames import Canvas, condition_canvas, unpack_latents
from dsd_jax.models import abstract, load
from dsd_jax.parts import FluxParts, TextParts
from dsd_jax.sharding import MeshConfig, make_mesh
from dsd_jax.train import encode
from dsd_jax.train.encode import Encoder
from dsd_jax.train.presets import tiny
from dsd_jax.weights import TensorSource
from tests.random_flux import compile_once
from tests.tiny_run import write_world

TEXTS = [f"a red cat, number {i}" for i in range(8)]
ONE = make_mesh(MeshConfig(), jax.devices()[:1])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> FluxParts:
    compile_once(tmp_path_factory)
    world = write_world(tmp_path_factory.mktemp("world"))
    return open_flux(world / "flux", condition=True, max_sequence_length=8)


def make_batch(**changes: Any) -> PairBatch:
    rng = np.random.default_rng(0)
    return PairBatch(
        step=0,
        global_size=8,
        rows=np.arange(8),
        size=(32, 32),
        ids=[f"pair-{i}" for i in range(8)],
        texts=TEXTS,
        drop_text=np.arange(8) % 2 == 0,
        drop_image=np.arange(8) % 4 == 0,
        **{
            "reference": rng.integers(0, 256, (8, 32, 32, 3), np.uint8),
            "target": rng.integers(0, 256, (8, 32, 32, 3), np.uint8),
        }
        | changes,
    )


def encoder(base: FluxParts, mesh: Mesh = ONE, **settings: Any) -> Encoder:
    config = dataclasses.replace(tiny(), **settings.pop("config", {}))
    return Encoder(base, config, mesh, **settings)


@pytest.fixture(scope="module")
def encoded(base: FluxParts) -> Any:
    return encoder(base)(to_mesh(make_batch(), ONE), 3)


def moments_of(base: FluxParts, batch: PairBatch) -> tuple[Moments, Moments]:
    """Both canvases by the VAE alone."""
    vae = load(abstract(base.autoencoder.config, precision=FLOAT32), base.autoencoder.source)
    graphdef, state = nnx.split(vae)
    run = jax.jit(lambda state, x: nnx.merge(graphdef, state).encode(x))
    reference, target = (
        np.asarray(x, np.float32) / 255 * 2 - 1 for x in (batch.reference, batch.target)
    )
    canvas = np.concatenate([reference, target], axis=2)
    both = (run(state, jnp.asarray(canvas)), run(state, condition_canvas(jnp.asarray(reference))))
    return tuple(Moments(*map(np.asarray, posterior)) for posterior in both)  # type: ignore[return-value]


def test_pictures_and_their_moments_give_the_same_tokens(base: FluxParts, encoded: Any):
    """So the canvas is [reference | target] and the condition [reference | black], each whole."""
    canvas, condition = moments_of(base, make_batch())
    held = make_batch(reference=None, target=None, canvas=canvas, condition=condition)
    cached = encoder(base)(to_mesh(held, ONE), 3)
    assert cached.img_cond is not None
    np.testing.assert_allclose(cached.x_0, encoded.x_0, atol=1e-4)
    np.testing.assert_allclose(cached.img_cond, encoded.img_cond, atol=1e-4)
    assert encoded.x_0.dtype == np.float32
    with pytest.raises(UserError, match=r"encoded pairs hold both frames; train on targets from"):
        encoder(base, config={"condition": False})(to_mesh(held, ONE), 3)


def test_the_condition_is_that_of_sampling(base: FluxParts):
    batch = make_batch()
    canvas, condition = moments_of(base, batch)
    sure = Moments(condition.mean, np.full_like(condition.logvar, -60))  # no noise: the mode
    held = make_batch(reference=None, target=None, canvas=canvas, condition=sure)
    tokens = encoder(base)(to_mesh(held, ONE), 0).img_cond
    vae = load(abstract(base.autoencoder.config, precision=FLOAT32), base.autoencoder.source)
    pixels = np.asarray(batch.reference, np.float32) / 255 * 2 - 1
    assert tokens is not None
    np.testing.assert_allclose(tokens, ImageCodec(vae).condition(pixels, None), atol=1e-4)


def test_noise_belongs_to_the_step(base: FluxParts, encoded: Any):
    run = encoder(base)
    again, later = (run(to_mesh(make_batch(), ONE), step) for step in (3, 4))
    np.testing.assert_array_equal(again.x_0, encoded.x_0)
    spread = np.abs(np.asarray(later.x_0) - np.asarray(encoded.x_0))
    assert np.median(spread) > 0.01
    other = encoder(base, config={"seed": 1})(to_mesh(make_batch(), ONE), 3)
    assert not np.allclose(other.x_0, encoded.x_0)
    # The two canvases have the same left half, but noise of their own.
    left, right = (
        unpack_latents(x, Canvas(4, 8))[:, :, :3] for x in (encoded.x_0, encoded.img_cond)
    )
    assert not np.allclose(left, right, atol=1e-3)


def test_a_mesh_changes_nothing(base: FluxParts, encoded: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(encode, "AT_ONCE", 1)  # two groups of one picture per device
    mesh = make_mesh(MeshConfig(data=2, fsdp=2), jax.devices()[:4])
    spread = encoder(base, mesh)(to_mesh(make_batch(), mesh), 3)
    for name, array in encoded._asdict().items():
        np.testing.assert_allclose(
            np.asarray(array), np.asarray(spread._asdict()[name]), atol=1e-4, err_msg=name
        )
    assert spread.x_0.sharding.shard_shape(spread.x_0.shape)[0] == 2


def test_texts_are_padded_to_the_longest_if_asked(base: FluxParts, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(encode, "_TEXT_STEP", 2)
    batch = dataclasses.replace(make_batch(), texts=["a cat"] * 7 + ["a red cat"])
    short, whole = (
        encoder(base, config={"pad_to_longest": asked})(to_mesh(batch, ONE), 3)
        for asked in (True, False)
    )
    assert whole.txt.shape[1] == whole.null_txt.shape[0] == 8
    assert short.txt.shape[1] == short.null_txt.shape[0] == 4  # three words and the end token
    np.testing.assert_array_equal(short.vec, whole.vec)
    np.testing.assert_array_equal(short.null_txt, whole.null_txt[:4])


def test_texts_and_the_empty_one(base: FluxParts, encoded: Any):
    programs = TextEncoder.load(base.text, precision=FLOAT32, execution=Execution())
    expected = programs([*TEXTS, ""])
    for i, text in enumerate(TEXTS):
        np.testing.assert_allclose(encoded.txt[i], expected[text].txt, atol=1e-4)
        np.testing.assert_allclose(encoded.vec[i], expected[text].vec, atol=1e-4)
    np.testing.assert_allclose(encoded.null_txt, expected[""].txt, atol=1e-4)
    np.testing.assert_allclose(encoded.null_vec, expected[""].vec, atol=1e-4)


def test_embeddings_from_the_data_need_no_text_encoders(base: FluxParts, encoded: Any):
    # Encoders with nothing to load from.
    empty, text = TensorSource({}), base.text
    t5 = dataclasses.replace(text.t5, source=empty)
    clip = dataclasses.replace(text.clip, source=empty)
    without = dataclasses.replace(base, text=TextParts(text.tokenizers, t5, clip))
    given = Embedding(np.asarray(encoded.txt), np.asarray(encoded.vec))
    null = Embedding(np.asarray(encoded.null_txt), np.asarray(encoded.null_vec))
    cached = encoder(without, null=null)(to_mesh(make_batch(text=given), ONE), 3)
    np.testing.assert_array_equal(cached.txt, encoded.txt)
    np.testing.assert_array_equal(cached.null_vec, encoded.null_vec)


def test_a_teacher_sees_the_target_alone(base: FluxParts):
    batch = make_batch()
    teacher = encoder(base, config={"condition": False})
    alone = teacher(to_mesh(batch, ONE), 0)
    assert alone.img_cond is None
    assert alone.x_0.shape == (8, 4, 64)
    black = dataclasses.replace(batch, reference=np.zeros_like(batch.reference))
    np.testing.assert_array_equal(teacher(to_mesh(black, ONE), 0).x_0, alone.x_0)
