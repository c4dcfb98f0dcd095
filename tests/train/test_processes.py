"""Training on two processes, as on two hosts."""

import jax
import numpy as np
import pytest

from benchmarks.train_meshes import train, two_processes
from dsd_jax.sharding import MeshConfig, make_mesh
from tests.tiny_training import FAST_COMPILE

STEPS = 5


def test_two_processes_train_as_one_device() -> None:
    """Base, factors and moments are spread over both; the losses are the same."""
    flags = " ".join(f"--{name}={int(value)}" for name, value in FAST_COMPILE.items())
    two = two_processes(MeshConfig(data=2, fsdp=4), STEPS, flags=flags)
    one = train(make_mesh(MeshConfig(), jax.devices()[:1]), STEPS)
    np.testing.assert_allclose(two.losses, one.losses, rtol=2e-6)
    assert two.norm == pytest.approx(one.norm, rel=2e-6)
