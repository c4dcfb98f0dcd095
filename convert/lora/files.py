"""LoRA files of every dialect -> `Adapter`, and back to those of PEFT and kohya.

Scaling is where LoRA files go wrong. Here alpha / rank is folded into B while reading, in float32
and only where it is not 1, so that other factors keep their bits. Files are written with alpha
equal to rank, in the header (PEFT) or as tensors (kohya), so that no reader can scale them again.
Where a file tells no alpha, alpha is the rank, as diffusers and kohya's readers have it.

The condition embedding of Diffusion Self-Distillation is trained in full and travels in the same
file, as `transformer.c_embedder.*` (PEFT) or `cond_in.*` (kohya). Such files load in diffusers: a
transformer without that layer passes over the two tensors, one that has it takes them.
"""

import collections
import dataclasses
import itertools
import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from dsd_jax.config import FluxConfig
from dsd_jax.convert.io import open_weights
from dsd_jax.convert.lora.inventory import Inventory
from dsd_jax.convert.lora.layout import Factors, Slot, common_dtype
from dsd_jax.convert.lora.names import Vocabulary, vocabulary
from dsd_jax.convert.lora.settings import PEFT_CONFIG, find_settings, header_for
from dsd_jax.convert.writer import write_weights
from dsd_jax.errors import UserError
from dsd_jax.lora import TARGETS, Adapter
from dsd_jax.types import DTypeLike

__all__ = ["LoraReport", "read_lora", "write_lora"]

_DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"
_PEFT_FILE = "adapter_model.safetensors"
_LETTERS = "qkv"  # what a Linear of ours holds three of


@dataclasses.dataclass(frozen=True)
class LoraReport:
    """What a LoRA file was.

    Attributes:
        dialect: in whose manner its tensors are named.
        ranks, alphas: every rank and alpha in it, ascending; no alphas if it tells none.
        targets: a key of `dsd_jax.lora.TARGETS` if it adapts exactly that, else our paths.
        linears: number of adapted dense layers, counting q, k and v apart (the DSD release: 266).
        notices: what the user should know, one sentence each.
    """

    dialect: str
    ranks: tuple[int, ...]
    alphas: tuple[float, ...]
    targets: str | tuple[str, ...]
    linears: int
    notices: tuple[str, ...] = ()

    def __str__(self) -> str:
        if not self.linears:
            return "a condition embedding without LoRA"
        ranks = ", ".join(map(str, self.ranks))
        alphas = ", ".join(f"{alpha:g}" for alpha in self.alphas) or "as rank"
        targets = self.targets if isinstance(self.targets, str) else ", ".join(self.targets)
        return (
            f"{self.dialect} LoRA: rank {ranks}, alpha {alphas}, {self.linears} layers, {targets}"
        )


# Reading


def read_lora(path: str | os.PathLike[str], config: FluxConfig) -> tuple[Adapter, LoraReport]:
    """Reads a LoRA of any dialect: PEFT and diffusers, kohya, OneTrainer, XLabs, ComfyUI.

    Args:
        path: a safetensors file, or a folder with `pytorch_lora_weights.safetensors` or
            `adapter_model.safetensors`. The alpha of raw PEFT files is in the
            `adapter_config.json` beside them.
        config: size of the model it is for.

    Returns:
        The adapter, with alpha / rank folded into B, and what the file was.

    Raises:
        UserError: nothing to read, a damaged file, or an adapter that this model cannot hold; the
            message lists everything that is wrong.
    """
    names = vocabulary(config)
    with open_weights(_find(Path(path))) as weights:
        file = weights.files[0]
        held = Inventory(names, weights)
        held.refuse(file, config)
        settings = find_settings(file, weights.metadata, raw="raw PEFT" in held.dialects)
        slots: dict[Slot, Factors] = {}
        alphas = set()
        for layer, parts in held.layers.items():
            a, b = weights.read(parts["a"]), weights.read(parts["b"])
            alpha, scale = held.alphas.get(layer), 1.0
            if alpha is not None:
                scale = alpha / len(a)
            elif settings is not None:
                alpha = settings.alpha_of(held.spelling[layer])
                scale = alpha / (math.sqrt(len(a)) if settings.rank_stabilised else len(a))
            if alpha is not None:
                alphas.add(alpha)
            if scale != 1:
                b = b.astype(np.float32) * np.float32(scale)
            slots |= names.spelled[layer].to_ours(a, b)
        pieces = {piece.ours: piece for piece in names.condition.values()}
        full = {
            ours: pieces[ours].read(weights.read(name)) for ours, name in held.condition.items()
        }

    notices = [f"{n} tensors {what} were left aside" for what, n in held.aside.items()]
    if "raw PEFT" in held.dialects and not alphas:
        notices.append(f"no {PEFT_CONFIG} beside {file.name}: alpha is taken to be the rank")
    if full and not config.condition_embed:
        notices.append(f"{file.name} brings a condition embedding, which the model does not have")
    report = LoraReport(
        dialect=" and ".join(sorted(held.dialects)),
        ranks=tuple(sorted({len(factors["lora_b"]) for factors in slots.values()})),
        alphas=tuple(sorted(alphas)),
        targets=_targets(slots, names.slots),
        linears=len(slots),
        notices=tuple(notices),
    )
    return Adapter(_assemble(slots), full, name=file.name), report


