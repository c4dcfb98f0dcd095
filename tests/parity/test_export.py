"""Exports of a run, loaded by diffusers and PEFT, predict what the run's own model predicts."""

import dataclasses
import logging
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from diffusers import FluxTransformer2DModel
from flax import nnx

from dsd_jax.cli import main as dsd
from dsd_jax.convert.open import open_flux
from dsd_jax.frames import Canvas, FluxInputs
from dsd_jax.lora import LoraConfig
from dsd_jax.quickstart.torch_reference import condition_embedding
from dsd_jax.sharding import MeshConfig, make_mesh
from dsd_jax.train.config import TrainConfig
from dsd_jax.train.model import make_trainee
from dsd_jax.train.state import TrainState
from tests.parity.compare import assert_close
from tests.parity.lora_reference import AuthorsPipeline
from tests.random_flux import compile_once
from tests.tiny_run import RECIPE, run_training, write_world

CANVAS, TEXT, BATCH = Canvas(4, 8), 6, 2
CONFIG = dataclasses.replace(RECIPE, lora=LoraConfig(rank=4, alpha=8.0))


def inputs() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    shapes = {
        "img": (BATCH, CANVAS.tokens, 64),
        "img_cond": (BATCH, CANVAS.tokens, 64),
        "txt": (BATCH, TEXT, 32),
        "vec": (BATCH, 24),
    }
    made = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    times, scales = np.array([0.9, 0.2], np.float32), np.array([1.0, 3.5], np.float32)
    return made | {"t": times, "guidance": scales}


def our_velocity(world: Path, state: TrainState, config: TrainConfig) -> np.ndarray:
    """Velocity of the run's trained parameters, averaged as for validation."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    split = make_trainee(config, open_flux(world / "flux", condition=True).transformer, mesh).split

    def run(params: nnx.State, frozen: nnx.State, given: dict[str, jax.Array]) -> jax.Array:
        own = FluxInputs(**{name: given[name] for name in FluxInputs._fields})
        return nnx.merge(split.graphdef, params, frozen)(given["img"], given["t"], own, CANVAS)

    program = jax.jit(run)
    return np.asarray(program(state.ema, split.frozen, inputs()))


@torch.no_grad()
def their_velocity(model: FluxTransformer2DModel, c_embedder: torch.nn.Linear) -> np.ndarray:
    given = {name: torch.from_numpy(array) for name, array in inputs().items()}
    hook = model.x_embedder.register_forward_hook(
        lambda module, arguments, embedded: embedded + c_embedder(given["img_cond"])
    )
    predicted = model(
        hidden_states=given["img"],
        encoder_hidden_states=given["txt"],
        pooled_projections=given["vec"],
        timestep=given["t"],
        img_ids=torch.from_numpy(np.array(CANVAS.image_ids)).float(),
        txt_ids=torch.zeros(TEXT, 3),
        guidance=given["guidance"],
        return_dict=False,
    )[0]
    hook.remove()
    return predicted.numpy()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, np.ndarray]:
    """The base, a finished run, and its velocity."""
    compile_once(tmp_path_factory)
    world = write_world(tmp_path_factory.mktemp("world"))
    folder = tmp_path_factory.mktemp("run")
    outcome = run_training(world, folder, CONFIG)
    return world / "flux", folder, our_velocity(world, outcome.state, CONFIG)


def load_transformer(folder: Path) -> FluxTransformer2DModel:
    logging.getLogger("diffusers").setLevel(logging.ERROR)  # it names c_embedder as not its own
    return FluxTransformer2DModel.from_pretrained(folder).eval()


def test_the_lora_file_and_the_transformer_folder(
    run: tuple[Path, Path, np.ndarray], tmp_path: Path
) -> None:
    _, folder, ours = run
    assert dsd(["convert", "lora", str(folder), str(tmp_path / "out")]) == 0
    model = load_transformer(tmp_path / "out" / "transformer")
    embedder = condition_embedding(tmp_path / "out" / "transformer")
    before = their_velocity(model, embedder)
    AuthorsPipeline(model).load_lora_weights(str(tmp_path / "out"))
    assert_close(their_velocity(model, embedder), ours, 1e-4, "velocity")
    assert np.abs(before - ours).max() > 0.01 * np.abs(ours).max()  # the adapter does something


def test_merged_weights(run: tuple[Path, Path, np.ndarray], tmp_path: Path) -> None:
    _, folder, ours = run
    assert dsd(["convert", "lora", str(folder), str(tmp_path / "out"), "--merge"]) == 0
    model = load_transformer(tmp_path / "out" / "transformer")
    embedder = condition_embedding(tmp_path / "out" / "transformer")
    assert_close(their_velocity(model, embedder), ours, 1e-4, "velocity")
