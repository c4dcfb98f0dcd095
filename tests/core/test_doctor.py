"""`dsd doctor`: what is found, without a secret in it."""

import re
from pathlib import Path

import jax
import pytest

from dsd_jax import __version__, cli, doctor
from dsd_jax.doctor import findings
from dsd_jax.extras import EXTRAS


def test_it_tells_versions_devices_disks_and_logins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("GEMINI_API_KEY", "a-secret")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(doctor, "get_token", lambda: "hf_secret")
    found = dict(findings(tmp_path))
    assert found["dsd-jax"].startswith(f"{__version__}, Python 3.")
    assert f"jax {jax.__version__}" in found["packages"]
    assert found["devices"] == "8 x cpu (cpu)"
    assert "GB free" in found["disk"]
    assert re.fullmatch(r"compiled once, kept in .* \([\d,]+ MB\)", found["programs"])
    assert found["hub login"] == "yes"
    assert (found["GEMINI_API_KEY"], found["OPENAI_API_KEY"]) == ("set", "not set")
    assert "secret" not in str(found)
    assert {f"[{name}]" for name in EXTRAS} <= set(found)


def test_it_says_what_is_missing_for_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor, "missing", lambda extra: ["arro3.io"])
    monkeypatch.setattr(doctor, "get_token", lambda: None)
    found = dict(findings(tmp_path))
    assert found["[parquet]"] == (
        "no arro3.io for reading Parquet tables: pip install 'dsd-jax[parquet]'"
    )
    assert "hf auth login" in found["hub login"]


def test_devices_that_do_not_answer_are_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def dead() -> None:
        raise RuntimeError("the driver is too old\nand more")

    monkeypatch.setattr(jax, "devices", dead)
    assert dict(findings(tmp_path))["devices"] == "JAX finds none: the driver is too old"


def test_a_folder_that_is_not_there_yet(tmp_path: Path):
    assert "GB free" in dict(findings(tmp_path / "new" / "er"))["disk"]


def test_the_command_prints_a_line_for_each(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("dsd-jax ")
    assert any(line.startswith("[tpu]") for line in lines)