def _find(path: Path) -> Path:
    """The LoRA file of a folder by its usual names; else the path itself."""
    usual = [path / name for name in (_DIFFUSERS_FILE, _PEFT_FILE)]
    return next((file for file in usual if file.is_file()), path)


def _assemble(slots: Mapping[Slot, Factors]) -> dict[str, np.ndarray]:
    """Factors by path: q, k and v of one Linear together, lower ranks filled up with zeros."""
    factors: dict[str, np.ndarray] = {}
    by_path = itertools.groupby(sorted(slots, key=str), lambda slot: slot[0])
    for path, group in ((path, list(group)) for path, group in by_path):
        if group[0][1] is None:
            factors |= {f"{path}.{name}": array for name, array in slots[group[0]].items()}
            continue
        own = {index: slots[path, index] for _, index in group}
        rank = max(len(part["lora_b"]) for part in own.values())
        some = next(iter(own.values()))
        a = np.zeros(
            (*some["lora_a"].shape[:-1], len(_LETTERS), rank),
            common_dtype(part["lora_a"] for part in own.values()),
        )
        b = np.zeros(
            (len(_LETTERS), rank, *some["lora_b"].shape[1:]),
            common_dtype(part["lora_b"] for part in own.values()),
        )
        for index, part in own.items():
            used = slice(len(part["lora_b"]))
            a[..., index, used], b[index, used] = part["lora_a"], part["lora_b"]
        factors |= {f"{path}.lora_a": a, f"{path}.lora_b": b}
    return factors


def _targets(slots: Iterable[Slot], every: Iterable[Slot]) -> str | tuple[str, ...]:
    """The name of a set of targets, or our paths with ranges of layers and which of q, k, v."""
    adapted = set(slots)
    for name, patterns in TARGETS.items():
        wanted = {
            slot
            for slot in every
            if any(re.fullmatch(p, re.sub(r"\.\d+(?=\.)", "", slot[0])) for p in patterns)
        }
        if adapted == wanted:
            return name
    letters: dict[str, str] = collections.defaultdict(str)
    for path, index in sorted(adapted, key=str):
        letters[path] += "" if index is None else _LETTERS[index]
    layers: dict[str, list[int]] = collections.defaultdict(list)
    for path, own in letters.items():
        shown = f"{path}[{own}]" if own not in ("", _LETTERS) else path
        number = re.search(r"\.(\d+)\.", shown)
        layers[re.sub(r"\.\d+\.", ".{}.", shown)] += [int(number[1])] if number else []
    return tuple(path.format(_ranges(sorted(own))) for path, own in sorted(layers.items()))


def _ranges(numbers: list[int]) -> str:
    """[0, 1, 2, 5] -> "0-2,5"."""
    runs = [
        [number for _, number in run]
        for _, run in itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])
    ]
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


# Writing


