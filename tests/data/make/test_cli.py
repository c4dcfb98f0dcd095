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


def test_stats_of_a_making_with_a_plot(config: Path, capsys: pytest.CaptureFixture[str]):
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
    assert dsd(["data", "view", str(config), "--output", str(page), "--limit", "4"]) == 0
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
