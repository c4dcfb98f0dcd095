"""The report of `dsd doctor`: what this machine offers, and what it lacks."""

import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
from huggingface_hub import constants, get_token, try_to_load_from_cache

from dsd_jax import __version__
from dsd_jax.compiled import place_of_programs
from dsd_jax.extras import EXTRAS, missing

__all__ = ["findings"]

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "grain", "tyro")
_KEYS = ("GEMINI_API_KEY", "OPENAI_API_KEY")
_BASE = "black-forest-labs/FLUX.1-dev"


def findings(folder: Path) -> Iterator[tuple[str, str]]:
    """Returns titled findings. Nothing is computed or written, and no network is used.

    Args:
        folder: Folder whose disk is reported.
    """
    python = f"Python {sys.version.split()[0]}"
    yield "dsd-jax", f"{__version__}, {python}, {platform.platform(terse=True)}"
    yield "packages", ", ".join(f"{name} {_version(name)}" for name in _PACKAGES)
    yield "devices", _devices()
    yield "memory", _memory()
    yield "disk", _space(folder)
    yield "hub cache", _space(Path(constants.HF_HUB_CACHE))
    yield "programs", f"compiled once, kept in {place_of_programs()}"
    yield "hub login", "yes" if get_token() else "no; for FLUX.1-dev: hf auth login"
    found = try_to_load_from_cache(_BASE, "model_index.json")
    yield "FLUX.1-dev", "in the hub cache" if isinstance(found, str) else "not in the hub cache"
    for key in _KEYS:
        yield key, "set" if os.environ.get(key) else "not set"
    for name, extra in EXTRAS.items():
        absent = missing(name)
        yield (
            f"[{name}]",
            f"no {', '.join(absent)} for {extra.purpose.rstrip(',')}: pip install 'dsd-jax[{name}]'"
            if absent
            else "installed",
        )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _devices() -> str:
    try:
        devices = jax.devices()
    except RuntimeError as error:  # a driver that does not answer
        return f"JAX finds none: {str(error).splitlines()[0]}"
    kinds = {device.device_kind for device in devices}
    return f"{len(devices)} x {devices[0].platform} ({', '.join(sorted(kinds))})"


def _memory() -> str:
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return "unknown"
    return f"{size / 2**30:,.0f} GiB, {os.cpu_count()} cores"


def _space(folder: Path) -> str:
    ways = folder.absolute(), *folder.absolute().parents
    there = next(path for path in ways if path.exists())
    free = f"{shutil.disk_usage(there).free / 1e9:,.0f} GB free"
    writable = "" if os.access(there, os.W_OK) else ", not writable"
    return f"{folder}: {free}{writable}"
