"""Axis letters and array aliases shared by the whole package.

The one legend of axis letters, used in shape annotations, einsum strings and conversion tables:

    B batch    F frames      L tokens        N heads       H head dim
    D width    C channels    M mlp width     R LoRA rank   h, w height and width of a latent grid
"""

from typing import TypeAlias

import numpy as np
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Bool, Float, Float32, Int, PyTree, UInt8

__all__ = [
    "AnyArray",
    "Array",
    "Bool",
    "DTypeLike",
    "Float",
    "Float32",
    "Int",
    "PyTree",
    "Shape",
    "UInt8",
]

AnyArray: TypeAlias = Array | np.ndarray  # on a device or on the host
Shape: TypeAlias = tuple[int, ...]
