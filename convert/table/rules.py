"""The rows of a conversion table: which of their tensors is which of our parameters, and how.

A row names a tensor of a PyTorch file, a parameter of this package, and a layout that relates
their axes, in the manner of einops:

    Rule("x_embedder.weight", "img_in.kernel", "d c -> c d")
    Rule("transformer_blocks.{i}.attn.to_k.weight",
         "double_blocks.{i}.img_attn.qkv.kernel", "(n h) d -> d 1 n h")

Left of the arrow are the axes of their tensor, right of it those of ours; a letter (or word) is an
axis whose size the table knows.

    (n h)        two of our axes, flattened together on their side
    (n h + m)    a concatenation on their side; this row moves the one part whose letters are ours
    ~s           the same axis in reversed order
    0, 1, ...    on our side: this row fills only that index of the axis
    1            on their side: an axis of size one that we do not have

So a row maps a box of their tensor one to one onto a box of our parameter, both directions follow
from the same text, and any slice of a parameter can be read from few rows of their tensors.
"""

import dataclasses
import functools
import itertools
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from dsd_jax.types import Shape

__all__ = ["Box", "Piece", "Rule", "expand", "linear", "norm", "volume"]

Box: TypeAlias = tuple[slice, ...]
"""One slice with explicit bounds and step 1 per axis."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """A row of a table; `{i}` in both names stands for the number of a block.

    Attributes:
        theirs, ours: names of the tensor and of the parameter.
        layout: the relation of their axes, as described above.
        sizes: sizes of letters that hold in this row only, before those of the table.
    """

    theirs: str
    ours: str
    layout: str
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)


def linear(
    theirs: str, ours: str, weight: str, bias: str, sizes: Mapping[str, int] | None = None
) -> tuple[Rule, Rule]:
    """The two rows of a layer with a kernel and a bias, with the layouts of both."""
    return (
        Rule(f"{theirs}.weight", f"{ours}.kernel", weight, sizes or {}),
        Rule(f"{theirs}.bias", f"{ours}.bias", bias, sizes or {}),
    )


def norm(theirs: str, ours: str) -> tuple[Rule, Rule]:
    """The two rows of a layer norm over the axis `d`."""
    return (
        Rule(f"{theirs}.weight", f"{ours}.scale", "d -> d"),
        Rule(f"{theirs}.bias", f"{ours}.bias", "d -> d"),
    )


@dataclasses.dataclass(frozen=True)
class _Axis:
    """One of their axes: the part this row moves, and the parts around it."""

    parts: tuple[tuple[str, ...], ...]
    chosen: int
    reversed: frozenset[str]

    @property
    def letters(self) -> tuple[str, ...]:
        return self.parts[self.chosen]


_AXES = re.compile(r"\(([^()]*)\)|(~?\w+)")
_LETTER = re.compile(r"[A-Za-z]\w*")


@functools.cache
def _parse(layout: str) -> tuple[tuple[_Axis, ...], tuple[str, ...]]:
    """Their axes, and our axes as letters or (for a fixed index) digits."""

    def bad(why: str) -> ValueError:
        return ValueError(f"layout {layout!r}: {why}")

    left, arrow, right = layout.partition("->")
    if not arrow or _AXES.sub("", left).strip():
        raise bad("expected `their axes -> our axes`")
    ours = tuple(right.split())
    if not all(_LETTER.fullmatch(word) or word.isdigit() for word in ours):
        raise bad("our side takes letters and indices")
    wanted = [word for word in ours if not word.isdigit()]
    axes = []
    for group, single in _AXES.findall(left):
        parts = [part.split() for part in (group or single).split("+")]
        flipped = frozenset(word[1:] for part in parts for word in part if word[0] == "~")
        plain = [tuple(word.lstrip("~") for word in part if word != "1") for part in parts]
        if not all(_LETTER.fullmatch(word) for part in plain for word in part):
            raise bad("their side takes letters and 1")
        chosen = [k for k, part in enumerate(plain) if set(part) <= set(wanted)]
        if len(chosen) != 1:
            raise bad(f"our side must have the letters of exactly one part of ({group or single})")
        axes.append(_Axis(tuple(plain), chosen[0], flipped))
    if sorted(letter for axis in axes for letter in axis.letters) != sorted(wanted):
        raise bad("every letter must be once on each side")
    return tuple(axes), ours


@dataclasses.dataclass(frozen=True)
class Piece:
    """A row for one block, with all sizes known: a box of their tensor <-> a box of our parameter.

    Attributes:
        theirs, ours: full names.
        their_shape: shape of their tensor.
        their_box, our_box: the box that this piece covers on each side.
    """

    theirs: str
    ours: str
    their_shape: Shape
    their_box: Box
    our_box: Box
    _layout: str
    _sizes: Mapping[str, int]

    def read(self, tensor: np.ndarray) -> np.ndarray:
        """Our box, from their whole tensor. A view where numpy can make one."""
        window = tuple(slice(0, side.stop - side.start) for side in self.our_box)
        return self.take(tensor[self.their_box[0]], window)

    def write(self, box: np.ndarray) -> np.ndarray:
        """Their box, from our box. A view where numpy can make one."""
        axes, ours = _parse(self._layout)
        letters = [word for word in ours if not word.isdigit()]
        order = [(axis, letter) for axis in axes for letter in axis.letters]
        array: np.ndarray = box.reshape([self._sizes[letter] for letter in letters])
        array = array.transpose([letters.index(letter) for _, letter in order])
        array = np.flip(array, tuple(k for k, (axis, x) in enumerate(order) if x in axis.reversed))
        return array.reshape([side.stop - side.start for side in self.their_box])

    def blocks(self, window: Box, most: int = sys.maxsize) -> Iterator[tuple[slice, Box]]:
        """Cuts a part of our box into blocks that each come from adjacent rows of their tensor.

        Args:
            window: the part, counted from the corner of our box.
            most: most rows of a block.

        Yields:
            The rows of their tensor, and the block of our box that `take` makes of them.
        """
        axes, ours = _parse(self._layout)
        lead = axes[0].letters
        sizes = [self._sizes[letter] for letter in lead]
        at = [ours.index(letter) for letter in lead]
        sides = [window[k] for k in at]
        cut = [k for k, side in enumerate(sides) if side.stop - side.start < sizes[k]]
        # Rows are adjacent if the flattened axes before the last one cut stay at one index each.
        outer = cut[-1] if cut else 0
        while math.prod(sizes[outer + 1 :]) > most:
            outer += 1
        step = most // math.prod(sizes[outer + 1 :])
        ranges = [_cut(side, 1) for side in sides[:outer]]
        ranges += [_cut(side, step) for side in sides[outer : outer + 1]]
        for chosen in itertools.product(*ranges):
            block = [*chosen, *sides[outer + 1 :]]
            first = last = 0
            for letter, size, side in zip(lead, sizes, block, strict=True):
                theirs = _mirror(side, size) if letter in axes[0].reversed else side
                first, last = first * size + theirs.start, last * size + theirs.stop - 1
            rows = slice(self.their_box[0].start + first, self.their_box[0].start + last + 1)
            part = dict(enumerate(window)) | dict(zip(at, block, strict=True))
            yield rows, tuple(part.values())

    def take(self, rows: np.ndarray, window: Box) -> np.ndarray:
        """The block of our box that `blocks` paired with these rows. A view where possible."""
        axes, ours = _parse(self._layout)
        side_of = dict(zip(ours, window, strict=True))
        shape: list[int] = []
        pick: list[slice] = []
        flipped: list[int] = []
        order: list[str] = []
        for number, axis in enumerate(axes):
            for letter in axis.letters:
                side, size = side_of[letter], self._sizes[letter]
                if number == 0:  # the rows hold only the window
                    side, size = slice(None), side.stop - side.start
                elif letter in axis.reversed:
                    side = _mirror(side, size)
                if letter in axis.reversed:
                    flipped.append(len(shape))
                shape.append(size)
                pick.append(side)
                order.append(letter)
        array: np.ndarray = rows[(slice(None), *self.their_box[1:])].reshape(shape)[tuple(pick)]
        array = np.flip(array, tuple(flipped))
        array = array.transpose([order.index(word) for word in ours if not word.isdigit()])
        return array.reshape([side.stop - side.start for side in window])


def _cut(side: slice, step: int) -> list[slice]:
    starts = range(side.start, side.stop, step)
    return [slice(start, min(start + step, side.stop)) for start in starts]


def _mirror(side: slice, size: int) -> slice:
    return slice(size - side.stop, size - side.start)


def expand(
    rules: Sequence[Rule], dims: Mapping[str, int], depths: Mapping[str, int] | None = None
) -> list[Piece]:
    """Every row for every block, in the order of the rows, blocks of one stack kept together.

    Args:
        dims: sizes of the letters.
        depths: number of blocks by what stands before `.{i}` in our name.

    Raises:
        ValueError: the table is wrong.
    """
    pieces: list[Piece] = []
    for stack, group in itertools.groupby(rules, _stack):
        rows = list(group)
        if stack is None:
            pieces += [_resolve(row, row.theirs, row.ours, dims) for row in rows]
            continue
        for i in range((depths or {})[stack]):
            number = str(i)
            pieces += [
                _resolve(
                    row, row.theirs.replace("{i}", number), row.ours.replace("{i}", number), dims
                )
                for row in rows
            ]
    return pieces


def _stack(rule: Rule) -> str | None:
    return rule.ours.split(".{i}")[0] if "{i}" in rule.ours else None


def _resolve(rule: Rule, theirs: str, ours: str, dims: Mapping[str, int]) -> Piece:
    axes, our_axes = _parse(rule.layout)
    sizes = {**dims, **rule.sizes}
    try:
        extents = [[math.prod(sizes[x] for x in part) for part in axis.parts] for axis in axes]
    except KeyError as error:
        raise ValueError(f"{rule}: no size is known for {error.args[0]!r}") from None
    starts = [sum(extent[: axis.chosen]) for axis, extent in zip(axes, extents, strict=True)]
    return Piece(
        theirs=theirs,
        ours=ours,
        their_shape=tuple(sum(extent) for extent in extents),
        their_box=tuple(
            slice(start, start + extent[axis.chosen])
            for axis, extent, start in zip(axes, extents, starts, strict=True)
        ),
        our_box=tuple(
            slice(int(word), int(word) + 1) if word.isdigit() else slice(0, sizes[word])
            for word in our_axes
        ),
        _layout=rule.layout,
        _sizes=sizes,
    )


def volume(box: Box) -> int:
    """Number of elements in a box."""
    return math.prod(side.stop - side.start for side in box)
