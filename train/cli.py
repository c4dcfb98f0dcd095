"""`dsd train` and `dsd train plot`: the flags, and the other rooms handed to the loop."""

import dataclasses
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx
from jax.sharding import Mesh

from dsd_jax.aot import GPUS, Job, Plan, compile_job, devices_of
from dsd_jax.autoencoder import Autoencoder
from dsd_jax.config import FLUX_DEV, AutoencoderConfig, Execution, flux_dev
from dsd_jax.convert.hub import resolve
from dsd_jax.convert.lora.files import read_lora
from dsd_jax.convert.open import open_flux
from dsd_jax.errors import UserError
from dsd_jax.flow import Schedule
from dsd_jax.flux import Flux
from dsd_jax.frames import Canvas, FluxInputs, pack_latents, unpack_latents
from dsd_jax.infer.job import SampleSize, sample_job
from dsd_jax.infer.sampler import Programs, SamplerInputs, initial_noise
from dsd_jax.infer.settings import Settings
from dsd_jax.processes import ClusterConfig, first_process, join
from dsd_jax.sharding import make_mesh
from dsd_jax.train.config import DataConfig, RunConfig, TrainConfig
from dsd_jax.train.data import held_out, open_data
from dsd_jax.train.job import (
    attention_for,
    candidates,
    canvas_of,
    cheaper,
    forward_flops,
    plan_training,
    report,
)
from dsd_jax.train.loop import train as run_training
from dsd_jax.train.plot import plot_run
from dsd_jax.train.presets import PRESETS, preset
from dsd_jax.train.step import EncodedBatch
from dsd_jax.train.trainer import Trainer
from dsd_jax.train.validate import Validation
from dsd_jax.types import Array

__all__ = ["Canvases", "Flags", "plan", "plot", "train", "train_recipe"]

_PLAIN = tyro.conf.arg(name="")  # `--steps`, not `--config.steps`; but `--lora.rank`


@dataclasses.dataclass(frozen=True)
class Flags:
    """What the command line says."""

    data: DataConfig
    run: RunConfig
    config: TrainConfig
    base_path: str
    model_path: str | None
    lora_path: str | None
    from_scratch: bool
    cluster: ClusterConfig


def train(words: Sequence[str]) -> None:
    """`dsd train PRESET [FLAGS]`: the preset decides about the defaults of the flags."""
    if not words or words[0] in ("-h", "--help"):
        print(_usage())
        return
    name, *rest = words
    if name.startswith("-"):
        raise UserError(f"`dsd train` takes a preset first, then flags; presets: {_names()}")
    train_recipe(name, preset(name), rest)


def train_recipe(name: str, recipe: TrainConfig, words: Sequence[str]) -> None:
    """Runs `dsd train NAME [FLAGS]`.

    Args:
        name: Name of the recipe.
        recipe: Defaults of the flags.
        words: The flags.
    """
    flags = tyro.cli(
        _command(recipe),
        args=words,
        prog=f"dsd train {name}",
        use_underscores=True,
        config=(tyro.conf.AvoidSubcommands,),
    )
    join(flags.cluster)
    _run(flags, name, f"dsd train {shlex.join([name, *words])}")


def _command(recipe: TrainConfig) -> Callable[..., Flags]:
    def command(
        data: Annotated[DataConfig, _PLAIN],
        run: Annotated[RunConfig, _PLAIN],
        config: Annotated[TrainConfig, _PLAIN] = recipe,
        base_path: str = FLUX_DEV,
        model_path: str | None = None,
        lora_path: str | None = None,
        from_scratch: bool = False,
        cluster: Annotated[ClusterConfig, _PLAIN] = ClusterConfig(),
    ) -> Flags:
        """Fine-tune FLUX on pairs; stopped and started again with the same command, it goes on.

        Args:
            data: What is trained on.
            run: How and where.
            config: The recipe.
            base_path: FLUX.1 in diffusers layout or converted: a folder or a hub id.
            model_path: Another transformer to start from, such as the DSD release's.
            lora_path: A LoRA file that the adapter starts from; its rank and targets must be the
                run's.
            from_scratch: Random weights of the base's size instead of the base's.
            cluster: The processes of the run.
        """
        return Flags(data, run, config, base_path, model_path, lora_path, from_scratch, cluster)

    return command


def _names() -> str:
    return ", ".join(PRESETS)


def _usage() -> str:
    lines = ["usage: dsd train PRESET --data PAIRS --output_dir RUN [FLAGS]", "", "presets:"]
    for name, make in PRESETS.items():
        first = (make.__doc__ or "").split("\n")[0].replace("`", "")
        lines.append(f"  {name:14}{first}")
    lines += ["", "`dsd train PRESET --help` lists the flags with the values of that preset."]
    return "\n".join(lines)


