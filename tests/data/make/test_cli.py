"""The commands of `dsd data`, as they are typed."""

from pathlib import Path

import pytest

from dsd_jax.cli import main as dsd
from dsd_jax.data.make.config import load_config
from dsd_jax.data.make.folder import begin_stage
from dsd_jax.data.make.stages import STAGES
from tests.data.make.made import write_folder
from tests.data.make.test_config import write
from tests.tiny_pairs import write_pairs


@pytest.fixture
def config(tmp_path: Path) -> Path:
    write_folder(tmp_path / "made", 6, parts=3)
    return write(tmp_path)


def test_status_shows_what_is_left_to_do(config: Path, capsys: pytest.CaptureFixture[str]):
    (config.parent / "made" / "judge" / "part-00001.jsonl").unlink()
    assert dsd(["data", "status", str(config)]) == 0
    text = capsys.readouterr().out
    (line,) = (line for line in text.splitlines() if line.split()[:1] == ["judge"])
    assert line.split()[1] == "2/3"
    assert line.split()[-1] == "1"
    assert "dataset is not packed yet" in text


@pytest.mark.parametrize("columns", [45, 80])
@pytest.mark.parametrize("command", ["status", "stats"])
def test_a_narrow_terminal_loses_no_column(
    config: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    columns: int,
    command: str,
):
    subject = str(config if command == "status" else config.parent / "made")
    words = {
        "status": ("captions", "parts", "rows", "kept", "to do"),
        "stats": ("captions", "prompts", "rejected", "undecided", "failed", "share", "near_copy"),
    }[command]
    monkeypatch.setenv("NO_COLOR", "1")
    (config.parent / "made" / "judge" / "part-00001.jsonl").unlink()
    (config.parent / "made" / "ledgers").mkdir()
    shown = {}
    for width in (columns, 200):
        monkeypatch.setenv("COLUMNS", str(width))
        assert dsd(["data", command, subject]) == 0
        shown[width] = capsys.readouterr().out
    assert "\x1b[" not in shown[columns]
    assert max(map(len, shown[columns].splitlines()[:-1])) <= columns
    for word in words:
        assert word in shown[columns]
    numbers = {word for word in shown[200].split() if word[0].isdigit()}
    assert numbers <= set(shown[columns].split())


def test_stats_of_a_work_folder_with_a_plot(config: Path, capsys: pytest.CaptureFixture[str]):
    plot = config.parent / "plot.png"
    assert dsd(["data", "stats", str(config.parent / "made"), "--plot", str(plot)]) == 0
    assert "neither_yes_nor_no" in capsys.readouterr().out
    assert plot.exists()


def test_a_plot_of_a_finished_dataset_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    write_pairs(tmp_path / "pairs", 2)
    assert dsd(["data", "stats", str(tmp_path / "pairs"), "--plot", "x.png"]) == 2
    assert (
        "is not a work folder of `dsd data make`; there is nothing to plot"
        in capsys.readouterr().err
    )


def test_view_says_how_much_it_shows(config: Path, capsys: pytest.CaptureFixture[str]):
    page = config.parent / "pages" / "page.html"
    assert dsd(["data", "view", str(config), "--output_path", str(page), "--limit", "4"]) == 0
    assert f"{page} shows 4 of 6 grids" in capsys.readouterr().out


def test_a_worker_has_a_number_and_a_count(config: Path, capsys: pytest.CaptureFixture[str]):
    assert dsd(["data", "judge", str(config), "--shard", "1"]) == 2
    assert "the number of workers is not known; give --num_shards" in capsys.readouterr().err


def test_packing_before_its_time_names_the_stage_to_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    config = write(tmp_path)
    for stage in STAGES:
        assert dsd(["data", "pack", str(config)]) == 2
        message = capsys.readouterr().err
        assert f"`{stage}` has not been begun in " in message
        assert f"run `dsd data {stage}` first" in message
        begin_stage(load_config(config), stage)


def test_a_missing_configuration_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert dsd(["data", "make", str(tmp_path / "none.toml")]) == 2
    error = capsys.readouterr().err
    assert f"cannot read {tmp_path / 'none.toml'}: No such file or directory" in error
