"""Optimisers of optax by name, with schedule and clipping.

Weight decay means one thing in all of them: each step takes `rate * weight_decay` off every trained
parameter, whatever its gradient (Loshchilov & Hutter 2019). optax's own adafactor decays without
the rate and its sgd not at all, so their parts are chained here.
"""

import difflib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import optax

from dsd_jax.errors import UserError
from dsd_jax.train.config import OptimizerConfig

__all__ = ["OPTIMIZERS", "SCHEDULES", "learning_rate", "make_optimizer"]

Chosen = TypeVar("Chosen")


def _decayed(
    direction: optax.GradientTransformation, rate: optax.Schedule, config: OptimizerConfig
) -> optax.GradientTransformation:
    decay = optax.add_decayed_weights(config.weight_decay)
    return optax.chain(direction, decay, optax.scale_by_learning_rate(rate))


def _adamw(rate: optax.Schedule, c: OptimizerConfig) -> optax.GradientTransformation:
    return optax.adamw(rate, c.b1, c.b2, weight_decay=c.weight_decay)


def _adafactor(rate: optax.Schedule, c: OptimizerConfig) -> optax.GradientTransformation:
    """Adafactor without momentum and with an unscaled rate.

    The paper scales the rate by the size of a parameter. B of a new adapter is zero, so it would
    hardly move.
    """
    rms = optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0))
    return _decayed(rms, rate, c)


def _lion(rate: optax.Schedule, c: OptimizerConfig) -> optax.GradientTransformation:
    return optax.lion(rate, c.b1, c.b2, weight_decay=c.weight_decay)


def _prodigy(rate: optax.Schedule, c: OptimizerConfig) -> optax.GradientTransformation:
    """Prodigy, which finds its own rate; `learning_rate` is a factor on it, usually 1.

    Without `safeguard_warmup`, its estimate divides by the rate, which is zero at the start.
    """
    betas = c.b1, c.b2
    return optax.contrib.prodigy(
        rate, betas, weight_decay=c.weight_decay, safeguard_warmup=c.warmup > 0
    )


def _sgd(rate: optax.Schedule, c: OptimizerConfig) -> optax.GradientTransformation:
    """SGD with momentum `b1`."""
    return _decayed(optax.trace(c.b1), rate, c)


OPTIMIZERS: dict[str, Callable[[optax.Schedule, OptimizerConfig], optax.GradientTransformation]] = {
    "adamw": _adamw,
    "adafactor": _adafactor,
    "lion": _lion,
    "prodigy": _prodigy,
    "sgd": _sgd,
}
# From the peak, over so many steps.
SCHEDULES: dict[str, Callable[[float, int], optax.Schedule]] = {
    "constant": lambda peak, _: optax.constant_schedule(peak),
    "cosine": optax.cosine_decay_schedule,
    "linear": lambda peak, steps: optax.linear_schedule(peak, 0.0, steps),
}


def _choose(table: Mapping[str, Chosen], name: str, what: str) -> Chosen:
    if name not in table:
        near = difflib.get_close_matches(name, table, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"unknown {what} {name!r}; choose one of {', '.join(table)}{hint}")
    return table[name]


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate of every step: warm-up from zero, then the schedule over what is left.

    Raises:
        UserError: an unknown schedule.
    """
    peak, rest = config.learning_rate, max(steps - config.warmup, 1)
    schedule = _choose(SCHEDULES, config.schedule, "schedule")(peak, rest)
    if not config.warmup:
        return schedule
    warm_up = optax.linear_schedule(0.0, peak, config.warmup)
    return optax.join_schedules([warm_up, schedule], [config.warmup])


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Builds the optimiser; gradients are clipped by their global norm first.

    Raises:
        UserError: an unknown optimizer or schedule.
    """
    make = _choose(OPTIMIZERS, config.name, "optimizer")
    clip: list[Any] = [optax.clip_by_global_norm(config.clip)] if config.clip else []
    return optax.chain(*clip, make(learning_rate(config, steps), config))
