"""Finds the toy FLUX that ships with the package, and the customiser that was made from it."""

from pathlib import Path

from dsd_jax.errors import UserError

__all__ = ["toy_flux_path", "toy_lora_path"]


def toy_flux_path() -> Path:
    """Returns the folder of the toy FLUX, in diffusers layout.

    Raises:
        UserError: This installation lacks it.
    """
    return _shipped("flux", "model_index.json", "make toy-flux")


def toy_lora_path() -> Path:
    """Returns the folder with LoRA and condition embedding of a student of the toy FLUX.

    Raises:
        UserError: This installation lacks it.
    """
    return _shipped("lora", "pytorch_lora_weights.safetensors", "make toy-lora")


def _shipped(name: str, file: str, command: str) -> Path:
    path = Path(__file__).with_name(name)
    if not (path / file).is_file():
        raise UserError(
            f"{path} holds no {file}; install the package anew, or make it: `{command}`"
        )
    return path
