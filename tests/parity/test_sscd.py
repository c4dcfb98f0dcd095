"""SSCD against its formula in PyTorch, with random weights and torchvision's names."""

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from dsd_jax.convert.vision.sscd import find_sscd, holds_sscd, sscd_table
from dsd_jax.encoders import batched
from dsd_jax.errors import UserError
from dsd_jax.vision.sscd import ResNetSizes, Sscd
from tests.parity.compare import assert_close

BOUND = 1e-5
TINY = ResNetSizes(width=4, depths=(2, 1, 1, 1), dims=8)


class Block(nn.Module):
    """A bottleneck with torchvision's names."""

    def __init__(self, inside: int, inner: int, stride: int) -> None:
        super().__init__()
        out = inner * 4
        self.conv1, self.bn1 = nn.Conv2d(inside, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = nn.Conv2d(inner, out, 1, bias=False), nn.BatchNorm2d(out)
        self.downsample = None
        if stride > 1 or inside != out:
            aside = nn.Conv2d(inside, out, 1, stride, bias=False)
            self.downsample = nn.Sequential(aside, nn.BatchNorm2d(out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(torch.relu(self.bn2(self.conv2(y)))))
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class Reference(nn.Module):
    """The network, its generalised mean and its descriptor."""

    def __init__(self, sizes: ResNetSizes) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, sizes.width, 7, 2, 3, bias=False)
        self.bn1, blocks = nn.BatchNorm2d(sizes.width), iter(sizes.blocks)
        for number, depth in enumerate(sizes.depths, start=1):
            stage = nn.Sequential(*(Block(*next(blocks)) for _ in range(depth)))
            self.add_module(f"layer{number}", stage)
        self.fc = nn.Linear(sizes.features, sizes.dims)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        for number in range(1, 5):
            x = getattr(self, f"layer{number}")(x)
        pooled = x.flatten(2).clamp(min=1e-6).pow(3.0).mean(2).pow(1 / 3)
        return nn.functional.normalize(self.fc(pooled))


@pytest.fixture(scope="module")
def reference() -> Reference:
    torch.manual_seed(0)
    made = Reference(TINY).eval()
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                nn.init.uniform_(tensor.detach(), 0.5, 1.5)
            for tensor in (module.bias, module.running_mean):
                nn.init.normal_(tensor.detach(), std=0.3)
    return made


def test_descriptors(reference: Reference, tmp_path: Path) -> None:
    path = tmp_path / "sscd.safetensors"
    state = {f"backbone.{name}": own for name, own in reference.state_dict().items()}
    safetensors.torch.save_file(state, path)
    parts = find_sscd(path)
    assert parts.sizes == TINY
    pixels = np.random.default_rng(0).normal(size=(3, 40, 52, 3)).astype(np.float32)
    with torch.no_grad():
        expected = reference(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    found = batched(parts.load(), Sscd.__call__, mesh=None, size=2)(pixels)
    assert_close(found, expected, BOUND, "SSCD")


def test_sizes_of_the_released_network() -> None:
    """ResNet-50 has 25,557,032 parameters, of which 2,049,000 classify, and 53,120 statistics."""
    shapes = sscd_table(ResNetSizes()).our_shapes
    assert len(shapes) == 53 * 5 + 2
    descriptor = 2048 * 512 + 512
    expected = 25_557_032 - 2_049_000 + descriptor + 53_120
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == expected


def test_files_that_are_refused(reference: Reference, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    state = reference.state_dict()
    safetensors.torch.save_file({k: v for k, v in state.items() if k != "fc.weight"}, path)
    assert holds_sscd(path)
    with pytest.raises(UserError, match=r"is no file of SSCD: expected a ResNet with"):
        find_sscd(path)
    gone = "layer2.0.bn2.running_var"
    safetensors.torch.save_file({k: v for k, v in state.items() if k != gone}, path)
    with pytest.raises(UserError, match=r"1 missing: layer2\.0\.bn2\.running_var"):
        find_sscd(path)
