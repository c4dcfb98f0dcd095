"""Numbers as the cells of a table."""

import math

from dsd_jax.infer.evaluate.numbers import Number
from dsd_jax.interval import Interval

__all__ = ["NONE", "plain", "signed", "with_interval", "with_std"]

NONE = "–"
"""Cell of a number that cannot be formed."""


def plain(value: float | None) -> str:
    return NONE if value is None or math.isnan(value) else f"{value:z.3f}"


def with_std(number: Number) -> str:
    return plain(number.value) + (f" ± {number.std:.3f}" if number.std is not None else "")


def with_interval(number: Number | None) -> str:
    if number is None or number.interval is None or math.isnan(number.value):
        return NONE
    return f"{number.value:z.3f} ({number.interval.low:z.3f} to {number.interval.high:z.3f})"


def signed(interval: Interval) -> str:
    return f"{interval.value:+z.3f} ({interval.low:+z.3f} to {interval.high:+z.3f})"
