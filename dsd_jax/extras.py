"""Extras: libraries that only some commands need, and the message if one is missing."""

import importlib.util
from typing import NamedTuple

from dsd_jax.errors import UserError

__all__ = ["EXTRAS", "Extra", "advice", "missing", "require"]


class Extra(NamedTuple):
    """Modules that an extra of the package installs, and what they are for."""

    modules: tuple[str, ...]
    purpose: str


# `pip install "dsd-jax[NAME]"`
EXTRAS = {
    "c2pa": Extra(("c2pa", "cryptography"), "signing pictures"),
    "gcs": Extra(("gcsfs",), "reading and writing gs:// paths"),
    "parquet": Extra(("arro3.core", "arro3.io"), "reading Parquet tables"),
    "plan-gpu": Extra(("jax_cuda12_plugin", "nvidia.cudnn"), "asking the compiler for GPUs"),
    "plot": Extra(("matplotlib",), "drawing curves and statistics"),
    "serve": Extra(("starlette", "uvicorn", "prometheus_client", "python_multipart"), "serving"),
    "tensorboard": Extra(("tensorboardX",), "writing event files for TensorBoard"),
    "torch": Extra(("torch", "diffusers", "peft"), "trying an export in PyTorch"),
    "tpu": Extra(("libtpu",), "computing on TPUs, or planning for them,"),
}


def missing(extra: str) -> list[str]:
    """The modules of an extra that are not installed."""
    return [name for name in EXTRAS[extra].modules if not _installed(name)]


def require(extra: str) -> None:
    """Checks that an extra is installed, before its modules are imported.

    Raises:
        UserError: it is not; the message has the command that installs it.
    """
    if missing(extra):
        raise UserError(advice(extra))


def advice(extra: str) -> str:
    """Says what is missing of an extra, and the command that installs it."""
    return (
        f"{EXTRAS[extra].purpose} needs {' and '.join(missing(extra))}; "
        f"install it with: pip install 'dsd-jax[{extra}]'"
    )


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package that the module is in
        return False
