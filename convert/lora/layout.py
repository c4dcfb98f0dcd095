"""LoRA factors of PyTorch's dense layers <-> ours, by the tables of the weights themselves.

A row of a table relates the axes of a weight [out, in] to those of our kernel [*in, *out]. A LoRA
of that layer is A [r, in] and B [out, r]; so A has the row's input axes, and B its output axes:

    weight   (n h) d -> d 1 n h        A   r d -> d r        B   (n h) r -> r n h

One of their dense layers may be several of our Linears: BFL keep q, k and v in one, and in a single
block q, k, v and the first half of the mlp. Ours have separate factors. Their common A is repeated
on the way in, and found to be common again on the way out; if the factors differ, they go out side
by side (A stacked, B block-diagonal, as kohya's `split_qkv` does), and come back separate.
"""

import collections
import dataclasses
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from dsd_jax.config import FluxConfig
from dsd_jax.convert.flux.config import flux_absent, flux_depths, flux_dims
from dsd_jax.convert.table.engine import within
from dsd_jax.convert.table.rules import Piece, Rule, expand
from dsd_jax.lora import FACTOR_OF, is_fused
from dsd_jax.types import Shape

__all__ = ["XLABS", "Dense", "Factors", "Slot", "by_layer", "common_dtype", "dense_layers"]

Slot: TypeAlias = tuple[str, int | None]
"""Path of one of our Linears, and the number of q, k or v if it holds all three."""

Factors: TypeAlias = dict[str, np.ndarray]
"""Factors of one slot by our names: `lora_a [*in, r]` (or the two of a joined Linear) and
`lora_b [r, *out]`."""

# XLabs' trainer hangs its factors on attention processors: 1 is the image stream, 2 the text
# stream; in a single block q, k and v without the mlp, and the whole last layer.
_DOUBLE, _SINGLE = "double_blocks.{i}", "single_blocks.{i}"
XLABS = (
    *(
        Rule(f"{_DOUBLE}.processor.{theirs}.weight", f"{_DOUBLE}.{ours}.kernel", layout)
        for theirs, ours, layout in (
            ("qkv_lora1", "img_attn.qkv", "(three n h) d -> d three n h"),
            ("proj_lora1", "img_attn.proj", "e (n h) -> n h e"),
            ("qkv_lora2", "txt_attn.qkv", "(three n h) d -> d three n h"),
            ("proj_lora2", "txt_attn.proj", "e (n h) -> n h e"),
        )
    ),
    *(
        Rule(f"{_SINGLE}.processor.{theirs}.weight", f"{_SINGLE}.{ours}", layout)
        for theirs, ours, layout in (
            ("qkv_lora", "qkv.kernel", "(three n h) d -> d three n h"),
            ("proj_lora", "linear2.attn_kernel", "e (n h + m) -> n h e"),
            ("proj_lora", "linear2.mlp_kernel", "e (n h + m) -> m e"),
        )
    ),
)


