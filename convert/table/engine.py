"""Conversion by table: checks weights against it, reads ours from theirs and theirs from ours.

A `Table` is a list of rules with all sizes known. It cannot be constructed unless its pieces tile
each of our parameters and each of their tensors exactly once, so every conversion can be undone
without losing a bit. Values are moved, never computed with; casts come before or after.
"""

import collections
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import jax
import numpy as np

from dsd_jax.convert.table.refusals import Expected, Tensors, family, inspect
from dsd_jax.convert.table.rules import Box, Piece, Rule, expand, volume
from dsd_jax.types import DTypeLike, Shape
from dsd_jax.weights import empty

__all__ = ["Source", "Table"]

_STRIP = 256  # rows that are put into another order at a time
_READ_BYTES = 2**20  # read at a time where rows are short
_SMALL = 64  # axes that are not worth a call of XLA
_WIDEST = 4  # bytes of an element; JAX would make wider integers narrower


@dataclasses.dataclass(frozen=True)
class Table:
    """All rules between one file format and our parameters, for one size of model.

    Attributes:
        title: name of the format for messages: "FLUX transformer in diffusers layout".
        rules: the rows.
        dims: sizes of the letters in the layouts.
        depths: number of blocks of each stack, by the name before `.{i}` on our side.
        absent: our modules (name prefixes) that this size of model does not have. Their rows
            stay, so that their tensors are recognised when a file has them all the same.
        ignored: (pattern of their names, what such tensors are): left aside with a notice.
        tied: second names of their tensors; a file may have either, or both if they are equal.
        respell: brings other spellings of their names to the one in the rules.
    """

    title: str
    rules: Sequence[Rule]
    dims: Mapping[str, int]
    depths: Mapping[str, int] = dataclasses.field(default_factory=dict)
    absent: Sequence[str] = ()
    ignored: Sequence[tuple[str, str]] = ()
    tied: Mapping[str, str] = dataclasses.field(default_factory=dict)
    respell: Callable[[str], str] = str

    def __post_init__(self) -> None:
        for name, shape in self.their_shapes.items():
            pieces = self.by_theirs[name]
            if any(piece.their_shape != shape for piece in pieces):
                raise ValueError(f"{self.title}: the rules disagree on the shape of {name}")
            _check_tiling(name, shape, [piece.their_box for piece in pieces])
        for name, shape in self.our_shapes.items():
            _check_tiling(name, shape, [piece.our_box for piece in self.by_ours[name]])

    @functools.cached_property
    def pieces(self) -> tuple[Piece, ...]:
        present = [rule for rule in self.rules if not within(rule.ours, self.absent)]
        return tuple(expand(present, self.dims, self.depths))

    @functools.cached_property
    def our_shapes(self) -> dict[str, Shape]:
        """Each of our parameters with its shape."""
        return {
            name: tuple(
                max(side.stop for side in sides)
                for sides in zip(*(piece.our_box for piece in pieces), strict=True)
            )
            for name, pieces in self.by_ours.items()
        }

    @functools.cached_property
    def their_shapes(self) -> dict[str, Shape]:
        """Each of their tensors with its shape."""
        return {name: pieces[0].their_shape for name, pieces in self.by_theirs.items()}

    @functools.cached_property
    def by_ours(self) -> dict[str, list[Piece]]:
        """The pieces that make up each of our parameters."""
        return _group(self.pieces, lambda piece: piece.ours)

    @functools.cached_property
    def by_theirs(self) -> dict[str, list[Piece]]:
        """The pieces that make up each tensor of theirs."""
        return _group(self.pieces, lambda piece: piece.theirs)

    # Theirs -> ours

    def check(self, weights: Tensors, *, dtype: DTypeLike | None = None) -> "Source":
        """Compares names, shapes and dtypes with the table; what it returns can be read.

        Args:
            weights: tensors in their layout.
            dtype: the dtype they must all have; by default any floating-point dtypes.

        Raises:
            UserError: unknown, unexpected, duplicate, missing or misshapen tensors, all in one
                message.
        """
        expected = Expected(
            title=self.title,
            shapes=self.their_shapes,
            parts={path: [p.theirs for p in pieces] for path, pieces in self.by_ours.items()},
            families=frozenset(family(rule.theirs) for rule in self.rules),
            ignored=self.ignored,
            tied=self.tied,
            respell=self.respell,
        )
        found, notices = inspect(expected, weights, None if dtype is None else np.dtype(dtype))
        return Source(self, weights, found, tuple(notices))

    # Ours -> theirs

    def their_specs(
        self, dtype: DTypeLike | Mapping[str, DTypeLike]
    ) -> dict[str, tuple[Shape, np.dtype]]:
        """Shape and dtype of each of their tensors, for `write_weights`.

        Args:
            dtype: dtype of all our parameters, or of each by name.
        """
        specs = {}
        for name, pieces in self.by_theirs.items():
            dtypes = {
                np.dtype(dtype[piece.ours] if isinstance(dtype, Mapping) else dtype)
                for piece in pieces
            }
            if len(dtypes) > 1:
                raise ValueError(f"parts of {name} have different dtypes: {dtypes}")
            specs[name] = (self.their_shapes[name], dtypes.pop())
        return specs

    def iter_theirs(
        self, read_ours: Callable[[str], np.ndarray], dtype: DTypeLike | None = None
    ) -> Iterator[tuple[str, np.ndarray]]:
        """Each of their tensors with its name, in the order of `their_shapes`.

        Each of our parameters is read once and dropped after its last use.

        Args:
            read_ours: gives a parameter by name.
            dtype: dtype to cast to; by default that of the parameter.
        """
        uses = collections.Counter(piece.ours for piece in self.pieces)
        held: dict[str, np.ndarray] = {}
        for name, pieces in self.by_theirs.items():
            for piece in pieces:
                if piece.ours not in held:
                    held[piece.ours] = self._checked(piece.ours, np.asarray(read_ours(piece.ours)))
            tensor = np.empty(self.their_shapes[name], held[pieces[0].ours].dtype)
            for piece in pieces:
                _move(tensor[piece.their_box], piece.write(held[piece.ours][piece.our_box]))
                uses[piece.ours] -= 1
                if not uses[piece.ours]:
                    del held[piece.ours]
            yield name, tensor if dtype is None else tensor.astype(dtype, copy=False)

    def _checked(self, path: str, array: np.ndarray) -> np.ndarray:
        shape = self.our_shapes[path]
        if array.shape != shape:
            raise ValueError(f"{path} has shape {list(array.shape)}, expected {list(shape)}")
        return array


