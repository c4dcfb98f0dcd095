"""Completion: what a help offers, and what bash makes of the script."""

import shutil
import subprocess
from pathlib import Path

import pytest

from dsd_jax.completion import SHELLS, Offer, offer_of, script

HELP = """\
usage: dsd generate [-h] [OPTIONS]

Generate an image of the subject of a
  reference image.

╭─ options ──────────────────────────────────────────────────────────────────╮
│ -h, --help         show this help message and exit                           │
│ --text STR         What the image shows, as --image_path. (required)         │
│ --dtype {bfloat16,float32}                                                   │
│                    Dtype of the weights. (default: bfloat16)                 │
│ --lora.rank INT    Rank. (default: 8)                                        │
│ ──────────────────────────────────────────────────────────────────────────── │
│ --scan, --no_scan  Scan. (default: on)                                       │
"""
OFFERS: dict[str, Offer] = {
    "generate": offer_of(HELP),
    "data stats": {"--plot": ()},
    "train": {"paper": (), "tiny": ()},
    "train paper": {"--steps": ()},
    "train tiny": {"--steps": ()},
    "completion": {"bash": (), "zsh": ()},
}


def test_a_help_offers_its_flags_and_their_choices():
    assert offer_of(HELP) == {
        "-h": (),
        "--help": (),
        "--text": (),
        "--dtype": ("bfloat16", "float32"),
        "--lora.rank": (),
        "--scan": (),
        "--no_scan": (),
    }


def test_a_help_without_a_terminal_offers_the_same():
    plain = HELP.translate(str.maketrans("│╭╮╰╯─", " " * 6))
    assert offer_of(plain) == offer_of(HELP)


def test_a_list_of_presets_offers_them():
    text = "usage: dsd train PRESET\n\npresets:\n  paper   The recipe.\n  v5e_64  On a slice.\n"
    assert offer_of(text) == {"paper": (), "v5e_64": ()}


def test_a_choice_by_position_is_offered():
    assert offer_of("│ {bash,zsh}  Shell that reads it. │") == {"bash": (), "zsh": ()}


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("dsd d", "data"),
        ("dsd data ", "stats"),
        ("dsd data stats ", "--plot"),
        ("dsd generate --dt", "--dtype"),
        ("dsd generate --dtype ", "bfloat16 float32"),
        ("dsd generate --text x --lora.r", "--lora.rank"),
        ("dsd train ", "paper tiny"),
        ("dsd train tiny --s", "--steps"),
        ("dsd completion z", "zsh"),
        ("dsd generate --image_path cat", "cat.png"),
        ("dsd nonsense data s", ""),
    ],
)
def test_bash_completes(line: str, offered: str, tmp_path: Path):
    (tmp_path / "cat.png").touch()
    words = "".join(f" '{word}'" for word in line.split(" "))
    (tmp_path / "try.bash").write_text(
        f"{script('bash', OFFERS)}\n"
        f"COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}}-1)); _dsd\n"
        'echo "${COMPREPLY[*]}"\n'
    )
    command = ["bash", "try.bash"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout == f"{offered}\n"
    assert result.stderr == ""


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_gets_every_word(shell: str):
    text = script(shell, OFFERS)
    assert "@" not in text.replace("[@]", "").replace("(@)", "").replace('"$@"', "")
    for word in ("generate", "stats", "--dtype", "bfloat16 float32", "--steps", "tiny"):
        assert word in text


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_is_valid(shell: str, tmp_path: Path):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    (tmp_path / "script").write_text(script(shell, OFFERS))
    subprocess.run([shell, "-n", tmp_path / "script"], check=True)
