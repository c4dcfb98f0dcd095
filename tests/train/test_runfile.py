"""The settings of a run as a file: written, read back as flags, and refused with a reason."""

import dataclasses
import math
import tomllib
from pathlib import Path

import pytest
import tyro

from dsd_jax.cli import main as dsd
from dsd_jax.errors import UserError
from dsd_jax.train.cli import _command
from dsd_jax.train.config import BaseConfig, DataConfig, OptimizerConfig, RunConfig, TrainConfig
from dsd_jax.train.launch import Launch
from dsd_jax.train.presets import PRESETS, full, preset
from dsd_jax.train.runfile import flags_of, preset_of, write_run_file

GROUPS = DataConfig, RunConfig, BaseConfig


def parsed(words: list[str], recipe: TrainConfig, name: str) -> Launch:
    given, _ = tyro.cli(
        _command(name, recipe, BaseConfig()),
        args=words,
        use_underscores=True,
        config=(tyro.conf.AvoidSubcommands,),
    )
    return given


@pytest.mark.parametrize("name", PRESETS)
def test_what_is_written_is_read_back(tmp_path: Path, name: str) -> None:
    recipe = dataclasses.replace(
        preset(name),
        steps=7,
        optimizer=OptimizerConfig(learning_rate=3e-5, schedule="cosine", clip=math.inf),
        scan_layers=False,
    )
    data = DataConfig(("a b/#identity=3", 'c"d'), sizes=((32, 64), (64, 32)), eval_data="held")
    run = RunConfig(Path("out/x"), resume=False, profile=(1, 2), wandb="p")
    base = BaseConfig("flux/", from_scratch=True)
    path = tmp_path / "run.toml"
    write_run_file(path, name, (base, data, run, recipe))
    assert preset_of(path) == name
    assert parsed(flags_of(path, name, (*GROUPS, preset(name))), preset(name), name) == Launch(
        name, recipe, data, run, base
    )
    held = tomllib.loads(path.read_text())
    assert held["steps"] == 7
    assert held["optimizer"]["learning_rate"] == 3e-5
    assert ("lora" in held) == (recipe.lora is not None)


def test_flags_count_more_than_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('data = ["pairs"]\noutput_dir = "one"\nsteps = 5\n[lora]\nrank = 4\n')
    words = flags_of(path, "tiny", (*GROUPS, preset("tiny")))
    given = parsed([*words, "--steps", "9", "--data", "x", "y"], preset("tiny"), "tiny")
    assert given.config.steps == 9
    assert given.config.lora is not None
    assert given.config.lora.rank == 4
    assert given.data.data == ("x", "y")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stepz = 3", "there is no setting 'stepz'; did you mean 'steps'?"),
        ("[lora]\nrang = 3", "there is no setting 'lora.rang'; did you mean 'lora.rank'?"),
        ('preset = "full"', "is of the preset 'full', not 'tiny'; run `dsd train full --config"),
        ("steps = ", "run.toml"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "run.toml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        flags_of(path, "tiny", (*GROUPS, preset("tiny")))
    assert message in str(error.value)


def test_a_file_may_name_the_preset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.toml"
    path.write_text("steps = 3")
    assert dsd(["train", "--config", str(path)]) == 2
    assert "names no preset; write one before the flags: paper," in capsys.readouterr().err
    path.write_text('preset = "papper"')
    assert dsd(["train", "--config", str(path)]) == 2
    assert "; did you mean 'paper'?" in capsys.readouterr().err
    assert dsd(["train", "--config", str(tmp_path / "no.toml")]) == 2
    assert "no.toml" in capsys.readouterr().err
    assert dsd(["train", "--config"]) == 2
    assert "--config needs a TOML file" in capsys.readouterr().err
    assert full().lora is None


def test_a_file_of_a_recipe_with_its_own_command_names_that_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.toml"
    path.write_text(f'preset = "toy_student"\ndata = ["none"]\noutput_dir = "{tmp_path / "run"}"\n')
    assert dsd(["train", "--config", str(path)]) == 2
    err = capsys.readouterr().err
    assert "is of 'toy_student', which is none of the presets paper," in err
    assert f"`dsd train toy_student --config {path}`" in err
    assert dsd(["train", "toy-student", "--config", str(path)]) == 2
    assert "there is no dataset folder none" in capsys.readouterr().err