@dataclasses.dataclass(frozen=True)
class Source:
    """Weights that passed `Table.check`, read by our names: a `dsd_jax.weights.WeightSource`.

    Attributes:
        table, weights: the table, and the weights that fit it.
        found: their names in the table -> their names in the weights.
        notices: notices for the user, one sentence each.
    """

    table: Table
    weights: Tensors
    found: Mapping[str, str]
    notices: tuple[str, ...]

    @property
    def shapes(self) -> dict[str, Shape]:
        """Shape of each of our parameters."""
        return self.table.our_shapes

    @functools.cached_property
    def dtypes(self) -> dict[str, np.dtype]:
        """The dtype that each of our parameters has in the weights."""
        dtypes = {theirs: self.weights.tensors[name].dtype for theirs, name in self.found.items()}
        return {piece.ours: dtypes[piece.theirs] for piece in self.table.pieces}

    def read(self, path: str, index: Sequence[slice] = ()) -> np.ndarray:
        """One of our parameters, or a part of it, as a fresh array in the dtype of the weights.

        Reads only those rows of their tensors that the part needs, and may be called from several
        threads, so it can serve as the callback of `jax.make_array_from_callback`.

        Args:
            index: a slice of step 1 per axis; axes left out are read in full.
        """
        wanted = self._wanted(path, index)
        result = empty([side.stop - side.start for side in wanted], self.dtypes[path])
        self.fill(path, wanted, result)
        return result

    def fill(self, path: str, index: Sequence[slice], out: np.ndarray) -> None:
        """Reads as `read` does, into an array of that shape, and casts to its dtype."""
        if out.dtype != self.dtypes[path]:
            out[...] = self.read(path, index)
            return
        wanted = self._wanted(path, index)
        for piece in self.table.by_ours[path]:
            shared = _intersect(wanted, piece.our_box)
            if volume(shared) == 0:
                continue
            row = math.prod(piece.their_shape[1:]) * out.itemsize
            most = max(_STRIP, _READ_BYTES // max(row, 1))
            for rows, block in piece.blocks(_shift(shared, piece.our_box, -1), most):
                tensor = self.weights.read(self.found[piece.theirs], rows)
                place = _shift(_shift(block, piece.our_box), wanted, -1)
                _move(out[place], piece.take(tensor, block))

    def _wanted(self, path: str, index: Sequence[slice]) -> Box:
        shape = self.shapes[path]
        index = (*index, *(slice(None) for _ in shape[len(index) :]))
        return tuple(_bounds(side, size) for side, size in zip(index, shape, strict=True))

    def iter_ours(self, dtype: DTypeLike | None = None) -> Iterator[tuple[str, np.ndarray]]:
        """Each of our parameters with its path, in the order of the file, one at a time.

        Args:
            dtype: dtype to cast to; by default that of the weights.
        """
        order = {name: k for k, name in enumerate(self.weights.tensors)}
        first = {
            path: min(order[self.found[piece.theirs]] for piece in pieces)
            for path, pieces in self.table.by_ours.items()
        }
        for path in sorted(first, key=first.__getitem__):
            array = self.read(path)
            yield path, array if dtype is None else array.astype(dtype, copy=False)


def within(name: str, modules: Sequence[str]) -> bool:
    """Whether a parameter belongs to one of these modules."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)


_Key = TypeVar("_Key")


def _group(pieces: Sequence[Piece], key: Callable[[Piece], _Key]) -> dict[_Key, list[Piece]]:
    groups: dict[_Key, list[Piece]] = {}
    for piece in pieces:
        groups.setdefault(key(piece), []).append(piece)
    return groups


def _check_tiling(name: str, shape: Shape, boxes: Sequence[Box]) -> None:
    overlap = any(volume(_intersect(a, b)) for a, b in itertools.combinations(boxes, 2))
    if overlap or sum(map(volume, boxes)) != math.prod(shape):
        raise ValueError(f"the rules do not cover {name} of shape {shape} exactly once: {boxes}")


def _bounds(side: slice, size: int) -> slice:
    start, stop, step = side.indices(size)
    if step != 1:
        raise ValueError(f"only slices of step 1 can be read, got {side}")
    return slice(start, max(start, stop))


def _intersect(a: Box, b: Box) -> Box:
    starts = [max(x.start, y.start) for x, y in zip(a, b, strict=True)]
    stops = [min(x.stop, y.stop) for x, y in zip(a, b, strict=True)]
    return tuple(slice(i, max(i, j)) for i, j in zip(starts, stops, strict=True))


def _shift(box: Box, corner: Box, sign: int = 1) -> Box:
    """The box moved by the first corner of another one; sign -1 counts it from that corner."""
    moves = [sign * side.start for side in corner]
    return tuple(slice(s.start + d, s.stop + d) for s, d in zip(box, moves, strict=True))


def _move(target: np.ndarray, source: np.ndarray) -> None:
    """Copies between any two memory orders.

    Works on plain integers, so that no bit changes, not even of a NaN. XLA puts axes into another
    order with vector instructions; numpy moves one element at a time. XLA gets strips whose results
    fit in the cache, so that their memory serves the next strip again.
    """
    if target.dtype != source.dtype:
        raise ValueError(f"parts of one tensor have dtypes {target.dtype} and {source.dtype}")
    width = target.dtype.itemsize
    target, source = target.view(f"u{width}"), source.view(f"u{width}")
    fast = min(range(source.ndim), key=lambda axis: (abs(source.strides[axis]), -axis))
    cpu = _cpu()
    small = min(source.shape[fast], source.shape[-1]) < _SMALL
    if fast == source.ndim - 1 or small or width > _WIDEST or cpu is None:
        target[...] = source
        return
    for start in range(0, source.shape[-1], _STRIP):
        strip = (..., slice(start, start + _STRIP))
        target[strip] = np.asarray(jax.device_put(source[strip], cpu))


@functools.cache
def _cpu() -> jax.Device | None:
    """The CPU as JAX knows it; None where JAX_PLATFORMS leaves it out."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None
