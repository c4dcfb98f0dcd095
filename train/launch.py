"""Starts a run from its settings: opens weights and data and hands them to the loop."""

import dataclasses
from collections.abc import Callable

import jax
from jax.sharding import Mesh

from dsd_jax.convert.hub import resolve
from dsd_jax.convert.lora.read import read_lora
from dsd_jax.convert.open import open_flux
from dsd_jax.errors import UserError
from dsd_jax.parts import FluxParts
from dsd_jax.processes import busy, first_process, say
from dsd_jax.sharding import make_mesh
from dsd_jax.train.config import BaseConfig, DataConfig, RunConfig, TrainConfig
from dsd_jax.train.data import frame_of, held_out, open_data
from dsd_jax.train.loop import Outcome, train
from dsd_jax.train.model import Start
from dsd_jax.train.ownership import holding
from dsd_jax.train.prompts import prompts_on_mesh, read_prompts
from dsd_jax.train.runfile import RUN_FILE, write_run_file
from dsd_jax.train.summary import summary
from dsd_jax.train.trainer import StepOptions, Trainer
from dsd_jax.train.validate import HeldOut, SampleSheet, Validation

__all__ = ["Launch", "launch"]


@dataclasses.dataclass(frozen=True)
class Launch:
    """Everything that a run is started with.

    Attributes:
        preset: name that the recipe began with.
        config: the recipe.
        data: data to train on.
        run: how and where it runs.
        base: the weights to start from.
    """

    preset: str
    config: TrainConfig
    data: DataConfig
    run: RunConfig
    base: BaseConfig


def launch(given: Launch) -> Outcome:
    """Trains until the last step, or until the process is asked to stop.

    Raises:
        UserError: something that the settings name is missing or does not fit; and whatever ends
            the loop, see `dsd_jax.train.loop.train`.
    """
    with holding(given.run) as held:
        return _launch(given, held)


def _launch(given: Launch, held: Callable[[], None]) -> Outcome:
    config, run = given.config, given.run
    mesh = make_mesh(config.mesh)
    with busy("opening the base"):
        parts = _open(given.base, config)
        source = open_data(given.data, config, mesh, parts)
    with busy("loading the transformer"):
        trainer = Trainer(
            config,
            parts,
            mesh,
            start=_start(given.base, parts, config),
            null=source.null_text,
            options=StepOptions(
                skip_bad=run.skip_bad_batches,
                dump=run.output_dir / "hlo" if run.dump_hlo else None,
            ),
        )
    validation = _validation(given, trainer, mesh)
    if source.null_text is not None:
        trainer.encoder.release_texts()
    pairs = sum(len(portion.records()) for portion in source.portions)
    with jax.set_mesh(mesh):
        say(summary(given.preset, config, run, given.data, pairs, trainer.trainee.split))
    if first_process():
        groups = given.base, given.data, run, config
        write_run_file(run.output_dir / RUN_FILE, given.preset, groups)
    return train(trainer, run, source, validation=validation, preset=given.preset, held=held)


def _open(base: BaseConfig, config: TrainConfig) -> FluxParts:
    return open_flux(
        base.base_path,
        base.model_path,
        condition=config.condition,
        max_sequence_length=config.max_sequence_length,
        # Hashing 24 GB is left to the first process, the only one that stores the digests.
        fingerprint=first_process(),
    )


def _start(base: BaseConfig, parts: FluxParts, config: TrainConfig) -> Start:
    adapter = None
    if base.lora_path is not None:
        adapter, _ = read_lora(resolve(base.lora_path, kind="lora"), parts.transformer.config)
        if config.distill is not None and adapter.distilled is not None:
            raise UserError(
                f"{adapter.name} is distilled already; give the LoRA that it was distilled from as "
                "--lora_path"
            )
    return Start(adapter, base.from_scratch)


def _validation(given: Launch, trainer: Trainer, mesh: Mesh) -> Validation | None:
    """Prepares the checks of the run; None if there are none."""
    config, run, data = given.config, given.run, given.data
    pairs, sheets = None, {}
    if not run.eval_every:
        return None
    if data.eval_data is not None and run.eval_pairs:
        pairs = held_out(data.eval_data, config, run.eval_pairs, mesh)
        count = min(run.eval_samples, pairs.global_size)
        if count:
            sheets["samples"] = SampleSheet(trainer, pairs, range(count), run.eval_steps)
    if run.sample_prompts is not None:
        borrowed = data.eval_data or data.data[0].partition("#")[0].partition("=")[0]
        prompts = read_prompts(run.sample_prompts, borrowed, condition=config.condition)
        batch = prompts_on_mesh(prompts, frame_of(config), mesh)
        seeds = [prompt.seed for prompt in prompts]
        sheets["prompts"] = SampleSheet(trainer, batch, seeds, run.eval_steps, show_target=False)
    if pairs is None and not sheets:
        return None
    return Validation(None if pairs is None else HeldOut(trainer, pairs), sheets)
