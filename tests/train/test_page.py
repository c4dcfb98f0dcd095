"""The page of a run: it stands alone, shows what was logged, and names no place on the machine."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from dsd_jax.cli import main
from dsd_jax.errors import UserError
from dsd_jax.images import save_image
from dsd_jax.train import page as module
from dsd_jax.train.config import BaseConfig, DataConfig, RunConfig
from dsd_jax.train.page import write_page
from dsd_jax.train.presets import tiny
from dsd_jax.train.runfile import write_run_file
from dsd_jax.train.sheet import draw_sheet


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "my <run>"
    folder.mkdir()
    rows = [{"step": step, "loss": 1 / step, "grad_norm": 2.0} for step in range(1, 1001)]
    rows += [{"step": step, "eval/loss": 0.5} for step in (0, 500, 1000)]
    rows += [{"step": 1001, "loss": float("nan")}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pixels = np.random.default_rng(0).integers(0, 255, (2, 32, 64, 3)).astype(np.uint8)
    for step in range(0, 2000, 100):
        sheet = draw_sheet(pixels, ["reference", "target"], ["a", "b"])
        save_image(sheet.image, folder / "samples" / f"{step:08d}.png", sheet.layout)
    groups = (
        BaseConfig("/home/me/FLUX"),
        DataConfig(("/home/me/pairs",), eval_data="/home/me/held"),
        RunConfig(Path("/home/me/runs")),
        tiny(),
    )
    write_run_file(folder / "run.toml", "tiny", groups)
    return folder


def test_a_page_holds_curves_samples_and_recipe(run: Path) -> None:
    write_page(run, run / "run.html")
    text = (run / "run.html").read_text()
    assert "<title>my &lt;run&gt;</title>" in text
    assert "1,001 steps" in text
    assert "Loss <span" in text
    assert "Gradient norm" in text
    assert "Learning rate" not in text  # it was not logged
    assert 'class="s1 held"' in text
    steps = re.findall(r'data-step="([\d,]+)"', text)
    assert (steps[0], steps[-1], len(steps)) == ("0", "1,900", module.MOST_SHEETS)
    assert "learning_rate = 0.001" in text
    assert len(text) < 2_000_000


def test_the_end_of_a_curve_can_be_read(run: Path) -> None:
    write_page(run, run / "run.html")
    loss, *_ = (run / "run.html").read_text().split("</figure>")
    assert re.findall(r'text-anchor="end">([\d.]+)<', loss)[:4] == [
        "0.001",
        "0.002",
        "0.005",
        "0.01",
    ]


def test_a_page_stands_alone_and_tells_no_place(run: Path) -> None:
    write_page(run, run / "run.html")
    text = (run / "run.html").read_text()
    assert not re.search(r'(src|href)="(?!data:)', text)
    assert "http" not in text.replace("http-equiv", "")
    assert "/home/me" not in text
    assert "nan" not in re.sub(r"base64,[\w+/=]+", "", text).lower()


def test_a_damaged_sample_is_named(run: Path) -> None:
    path = run / "samples" / "00000000.png"
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(UserError, match=r"cannot decode .*00000000\.png: .*; the file is damaged"):
        write_page(run, run / "run.html")


def test_damaged_lines_of_the_metrics_are_left_out(run: Path) -> None:
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(
            b'\xff\n[1]\n{"loss": 3}\n{"step": "x"}\n{"step": 1001, "loss": "x"}\n{"step": 3'
        )
    write_page(run, run / "run.html")
    assert "1,001 steps" in (run / "run.html").read_text()


def test_the_command_writes_a_page_or_a_picture(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "plot", str(run), "--output_path", str(run / "x.html")]) == 0
    assert (run / "x.html").exists()
    assert main(["train", "plot", str(run), "--output_path", str(run / "x.svg")]) == 2
    assert "must end in .html (a page) or .png (the curves alone)" in capsys.readouterr().err


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not the folder of a run"):
        write_page(tmp_path, tmp_path / "run.html")
