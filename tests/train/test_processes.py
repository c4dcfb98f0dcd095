"""Training on two processes, as on two hosts."""

import re
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks.exact.train_meshes import train, two_processes
from benchmarks.kill.train import logged, wait_for, write_world
from dsd_jax.runs import FOLDER, steps_of
from dsd_jax.sharding import MeshConfig, make_mesh

STEPS = 5


@pytest.mark.slow  # a minute; `benchmarks.exact.train_meshes` has two processes as well
def test_two_processes_train_as_one_device() -> None:
    """Base, factors and moments are spread over both; the losses are the same."""
    flags = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    two = two_processes(MeshConfig(data=2, fsdp=4), STEPS, flags=flags)
    one = train(make_mesh(MeshConfig(), jax.devices()[:1]), STEPS)
    np.testing.assert_allclose(two.losses, one.losses, rtol=2e-6)
    assert two.norm == pytest.approx(one.norm, rel=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sent", "receivers"),
    [
        pytest.param(signal.SIGTERM, [1], id="a scheduler stops one host"),
        pytest.param(signal.SIGINT, [0, 1], id="Ctrl-C reaches every process of a terminal"),
    ],
)
def test_a_signal_stops_both_processes(
    tmp_path: Path, sent: signal.Signals, receivers: list[int]
) -> None:
    """Both end well with the same checkpoint, and the command to go on is said."""
    world, output = write_world(tmp_path, steps=10_000), tmp_path / "run"
    life = world.start(output, threads=1, processes=2)
    try:
        wait_for(life, lambda: logged(output) >= 2)
        for number in receivers:
            life[number].send_signal(sent)
        assert [process.wait(timeout=120) for process in life] == [0, 0]
    finally:
        for process in life:
            process.kill()
    said = (tmp_path / "log.txt").read_text()
    (step,) = re.findall(r"stopped after step (\d+), which is saved; go on with", said)
    assert steps_of(output / FOLDER)[-1] == int(step) == logged(output)
