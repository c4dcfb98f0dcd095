"""The command `dsd`: its table, its dispatch, and what a user sees when something is wrong."""

import io
import re
import resource
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import IO

import pytest
import tyro

from dsd_jax import __version__, cli
from dsd_jax.errors import UserError

calls: list[tuple[Path, int, bool]] = []


def run(*words: str, stdout: int | IO[str] = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    """The real program in a process of its own."""
    command = [sys.executable, "-m", "dsd_jax", *words]
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False)


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


def unwritable() -> None:
    try:
        Path("/proc/here").mkdir()
    except OSError as error:
        raise RuntimeError("a library's words") from error


@pytest.fixture(autouse=True)
def commands(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("painting")
    for function in (paint, mistake, bug, stopped, unwritable):
        setattr(module, function.__name__, function)
    monkeypatch.setitem(sys.modules, "painting", module)
    table = {
        "Pictures": {
            "paint": cli.Command("paints", "painting:paint"),
            "wall paint": cli.Command("paints a wall", "painting:paint"),
        },
        "Trouble": {
            "mistake": cli.Command("a user's mistake", "painting:mistake"),
            "bug": cli.Command("our mistake", "painting:bug"),
            "stopped": cli.Command("control-C", "painting:stopped"),
            "unwritable": cli.Command("a folder of others", "painting:unwritable"),
            "wall tear-down": cli.Command("not there", "absent_module:nothing"),
        },
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


def test_help_groups_every_command_by_what_people_do_and_loads_none(
    capsys: pytest.CaptureFixture[str],
):
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    for title, group in cli.COMMANDS.items():
        lines = "".join(rf"  {name} +{command.summary}\n" for name, command in group.items())
        assert re.search(rf"^{title}\n{lines}\n", out, re.MULTILINE)


def test_help_fits_a_terminal_of_80_columns():
    out = run("--help").stdout
    assert max(map(len, out.splitlines())) < 80
    for line in out.splitlines():
        if line.startswith("  "):
            summary = re.split("  +", line.strip(), maxsplit=1)[1]
            assert summary[0].isupper()
            assert summary[-1] != "."


def test_help_of_the_first_word_lists_its_commands_alone(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["wall", "-h"]) == 0
    out = capsys.readouterr().out
    assert "wall tear-down" in out
    assert "mistake" not in out


def test_help_comes_at_once():
    """It takes 0.04 s of a processor, however much else the machine does."""

    def spent() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    times = []
    for _ in range(5):
        start = spent()
        run("--help")
        times.append(spent() - start)
    assert min(times) < 0.4


def test_help_of_a_command_is_its_docstring(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["wall", "paint", "--help"])
    out = capsys.readouterr().out
    assert "usage: dsd wall paint" in out
    assert "--num_images INT" in out
    assert "How many to paint" in out


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


@pytest.mark.parametrize("argv", [["caf\udce9"], ["paint", "caf\udce9"], ["paint", "--\ud83d"]])
def test_arguments_that_no_file_of_text_could_hold_are_refused(
    argv: list[str], capsys: pytest.CaptureFixture[str]
):
    assert cli.main(argv) == 2
    assert re.match(
        rf"error: the argument {re.escape(ascii(argv[-1]))} holds the .*; give it as valid UTF-8",
        capsys.readouterr().err,
    )
    assert calls == []


def test_an_output_in_another_encoding_spells_what_it_lacks(monkeypatch: pytest.MonkeyPatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "ascii", write_through=True))
    assert cli.main(["--version"]) == 0
    sys.stdout.write("Küken \udce9\n")
    assert written.getvalue().endswith(b"K\\xfcken \\udce9\n")


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


def test_a_folder_that_cannot_be_written_is_one_line(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["unwritable"]) == 2
    assert capsys.readouterr().err == (
        "error: there is no file or folder /proc/here; check the path\n"
    )
    with pytest.raises(RuntimeError, match="a library's words"):
        cli.main(["unwritable", "--debug"])


@pytest.mark.parametrize("words", ["dsd_jax --help", "dsd_jax xyzzy 2>&1"])
def test_a_reader_that_leaves_ends_the_program_quietly(words: str):
    """Runs as in `dsd data stats | head`; bash tells the status of the first program."""
    script = f"{sys.executable} -m {words} | true; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_output_to_a_full_disk_is_one_line():
    with Path("/dev/full").open("w") as full:
        result = run("--help", stdout=full)
    assert result.returncode == 2
    assert result.stderr == (
        "error: cannot write the output: No space left on device; "
        "free some space and run the command again\n"
    )


def test_threads_of_libraries_print_no_traceback():
    """An error in a thread that Python did not start, as those of TensorStore, is not printed."""
    script = """
import sys, threading
from types import SimpleNamespace
from dsd_jax import cli

def bare():
    sys.excepthook(ValueError, ValueError("noise"), None)
    sys.unraisablehook(SimpleNamespace(exc_value=ValueError("noise"), err_msg=None, object=None))

cli.main(["--version"])
thread = threading.Thread(target=bare)
thread.start()
thread.join()
raise ValueError("a bug")
"""
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "noise" not in result.stderr
    assert "ValueError: a bug" in result.stderr


def test_the_package_runs_as_a_module():
    result = run("genrate")
    assert result.returncode == 2
    assert result.stderr == (
        "error: unknown command `dsd genrate`; did you mean `dsd generate`? "
        "`dsd --help` lists all commands\n"
    )
