"""LoRA files of a smaller rank."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from dsd_jax.convert.export import LoraForm, convert_lora
from dsd_jax.convert.lora.read import read_lora
from dsd_jax.convert.lora.resize import resized
from dsd_jax.convert.lora.write import write_lora
from dsd_jax.errors import UserError
from dsd_jax.lora import Adapter
from dsd_jax.toy.making.random_pipeline import SMALL, random_tensors, write_model
from tests.random_flux import CONDITIONAL, random_adapter

RANDOM = random_adapter(CONDITIONAL)
LAYERS = sorted(RANDOM.ranks)


def products(adapter: Adapter, layer: str) -> list[np.ndarray]:
    """A B of a layer, [in, out], for q, k and v each where it holds them."""
    own = {
        path.rpartition(".")[2]: np.asarray(factor, np.float64)
        for path, factor in adapter.factors.items()
        if path.startswith(f"{layer}.lora_")
    }
    b = own.pop("lora_b")
    fused = layer.endswith(".qkv")
    found = []
    for i in range(len(b) if fused else 1):
        up = b[i] if fused else b
        downs = [f[..., i, :] if fused else f for f in own.values()]
        a = np.concatenate([down.reshape(-1, len(up)) for down in downs])
        found.append(a @ up.reshape(len(up), -1))
    return found


def test_every_product_is_the_nearest_of_its_rank():
    """The oracle is the singular value decomposition of the whole product."""
    cut, share = resized(RANDOM, 2)
    assert set(cut.ranks.values()) == {2}
    kept = whole = 0.0
    for layer in LAYERS:
        for before, after in zip(products(RANDOM, layer), products(cut, layer), strict=True):
            left, values, right = np.linalg.svd(before, full_matrices=False)
            nearest = (left[:, :2] * values[:2]) @ right[:2]
            np.testing.assert_allclose(after, nearest, atol=1e-5 * values[0])
            kept, whole = kept + (values[:2] ** 2).sum(), whole + (values**2).sum()
    assert share == pytest.approx(kept / whole, rel=1e-5)
    assert 0.3 < share < 1


def test_a_rank_that_is_large_enough_changes_nothing():
    cut, share = resized(RANDOM, max(RANDOM.ranks.values()))
    assert share == 1
    assert cut.sha256() == RANDOM.sha256()


def test_factors_keep_their_shapes_and_dtypes():
    halves = {path: f.astype(ml_dtypes.bfloat16) for path, f in RANDOM.factors.items()}
    cut, _ = resized(Adapter(halves, name="halves"), 3)
    for path, factor in halves.items():
        own = cut.factors[path]
        assert own.dtype == factor.dtype
        assert own.ndim == factor.ndim
        assert own.size * 4 == factor.size * 3  # of rank 4


@pytest.mark.parametrize("layout", ["peft", "kohya"])
def test_a_file_of_a_smaller_rank_is_read_as_what_was_cut(layout: str, tmp_path: Path):
    write_model(tmp_path / "base", SMALL.transformer, random_tensors(SMALL.transformer, 0))
    write_lora(tmp_path / "large.safetensors", RANDOM, CONDITIONAL, layout)
    small = tmp_path / "small.safetensors"
    form = LoraForm(layout, rank=2)
    done = convert_lora(tmp_path / "large.safetensors", str(small), form, base=tmp_path / "base")
    assert any("rank 2 keeps " in notice for notice in done.notices)
    read, _ = read_lora(small, CONDITIONAL)
    expected, _ = resized(RANDOM, 2)
    for layer in LAYERS:
        for one, other in zip(products(read, layer), products(expected, layer), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)
    assert small.stat().st_size < 0.7 * (tmp_path / "large.safetensors").stat().st_size


def test_no_rank_at_all_is_refused():
    with pytest.raises(UserError, match="rank must be at least 1, got 0"):
        LoraForm(rank=0)
