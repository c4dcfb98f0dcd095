"""LPIPS against its formula in PyTorch, with random weights and torchvision's names."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from dsd_jax.convert.vision.lpips import find_lpips, lpips_table
from dsd_jax.encoders import batched
from dsd_jax.errors import UserError
from dsd_jax.vision.lpips import ALEXNET, VGG16, ConvLayer, Lpips
from tests.parity.compare import assert_close

BOUND = 1e-5


def narrow(layers: tuple[ConvLayer, ...]) -> tuple[ConvLayer, ...]:
    return tuple(dataclasses.replace(layer, width=layer.width // 16) for layer in layers)


class Reference(nn.Module):
    """The modules of the package, and its forward pass, at any width."""

    def __init__(self, layers: tuple[ConvLayer, ...]) -> None:
        super().__init__()
        self.layers = layers
        features: dict[str, nn.Module] = {}
        width = 3
        for layer in layers:
            features[str(layer.number)] = nn.Conv2d(
                width, layer.width, layer.size, layer.stride, layer.padding
            )
            width = layer.width
        self.features = nn.ModuleDict(features)
        heads = [
            nn.Sequential(nn.Dropout(), nn.Conv2d(layer.width, 1, 1, bias=False))
            for layer in layers
            if layer.measured
        ]
        for number, head in enumerate(heads):
            nn.init.uniform_(head[1].weight)
            self.add_module(f"lin{number}", nn.ModuleDict({"model": head}))
        self.lins = nn.ModuleList([getattr(self, f"lin{k}") for k in range(len(heads))])

    def outputs(self, x: torch.Tensor) -> list[torch.Tensor]:
        shift = torch.tensor([-0.030, -0.088, -0.188])[None, :, None, None]
        scale = torch.tensor([0.458, 0.448, 0.450])[None, :, None, None]
        x, found = (x - shift) / scale, []
        for layer in self.layers:
            if layer.pool:
                x = nn.functional.max_pool2d(x, layer.pool, 2)
            x = torch.relu(self.features[str(layer.number)](x))
            if layer.measured:
                found.append(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return found

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        shares = [
            head["model"](torch.square(x - y)).mean((2, 3))
            for head, x, y in zip(self.lins, self.outputs(a), self.outputs(b), strict=True)
        ]
        return torch.stack(shares).sum(0)[:, 0]


@pytest.mark.parametrize(("layers", "side"), [(ALEXNET, 63), (VGG16, 32)])
@torch.no_grad()
def test_distances(layers: tuple[ConvLayer, ...], side: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    reference = Reference(narrow(layers)).eval()
    safetensors.torch.save_model(reference, str(tmp_path / "a.safetensors"))
    parts = find_lpips(tmp_path / "a.safetensors")
    assert parts.sizes == narrow(layers)
    a, b = np.random.default_rng(0).uniform(-1, 1, (2, 3, side, side, 3)).astype(np.float32)
    b[2] = a[2]
    expected = reference(*(torch.from_numpy(own).permute(0, 3, 1, 2) for own in (a, b)))
    found = batched(parts.load(), Lpips.__call__, mesh=None, size=2)(a, b)
    assert_close(found, expected, BOUND, "LPIPS")
    assert found[2] < 1e-12  # of equal pictures


@pytest.mark.parametrize(
    ("layers", "parameters"), [(ALEXNET, 2_469_696 + 1_152), (VGG16, 14_714_688 + 1_472)]
)
def test_sizes_of_the_released_networks(layers: tuple[ConvLayer, ...], parameters: int) -> None:
    shapes = lpips_table(layers).our_shapes
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == parameters


def test_names_of_the_package_are_read(tmp_path: Path) -> None:
    """`net.slice2.3` for `features.3`, a head under either name, and constants beside them."""
    state = Reference(narrow(ALEXNET)).state_dict()
    slices = {0: 1, 3: 2, 6: 3, 8: 4, 10: 5}
    named = {"scaling_layer.shift": torch.zeros(3)}
    for name, tensor in state.items():
        kind, number = name.split(".")[:2]
        if kind != "lin1":
            theirs = f"net.slice{slices[int(number)]}" if kind == "features" else kind
            named[name.replace(kind, theirs, 1)] = tensor.clone()
    safetensors.torch.save_file(named, tmp_path / "a.safetensors")
    source = find_lpips(tmp_path / "a.safetensors").source
    head = state["lins.1.model.1.weight"].flatten()
    np.testing.assert_array_equal(source.read("heads.1", ()), head)


def test_files_that_are_refused(tmp_path: Path) -> None:
    state = {
        name: tensor
        for name, tensor in Reference(narrow(VGG16)).state_dict().items()
        if not name.startswith("lins.")
    }

    def written(change: dict[str, torch.Tensor | None]) -> Path:
        kept = {name: own for name, own in {**state, **change}.items() if own is not None}
        safetensors.torch.save_file(kept, tmp_path / "a.safetensors")
        return tmp_path / "a.safetensors"

    with pytest.raises(UserError, match=r"is no file of LPIPS: expected features\.0\.weight and"):
        find_lpips(written({"features.0.weight": None}))
    with pytest.raises(UserError, match=r"1 missing: lin3\.model\.1\.weight"):
        find_lpips(written({"lin3.model.1.weight": None}))
    with pytest.raises(UserError, match=r"lin0\.model\.1\.weight"):
        find_lpips(written({"lin0.model.1.weight": torch.zeros(1, 9, 1, 1)}))
    torch.save(state, tmp_path / "vgg.pth")
    with pytest.raises(UserError, match="holds pickled weights, which can run code when read"):
        find_lpips(tmp_path / "vgg.pth")
