"""Batches of the toy world, and training of its autoencoder."""

import dataclasses
import json
from itertools import islice
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dsd_jax.autoencoder import Autoencoder
from dsd_jax.cli import main
from dsd_jax.config import FLOAT32, AutoencoderConfig
from dsd_jax.convert.io import open_weights
from dsd_jax.errors import UserError
from dsd_jax.quickstart.inputs import TEXT_TOKENS
from dsd_jax.sharding import make_mesh
from dsd_jax.toy.folder import toy_flux_path
from dsd_jax.toy.judge import judge
from dsd_jax.toy.making.recipes import PictureConfig
from dsd_jax.toy.making.source import VIEWS_OF, WorldSource
from dsd_jax.toy.making.vae import KL_WEIGHT, vae_loss, vae_trainer
from dsd_jax.toy.words import describe_pair, parse_grid, parse_scene, parse_subject
from dsd_jax.toy.world import is_held_out
from dsd_jax.train.config import OptimizerConfig, RunConfig
from dsd_jax.train.loop import BatchSource, Program, train

TINY = AutoencoderConfig(
    block_channels=(4, 4), layers_per_block=1, norm_groups=2, scale=1.0, shift=0.0
)


def test_a_batch_is_a_function_of_seed_and_step():
    source = WorldSource(VIEWS_OF["toy_teacher"], batch=3, seed=1, drop_text=0.5)
    assert isinstance(source, BatchSource)
    source.start_step = 4
    first, second = islice(source, 2)
    again = WorldSource(VIEWS_OF["toy_teacher"], batch=3, seed=1, drop_text=0.5)
    for step, batch in ((4, first), (5, second)):
        same = again.batch_of(step)
        assert (batch.step, batch.texts, batch.size) == (step, same.texts, same.size)
        np.testing.assert_array_equal(batch.target, same.target)
        np.testing.assert_array_equal(batch.drop_text, same.drop_text)
        assert source.ids_of(step) == batch.ids
    other = WorldSource(VIEWS_OF["toy_teacher"], batch=3, seed=2, drop_text=0.5).batch_of(4)
    assert other.texts != first.texts


def test_rows_are_those_of_the_whole_batch():
    whole = WorldSource(("grid",), batch=4, seed=0).batch_of(7)
    part = WorldSource(("grid",), batch=4, seed=0, rows=np.asarray([1, 3])).batch_of(7)
    assert part.texts == [whole.texts[1], whole.texts[3]]
    assert whole.target is not None
    np.testing.assert_array_equal(part.target, whole.target[[1, 3]])
    assert part.global_size == 4


def test_views_take_turns():
    source = WorldSource(VIEWS_OF["toy_vae"], batch=2, seed=0)
    sizes = [source.batch_of(step).size for step in range(4)]
    assert sizes == [(64, 64), (32, 64), (32, 32), (64, 64)]
    target = source.batch_of(1).target
    assert target is not None
    assert target.shape == (2, 32, 64, 3)


def test_no_subject_is_held_out_and_texts_are_exact():
    source = WorldSource(("grid", "single"), batch=64, seed=3)
    for step, (least, most) in enumerate(((8, 32), (2, 20))):
        unnamed = 0
        for text in source.batch_of(step).texts:
            read = parse_grid(text)
            subject = read[0] if read else parse_subject(text)
            assert parse_scene(text) is not None
            assert subject is None or not is_held_out(subject)
            unnamed += subject is None
        assert least < unnamed < most  # "this thing ..."


def test_pairs_show_one_subject_and_the_words_tell_the_right_hand_scene():
    """The words are like a student's, and have as few tokens."""
    batch = WorldSource(("pair",), batch=16, seed=3).batch_of(0)
    assert batch.target is not None
    for text, picture in zip(batch.texts, batch.target, strict=True):
        left, right = (judge(part) for part in np.split(picture, 2, axis=1))
        scene = parse_scene(text)
        assert scene is not None
        assert text == describe_pair(scene)
        assert right.shows(scene)
        assert left.subject is not None
        assert left.subject == right.subject
        assert not is_held_out(left.subject)
        assert len(text.replace(",", " ,").split()) < TEXT_TOKENS  # and the end of the text


