"""The contents of a LoRA file. One message lists everything that is wrong with it."""

import collections
import math
from pathlib import Path

import jax.numpy as jnp

from dsd_jax.config import FluxConfig
from dsd_jax.convert.io import Weights
from dsd_jax.convert.lora.layout import Slot
from dsd_jax.convert.lora.names import REFUSED, Name, Vocabulary, guess_model, parse_name
from dsd_jax.errors import UserError

__all__ = ["Inventory"]

_SHOWN = 4  # names listed per heading
_ADDED = ("difference", "bias")  # kinds that change nothing where they are zero
_MERGEABLE = {"dora", "lycoris", "bias", "difference"}  # kinds of which some can be merged
_ROWS = 1024
_HEADINGS = {
    "unknown": "tensors of layers that this model lacks",
    "shape": "tensors of wrong shape",
    "dtype": "tensors that are not floating point",
    "partner": "tensors without their other half (A and B, or lora_down and lora_up)",
    "rank": "layers whose A and B differ in rank",
    "twice": "layers given twice",
    "alpha": "alphas that are not a number above 0",
    "adapters": "adapters in one file, save them one by one",
    **{kind: f"tensors are {what}" for kind, (_, what) in REFUSED.items() if kind != "unknown"},
}


class Inventory:
    """The tensors of a file by what they are to the model.

    Attributes:
        layers: name of a dense layer -> {"a": tensor name, "b": tensor name}.
        spelling: name of a dense layer -> what the file calls it, without prefix.
        alphas: name of a dense layer -> alpha, where it has a tensor for it.
        edits: name of a dense layer -> part of a change -> tensor name (see `edits`).
        condition: name of a tensor of the condition embedding in the tables -> tensor name.
        dialects: dialect -> number of tensors in it.
        aside: kind of tensors that are left out -> their number.
    """

    def __init__(self, names: Vocabulary, weights: Weights, *, merging: bool = False) -> None:
        self._names, self._weights = names, weights
        self._wrong: dict[str, list[str]] = collections.defaultdict(list)
        self.layers: dict[str, dict[str, str]] = {}
        self.spelling: dict[str, str] = {}
        self.alphas: dict[str, float] = {}
        self.edits: dict[str, dict[str, str]] = {}
        self.condition: dict[str, str] = {}
        self.dialects: collections.Counter[str] = collections.Counter()
        self.aside: collections.Counter[str] = collections.Counter()
        self._widths: set[int] = set()  # sizes of layers that do not fit
        self._unmergeable = False  # something is in the file that not even merging can use
        alphas: dict[str, str] = {}
        adapters: set[str] = set()
        for actual in weights.tensors:
            name = parse_name(actual)
            if name.kind == "aside":
                self.aside[name.layer] += 1
            elif name.kind == "condition":
                self._add_condition(actual, name.layer)
            elif name.kind in _ADDED and self._is_zero(actual):
                self.aside["that are zero differences"] += 1
            elif merging and name.part and name.layer in names.spelled:
                dense = names.spelled[name.layer]
                self.spelling.setdefault(dense.name, name.layer)
                self._add(self.edits.setdefault(dense.name, {}), name.part, actual)
                self._check_dtype(actual)
            elif name.kind in REFUSED:
                self._wrong[name.kind].append(actual)
                self._unmergeable |= not name.part or name.layer not in names.spelled
            elif name.layer not in names.spelled:
                self._wrong["unknown"].append(actual)
            elif name.kind == "alpha":
                self._add(alphas, names.spelled[name.layer].name, actual)
            else:
                adapters.add(name.adapter)
                self._add_factor(actual, name)
        if len(adapters) > 1:
            self._wrong["adapters"] = sorted(adapter or "(no name)" for adapter in adapters)
        self._pair()
        for layer, actual in alphas.items():
            self._add_alpha(layer, actual)

    def _add(self, place: dict[str, str], key: str, actual: str) -> None:
        if place.setdefault(key, actual) != actual:
            self._wrong["twice"].append(f"{place[key]} and {actual}")

    def _add_condition(self, actual: str, name: str) -> None:
        self._check(actual, self._names.condition[name].their_shape)
        self._add(self.condition, self._names.condition[name].ours, actual)

    def _add_factor(self, actual: str, name: Name) -> None:
        dense = self._names.spelled[name.layer]
        out, inputs = dense.shape
        self._check(actual, (None, inputs) if name.kind == "a" else (out, None))
        self.spelling.setdefault(dense.name, name.layer)
        self.dialects[name.dialect] += 1
        self._add(self.layers.setdefault(dense.name, {}), name.kind, actual)

    def _check(self, actual: str, expected: tuple[int | None, ...]) -> None:
        """Shape and dtype; None in the shape is the rank, any number above 0."""
        info = self._weights.tensors[actual]
        fits = len(info.shape) == len(expected) and all(
            size > 0 if wanted is None else size == wanted
            for size, wanted in zip(info.shape, expected, strict=True)
        )
        if not fits:
            shown = ", ".join("rank" if size is None else str(size) for size in expected)
            self._wrong["shape"].append(f"{actual} {list(info.shape)}, expected [{shown}]")
            self._widths |= set(info.shape)
        self._check_dtype(actual)

    def _check_dtype(self, actual: str) -> None:
        dtype = self._weights.tensors[actual].dtype
        if not jnp.issubdtype(dtype, jnp.floating):
            self._wrong["dtype"].append(f"{actual} {dtype}")

    def _is_zero(self, actual: str) -> bool:
        """Whether a tensor changes nothing; it is read a part at a time."""
        rows = max(1, (self._weights.tensors[actual].shape or (1,))[0])
        if not self._weights.tensors[actual].shape:
            return not self._weights.read(actual).any()
        return not any(
            self._weights.read(actual, slice(start, start + _ROWS)).any()
            for start in range(0, rows, _ROWS)
        )

    def _pair(self) -> None:
        """Every A needs a B of the same rank, and none of our slots may be adapted twice."""
        tensors = self._weights.tensors
        owners: dict[Slot, str] = {}
        twice: dict[str, None] = {}
        for layer, parts in self.layers.items():
            if len(parts) < 2:
                self._wrong["partner"] += parts.values()
                continue
            a, b = tensors[parts["a"]].shape, tensors[parts["b"]].shape
            if len(a) == len(b) == 2 and a[0] != b[1]:
                self._wrong["rank"].append(f"{self.spelling[layer]}, A {a[0]} and B {b[1]}")
            for slot in self._names.spelled[layer].slots:
                if (other := owners.setdefault(slot, layer)) != layer:
                    twice[f"{self.spelling[other]} and {self.spelling[layer]}"] = None
        self._wrong["twice"] += twice

    def _add_alpha(self, layer: str, actual: str) -> None:
        shape = self._weights.tensors[actual].shape
        single = math.prod(shape) == 1
        alpha = float(self._weights.read(actual).reshape(-1)[0]) if single else math.nan
        if layer not in self.layers and layer not in self.edits:
            self._wrong["partner"].append(actual)
        elif not 0 < alpha < math.inf:
            given = f"is {alpha:g}" if single else f"has shape {list(shape)}"
            self._wrong["alpha"].append(f"{actual} {given}")
        else:
            self.alphas[layer] = alpha

    def refuse(self, file: Path, config: FluxConfig, other_size: str = "") -> None:
        """Raises one error that lists everything that is wrong, if anything is.

        Args:
            file: the file, for the message.
            config: size of the model.
            other_size: advice for a LoRA that was made for a model of another size.

        Raises:
            UserError: nothing in the file is for this model, or something in it does not fit.
        """
        wrong = {kind: names for kind, names in self._wrong.items() if names}
        foreign = [name for kind in ("unknown", "full") for name in wrong.get(kind, ())]
        other = guess_model(foreign, sorted(self._widths))
        misfits = sum(len(wrong.get(kind, ())) for kind in ("shape", "unknown"))
        if other_size and not other and self.layers and 2 * misfits > len(self._weights.tensors):
            raise UserError(
                f"{file} was made for a FLUX.1 of another size than {config.double_depth} double "
                f"and {config.single_depth} single blocks of width {config.width}; {other_size}"
            )
        held = self.layers or self.condition or self.edits
        if not held and wrong.keys() <= {"unknown", "full"}:
            given = ", ".join([*foreign, *self._weights.tensors][:3]) or "no tensors"
            what = f"is for {other}, not FLUX.1" if other else "is not a LoRA of FLUX.1"
            raise UserError(
                f"{file} {what}: it holds {given}; expected names such as "
                "transformer.transformer_blocks.0.attn.to_q.lora_A.weight"
            )
        if not wrong:
            return
        guess = f" (is it for {other}?)" if other else ""
        size = f"{config.double_depth} double and {config.single_depth} single blocks"
        model = f"this FLUX.1 model of {size}, width {config.width}"
        text = [f"{file} does not fit {model}{guess}"]
        for kind, heading in _HEADINGS.items():
            if names := wrong.get(kind):
                more = f"; and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
                text.append(f"  {len(names)} {heading}: {'; '.join(names[:_SHOWN])}{more}")
        if wrong.keys() <= _MERGEABLE and not self._unmergeable:
            text.append(
                "  merge it into full weights instead: dsd convert to-torch BASE OUT --lora_path "
                f"{file}"
            )
        raise UserError("\n".join(text))
