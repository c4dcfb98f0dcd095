"""`dsd train`, `dsd train plot` and `dsd plan`: their flags, and what they print."""

import dataclasses
import shlex
import sys
import textwrap
from collections.abc import Callable, Sequence
from json import dumps as to_json
from pathlib import Path
from typing import Annotated, Literal

import tyro

from dsd_jax.errors import UserError, did_you_mean
from dsd_jax.files import write_file
from dsd_jax.flags import call
from dsd_jax.processes import ClusterConfig, first_process, join
from dsd_jax.topology import Topology, plan_on_cpu
from dsd_jax.train.config import BaseConfig, DataConfig, RunConfig, TrainConfig
from dsd_jax.train.launch import Launch, launch
from dsd_jax.train.page import PAGE, write_page
from dsd_jax.train.plan import Question, plans_of, report, searched
from dsd_jax.train.plot import plot_run
from dsd_jax.train.presets import PRESETS, preset
from dsd_jax.train.runfile import flags_of, preset_of

__all__ = ["plan", "plot", "train", "train_recipe"]

_PLAIN = tyro.conf.arg(name="")  # `--steps`, not `--config.steps`; but `--lora.rank`


def train(words: Sequence[str]) -> None:
    """`dsd train PRESET [FLAGS]`: the preset sets the defaults of the flags."""
    if not words or words[0] in ("-h", "--help"):
        print(_presets("usage: dsd train PRESET --data PAIRS --output_dir RUN [FLAGS]", "train"))
        return
    name, *rest = words
    if name.startswith("-"):
        file = _config_file(words)
        if file is None:
            raise UserError(f"`dsd train` takes a preset first, then flags; presets: {_names()}")
        named = preset_of(file)
        if named is None:
            raise UserError(f"{file} names no preset; write one before the flags: {_names()}")
        if named not in PRESETS:
            raise UserError(
                f"{file} is of {named!r}, which is none of the presets {_names()}"
                + (
                    did_you_mean(named, PRESETS)
                    or f"; if it has a command of its own, run `dsd train {named} --config {file}`"
                )
            )
        name, rest = named, list(words)
    train_recipe(name, preset(name), rest)


def train_recipe(
    name: str, recipe: TrainConfig, words: Sequence[str], base: BaseConfig = BaseConfig()
) -> None:
    """Runs `dsd train NAME [FLAGS]`.

    Args:
        name: Name of the recipe.
        recipe: Defaults of its flags.
        words: The flags.
        base: Defaults of the flags for the weights that it starts from.
    """
    file = _config_file(words)
    groups = DataConfig, RunConfig, BaseConfig, ClusterConfig, recipe
    from_file = [] if file is None else flags_of(file, name, groups)
    given, cluster = call(
        _command(name, recipe, base),
        [*from_file, *words],  # the second of two equal flags counts
        f"dsd train {name}",
        pairs=True,
    )
    join(cluster)
    done = launch(given)
    if not first_process():
        return
    run = given.run
    if done.stopped:
        command = f"dsd train {shlex.join([name, *words])}"
        print(f"stopped after step {done.step}, which is saved; go on with\n  {command}")
        return
    print(f"{done.step} steps done; the last is saved in {run.checkpoints}")
    write_page(run.output_dir, run.output_dir / PAGE)
    print(f"curves and samples: {run.output_dir / PAGE}")
    print(f"export it: dsd convert lora {run.output_dir} {run.output_dir}-export")
    sys.stdout.flush()


def _command(
    name: str, recipe: TrainConfig, base: BaseConfig
) -> Callable[..., tuple[Launch, ClusterConfig]]:
    def command(
        data: Annotated[DataConfig, _PLAIN],
        run: Annotated[RunConfig, _PLAIN],
        recipe: Annotated[TrainConfig, _PLAIN] = recipe,
        base: Annotated[BaseConfig, _PLAIN] = base,
        cluster: Annotated[ClusterConfig, _PLAIN] = ClusterConfig(),
        config: Path | None = None,
    ) -> tuple[Launch, ClusterConfig]:
        """Fine-tune FLUX on pairs. If it was stopped, start it again to resume.

        Args:
            data: The data to train on.
            run: How and where it runs.
            recipe: The recipe.
            base: The weights to start from.
            cluster: The processes of the run.
            config: TOML file with values for these flags, such as the `run.toml` of another run.
                Given flags override it.
        """
        del config  # it was read before; its values are among the words
        return Launch(name, recipe, data, run, base), cluster

    return command


def _config_file(words: Sequence[str]) -> Path | None:
    """Finds the file after `--config`, if there is one."""
    for number, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if flag == "--config":
            if not equals and number + 1 == len(words):
                raise UserError("--config needs a TOML file with the settings of a run")
            return Path(value if equals else words[number + 1])
    return None


def _names() -> str:
    return ", ".join(PRESETS)


def _presets(usage: str, command: str) -> str:
    """Lists the presets under the usage of a command that takes one first."""
    lines = [usage, "", "presets:"]
    for name, make in PRESETS.items():
        first = (make.__doc__ or "").split("\n")[0].replace("`", "")
        start = f"  {name:14}"
        lines.append(textwrap.fill(start + first, 79, subsequent_indent=" " * len(start)))
    lines += ["", f"`dsd {command} PRESET --help` lists the flags with the values of that preset."]
    return "\n".join(lines)


def plot(
    run: tyro.conf.Positional[Path],
    output_path: Path | None = None,
) -> None:
    """Draw the curves of a run, as a picture or on a page that shows its samples too.

    Args:
        run: The run's folder.
        output_path: Picture (.png) or page (.html) to write; by default curves.png in the folder.
    """
    path = output_path or run / "curves.png"
    if path.suffix not in (".html", ".png"):
        raise UserError(f"{path} must end in .html (a page) or .png (the curves alone)")
    (write_page if path.suffix == ".html" else plot_run)(run, path)
    print(f"wrote {path}")


def plan(words: Sequence[str]) -> None:
    """`dsd plan PRESET --topology v5p:4x4x4 [FLAGS]`: the flags of the preset, and its own."""
    if not words or words[0].startswith("-"):
        print(_presets("usage: dsd plan PRESET --topology KIND:SHAPE [FLAGS]", "plan"))
        return
    name, *rest = words
    call(_plan_command(preset(name)), rest, f"dsd plan {name}", pairs=True)


def _plan_command(recipe: TrainConfig) -> Callable[..., None]:
    def command(
        topology: str,
        config: Annotated[TrainConfig, _PLAIN] = recipe,
        job: Literal["train", "sample"] = "train",
        guided: bool = False,
        encoded: bool = False,
        search: bool = False,
        json: Path | None = None,
    ) -> None:
        """Show what a recipe needs on hardware that you do not have yet.

        Args:
            topology: Kind and shape, such as v5e:8x8, v5p:4x4x4, v6e:16x16 or h100:8.
            config: The recipe.
            job: Plan the training step, or one sampling step of `batch_size` images.
            guided: Sample with true guidance, in three passes.
            encoded: Train on encoded data, with neither VAE nor text encoders in memory.
            search: Try meshes and rematerialisation policies, and rank what fits.
            json: File to write the plans to as well.
        """
        chips = Topology.parse(topology)
        plan_on_cpu(chips)
        question = Question(chips, config, job, guided, encoded)
        plans = (searched if search else plans_of)(question, _say)
        print(report(plans))
        if json is not None:
            rows = [{"change": change, **dataclasses.asdict(made)} for change, made in plans]
            write_file(json, to_json(rows, indent=1) + "\n")

    return command


def _say(text: str) -> None:
    print(text, flush=True)
