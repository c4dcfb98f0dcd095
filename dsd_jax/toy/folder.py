"""Where the toy FLUX lies that ships with the package."""

from pathlib import Path

from dsd_jax.types import UserError

__all__ = ["toy_flux_path"]


def toy_flux_path() -> Path:
    """The toy FLUX, a folder in diffusers layout.

    Raises:
        UserError: this installation lacks it.
    """
    path = Path(__file__).with_name("flux")
    if not (path / "model_index.json").is_file():
        raise UserError(
            f"{path} holds no toy FLUX; install the package anew, or make it: `make toy-flux`"
        )
    return path
