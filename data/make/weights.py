"""Weights of tasks and routes, and the one that a caption gets by them."""

import hashlib
import math
from collections.abc import Iterable, Mapping

from dsd_jax.data.make.ids import CaptionId
from dsd_jax.errors import UserError

__all__ = ["check_weights", "chosen"]


def check_weights(key: str, weights: Mapping[str, float], example: str) -> None:
    """Refuses weights by which nothing can be chosen.

    Raises:
        UserError: There is none, one is negative or not finite, or all are 0.
    """
    total = sum(weights.values())
    if not weights or min(weights.values()) < 0 or not 0 < total < math.inf:
        raise UserError(f"{key} needs finite weights above 0, such as {{ {example} }}")


def chosen(key: str, caption: CaptionId, weights: Mapping[str, float], order: Iterable[str]) -> str:
    """The name that a caption gets, by a hash of its id.

    Args:
        key: Name of the choice; choices of different names are independent.
        caption: Id of the caption.
        weights: Weight of each name.
        order: All names, in an order that does not depend on the weights.
    """
    place = int(hashlib.sha256(f"{key} {caption}".encode()).hexdigest()[:12], 16) / 16**12
    place *= sum(weights.values())
    for name in order:
        place -= weights.get(name, 0)
        if place < 0:
            return name
    return max(weights, key=lambda name: weights[name])  # rounding
