"""Which format a file of weights is in, told by the names of its tensors."""

import re
from collections.abc import Iterable

from dsd_jax.errors import UserError

__all__ = ["detect_layout"]

_MARKS = {
    "diffusers": re.compile(
        r"(single_)?transformer_blocks\.|x_embedder\.|(encoder|decoder)\.(down|up|mid)_block"
    ),
    "bfl": re.compile(r"(double|single)_blocks\.|img_in\.|(encoder|decoder)\.(down|up|mid)\."),
}


def detect_layout(names: Iterable[str]) -> str:
    """Either "diffusers" or "bfl", from the tensor names of a FLUX transformer or VAE.

    Raises:
        UserError: the names are of neither, or of both.
    """
    bare = [name.removeprefix("model.diffusion_model.") for name in names]
    layouts = [layout for layout, mark in _MARKS.items() if any(map(mark.match, bare))]
    if len(layouts) != 1:
        given = ", ".join(bare[:3]) or "no tensors"
        raise UserError(
            f"cannot tell the layout of these weights ({given}, ...): expected the tensors of a "
            f"FLUX transformer or autoencoder in diffusers or BFL layout"
        )
    return layouts[0]
