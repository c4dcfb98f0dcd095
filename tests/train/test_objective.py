"""Times and noise that the loss draws."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsd_jax.errors import UserError
from dsd_jax.flow import Schedule
from dsd_jax.train.config import FlowConfig
from dsd_jax.train.objective import Customise, sample_times
from tests.tiny_flux import CANVAS


def test_logit_normal_times() -> None:
    config = FlowConfig(t_mean=0.4, t_std=1.5)
    t = np.asarray(
        sample_times(jax.random.key(0), 20_000, config, Schedule(), CANVAS.tokens), np.float64
    )
    logit = np.log(t / (1 - t))
    assert 0 < t.min() < t.max() < 1
    assert logit.mean() == pytest.approx(0.4, abs=0.05)
    assert logit.std() == pytest.approx(1.5, abs=0.05)


def test_uniform_and_shifted_times() -> None:
    def times(name: Any) -> np.ndarray:
        config = FlowConfig(t_sampling=name)
        return np.asarray(sample_times(jax.random.key(0), 20_000, config, Schedule(), 2048))

    uniform, shifted = times("uniform"), times("shifted")
    assert uniform.mean() == pytest.approx(0.5, abs=0.01)
    assert uniform.std() == pytest.approx(12**-0.5, abs=0.01)
    np.testing.assert_allclose(shifted, Schedule().warp(uniform, 2048), rtol=1e-5)
    assert shifted.mean() > 0.6


def test_unknown_distribution_of_times() -> None:
    config = FlowConfig()
    object.__setattr__(config, "t_sampling", "lognormal")
    with pytest.raises(UserError, match="unknown t_sampling 'lognormal'; choose one of logit_norm"):
        sample_times(jax.random.key(0), 4, config, Schedule(), CANVAS.tokens)


def test_noise_is_standard_normal_and_each_samples_own() -> None:
    noise, t = Customise(FlowConfig(), Schedule(), CANVAS).draw(
        jax.random.key(0), jnp.zeros((64, CANVAS.tokens, 16))
    )
    assert float(noise.mean()) == pytest.approx(0, abs=0.02)
    assert float(noise.std()) == pytest.approx(1, abs=0.02)
    assert len(np.unique(noise[:, 0, 0])) == len(np.unique(t)) == 64
