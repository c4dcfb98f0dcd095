"""The packaging of a model in a file of weights, recognised by its tensor names.

Files of the same model differ in packing: names have a prefix (`model.diffusion_model.`,
`transformer.`), other models stand beside it in the same file, or the weights are quantised. This
is undone before a conversion table compares names and shapes.
"""

import collections
import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from dsd_jax.convert.quantised import dequantised
from dsd_jax.convert.table.refusals import Tensors
from dsd_jax.errors import UserError, and_more

__all__ = ["Unpacked", "unpack"]

_MARKS = {
    ("transformer", "diffusers"): r"(single_)?transformer_blocks\.\d+\.|x_embedder\.",
    ("transformer", "bfl"): r"(double|single)_blocks\.\d+\.|img_in\.",
    ("autoencoder", "diffusers"): r"(encoder|decoder)\.(down|up|mid)_block",
    ("autoencoder", "bfl"): r"(encoder|decoder)\.(down|up|mid)\.",
}
# What PyTorch puts into names where it wraps a part of a model: torch.compile, FSDP, checkpointing.
_WRAPPED = re.compile(r"_(orig_mod|fsdp_wrapped_module|checkpoint_wrapped_module)\.")
_PREFIXED = {
    kind: re.compile(rf"(?P<prefix>([\w-]+\.)*?)({mark})") for kind, mark in _MARKS.items()
}


@dataclasses.dataclass(frozen=True)
class Unpacked:
    """One model in a file of weights.

    Attributes:
        weights: its tensors: names without prefix, quantised weights as plain numbers.
        model: "transformer" or "autoencoder"; "" if the names tell neither.
        layout: "diffusers" or "bfl"; "" likewise.
        quantised: whether its weights were quantised.
        notices: notices about tensors that were left aside or converted, one sentence each.
    """

    weights: Tensors
    model: str
    layout: str
    quantised: bool
    notices: tuple[str, ...]

    def expect_known(self) -> "Unpacked":
        """Returns itself, if the model is known.

        Raises:
            UserError: it is neither a transformer nor an autoencoder.
        """
        if self.model:
            return self
        given = ", ".join(list(self.weights.tensors)[:3]) or "no tensors"
        raise UserError(
            f"cannot tell the layout of these weights ({given}, ...): expected the tensors of a "
            "FLUX transformer or autoencoder in diffusers or BFL layout"
        )


def unpack(weights: Tensors, where: str) -> Unpacked:
    """Finds the FLUX transformer in a file of weights, or else the autoencoder.

    Args:
        weights: every tensor of the file.
        where: the file, for messages.

    Raises:
        UserError: several transformers, a LoRA, or weights quantised in a way that cannot be read.
    """
    if sum("lora" in name for name in weights.tensors) > 0.9 * len(weights.tensors):
        raise UserError(f"{where} is a LoRA, not a model; give it as --lora_path")
    if any(_WRAPPED.search(name) for name in weights.tensors):
        weights = _Renamed(weights, {_WRAPPED.sub("", name): name for name in weights.tensors})
    places = _places(weights)
    model = next((kind for kind in ("transformer", "autoencoder") if kind in places), "")
    prefix, layout = _only(model, places[model], where) if model else ("", "")
    others = [place for kind in places for place, _ in places[kind] if place and place != prefix]
    own = {
        name.removeprefix(prefix): name
        for name in weights.tensors
        if name.startswith(prefix) and not name.startswith(tuple(others))
    }
    notices = []
    if aside := weights.tensors.keys() - own.values():
        groups = collections.Counter(name.partition(".")[0] for name in aside)
        shown = [f"{group} ({count} tensors)" for group, count in groups.most_common()]
        notices.append(f"{where} also holds {and_more(shown, 4)}, left aside")
    plain = _Renamed(weights, own) if prefix or aside else weights
    made = dequantised(plain, where)
    if made is not None:
        notices.append(f"{where} is quantised; its weights are read as float32")
    return Unpacked(made or plain, model, layout, made is not None, tuple(notices))


_Places = dict[str, set[tuple[str, str]]]
"""Model -> (prefix of its names, layout)."""


def _places(weights: Tensors) -> _Places:
    found: _Places = {}
    for name in weights.tensors:
        for (model, layout), mark in _PREFIXED.items():
            if match := mark.match(name):
                found.setdefault(model, set()).add((match["prefix"], layout))
                break
    return found


def _only(model: str, places: set[tuple[str, str]], where: str) -> tuple[str, str]:
    """The one prefix and layout of a model."""
    if len(places) == 1:
        return next(iter(places))
    prefixes = sorted({prefix for prefix, _ in places})
    if len(prefixes) == 1:
        raise UserError(
            f"cannot tell the layout of {where}: it has names of the {model} in both the diffusers "
            "and the BFL layout"
        )
    shown = and_more([repr(prefix) for prefix in prefixes], 4)
    raise UserError(
        f"{where} holds {len(prefixes)} {model}s, whose names begin with {shown}; save the one you "
        "want to a file of its own"
    )


class _Renamed:
    """Some tensors of a file under other names (a `Tensors`)."""

    def __init__(self, weights: Tensors, names: Mapping[str, str]) -> None:
        self._weights, self._names = weights, names
        self.tensors: dict[str, Any] = {
            name: weights.tensors[actual] for name, actual in names.items()
        }

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        """The tensor, or the given range of its leading axis."""
        return self._weights.read(self._names[name], rows)
