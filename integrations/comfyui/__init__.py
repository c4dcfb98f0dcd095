"""Nodes for ComfyUI that make images with `dsd serve`."""

from typing import Any

__all__ = ["comfy_entrypoint"]


async def comfy_entrypoint() -> Any:
    """The nodes; ComfyUI calls this."""
    from .nodes import Extension  # needs ComfyUI, which the tests of the other files lack

    return Extension()
