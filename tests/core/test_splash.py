"""The TPU kernel, run by Pallas' interpreter: what it computes can be checked without a TPU."""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.pallas import tpu as pltpu

from dsd_jax.attention import attention
from tests.parity.compare import assert_close


@pytest.fixture
def qkv(key):
    return jax.random.normal(key, (3, 1, 256, 2, 128))


def test_splash_equals_plain_attention(qkv):
    with pltpu.force_tpu_interpret_mode():
        ours = attention(*qkv, implementation="splash")
    assert_close(ours, attention(*qkv, implementation="xla"), 1e-5, "splash")


def test_splash_gradient_equals_plain_gradient(qkv):
    def loss(q, implementation):
        return jnp.sum(jnp.square(attention(q, *qkv[1:], implementation=implementation)))

    with pltpu.force_tpu_interpret_mode():
        ours = jax.grad(loss)(qkv[0], "splash")
    assert_close(ours, jax.grad(loss)(qkv[0], "xla"), 1e-5, "gradient of splash")
