"""LPIPS in one safetensors file: torchvision's AlexNet or VGG16, and heads of the package `lpips`.

The package has both, with its own names of the convolutions (`net.slice1.0.weight`):

    safetensors.torch.save_model(lpips.LPIPS(net="alex"), "lpips-alex.safetensors")

Torchvision's names (`features.0.weight`) are read too, beside the heads `lin0.model.1.weight` ...
"""

import dataclasses
import re
from pathlib import Path

from dsd_jax.convert.io import open_weights
from dsd_jax.convert.table.engine import Table
from dsd_jax.convert.table.rules import Rule, linear
from dsd_jax.convert.vision.networks import Network
from dsd_jax.errors import UserError
from dsd_jax.vision.lpips import ALEXNET, VGG16, ConvLayer, Lpips

__all__ = ["find_lpips", "lpips_table"]

_ASIDE = (
    (r"^classifier\.", "a classifier, which the distance does not use"),
    (r"^scaling_layer\.", "constants of the inputs, which are known"),
)


def find_lpips(path: str | Path) -> Network[tuple[ConvLayer, ...], Lpips]:
    """Opens a file of LPIPS, whose first convolution tells the network.

    Raises:
        UserError: The file is missing, a pickle, damaged, or not of LPIPS.
    """
    weights = open_weights(path)
    shapes = {_respell(name): tensor.shape for name, tensor in weights.tensors.items()}
    first = shapes.get("features.0.weight", ())
    if len(first) != 4 or not any(name.startswith("lin") for name in shapes):
        raise UserError(
            f"{path} is no file of LPIPS: expected features.0.weight and lin0.model.1.weight; make "
            'one with safetensors.torch.save_model(lpips.LPIPS(net="alex"), "lpips.safetensors")'
        )
    layers = []
    for layer in ALEXNET if first[-1] == ALEXNET[0].size else VGG16:
        shape = shapes.get(f"features.{layer.number}.bias", (layer.width,))
        layers.append(dataclasses.replace(layer, width=shape[0] if shape else layer.width))
    chosen = tuple(layers)
    return Network(Lpips, chosen, weights, lpips_table(chosen).check(weights))


def lpips_table(layers: tuple[ConvLayer, ...]) -> Table:
    """The table for a network and its heads."""
    rules: list[Rule] = []
    widths = [3, *(layer.width for layer in layers)]
    for place, layer in enumerate(layers):
        sizes = {"k": layer.size, "l": layer.size, "c": widths[place], "d": layer.width}
        rules += linear(
            f"features.{layer.number}", f"convs.{place}", "d c k l -> k l c d", "d -> d", sizes
        )
    heads = [layer.width for layer in layers if layer.measured]
    rules += [
        Rule(f"lin{place}.model.1.weight", f"heads.{place}", "1 c 1 1 -> c", {"c": width})
        for place, width in enumerate(heads)
    ]
    name = "AlexNet" if layers[0].size == ALEXNET[0].size else "VGG16"
    return Table(
        f"LPIPS with {name}",
        rules,
        {},
        ignored=_ASIDE,
        tied={f"lins.{k}.model.1.weight": f"lin{k}.model.1.weight" for k in range(len(heads))},
        respell=_respell,
    )


def _respell(name: str) -> str:
    """Torchvision's name of a convolution, which the package keeps in slices."""
    return re.sub(r"^net\.slice\d+\.", "features.", name)
