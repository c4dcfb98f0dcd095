"""Finds the models and the lights of the toy world that ship with the package."""

from pathlib import Path

from dsd_jax.errors import UserError

__all__ = ["toy_flux_path", "toy_lights_path", "toy_lora_path", "toy_vision_path"]


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


def toy_vision_path() -> Path:
    """Returns the folder of the toy's image encoder, as transformers saves a ViT.

    Raises:
        UserError: This installation lacks it.
    """
    return _shipped("vision", "model.safetensors", "make toy-vision")


def toy_lights_path() -> Path:
    """Returns the vocabulary of light that names the lights of the toy world."""
    return Path(__file__).with_name("lights.toml")


def _shipped(name: str, file: str, command: str) -> Path:
    path = Path(__file__).with_name(name)
    if not (path / file).is_file():
        raise UserError(
            f"{path} holds no {file}; install the package anew, or make it: `{command}`"
        )
    return path
