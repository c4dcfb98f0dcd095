"""Compiled programs kept on disk, so that the next run of a command starts without compiling."""

import hashlib
import os
import platform
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

from dsd_jax.errors import UserError

__all__ = ["keep_compiled", "place_of_programs"]

MAX_BYTES = 4 * 2**30  # beyond it, the least recently used programs are removed


def keep_compiled(place: str = "auto") -> str | None:
    """Turns JAX's persistent compilation cache on, or off.

    It leaves a cache alone that is configured already, as by `JAX_COMPILATION_CACHE_DIR`. Several
    processes keep nothing unless they are told where: XLA may compile on all hosts together, and
    would wait for a host that has found the program on its own disk.

    Args:
        place: a folder; "auto" for one in the user's cache; "off" for none.

    Returns:
        One line about where the programs are and how large they are; None if none are kept.

    Raises:
        UserError: the folder cannot be made.
    """
    configured: str | None = getattr(jax.config, "jax_compilation_cache_dir")  # noqa: B009
    if place == "off":
        jax.config.update("jax_enable_compilation_cache", False)
        return None
    if configured or (place == "auto" and jax.process_count() > 1):
        return None
    folder = Path(place).expanduser() if place != "auto" else _own_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if place == "auto":  # without a writable home folder, compiling only takes longer
            return None
        raise UserError(
            f"cannot keep compiled programs in {folder}: {error.strerror}; give another "
            "--compilation_cache, or off"
        ) from None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", MAX_BYTES)
    compilation_cache.reset_cache()  # what was compiled before has decided that there is none
    return f"compiled programs are kept in {_sized(folder)}"


def place_of_programs() -> str:
    """Returns where commands keep compiled programs unless told otherwise, and their size."""
    configured: str | None = getattr(jax.config, "jax_compilation_cache_dir")  # noqa: B009
    return _sized(Path(configured) if configured else _own_folder())


def _sized(folder: Path) -> str:
    size = sum(file.stat().st_size for file in folder.glob("*") if file.is_file()) / 1e6
    return f"{folder} ({size:,.0f} MB)"


def _own_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "dsd-jax" / f"compiled-{_machine()}"


def _machine() -> str:
    """Names the kind of CPU: its programs fail on others, and home folders are shared."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        features = next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        features = platform.processor()
    return hashlib.sha256(f"{platform.machine()} {features}".encode()).hexdigest()[:8]
