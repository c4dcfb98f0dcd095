"""The TPU kernel, run by Pallas' interpreter: what it computes can be checked without a TPU."""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.pallas import tpu as pltpu

from dsd_jax import attention as module
from dsd_jax.attention import attention, splash_blocks
from tests.parity.compare import assert_close


@pytest.fixture
def qkv(key):
    return jax.random.normal(key, (3, 1, 256, 2, 128))


def test_splash_equals_plain_attention(qkv):
    with pltpu.force_tpu_interpret_mode():
        ours = attention(*qkv, implementation="splash")
    assert_close(ours, attention(*qkv, implementation="xla"), 1e-5, "splash")


@pytest.mark.parametrize("at_once", [256, 128])
def test_splash_gradient_equals_plain_gradient(qkv, at_once, monkeypatch):
    monkeypatch.setattr(module, "SPLASH_GRADIENT", at_once)

    def loss(q, implementation):
        return jnp.sum(jnp.square(attention(q, *qkv[1:], implementation=implementation)))

    with pltpu.force_tpu_interpret_mode():
        ours = jax.grad(loss)(qkv[0], "splash")
    assert_close(ours, jax.grad(loss)(qkv[0], "xla"), 1e-5, "gradient of splash")


def test_splash_with_several_blocks_of_keys_equals_plain_attention(qkv, monkeypatch):
    monkeypatch.setattr(module, "SPLASH_KEYS", 128)
    with pltpu.force_tpu_interpret_mode():
        ours = attention(*qkv, implementation="splash")
    assert_close(ours, attention(*qkv, implementation="xla"), 1e-5, "splash")


@pytest.mark.parametrize(
    ("tokens", "queries", "keys", "at_once"),
    [
        (1280, 640, 1280, 1280),  # two frames of 256 x 512 pixels
        (2560, 640, 2560, 1280),  # two frames of 512 x 512
        (4608, 512, 4608, 1536),  # 1024 x 1024
        (8704, 512, 4352, 256),  # two frames of 1024 x 1024: not all keys fit
        (4736, 128, 4736, 128),  # 37 tiles
    ],
)
def test_all_keys_are_one_block_where_they_fit(tokens, queries, keys, at_once):
    blocks = splash_blocks(tokens, tokens)
    assert (blocks.block_q, blocks.block_kv, blocks.block_kv_compute) == (queries, keys, at_once)


@pytest.mark.parametrize(
    ("tokens", "keys", "at_once"),
    [(1280, 1280, 640), (2560, 2560, 640), (4608, 768, 768), (8704, 512, 512)],
)
def test_the_gradient_takes_all_keys_as_one_block_where_they_fit(tokens, keys, at_once):
    blocks = splash_blocks(tokens, tokens)
    assert (blocks.block_kv_dkv, blocks.block_kv_dkv_compute) == (keys, at_once)
    assert blocks.block_q_dkv == at_once
