"""Optimisers by name, their schedules, and what weight decay and clipping mean in all of them."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dsd_jax.errors import UserError
from dsd_jax.train.config import OptimizerConfig
from dsd_jax.train.optimizer import OPTIMIZERS, SCHEDULES, learning_rate, make_optimizer

PLAIN = OptimizerConfig(learning_rate=0.01, clip=0.0, weight_decay=0.0)


def random_params(seed: int = 0) -> dict[str, jax.Array]:
    """One of them large enough for adafactor to factor."""
    rng = np.random.default_rng(seed)
    shapes = {"a": (128, 130), "b": (3, 5)}
    return {k: jnp.asarray(rng.standard_normal(s, np.float32)) for k, s in shapes.items()}


def update(config: OptimizerConfig, grads: Any, params: Any, steps: int = 1) -> Any:
    """Parameters after some steps with the same gradients."""
    optimizer = make_optimizer(config, 10)

    @jax.jit
    def step(params: Any, state: optax.OptState) -> tuple[Any, optax.OptState]:
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for _ in range(steps):
        params, state = step(params, state)
    return params


# Schedules


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("constant", 0, {0: 1, 10: 1, 99: 1}),
        ("constant", 20, {0: 0, 5: 0.25, 10: 0.5, 20: 1, 99: 1}),
        ("linear", 0, {0: 1, 25: 0.75, 50: 0.5, 100: 0, 200: 0}),
        ("linear", 20, {10: 0.5, 20: 1, 60: 0.5, 100: 0}),
        ("cosine", 0, {0: 1, 25: (1 + 0.5**0.5) / 2, 50: 0.5, 100: 0}),
        ("cosine", 20, {0: 0, 20: 1, 40: (1 + 0.5**0.5) / 2, 60: 0.5, 100: 0}),
    ],
)
def test_schedules(schedule: Any, warmup: int, expected: dict[int, float]) -> None:
    config = OptimizerConfig(learning_rate=3e-4, schedule=schedule, warmup=warmup)
    rate = learning_rate(config, 100)
    for step, fraction in expected.items():
        assert float(rate(step)) == pytest.approx(3e-4 * fraction, abs=1e-10)


def test_a_warm_up_longer_than_the_run() -> None:
    rate = learning_rate(OptimizerConfig(warmup=50, schedule="cosine"), 20)
    assert float(rate(20)) == pytest.approx(0.4e-4)


def test_the_rate_of_the_schedule_is_used() -> None:
    """Lion's steps are of the rate's size in every element."""
    config = dataclasses.replace(PLAIN, name="lion", schedule="linear", warmup=2)
    params = random_params()
    moved = update(config, jax.tree.map(jnp.ones_like, params), params, steps=4)
    expected = 0.01 * (0 + 0.5 + 1 + 0.875)
    np.testing.assert_allclose(params["a"] - moved["a"], expected, rtol=1e-4)


# Optimisers


@pytest.mark.parametrize("warmup", [0, 3])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_goes_downhill(name: str, warmup: int) -> None:
    """Each step finite, and the loss |p - target|^2 lower in the end."""
    config = OptimizerConfig(name=name, learning_rate=0.1, warmup=warmup, weight_decay=0.0)
    if name == "prodigy":
        config = dataclasses.replace(config, learning_rate=1.0)
    optimizer, params, target = make_optimizer(config, 30), random_params(0), random_params(1)

    @jax.jit
    def step(params: Any, state: optax.OptState) -> tuple[jax.Array, Any, optax.OptState]:
        def distance(params: Any) -> jax.Array:
            squares = jax.tree.map(lambda p, q: jnp.square(p - q).sum(), params, target)
            return optax.tree.sum(squares)

        loss, grads = jax.value_and_grad(distance)(params)
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(grads, state, params)
        return loss, optax.apply_updates(params, updates), state

    state, losses = optimizer.init(params), []
    for _ in range(30):
        loss, params, state = step(params, state)
        losses.append(float(loss))
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0] * (1 if name == "prodigy" else 0.99)  # starts at steps of 1e-6


@pytest.mark.parametrize("name", sorted(set(OPTIMIZERS) - {"prodigy"}))
def test_weight_decay_is_decoupled(name: str) -> None:
    """Without gradient, a step takes rate * weight_decay off every parameter."""
    config = dataclasses.replace(PLAIN, name=name, weight_decay=0.1)
    params = random_params()
    moved = update(config, jax.tree.map(jnp.zeros_like, params), params)
    jax.tree.map(lambda p, q: np.testing.assert_allclose(q, p * 0.999, rtol=1e-5), params, moved)


def test_clipping_by_global_norm() -> None:
    """Clips by the norm of all gradients together; smaller ones stay as they are."""
    config = dataclasses.replace(PLAIN, name="sgd", learning_rate=1.0, b1=0.0, clip=2.0)
    params, grads = random_params(0), random_params(1)
    norm = float(optax.tree.norm(grads))
    assert norm > 2
    for factor in (1.0, 0.5 / norm):
        scaled = jax.tree.map(lambda g, f=factor: f * g, grads)
        moved = update(config, scaled, params)
        step = min(1.0, 2 / (factor * norm)) * factor
        jax.tree.map(
            lambda p, q, g, s=step: np.testing.assert_allclose(p - q, s * g, rtol=1e-3, atol=1e-6),
            params,
            moved,
            grads,
        )


# Refusals


@pytest.mark.parametrize(
    ("name", "hint"), [("adamW", "; did you mean 'adamw'?"), ("muon", ""), ("adam", "'adamw'?")]
)
def test_unknown_optimizer(name: str, hint: str) -> None:
    with pytest.raises(UserError) as error:
        make_optimizer(OptimizerConfig(name=name), 10)
    listed = ", ".join(OPTIMIZERS)
    assert f"unknown optimizer {name!r}; choose one of {listed}" in str(error.value)
    assert str(error.value).endswith(hint or listed)


def test_unknown_schedule() -> None:
    config = OptimizerConfig()
    object.__setattr__(config, "schedule", "cosin")
    with pytest.raises(UserError, match=r"unknown schedule 'cosin'; .*; did you mean 'cosine'"):
        make_optimizer(config, 10)
    assert set(SCHEDULES) == {"constant", "linear", "cosine"}
