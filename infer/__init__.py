"""Images from a reference image and a text."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dsd_jax.infer.pipeline import Generated, Pipeline
    from dsd_jax.infer.settings import Settings

__all__ = ["Generated", "Pipeline", "Settings"]

_HOME = {
    "Generated": "dsd_jax.infer.pipeline",
    "Pipeline": "dsd_jax.infer.pipeline",
    "Settings": "dsd_jax.infer.settings",
}


def __getattr__(name: str) -> Any:
    # Loaded when first used, so that importing a neighbour does not load the whole pipeline.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