@dataclasses.dataclass(frozen=True)
class _Part:
    """One of our slots within one of their dense layers.

    Attributes:
        slot: the slot.
        a: our name of each A factor -> its layout, from [r, in].
        b: layout of B, from [out, r]; a fused slot has an axis of one in front on our side.
        sizes: sizes of the letters in the layouts.
    """

    slot: Slot
    a: Mapping[str, str]
    b: str
    sizes: Mapping[str, int]

    def piece(self, layout: str, rank: int) -> Piece:
        (piece,) = expand([Rule("theirs", "ours", layout)], {**self.sizes, "r": rank})
        return piece

    @property
    def rows(self) -> slice:
        """The rows of B that are this slot's."""
        return self.piece(self.b, 1).their_box[0]

    def shapes(self, rank: int) -> dict[str, Shape]:
        """Shapes of the factors by our names."""
        boxes = {name: self.piece(layout, rank).our_box for name, layout in self.a.items()}
        boxes["lora_b"] = self.piece(self.b, rank).our_box[0 if self.slot[1] is None else 1 :]
        return {name: tuple(side.stop for side in box) for name, box in boxes.items()}

    def read(self, a: np.ndarray, b: np.ndarray) -> Factors:
        factors = {name: self.piece(layout, len(a)).read(a) for name, layout in self.a.items()}
        ours = self.piece(self.b, len(a)).read(b)
        return {**factors, "lora_b": ours if self.slot[1] is None else ours[0]}

    def write(self, factors: Factors, inputs: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns A [r, in] and this slot's rows of B."""
        b = factors["lora_b"]
        a = np.empty((len(b), inputs), factors[next(iter(self.a))].dtype)
        for name, layout in self.a.items():
            piece = self.piece(layout, len(b))
            a[piece.their_box] = piece.write(factors[name])
        return a, self.piece(self.b, len(b)).write(b if self.slot[1] is None else b[None])


@dataclasses.dataclass(frozen=True)
class Dense:
    """One of their dense layers.

    Attributes:
        name: name of the layer, without `.weight`.
        shape: shape of its weight, [out, in].
        parts: its parts in our model.
    """

    name: str
    shape: Shape
    parts: tuple[_Part, ...]

    @property
    def slots(self) -> list[Slot]:
        return [part.slot for part in self.parts]

    def shapes(self, slot: Slot, rank: int) -> dict[str, Shape]:
        """Shapes of one slot's factors by our names."""
        return next(part for part in self.parts if part.slot == slot).shapes(rank)

    def to_ours(self, a: np.ndarray, b: np.ndarray) -> dict[Slot, Factors]:
        """Our factors from A [r, in] and B [out, r]: views where possible.

        A slot that B leaves at zero while others of the layer are adapted is left out.
        """
        return {
            part.slot: part.read(a[columns], b[:, columns])
            for part, columns in zip(self.parts, self._columns(b), strict=True)
            if columns is not None
        }

    def _columns(self, b: np.ndarray) -> list[slice | None]:
        """Finds the rank components that each slot uses."""
        everything: list[slice | None] = [slice(None)] * len(self.parts)
        if len(self.parts) == 1:
            return everything
        used = np.stack([(b[part.rows] != 0).any(0) for part in self.parts])
        if not used.any():  # B starts at zero: nothing tells
            return everything
        owner = used.argmax(0)
        if (used.sum(0) == 1).all() and (np.diff(owner) >= 0).all():  # block-diagonal
            ends = [int(np.searchsorted(owner, k)) for k in range(len(self.parts) + 1)]
            blocks = [slice(start, stop) for start, stop in itertools.pairwise(ends)]
            return [block if block.start < block.stop else None for block in blocks]
        return [slice(None) if row.any() else None for row in used]

    def to_theirs(self, factors: Mapping[Slot, Factors]) -> tuple[np.ndarray, np.ndarray] | None:
        """A [r, in] and B [out, r] from the factors of some or all slots; None if all is padding.

        Rank components that are zero in both factors are padding and left out.
        """
        written = []
        for part in self.parts:
            own = _without_padding(factors[part.slot]) if part.slot in factors else None
            if own is not None:
                written.append((part, *part.write(own, self.shape[1])))
        if not written:
            return None
        dtype = common_dtype([a for _, a, _ in written])
        downs = [a.astype(dtype, copy=False) for _, a, _ in written]
        common = all(a.tobytes() == downs[0].tobytes() for a in downs[1:])
        a = downs[0] if common else np.concatenate(downs)
        b = np.zeros((self.shape[0], len(a)), common_dtype([b for _, _, b in written]))
        start = 0
        for part, down, up in written:
            b[part.rows, start : start + len(down)] = up
            start += 0 if common else len(down)
        return a, b


def by_layer(factors: Mapping[str, np.ndarray]) -> dict[str, Factors]:
    """The factors of an adapter, by the path of their layer and their name in it."""
    held: dict[str, Factors] = collections.defaultdict(dict)
    for path, factor in factors.items():
        layer, _, name = path.rpartition(".")
        held[layer][name] = factor
    return held


def common_dtype(arrays: Iterable[np.ndarray]) -> np.dtype:
    """The dtype of all arrays; if they differ, float32, which holds the values of each."""
    kinds = {array.dtype for array in arrays}
    return kinds.pop() if len(kinds) == 1 else np.dtype(np.float32)


def _without_padding(factors: Factors) -> Factors | None:
    b = factors["lora_b"]
    live = (b != 0).any(tuple(range(1, b.ndim)))
    for name, a in factors.items():
        if name != "lora_b":
            live |= (a != 0).any(tuple(range(a.ndim - 1)))
    if live.all():
        return factors
    kept = {n: f[live] if n == "lora_b" else f[..., live] for n, f in factors.items()}
    return kept if live.any() else None


def dense_layers(rules: Sequence[Rule], config: FluxConfig) -> dict[str, Dense]:
    """Every dense layer in a list of rules for weights, by name."""
    dims, depths, absent = flux_dims(config), flux_depths(config), flux_absent(config)
    found: dict[str, dict[Slot, _Part]] = {}
    for rule in rules:
        path, _, leaf = rule.ours.rpartition(".")
        if leaf not in FACTOR_OF or within(rule.ours, absent):
            continue
        name = rule.theirs.removesuffix(".weight")
        depth = depths[path.split(".{i}")[0]] if "{i}" in path else 1
        for index, a, b, sizes in _factor_layouts(rule, dims):
            for i in map(str, range(depth)):
                slot = (path.replace("{i}", i), index)
                parts = found.setdefault(name.replace("{i}", i), {})
                held = parts[slot].a if slot in parts else {}
                parts[slot] = _Part(slot, {**held, FACTOR_OF[leaf]: a}, b, sizes)
    return {
        name: Dense(name, _weight_shape(next(iter(parts.values()))), tuple(parts.values()))
        for name, parts in found.items()
    }


def _weight_shape(part: _Part) -> Shape:
    (a, *_), b = part.a.values(), part.b
    return (part.piece(b, 1).their_shape[0], part.piece(a, 1).their_shape[1])


_AXIS = re.compile(r"\([^()]*\)|~?\w+")


def _factor_layouts(
    rule: Rule, dims: Mapping[str, int]
) -> Iterator[tuple[int | None, str, str, Mapping[str, int]]]:
    """(which of q, k, v; layout of A; layout of B; sizes) for the slots in a row of a table."""
    left, _, right = rule.layout.partition("->")
    out, inp = _AXIS.findall(left)
    inputs = set(re.findall(r"[A-Za-z]\w*", inp))
    words = right.split()
    our_in = " ".join(word for word in words if word in inputs)
    our_out = [word for word in words if word not in inputs]
    sizes = {**dims, **rule.sizes}
    a = f"r {inp} -> {our_in} r"
    if not is_fused(rule.ours.rpartition(".")[0]):  # one adapter, whatever its output axes
        yield None, a, f"{out} r -> r {' '.join(our_out)}", sizes
        return
    which, *rest = our_out
    if which.isdigit():
        yield int(which), a, f"{out} r -> 0 r {' '.join(rest)}", sizes
        return
    # q, k and v lie one after another on their side: three parts of a concatenation.
    parts = [part.split() for part in out.strip("()").split("+")]
    for k in range(sizes[which]):
        spread = [
            [f"{which}{j}", *part[1:]] if part[0] == which else part
            for part in parts
            for j in range(sizes[which] if part[0] == which else 1)
        ]
        group = " + ".join(" ".join(part) for part in spread)
        ones = {f"{which}{j}": 1 for j in range(sizes[which])}
        yield k, a, f"({group}) r -> {which}{k} r {' '.join(rest)}", {**sizes, **ones}