def write_lora(
    path: str | os.PathLike[str],
    adapter: Adapter,
    config: FluxConfig,
    layout: str = "peft",
    dtype: DTypeLike | None = None,
    *,
    overwrite: bool = False,
) -> Path:
    """Writes an adapter as one safetensors file.

    In kohya's layout q, k, v (and mlp) share a tensor: one adapter of their rank if their A factors
    are equal, else all side by side, with the sum of their ranks.

    Args:
        path: a file ending in `.safetensors`; else a folder, for
            `pytorch_lora_weights.safetensors`.
        adapter: at scale 1. Rank components that are zero in both factors are left out.
        config: size of the model it is for.
        layout: "peft", as diffusers writes it, or "kohya", as sd-scripts and ComfyUI do.
        dtype: cast to it; by default factors keep theirs.
        overwrite: replace a file of this name.

    Returns:
        The file.

    Raises:
        UserError: the adapter is empty or does not fit the model, or the place is not writable.
    """
    if layout not in ("peft", "kohya"):
        raise UserError(f"unknown LoRA layout {layout!r}; choose peft or kohya")
    names = vocabulary(config)
    slots = _split(adapter, names)
    pairs = {
        name: pair
        for name, dense in (names.diffusers if layout == "peft" else names.bfl).items()
        if (pair := dense.to_theirs({s: slots[s] for s in dense.slots if s in slots})) is not None
    }
    if not pairs and not adapter.full:
        raise UserError(f"{adapter.name} is empty: every factor is zero; train it first")
    tensors: dict[str, np.ndarray] = {}
    for name, (a, b) in pairs.items():
        if layout == "peft":
            tensors |= {f"transformer.{name}.lora_A.weight": a}
            tensors |= {f"transformer.{name}.lora_B.weight": b}
        else:
            spelled = f"lora_unet_{name.replace('.', '_')}"
            tensors |= {f"{spelled}.lora_down.weight": a, f"{spelled}.lora_up.weight": b}
            tensors |= {f"{spelled}.alpha": np.array(len(a), np.float32)}
    for name, piece in names.condition.items():
        if piece.ours in adapter.full and name.startswith("c_embedder") == (layout == "peft"):
            prefix = "transformer." if layout == "peft" else ""
            tensors[f"{prefix}{name}"] = piece.write(adapter.full[piece.ours])
    if dtype is not None:
        tensors = {
            name: tensor if name.endswith(".alpha") else tensor.astype(dtype)
            for name, tensor in tensors.items()
        }
    ranks = {name: len(a) for name, (a, _) in pairs.items()}
    file = Path(path) if Path(path).suffix == ".safetensors" else Path(path) / _DIFFUSERS_FILE
    write_weights(
        file,
        {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()},
        tensors.items(),
        metadata=header_for(ranks, names.diffusers) if layout == "peft" and ranks else None,
        overwrite=overwrite,
    )
    return file


def _split(adapter: Adapter, names: Vocabulary) -> dict[Slot, Factors]:
    """The factors of every slot, views of the adapter's.

    Raises:
        UserError: the adapter does not fit the model.
    """
    dense_of = {slot: dense for dense in names.diffusers.values() for slot in dense.slots}
    slots_of: dict[str, list[Slot]] = collections.defaultdict(list)
    for slot in dense_of:
        slots_of[slot[0]].append(slot)
    held: dict[str, Factors] = collections.defaultdict(dict)
    for path, factor in adapter.factors.items():
        layer, _, name = path.rpartition(".")
        held[layer][name] = factor

    slots: dict[Slot, Factors] = {}
    shapes = {
        piece.ours: tuple(side.stop for side in piece.our_box) for piece in names.condition.values()
    }
    wrong = [
        f"{path} has shape {tensor.shape}, expected {shapes[path]}"
        if path in shapes
        else f"{path} cannot travel with a LoRA"
        for path, tensor in adapter.full.items()
        if tensor.shape != shapes.get(path)
    ]
    for layer, factors in held.items():
        if layer not in slots_of:
            wrong.append(f"the model has no {layer}")
            continue
        for slot in slots_of[layer]:
            own = _select(factors, slot[1])
            found = {name: factor.shape for name, factor in own.items()}
            rank = (found.get("lora_b") or (0,))[0]
            expected = dense_of[slot].shapes(slot, rank)
            if found != expected:
                wrong.append(f"{layer} has factors {found}, expected {expected}")
                break
            slots[slot] = own
    if wrong:
        more = f"\n  and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        listed = "\n  ".join(wrong[:8])
        raise UserError(f"{adapter.name} does not fit this FLUX.1 model:\n  {listed}{more}")
    return slots


def _select(factors: Factors, index: int | None) -> Factors:
    """One of q, k and v, or the factors as they are."""
    if index is None:
        return factors
    return {
        name: factor[index] if name == "lora_b" else factor[..., index, :]
        for name, factor in factors.items()
        if factor.ndim > 2 and factor.shape[0 if name == "lora_b" else -2] == len(_LETTERS)
    }
