"""Adapters that are not just a product A B; they are merged into full weights.

Each is a change of one dense layer W [out, in] of theirs, computed in float32:

    LoRA          W + s B A                          s = alpha / rank
    LoKr          W + s kron(w1, w2)                 either may be a product of two factors
    LoHa          W + s (w1_a w1_b) * (w2_a w2_b)
    differences   W + diff, bias + diff_b, bias + s lora_B.bias
    DoRA          m V / |V|, where V is one of the above and |V| the norm of its rows, or of its
                  columns if m is one number per column

At another strength t the result is W + t (changed - W). Factors cannot hold these, so a model uses
them only with weights they were merged into.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
from etils import epath

from dsd_jax.config import FluxConfig
from dsd_jax.convert.flux.bfl import flux_bfl
from dsd_jax.convert.flux.diffusers import flux_diffusers
from dsd_jax.convert.hub import resolve
from dsd_jax.convert.io import Weights, open_weights
from dsd_jax.convert.lora.inventory import Inventory
from dsd_jax.convert.lora.names import vocabulary
from dsd_jax.convert.lora.read import LORA_FILES, read_lora
from dsd_jax.convert.lora.settings import find_settings
from dsd_jax.convert.table.engine import Table
from dsd_jax.errors import UserError
from dsd_jax.lora import Adapter, check_scale
from dsd_jax.types import Shape
from dsd_jax.weights import Index, WeightSource

__all__ = ["EditedSource", "Edits", "Mergeable", "read_mergeables"]


class Edits:
    """The changes in one file, by the names of their dense layers.

    Args:
        weights: the file, which stays open: tensors are read when they are merged.
        held: its tensors, all of which can be merged.
        config: size of the model.

    Raises:
        UserError: tensors that contradict each other or the model.
    """

    def __init__(self, weights: Weights, held: Inventory, config: FluxConfig) -> None:
        self.name = weights.files[0].name
        self._weights, self._held = weights, held
        self._spelled = vocabulary(config).spelled
        self._tables = flux_diffusers(config), flux_bfl(config)
        raw = "raw PEFT" in held.dialects
        self._settings = find_settings(weights.files[0], weights.metadata, raw=raw)
        spelled = held.spelling.values()
        self._told = {} if self._settings is None else self._settings.alphas_of(spelled)
        self.layers = {*held.layers, *held.edits}
        for layer in self.layers:
            self.table_of(layer)
            self._check(layer)

    def table_of(self, layer: str) -> Table:
        """The conversion table that has the layer."""
        for table in self._tables:
            if f"{layer}.weight" in table.their_shapes:
                return table
        raise UserError(f"{self.name} changes {layer} in XLabs' names; merge it where it was made")

    def weight(self, layer: str, before: np.ndarray) -> np.ndarray:
        """The changed weight [out, in], float32, at strength 1."""
        parts = self._held.edits.get(layer, {})
        changed = before + self._delta(layer)
        if "magnitude" in parts:
            magnitude = self._read(parts["magnitude"])
            columns = magnitude.ndim == 2 and magnitude.shape[0] == 1 < changed.shape[0]
            norm = np.linalg.norm(changed, axis=0 if columns else 1, keepdims=True)
            changed = changed * (magnitude.reshape(norm.shape) / norm)
        return changed

    def bias(self, layer: str, before: np.ndarray) -> np.ndarray:
        """The changed bias [out], float32, at strength 1."""
        parts, changed = self._held.edits.get(layer, {}), before
        if "diff_b" in parts:
            changed = changed + self._read(parts["diff_b"])
        if "bias" in parts:
            rank = self._weights.tensors[self._held.layers[layer]["b"]].shape[1]
            changed = changed + self._scale(layer, rank) * self._read(parts["bias"])
        return changed

    def _read(self, tensor: str) -> np.ndarray:
        return self._weights.read(tensor).astype(np.float32)

    def _delta(self, layer: str) -> np.ndarray | np.float32:
        factors, parts = self._held.layers.get(layer, {}), self._held.edits.get(layer, {})
        total: np.ndarray | np.float32 = np.float32(0)
        if factors:
            a, b = self._read(factors["a"]), self._read(factors["b"])
            total = total + self._scale(layer, len(a)) * (b @ a)
        if any(part.startswith("lokr") for part in parts):
            w1, rank_1 = self._product(parts, "lokr_w1")
            w2, rank_2 = self._product(parts, "lokr_w2")
            rank = rank_1 or rank_2
            total = total + (self._scale(layer, rank) if rank else 1) * np.kron(w1, w2)
        if any(part.startswith("hada") for part in parts):
            w1, rank = self._product(parts, "hada_w1")
            w2, _ = self._product(parts, "hada_w2")
            total = total + self._scale(layer, rank) * (w1 * w2)
        if "diff" in parts:
            total = total + self._read(parts["diff"])
        return total

    def _product(self, parts: Mapping[str, str], name: str) -> tuple[np.ndarray, int]:
        """Reads a matrix, stored as one tensor or as two factors; their rank, or 0 for one."""
        if name in parts:
            return self._read(parts[name]), 0
        a, b = self._read(parts[f"{name}_a"]), self._read(parts[f"{name}_b"])
        return a @ b, len(b)

    def _scale(self, layer: str, rank: int) -> np.float32:
        alpha, root = self._held.alphas.get(layer), False
        if alpha is None and self._settings is not None:
            alpha = self._told[self._held.spelling[layer]]
            root = self._settings.rank_stabilised
        if alpha is None:
            return np.float32(1)
        return np.float32(alpha / (math.sqrt(rank) if root else rank))

    def _check(self, layer: str) -> None:
        """Compares the shapes of a change's tensors with the layer's, before any work is done."""
        out, inputs = self._spelled[layer].shape
        held = {
            part: self._weights.tensors[name].shape
            for part, name in self._held.edits.get(layer, {}).items()
        }
        wanted: dict[str, list[Shape]] = {
            "diff": [(out, inputs)],
            "diff_b": [(out,)],
            "bias": [(out,)],
            "magnitude": [(out,), (out, 1), (1, inputs)],
        }
        wrong = [part for part, shapes in wanted.items() if held.get(part, shapes[0]) not in shapes]
        if "bias" in held and layer not in self._held.layers:
            wrong.append("bias")
        for kind in ("lokr", "hada"):
            if any(part.startswith(kind) for part in held):
                sides = [_matrix(held, f"{kind}_w{number}") for number in (1, 2)]
                first, second = (side or (0, 0) for side in sides)
                made = (first[0] * second[0], first[1] * second[1]) if kind == "lokr" else first
                if made != (out, inputs) or (kind == "hada" and first != second):
                    wrong.append(kind)
        if wrong:
            shown = {part: list(shape) for part, shape in held.items()}
            raise UserError(
                f"{self.name}: {layer} has {shown}, which does not make up a change of its weight "
                f"{[out, inputs]}"
            )


def _matrix(shapes: Mapping[str, Shape], name: str) -> tuple[int, int] | None:
    """Shape of a matrix that is stored as one tensor or as two factors; None if it is neither."""
    if name in shapes:
        whole = shapes[name]
        return (whole[0], whole[1]) if len(whole) == 2 else None
    a, b = shapes.get(f"{name}_a", ()), shapes.get(f"{name}_b", ())
    if len(a) == len(b) == 2 and a[1] == b[0] > 0:
        return a[0], b[1]
    return None


Mergeable: TypeAlias = Adapter | Edits


def read_mergeables(
    paths: Sequence[epath.PathLike], scales: Sequence[float], config: FluxConfig
) -> tuple[list[tuple[Mergeable, float]], list[str]]:
    """Reads adapters of any kind for merging, each with its strength.

    Args:
        paths: files, folders, or hub ids.
        scales: one for each path; without any, all are 1.
        config: size of the model they are for.

    Returns:
        The adapters, and notices for the user.

    Raises:
        UserError: a file cannot be read or merged, or the counts differ.
    """
    each = list(scales) or [1.0] * len(paths)
    if len(each) != len(paths):
        raise UserError(f"{len(paths)} LoRA files but {len(each)} scales; give as many")
    for scale in each:
        check_scale(scale)
    made: list[tuple[Mergeable, float]] = []
    notices: list[str] = []
    for path, scale in zip(map(resolve, paths), each, strict=True):
        weights = open_weights(path, usual=LORA_FILES)
        held = Inventory(vocabulary(config), weights, merging=True)
        if not held.edits:
            weights.close()
            adapter, report = read_lora(path, config)
            notices += report.notices
            made.append((adapter, scale))
            continue
        held.refuse(weights.files[0], config)
        if held.condition:
            raise UserError(
                f"{weights.files[0]} holds a condition embedding beside changes that are no LoRA; "
                "save the embedding to a file of its own"
            )
        edits = Edits(weights, held, config)
        notices.append(f"{edits.name} changes {len(edits.layers)} layers, merged one by one")
        made.append((edits, scale))
    return made, notices


class EditedSource:
    """Base weights that are changed while they are read; float32 throughout.

    Attribute `sums`: paths of the parameters that change.
    """

    def __init__(self, base: WeightSource, edits: Edits, strength: float) -> None:
        self._base, self._edits, self._strength = base, edits, np.float32(strength)
        self._changed: dict[str, list[tuple[Table, str]]] = {}
        for layer in edits.layers:
            table = edits.table_of(layer)
            for tensor in (f"{layer}.weight", f"{layer}.bias"):
                for piece in table.by_theirs.get(tensor, ()):
                    self._changed.setdefault(piece.ours, []).append((table, tensor))
        self.sums = self._changed.keys()

    @property
    def shapes(self) -> Mapping[str, Shape]:
        return self._base.shapes

    @property
    def dtypes(self) -> Mapping[str, np.dtype]:
        return dict.fromkeys(self._base.dtypes, np.dtype(np.float32))

    def read(self, path: str, index: Index) -> np.ndarray:
        whole = self._whole(path)
        if path in self._changed:
            whole = np.array(whole)
            for table, tensor in self._changed[path]:
                after = self._after(table, tensor)
                for piece in table.by_theirs[tensor]:
                    if piece.ours == path:
                        whole[piece.our_box] = piece.read(after)
        return whole[index]

    def _whole(self, path: str) -> np.ndarray:
        full = tuple(slice(0, size) for size in self.shapes[path])
        return self._base.read(path, full).astype(np.float32)

    def _after(self, table: Table, tensor: str) -> np.ndarray:
        """Reads a tensor under the file format's name and changes it."""
        before = np.empty(table.their_shapes[tensor], np.float32)
        for piece in table.by_theirs[tensor]:
            before[piece.their_box] = piece.write(self._whole(piece.ours)[piece.our_box])
        layer, _, kind = tensor.rpartition(".")
        change = self._edits.weight if kind == "weight" else self._edits.bias
        after = change(layer, before)
        if self._strength != 1:
            after = before + self._strength * (after - before)
        return after
