"""A figure with its interval, the only form in which the project reports a measured mean."""

from typing import NamedTuple

__all__ = ["Interval"]


class Interval(NamedTuple):
    """A figure with its confidence interval, 95 % unless its maker says otherwise."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"
