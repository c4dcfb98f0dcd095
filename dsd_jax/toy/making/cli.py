"""`dsd train toy_vae`, `toy_teacher`, `toy_decoder`, `toy_vision`, `toy` and `toy_student`.

The first three make `dsd_jax/toy/flux`: each writes a whole pipeline when it is done. `toy_vision`
makes `dsd_jax/toy/vision`. All four draw their own batches, so they take no data. The other two are
recipes of an ordinary training.
"""

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from jax.sharding import Mesh

from dsd_jax.config import FLOAT32
from dsd_jax.convert.hub import TOY
from dsd_jax.convert.open import open_flux
from dsd_jax.data.load.prefetch import mesh_rows
from dsd_jax.models import abstract, load
from dsd_jax.processes import first_process, say
from dsd_jax.runs import read_trained
from dsd_jax.sharding import make_mesh
from dsd_jax.toy.folder import toy_flux_path
from dsd_jax.toy.making import recipes
from dsd_jax.toy.making.inpaint import Inpaint
from dsd_jax.toy.making.memory import keep_memory
from dsd_jax.toy.making.pipeline import write_toy_pipeline
from dsd_jax.toy.making.recipes import PictureConfig
from dsd_jax.toy.making.sizes import TOY_VAE, TOY_VISION
from dsd_jax.toy.making.source import VIEWS_OF, WorldSource
from dsd_jax.toy.making.vae import latent_statistics, vae_trainer
from dsd_jax.toy.making.vision import vision_trainer, write_vision
from dsd_jax.train.cli import train_recipe
from dsd_jax.train.config import BaseConfig, RunConfig, TrainConfig
from dsd_jax.train.loop import Outcome
from dsd_jax.train.loop import train as run_training
from dsd_jax.train.model import Start
from dsd_jax.train.ownership import holding
from dsd_jax.train.record import Origin
from dsd_jax.train.trainer import Trainer
from dsd_jax.weights import TensorSource, WeightSource

__all__ = ["toy", "toy_decoder", "toy_student", "toy_teacher", "toy_vae", "toy_vision"]

Run = Annotated[RunConfig, tyro.conf.arg(name="")]
PictureRecipe = Annotated[PictureConfig, tyro.conf.arg(name="")]
TransformerRecipe = Annotated[TrainConfig, tyro.conf.arg(name=""), tyro.conf.AvoidSubcommands]

PIPELINE, VISION = "flux", "vision"  # in the run's folder: the models that the run writes
_MEASURED = 8  # batches whose latents are measured
_UNSEEN = 10**6  # the first of them, a step that no training reaches


def toy(words: Sequence[str]) -> None:
    """`dsd train toy [FLAGS]`."""
    train_recipe("toy", recipes.toy(), words, BaseConfig(base_path=TOY))


def toy_student(words: Sequence[str]) -> None:
    """`dsd train toy_student [FLAGS]`."""
    train_recipe("toy_student", recipes.toy_student(), words, BaseConfig(base_path=TOY))


def toy_vae(run: Run, config: PictureRecipe = recipes.toy_vae()) -> None:
    """Train the VAE of the toy FLUX from random weights, on pictures drawn as it goes.

    Args:
        run: How and where it runs.
        config: The recipe.
    """
    keep_memory()
    mesh = make_mesh(config.mesh)
    source = _pictures("toy_vae", config, mesh)
    with holding(run) as held:
        trainer = vae_trainer(config, TOY_VAE, mesh)
        done = run_training(trainer, run, source, preset="toy_vae", held=held)
    if not first_process():
        return
    trained, _ = read_trained(run.checkpoints)
    model = load(abstract(TOY_VAE, precision=FLOAT32), TensorSource(trained), mesh=mesh)
    measured = (source.batch_of(step) for step in range(_UNSEEN, _UNSEEN + _MEASURED))
    mean, std = latent_statistics(model, measured)
    sizes = dataclasses.replace(TOY_VAE, scale=round(1 / std, 4), shift=round(mean, 4))
    target = _emptied(run, PIPELINE)
    write_toy_pipeline(target, vae=(sizes, trained))
    _report(done, target)
    if not done.stopped:
        say(f"next: dsd train toy_teacher --base_path {target} --output_dir OUTPUT")


