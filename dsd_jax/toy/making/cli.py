"""`dsd train toy_vae`, `toy_teacher` and `toy_decoder`: how `dsd_jax/toy/flux` is made.

They draw their own batches, so they take no data, and write a whole pipeline when they are done.
"""

import dataclasses
import shlex
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from jax.sharding import Mesh

from dsd_jax.config import FLOAT32
from dsd_jax.data.load.prefetch import mesh_rows
from dsd_jax.models import abstract, load
from dsd_jax.processes import first_process, say
from dsd_jax.runs import read_trained
from dsd_jax.sharding import make_mesh
from dsd_jax.toy.folder import toy_flux_path
from dsd_jax.toy.making.memory import keep_memory
from dsd_jax.toy.making.pipeline import write_toy_pipeline
from dsd_jax.toy.making.sizes import TOY_VAE
from dsd_jax.toy.making.source import TOYS, WorldSource
from dsd_jax.toy.making.vae import VaeTrainer, latent_statistics
from dsd_jax.train.cli import open_base
from dsd_jax.train.config import RunConfig, TrainConfig
from dsd_jax.train.loop import train as run_training
from dsd_jax.train.presets import preset
from dsd_jax.train.trainer import Trainer
from dsd_jax.weights import TensorSource, WeightSource

__all__ = ["train_toy"]

_PLAIN = tyro.conf.arg(name="")
PIPELINE = "flux"  # in the run's folder: what it has made
_MEASURED = 8  # batches that the statistics of the latents are taken over


@dataclasses.dataclass(frozen=True)
class _Flags:
    run: RunConfig
    config: TrainConfig
    base_path: Path | None


def train_toy(name: str, words: Sequence[str]) -> None:
    """`dsd train` with one of `TOYS`, and the flags in `words`."""
    flags = tyro.cli(
        _command(preset(name)),
        args=words,
        prog=f"dsd train {name}",
        use_underscores=True,
        config=(tyro.conf.AvoidSubcommands,),
    )
    config, run = flags.config, flags.run
    keep_memory()
    mesh = make_mesh(config.mesh)
    source = WorldSource(
        TOYS[name],
        batch=config.batch_size,
        seed=config.seed,
        drop_text=config.dropout.text,
        rows=mesh_rows(mesh, config.batch_size),
    )
    base = open_base(
        str(_base(name, flags)),
        condition=False,
        max_sequence_length=config.max_sequence_length,
    )
    trainer: Trainer | VaeTrainer
    if name in ("toy_vae", "toy_decoder"):
        trainer = VaeTrainer(config, base, mesh, decoder_only=name == "toy_decoder")
    else:
        trainer = Trainer(config, base, mesh, from_scratch=True)
    done = run_training(trainer, run, source, preset=name)
    if not first_process():
        return
    target = run.output_dir / PIPELINE
    shutil.rmtree(target, ignore_errors=True)  # of a shorter run
    trained, _ = read_trained(run.checkpoints)
    if name == "toy_vae":
        _write_vae(target, trained, source, mesh)
    elif name == "toy_decoder":
        vae = _as_it_is(base.autoencoder.source) | trained
        transformer = _as_it_is(base.transformer.source)
        write_toy_pipeline(target, vae=(base.vae(), vae), transformer=transformer)
    else:
        vae = _as_it_is(base.autoencoder.source)
        write_toy_pipeline(target, vae=(base.vae(), vae), transformer=trained)
    say(f"{done.step} steps done; wrote {target}")
    if done.stopped:
        say(f"stopped before the last step; go on with\n  dsd train {name} {shlex.join(words)}")
    elif name == "toy_vae":
        say(f"next: dsd train toy_teacher --base_path {target} --output_dir OUTPUT")


def _command(recipe: TrainConfig) -> Callable[..., _Flags]:
    def command(
        run: Annotated[RunConfig, _PLAIN],
        config: Annotated[TrainConfig, _PLAIN] = recipe,
        base_path: Path | None = None,
    ) -> _Flags:
        """Train a part of the toy FLUX, on pictures that are drawn as it goes.

        Args:
            run: How and where.
            config: The recipe.
            base_path: The toy pipeline that toy_teacher takes its autoencoder from, and toy_decoder
                all but what it trains; default: the one in the package.
        """
        return _Flags(run, config, base_path)

    return command


def _base(name: str, flags: _Flags) -> Path:
    if name != "toy_vae":
        return flags.base_path or toy_flux_path()
    start = flags.run.output_dir / "start"
    if first_process() and not (start / "model_index.json").exists():
        write_toy_pipeline(start)
    return start


def _as_it_is(source: WeightSource) -> dict[str, np.ndarray]:
    """A part of a base, to be written again."""
    return {path: source.read(path, tuple(map(slice, s))) for path, s in source.shapes.items()}


def _write_vae(
    target: Path, trained: dict[str, np.ndarray], source: WorldSource, mesh: Mesh
) -> None:
    """Writes the pipeline with a trained autoencoder; scale and shift make latents standard."""
    model = load(abstract(TOY_VAE, precision=FLOAT32), TensorSource(trained), mesh=mesh)
    mean, std = latent_statistics(model, map(source.batch_of, range(10**6, 10**6 + _MEASURED)))
    config = dataclasses.replace(TOY_VAE, scale=round(1 / std, 4), shift=round(mean, 4))
    write_toy_pipeline(target, vae=(config, trained))
