"""The command `dsd`: its table, its dispatch, and what a user sees when something is wrong."""

import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import tyro

from dsd_jax import __version__, cli
from dsd_jax.errors import UserError

calls: list[tuple[Path, int, bool]] = []


def paint(src: tyro.conf.Positional[Path], /, *, num_images: int = 1, save_frames: bool = False):
    """Paints.

    Args:
        src: the reference image.
        num_images: how many to paint.
        save_frames: whether to keep both frames.
    """
    calls.append((src, num_images, save_frames))


def mistake() -> None:
    raise UserError("no weights in 'here'; give --base_path")


def bug() -> None:
    raise ValueError("a bug")


def stopped() -> None:
    raise KeyboardInterrupt


@pytest.fixture(autouse=True)
def commands(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("painting")
    for function in (paint, mistake, bug, stopped):
        setattr(module, function.__name__, function)
    monkeypatch.setitem(sys.modules, "painting", module)
    table = {
        "paint": cli.Command("paints", "painting:paint"),
        "mistake": cli.Command("a user's mistake", "painting:mistake"),
        "bug": cli.Command("our mistake", "painting:bug"),
        "stopped": cli.Command("control-C", "painting:stopped"),
        "wall paint": cli.Command("paints a wall", "painting:paint"),
        "wall tear-down": cli.Command("not there", "absent_module:nothing"),
    }
    monkeypatch.setattr(cli, "COMMANDS", table)
    calls.clear()


@pytest.mark.parametrize(
    "flags", [["--num_images", "3", "--save_frames"], ["--num-images=3", "--save-frames"]]
)
@pytest.mark.parametrize("name", ["paint", "wall paint"])
def test_a_command_gets_its_flags_in_either_spelling(name: str, flags: list[str]):
    assert cli.main([*name.split(), "cat.png", *flags]) == 0
    assert calls == [(Path("cat.png"), 3, True)]


def test_help_lists_every_command_and_loads_none(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    for name, command in cli.COMMANDS.items():
        assert re.search(rf"^  {name} +{command.summary}$", out, re.MULTILINE)


def test_help_of_a_group_lists_its_commands_alone(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["wall", "-h"]) == 0
    out = capsys.readouterr().out
    assert "wall tear-down" in out
    assert "mistake" not in out


def test_help_of_a_command_is_its_docstring(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["wall", "paint", "--help"])
    out = capsys.readouterr().out
    assert "usage: dsd wall paint" in out
    assert "--num_images INT" in out
    assert "how many to paint" in out


def test_version(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"dsd {__version__}\n"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["pain", "x.png"], "unknown command `dsd pain`; did you mean `dsd paint`?"),
        (["wall", "tear_dwn"], "`dsd wall tear_dwn`; did you mean `dsd wall tear-down`?"),
        (["tear-down"], "unknown command `dsd tear-down`; did you mean `dsd wall tear-down`?"),
        (["wall_paint"], "did you mean `dsd wall paint`?"),
        (["xyzzy"], "unknown command `dsd xyzzy`; `dsd --help` lists all commands"),
        (["wall"], "`dsd wall` needs a command"),
        ([], "`dsd` needs a command"),
    ],
)
def test_a_wrong_command_is_refused(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    assert cli.main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.search(rf"^error: .*{re.escape(message)}", captured.err, re.MULTILINE)


def test_a_wrong_flag_is_refused(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["paint", "cat.png", "--num_image", "3"])
    assert "--num_image" in capsys.readouterr().err
    assert calls == []


def test_a_users_mistake_is_one_line(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["mistake"]) == 2
    assert capsys.readouterr().err == "error: no weights in 'here'; give --base_path\n"


@pytest.mark.parametrize("argv", [["--debug", "mistake"], ["mistake", "--debug"]])
def test_debug_shows_the_traceback(argv: list[str]):
    with pytest.raises(UserError, match="no weights"):
        cli.main(argv)


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ValueError, match="a bug"):
        cli.main(["bug"])


def test_control_c_is_one_line(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["stopped"]) == 130
    assert capsys.readouterr().err == "interrupted\n"
    with pytest.raises(KeyboardInterrupt):
        cli.main(["stopped", "--debug"])


def test_the_package_runs_as_a_module():
    command = [sys.executable, "-m", "dsd_jax", "genrate"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr == (
        "error: unknown command `dsd genrate`; did you mean `dsd generate`? "
        "`dsd --help` lists all commands\n"
    )
