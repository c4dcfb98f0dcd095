"""Manifests for the tests of `dsd batch`."""

import json
from pathlib import Path
from typing import Any

from dsd_jax.infer.settings import Settings

__all__ = ["DEFAULTS", "manifest"]

DEFAULTS = Settings(height=64, width=128, steps=2)


def manifest(folder: Path, rows: list[Any], name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path
