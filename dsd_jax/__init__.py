"""Diffusion Self-Distillation on FLUX.1, in JAX.

The names below are loaded when they are first used: importing the package loads nothing heavy.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dsd_jax.config import Execution, FluxConfig, Precision, flux_dev, flux_schnell
    from dsd_jax.errors import UserError
    from dsd_jax.flux import Flux

__version__ = "0.1.0"

__all__ = [
    "Execution",
    "Flux",
    "FluxConfig",
    "Precision",
    "UserError",
    "__version__",
    "flux_dev",
    "flux_schnell",
]

_HOME = {
    "Execution": "dsd_jax.config",
    "Flux": "dsd_jax.flux",
    "FluxConfig": "dsd_jax.config",
    "Precision": "dsd_jax.config",
    "UserError": "dsd_jax.errors",
    "flux_dev": "dsd_jax.config",
    "flux_schnell": "dsd_jax.config",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
