"""The help of every command, as it stands in a terminal of 80 columns."""

import os
import pty
import re
import subprocess
import sys

import pytest

from dsd_jax import cli

NAMES = [name for group in cli.COMMANDS.values() for name in group]


def shown(name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", "80")
    words = [*name.split(), *(["paper"] if name in ("train", "plan") else []), "--help"]
    with pytest.raises(SystemExit, match="0"):
        cli.main(words)
    return capsys.readouterr().out


@pytest.mark.parametrize("name", NAMES)
def test_the_help_of_a_command_reads_well(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    out = shown(name, capsys, monkeypatch)
    assert re.match(f"usage: dsd {name.replace('-', '[-_]')} ", out)
    assert max(map(len, out.splitlines()[1:])) <= 80  # tyro does not wrap the usage
    assert not re.search(r"\{None|\(default: \)|\(default: None\)|\bSTR STR\b", out)
    flat = " ".join(out.translate(str.maketrans("│╭╮╰╯─", " " * 6)).split())
    flat = re.sub(r"-{5,}", "", flat.partition("show this help message and exit")[2])
    for flag, text in re.findall(r" (--[\w.]+)(?:, --[\w.]+)? (.*?) \((?:def|opt|req)", flat):
        choices = r"\{[^}]*\}|\[\{[^}]*\} \[\.\.\.\]\]"  # one of them, or several
        words = re.sub(rf"^({choices}|\[?[A-Z]+\b[^a-z]*?\]*|STR\|\S+ \S+ \S+)(?= |$)", "", text)
        assert re.match(r"\W*[A-Z0-9]", words), f"{flag} is not described: {text}"
    for flag in re.findall(r"--\S+", flat):
        assert "-" not in flag[2:].rstrip(".,;:"), f"{flag} is spelled with hyphens"


@pytest.mark.parametrize(("no_color", "coloured"), [("", True), ("1", False)])
def test_no_color_means_none(no_color: str, coloured: bool):
    ours, theirs = pty.openpty()
    environment = {**os.environ, "NO_COLOR": no_color, "TERM": "xterm"}
    environment.pop("PYTHON_TYRO_ANSI_CODES", None)  # of a command that ran in this process before
    command = [sys.executable, "-m", "dsd_jax", "completion", "--help"]
    subprocess.run(command, stdout=theirs, stderr=theirs, env=environment, check=True)
    os.close(theirs)
    assert (b"\x1b[" in os.read(ours, 10_000)) == coloured
    os.close(ours)


@pytest.mark.parametrize("name", ["train", "plan"])
def test_commands_with_presets_list_them(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main([name, "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: dsd {name} PRESET")
    assert re.search(r"^  paper +The paper", out, re.MULTILINE)
    assert max(map(len, out.splitlines())) <= 80