def toy_decoder(
    run: Run, config: PictureRecipe = recipes.toy_decoder(), base_path: Path | None = None
) -> None:
    """Train the decoder of a toy FLUX further; latents, and so its transformer, stay as they are.

    Args:
        run: How and where it runs.
        config: The recipe.
        base_path: Toy pipeline to start from. By default it is the one in the package.
    """
    keep_memory()
    mesh = make_mesh(config.mesh)
    base = open_flux(base_path or toy_flux_path())
    trainer = vae_trainer(
        config,
        base.autoencoder.config,
        mesh,
        start=base.autoencoder.source,
        origin=Origin(base.path, base.autoencoder.sha256()),
    )
    with holding(run) as held:
        source = _pictures("toy_decoder", config, mesh)
        done = run_training(trainer, run, source, preset="toy_decoder", held=held)
    if not first_process():
        return
    trained, _ = read_trained(run.checkpoints)
    vae = _as_it_is(base.autoencoder.source) | trained
    target = _emptied(run, PIPELINE)
    write_toy_pipeline(
        target, vae=(base.autoencoder.config, vae), transformer=_as_it_is(base.transformer.source)
    )
    _report(done, target)


def toy_teacher(
    run: Run, config: TransformerRecipe = recipes.toy_teacher(), base_path: Path | None = None
) -> None:
    """Train the transformer of the toy FLUX from random weights, on pictures drawn as it goes.

    Args:
        run: How and where it runs.
        config: The recipe.
        base_path: Toy pipeline with the VAE. By default it is the one in the package.
    """
    keep_memory()
    mesh = make_mesh(config.mesh)
    source = _pictures("toy_teacher", config, mesh, drop_text=config.dropout.text)
    base = open_flux(
        base_path or toy_flux_path(),
        max_sequence_length=config.max_sequence_length,
        fingerprint=first_process(),
    )
    trainer = Trainer(config, base, mesh, start=Start(from_scratch=True), objective=Inpaint)
    with holding(run) as held:
        done = run_training(trainer, run, source, preset="toy_teacher", held=held)
    if not first_process():
        return
    trained, _ = read_trained(run.checkpoints)
    target = _emptied(run, PIPELINE)
    vae = base.autoencoder.config, _as_it_is(base.autoencoder.source)
    write_toy_pipeline(target, vae=vae, transformer=trained)
    _report(done, target)


def toy_vision(run: Run, config: PictureRecipe = recipes.toy_vision()) -> None:
    """Train the image encoder of the toy world from random weights, on pictures drawn as it goes.

    Args:
        run: How and where it runs.
        config: The recipe.
    """
    keep_memory()
    mesh = make_mesh(config.mesh)
    source = _pictures("toy_vision", config, mesh)
    with holding(run) as held:
        trainer = vision_trainer(config, TOY_VISION, mesh)
        done = run_training(trainer, run, source, preset="toy_vision", held=held)
    if not first_process():
        return
    trained, _ = read_trained(run.checkpoints)
    target = _emptied(run, VISION)
    write_vision(target, TOY_VISION, trained)
    _report(done, target)


def _pictures(
    name: str, config: PictureConfig | TrainConfig, mesh: Mesh, drop_text: float = 0.0
) -> WorldSource:
    """The batches that the recipe `name` trains on."""
    return WorldSource(
        VIEWS_OF[name],
        batch=config.batch_size,
        seed=config.seed,
        drop_text=drop_text,
        rows=mesh_rows(mesh, config.batch_size),
    )


def _as_it_is(source: WeightSource) -> dict[str, np.ndarray]:
    """Reads all tensors of a model, to write them again."""
    return {path: source.read(path, tuple(map(slice, s))) for path, s in source.shapes.items()}


def _emptied(run: RunConfig, name: str) -> Path:
    """Returns the folder for the models, after removing those of a shorter run."""
    target = run.output_dir / name
    shutil.rmtree(target, ignore_errors=True)
    return target


def _report(done: Outcome, target: Path) -> None:
    say(f"{done.step} steps done; wrote {target}")
    if done.stopped:
        say("stopped before the last step, which is saved; the same command goes on")
