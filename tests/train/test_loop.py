"""Whole runs: what they leave behind, how they go on, and how they stop."""

import dataclasses
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from dsd_jax.cli import main
from dsd_jax.errors import UserError
from dsd_jax.sharding import MeshConfig
from dsd_jax.train import steplog
from dsd_jax.train.config import OptimizerConfig
from tests.random_flux import compile_once
from tests.tiny_run import RECIPE, arrays_of, run_training, write_world

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compile_once(tmp_path_factory)
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def straight(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four steps in one go, saved after two and four."""
    output = tmp_path_factory.mktemp("straight")
    run_training(world, output, save_every=2)
    return output


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def steps_of(output: Path) -> list[str]:
    return sorted(path.name for path in (output / "checkpoints").iterdir())


def test_stopped_and_resumed_equals_straight(world: Path, straight: Path, tmp_path: Path):
    half = dataclasses.replace(RECIPE, steps=2)
    assert run_training(world, tmp_path, half).step == 2
    # Logged by a process that was killed behind its last checkpoint.
    with (tmp_path / "batch_ids.jsonl").open("a") as file:
        file.write('{"step": 3, "ids": ["pair-0"]}\n{"step": 4, "i')
    resumed = run_training(world, tmp_path, threads=0, save_every=2)
    assert (resumed.step, resumed.stopped) == (4, False)

    one, two = (arrays_of(path / "checkpoints" / "00000004") for path in (straight, tmp_path))
    assert one.keys() == two.keys()
    assert any(name.startswith("ema.") for name in one)
    for name, array in one.items():
        np.testing.assert_array_equal(array, two[name], err_msg=name)
    assert lines(straight / "batch_ids.jsonl") == lines(tmp_path / "batch_ids.jsonl")
    logged = [row["step"] for row in lines(tmp_path / "metrics.jsonl")]
    assert logged == [1, 2, 3, 4]


def test_a_run_learns_and_says_so(straight: Path):
    rows = lines(straight / "metrics.jsonl")
    assert {"loss", "loss_reference", "loss_target", "grad_norm", "learning_rate"} <= rows[0].keys()
    assert {"step_seconds", "data_wait_seconds"} <= rows[-1].keys()
    first, last = (arrays_of(straight / "checkpoints" / name) for name in ("00000002", "00000004"))
    moved = [n for n in first if n.startswith("params.") and not np.array_equal(first[n], last[n])]
    assert len(moved) == sum(name.startswith("params.") for name in first)


def test_restored_on_eight_devices(world: Path, straight: Path, tmp_path: Path):
    (tmp_path / "checkpoints").mkdir()
    two = straight / "checkpoints" / "00000002"
    (tmp_path / "checkpoints" / "00000002").symlink_to(two)
    mesh = dataclasses.replace(RECIPE, mesh=MeshConfig(data=2, fsdp=4))
    run_training(world, tmp_path, mesh, devices=jax.devices(), keep_last=2)
    one, eight = (arrays_of(path / "checkpoints" / "00000004") for path in (straight, tmp_path))
    for name in one:
        if name.startswith("params."):
            np.testing.assert_allclose(one[name], eight[name], atol=2e-4, err_msg=name)
    rows = [lines(path / "metrics.jsonl")[-1]["loss"] for path in (straight, tmp_path)]
    assert rows[1] == pytest.approx(rows[0], rel=1e-4)


def test_other_run_in_the_folder(world: Path, straight: Path):
    with pytest.raises(UserError, match=r"begun with batch_size 8, now it is 4; use the same, or"):
        run_training(world, straight, dataclasses.replace(RECIPE, batch_size=4))
    with pytest.raises(UserError, match="holds checkpoints; leave out --no-resume"):
        run_training(world, straight, resume=False)
    with pytest.raises(UserError, match="is at step 4 already; give --steps above it"):
        run_training(world, straight, dataclasses.replace(RECIPE, steps=3))


def test_a_loss_that_is_not_finite_stops_the_run(world: Path, tmp_path: Path):
    wild = dataclasses.replace(RECIPE, optimizer=OptimizerConfig(learning_rate=1e15, clip=0))
    with pytest.raises(UserError) as caught:
        run_training(world, tmp_path, wild, save_every=1)
    message = str(caught.value)
    assert "step 2: loss is nan" in message or "step 2: loss is inf" in message
    second = lines(tmp_path / "batch_ids.jsonl")[1]["ids"]
    assert f"the batch was {', '.join(second)};" in message
    assert f"the last good checkpoint is {tmp_path / 'checkpoints' / '00000001'};" in message
    assert "--skip_bad_batches leaves such updates out" in message
    assert steps_of(tmp_path) == ["00000001"]


def test_bad_batches_are_skipped_only_if_told(
    world: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(steplog, "SECONDS_BETWEEN_LINES", 1e6)
    wild = dataclasses.replace(
        RECIPE, steps=3, optimizer=OptimizerConfig(learning_rate=1e15, clip=0)
    )
    run_training(world, tmp_path, wild, save_every=1, skip_bad_batches=True, keep_last=3)
    skipped = lines(tmp_path / "skipped.jsonl")
    assert [row["step"] for row in skipped] == [2, 3]
    assert skipped[0]["ids"] == lines(tmp_path / "batch_ids.jsonl")[1]["ids"]
    err = capsys.readouterr().err
    assert "step 3 is left out: loss is" in err
    # Every step is logged; the screen shows the first, the last, and one every so often.
    shown = re.findall(r"^(step \d+): .*lr.*$", err, re.MULTILINE)
    assert shown == ["step 1", "step 3"]
    assert max(map(len, re.findall(r"^step \d+: .*lr.*$", err, re.MULTILINE))) <= 80
    one, three = (arrays_of(tmp_path / "checkpoints" / f"0000000{i}") for i in (1, 3))
    assert three["step"] == 3
    for name in one:
        if name != "step":
            np.testing.assert_array_equal(one[name], three[name], err_msg=name)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_a_signal_saves_and_ends_well(
    world: Path, tmp_path: Path, number: signal.Signals, capsys: pytest.CaptureFixture[str]
):
    words = [
        "train", "tiny", "--data", str(world / "pairs"), "--base_path", str(world / "flux"),
        "--output_dir", str(tmp_path / "run"), "--steps", "100000", "--save_every", "100000",
        "--height", "32", "--width", "64", "--no_tensorboard", "--log_every", "1",
    ]  # fmt: skip
    environment = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false",
        "PATH": "",
        "XDG_CACHE_HOME": str(world),  # the second process finds the programs of the first
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "dsd_jax", *words],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    ids = tmp_path / "run" / "batch_ids.jsonl"
    deadline = time.monotonic() + 600  # compiling takes minutes on a machine that is busy
    while not (ids.exists() and ids.read_text()) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    assert main(words) == 2
    said = capsys.readouterr().err
    assert f"another `dsd train` is running in {tmp_path / 'run'} (process {process.pid} on" in said
    process.send_signal(number)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert "stopping after this step; once more stops at once" in err
    (saved,) = steps_of(tmp_path / "run")
    assert out.startswith(f"stopped after step {int(saved)}, which is saved; go on with\n  dsd ")
    assert out.strip().endswith(" ".join(words))
    assert (tmp_path / "run" / "checkpoints" / saved / "manifest.json").exists()
    assert lines(ids)[-1]["step"] == int(saved)
