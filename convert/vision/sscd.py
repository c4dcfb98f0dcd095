"""SSCD in a safetensors file with torchvision's names of a ResNet.

The release is TorchScript, which runs code when it is opened, so PyTorch has to convert it first:

    released = torch.jit.load("sscd_disc_mixup.torchvision.pt")
    safetensors.torch.save_file(released.state_dict(), "sscd-disc-mixup.safetensors")
"""

import re
from pathlib import Path

from dsd_jax.convert.io import open_weights
from dsd_jax.convert.table.engine import Table
from dsd_jax.convert.table.rules import Rule, linear
from dsd_jax.convert.vision.networks import Network
from dsd_jax.errors import UserError
from dsd_jax.vision.sscd import EXPANSION, ResNetSizes, Sscd

__all__ = ["find_sscd", "holds_sscd", "sscd_table"]

_COUNTERS = (r"\.num_batches_tracked$", "a counter of training steps")
_NORM = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "variance"}


def holds_sscd(path: str | Path) -> bool:
    """Whether a safetensors file has the first block of a ResNet.

    Raises:
        UserError: The file is missing, a pickle, or damaged.
    """
    return any(_respell(name) == "layer1.0.conv3.weight" for name in open_weights(path).tensors)


def find_sscd(path: str | Path) -> Network[ResNetSizes, Sscd]:
    """Opens a file of SSCD, whose tensors tell its sizes.

    Raises:
        UserError: The file is missing, a pickle, damaged, or not of SSCD.
    """
    weights = open_weights(path)
    shapes = {_respell(name): tensor.shape for name, tensor in weights.tensors.items()}
    first, last = shapes.get("conv1.weight", ()), shapes.get("fc.weight", ())
    blocks = {
        (int(match[1]), int(match[2]))
        for match in (re.fullmatch(r"layer(\d)\.(\d+)\.conv3\.weight", name) for name in shapes)
        if match
    }
    depths = tuple(sum(stage == number for stage, _ in blocks) for number in range(1, 5))
    if len(first) != 4 or len(last) != 2 or not all(depths):
        raise UserError(
            f"{path} is no file of SSCD: expected a ResNet with torchvision's names, from "
            "conv1.weight to fc.weight; save the state_dict of sscd_disc_mixup.torchvision.pt"
        )
    sizes = ResNetSizes(width=first[0], depths=depths, dims=last[0])
    return Network(Sscd, sizes, weights, sscd_table(sizes).check(weights))


def sscd_table(sizes: ResNetSizes) -> Table:
    """The table for a ResNet of these sizes."""
    rules = [*_layer("conv1", "bn1", "stem", 3, sizes.width, 7)]
    numbers = [(s, b) for s, depth in enumerate(sizes.depths, start=1) for b in range(depth)]
    for place, ((stage, block), (inside, inner, stride)) in enumerate(
        zip(numbers, sizes.blocks, strict=True)
    ):
        theirs, ours, out = f"layer{stage}.{block}", f"blocks.{place}", inner * EXPANSION
        rules += _layer(f"{theirs}.conv1", f"{theirs}.bn1", f"{ours}.reduce", inside, inner, 1)
        rules += _layer(f"{theirs}.conv2", f"{theirs}.bn2", f"{ours}.spread", inner, inner, 3)
        rules += _layer(f"{theirs}.conv3", f"{theirs}.bn3", f"{ours}.expand", inner, out, 1)
        if stride > 1 or inside != out:
            aside = f"{theirs}.downsample"
            rules += _layer(f"{aside}.0", f"{aside}.1", f"{ours}.shortcut", inside, out, 1)
    fc = {"c": sizes.features, "d": sizes.dims}
    rules += linear("fc", "fc", "d c -> c d", "d -> d", fc)
    return Table("SSCD", rules, {}, ignored=(_COUNTERS,), respell=_respell)


def _layer(conv: str, norm: str, ours: str, inside: int, out: int, size: int) -> list[Rule]:
    sizes = {"k": size, "l": size, "c": inside, "d": out}
    return [
        Rule(f"{conv}.weight", f"{ours}.conv.kernel", "d c k l -> k l c d", sizes),
        *(
            Rule(f"{norm}.{theirs}", f"{ours}.norm.{own}", "d -> d", {"d": out})
            for theirs, own in _NORM.items()
        ),
    ]


def _respell(name: str) -> str:
    """Torchvision's name; SSCD keeps the network in `backbone`, and may keep its end apart."""
    return re.sub(r"^embeddings\.1\.", "fc.", name.removeprefix("backbone."))
