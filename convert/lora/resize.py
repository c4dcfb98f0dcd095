"""Cuts the rank of adapters: smaller files for sharing."""

import dataclasses

import numpy as np

from dsd_jax.convert.lora.layout import Factors, by_layer
from dsd_jax.lora import Adapter, is_fused

__all__ = ["resized"]


def resized(adapter: Adapter, rank: int) -> tuple[Adapter, float]:
    """The adapter of at most a rank that is nearest to another.

    The product A B of every layer is replaced by its best approximation of that rank in the
    Frobenius norm (Eckart and Young 1936): the largest singular values and their vectors. q, k and
    v of one layer have a product each. Layers of a smaller rank stay as they are.

    Args:
        adapter: At scale 1.
        rank: Largest rank of a layer, at least 1.

    Returns:
        The adapter, in the same dtypes, and the share of the squared norm of all products that it
        keeps: 1 if nothing was cut.
    """
    factors: Factors = {}
    kept = whole = 0.0
    for layer, own in by_layer(adapter.factors).items():
        cut, squares = _cut_fused(own, rank) if is_fused(layer) else _cut(own, rank)
        factors |= {f"{layer}.{name}": factor for name, factor in cut.items()}
        kept, whole = kept + squares[0], whole + squares[1]
    share = kept / whole if whole else 1.0
    return dataclasses.replace(adapter, factors=factors), share


def _cut_fused(factors: Factors, rank: int) -> tuple[Factors, tuple[float, float]]:
    """`_cut` for q, k and v in one layer, each by itself."""
    axes = {name: 0 if name == "lora_b" else -2 for name in factors}
    count = factors["lora_b"].shape[0]
    parts = [
        _cut({name: np.take(f, i, axes[name]) for name, f in factors.items()}, rank)
        for i in range(count)
    ]
    joined = {name: np.stack([cut[name] for cut, _ in parts], axis) for name, axis in axes.items()}
    return joined, (sum(s[0] for _, s in parts), sum(s[1] for _, s in parts))


def _cut(factors: Factors, rank: int) -> tuple[Factors, tuple[float, float]]:
    """The factors of one product, and its squared norm afterwards and before."""
    up = factors["lora_b"]
    downs = {name: factor for name, factor in factors.items() if name != "lora_b"}
    held = len(up)
    a = np.concatenate([f.reshape(-1, held) for f in downs.values()]).astype(np.float32)
    b = up.reshape(held, -1).astype(np.float32)
    inputs, inner_a = np.linalg.qr(a)
    outputs, inner_b = np.linalg.qr(b.T)
    left, values, right = np.linalg.svd(inner_a @ inner_b.T)
    squares = np.square(values, dtype=np.float64)
    norms = float(squares[:rank].sum()), float(squares.sum())
    if held <= rank:
        return factors, (norms[1], norms[1])
    root = np.sqrt(values[:rank])
    a = inputs @ (left[:, : len(root)] * root)
    b = (root[:, None] * right[: len(root)]) @ outputs.T
    found = {"lora_b": b.reshape(-1, *up.shape[1:]).astype(up.dtype)}
    start = 0
    for name, factor in downs.items():
        rows = a[start : start + factor.size // held]
        found[name] = rows.reshape(*factor.shape[:-1], -1).astype(factor.dtype)
        start += len(rows)
    return {name: found[name] for name in factors}, norms