def _run(flags: Flags, name: str, command: str) -> None:
    config, run = flags.config, flags.run
    mesh = make_mesh(config.mesh)
    base = open_flux(
        flags.base_path,
        flags.model_path,
        condition=config.condition,
        max_sequence_length=config.max_sequence_length,
        # Hashing 24 GB is one process's work, and only the first one writes the digests down.
        fingerprint=first_process(),
    )
    source = open_data(flags.data, config, mesh, base)
    adapter = None
    if flags.lora_path is not None:
        adapter, _ = read_lora(resolve(flags.lora_path), base.transformer.config)
    trainer = Trainer(
        config,
        base,
        mesh,
        adapter=adapter,
        from_scratch=flags.from_scratch,
        null=source.null_text,
        skip_bad=run.skip_bad_batches,
        dump=run.output_dir / "hlo" if run.dump_hlo else None,
    )
    validation = None
    if flags.data.eval_data is not None and run.eval_every and run.eval_pairs:
        pairs = held_out(flags.data.eval_data, config, run.eval_pairs, mesh)
        validation = Validation(
            trainer,
            pairs,
            sample=Canvases(base.schedule, run.eval_steps),
            samples=min(run.eval_samples, pairs.global_size),
        )
    if source.null_text is not None:
        trainer.encoder.release_texts()
    done = run_training(trainer, run, source, validation=validation, preset=name)
    if not first_process():
        return
    if done.stopped:
        print(f"stopped after step {done.step}, which is saved; go on with\n  {command}")
        return
    print(f"{done.step} steps done; the last is saved in {run.checkpoints}")
    print(f"export it: dsd convert lora {run.output_dir} {run.output_dir}-export")
    sys.stdout.flush()


@dataclasses.dataclass(frozen=True)
class Canvases:
    """Samples canvases as `dsd generate` does, without true guidance."""

    schedule: Schedule
    steps: int
    guidance: float = Settings.guidance

    def __call__(
        self, model: Flux, autoencoder: Autoencoder, batch: EncodedBatch, canvas: Canvas
    ) -> Array:
        """Pictures in [-1, 1]; sample i has the noise of seed i."""
        count = len(batch.x_0)
        config: AutoencoderConfig = autoencoder.config
        noise = initial_noise(np.arange(count), canvas, config.latent_channels)
        inputs = FluxInputs(
            txt=batch.txt,
            vec=batch.vec,
            guidance=jnp.full(count, self.guidance, jnp.float32),
            img_cond=batch.img_cond,
        )
        graphdef, state = nnx.split(model)
        times = jnp.asarray(self.schedule.timesteps(self.steps, canvas.tokens))
        programs = Programs(graphdef, canvas)
        img = programs.loop(state, pack_latents(noise), SamplerInputs(inputs), times)
        return autoencoder.decode(autoencoder.unnormalize(unpack_latents(img, canvas)))


def plot(
    run: tyro.conf.Positional[Path],
    output_path: Path | None = None,
) -> None:
    """Draw the curves of a run: loss, gradient norm, learning rate, speed.

    Args:
        run: The run's folder.
        output_path: PNG to write; default: curves.png in it.
    """
    path = output_path or run / "curves.png"
    plot_run(run, path)
    print(f"wrote {path}")


@dataclasses.dataclass(frozen=True)
class PlanFlags:
    """What a run needs on machines that are not here; compiled, not estimated, for TPU slices.

    Attributes:
        topology: KIND:SHAPE, such as v5e:8x8, v5p:4x4x4, v6e:16x16 or h100:8.
        job: the training step, or one sampling step of `batch_size` images.
        guided: sampling with true guidance: three passes.
        encoded: training on encoded data: neither VAE nor text encoders in memory.
        search: try meshes and rematerialisation policies, and rank what fits.
        json: write the plans here too.
    """

    topology: str
    config: Annotated[TrainConfig, _PLAIN]
    job: Literal["train", "sample"] = "train"
    guided: bool = False
    encoded: bool = False
    search: bool = False
    json: Path | None = None


def plan(words: Sequence[str]) -> None:
    """`dsd plan PRESET --topology v5p:4x4x4 [FLAGS]`: the flags of the preset, and its own."""
    if not words or words[0].startswith("-"):
        print("usage: dsd plan PRESET --topology KIND:SHAPE [FLAGS]; presets: " + _names())
        return
    name, *rest = words
    flags = tyro.cli(
        PlanFlags,
        args=rest,
        default=PlanFlags(topology=tyro.MISSING, config=preset(name)),
        prog=f"dsd plan {name}",
        use_underscores=True,
        config=(tyro.conf.AvoidSubcommands,),
    )
    kind, _, shape = flags.topology.partition(":")
    if kind in GPUS and shape.isdigit():
        jax.config.update("jax_num_cpu_devices", int(shape))
    plans = _search(flags) if flags.search else [("as configured", _plan(flags, flags.config))]
    if not flags.search and not plans[0][1].fits and flags.job == "train":
        for change, config in cheaper(flags.config):
            print(f"does not fit; trying {change}", flush=True)
            plans.append((change, _plan(flags, config)))
            if plans[-1][1].fits:
                break
    print(report(plans))
    if flags.json is not None:
        rows = [{"change": change, **dataclasses.asdict(made)} for change, made in plans]
        flags.json.write_text(json.dumps(rows, indent=1) + "\n")


def _plan(flags: PlanFlags, config: TrainConfig) -> Plan:
    flux = flux_dev(condition_embed=config.condition)
    if flags.job == "train":
        return plan_training(config, flux, flags.topology, encoded=flags.encoded)
    size = SampleSize(
        config.batch_size, canvas_of(config), config.max_sequence_length, flags.guided
    )
    forward = forward_flops(flux, size.canvas.tokens, size.text)

    def build(mesh: Mesh) -> Job:
        execution = Execution(scan_layers=config.scan_layers, attention=attention_for(mesh))
        return sample_job(flux, mesh, size, execution, forward)

    return compile_job(build, flags.topology, config.mesh)


def _search(flags: PlanFlags) -> list[tuple[str, Plan]]:
    """Every candidate that compiles, those that fit first, the least collective traffic first."""
    made = []
    for change, config in candidates(flags.config, len(devices_of(flags.topology))):
        print(f"trying {change}", flush=True)
        made.append((change, _plan(flags, config)))
    return sorted(made, key=lambda item: (not item[1].fits, sum(item[1].collectives.values())))