def test_another_world_is_refused_when_going_on():
    source = WorldSource(("grid",), batch=4, seed=0)
    source.check_resume(source.identity)
    with pytest.raises(UserError, match=r"trained on .*'seed': 0.* now it is .*'seed': 1"):
        WorldSource(("grid",), batch=4, seed=1).check_resume(source.identity)


def test_the_loss_is_error_and_divergence():
    model = Autoencoder(TINY, precision=FLOAT32, rngs=nnx.Rngs(0))
    pictures = jnp.asarray(WorldSource(("single",), batch=2, seed=0).batch_of(0).target)
    pixels = pictures.astype(jnp.float32) / 127.5 - 1
    key = jax.random.key(1)
    loss, numbers = jax.jit(vae_loss)(model, pictures, key)

    @jax.jit
    def parts(model: Autoencoder) -> tuple[jax.Array, jax.Array, jax.Array]:
        posterior = model.encode(pixels)
        return posterior.mean, posterior.logvar, model.decode(posterior.sample(key))

    mean, logvar, decoded = map(np.asarray, parts(model))
    divergence = 0.5 * (np.exp(logvar) + np.square(mean) - 1 - logvar)
    l1, kl = numbers["l1"], numbers["kl"]
    np.testing.assert_allclose(l1, np.abs(decoded - pixels).mean(), rtol=1e-5)
    np.testing.assert_allclose(kl, divergence.mean(), rtol=1e-5)
    np.testing.assert_allclose(loss, l1 + KL_WEIGHT * kl, rtol=1e-5)


@pytest.mark.slow
def test_an_autoencoder_is_trained_by_the_loop(tmp_path: Path):
    recipe = PictureConfig(30, 8, OptimizerConfig(learning_rate=1e-2, ema=0.9))
    trainer = vae_trainer(recipe, TINY, make_mesh(recipe.mesh))
    assert isinstance(trainer, Program)
    source = WorldSource(("single",), batch=8, seed=0)
    config = RunConfig(output_dir=tmp_path / "run", tensorboard=False, log_every=1, peak_tflops=1.0)
    done = train(trainer, config, source)
    assert done.step == 30
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(done.state.params))
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    first, last = (float(line.split('"l1": ')[1].split(",")[0]) for line in (lines[0], lines[-1]))
    assert last < 0.8 * first
    assert not any("mfu" in line for line in lines)  # FLOPs are not counted
    (saved,) = (tmp_path / "run" / "checkpoints").glob("*/run.json")
    assert json.loads(saved.read_text())["config"] == json.loads(
        json.dumps(dataclasses.asdict(recipe))
    )


@pytest.mark.slow
def test_a_decoder_is_trained_with_the_encoder_as_it_is(tmp_path: Path):
    words = ["train", "toy_decoder", "--output_dir", str(tmp_path), "--steps", "1"]
    assert main([*words, "--batch_size", "8", "--optimizer.warmup", "0"]) == 0
    for folder, name, same in (
        ("vae", "encoder.conv_in.weight", True),
        ("vae", "decoder.conv_in.weight", False),
        ("transformer", "single_transformer_blocks.0.proj_mlp.weight", True),
    ):
        assert _is_the_packages(tmp_path / "flux", folder, name) == same


@pytest.mark.slow
def test_a_teacher_is_written_with_the_pipeline_that_it_is_trained_in(tmp_path: Path):
    words = ["train", "toy_teacher", "--output_dir", str(tmp_path), "--steps", "1"]
    assert main([*words, "--batch_size", "8", "--eval_every", "0"]) == 0
    for folder, name, same in (
        ("vae", "decoder.conv_in.weight", True),
        ("transformer", "single_transformer_blocks.0.proj_mlp.weight", False),
    ):
        assert _is_the_packages(tmp_path / "flux", folder, name) == same


def _is_the_packages(pipeline: Path, folder: str, name: str) -> bool:
    """Whether a tensor is that of the toy FLUX that ships."""
    with open_weights(toy_flux_path() / folder) as ours, open_weights(pipeline / folder) as other:
        return np.array_equal(ours.read(name), other.read(name))
